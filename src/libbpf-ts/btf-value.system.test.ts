// SPDX-License-Identifier: Apache-2.0
import { describe, expect, test } from 'vitest';
import { BpfMap, BpfObject, btfDecoder, kernelBtf, readBtf } from './index.ts';
import { fixture, noCompiler, noKernel, TemporaryBpffs } from './libbpf.support.ts';

const peerBytes = Uint8Array.from(
  [
    [10, 42, 1, 0], // address
    [0x21, 0x18], // port 8472
    [0b1101_0101, 0x00], // flags 5, age 26
    [255, 255, 255, 255], // state -1
    [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], // macs
    [0, 0, 0, 0, 1, 0, 0, 0], // packets 2^32
  ].flat(),
);

describe.skipIf(noCompiler)(`bytes, by their BTF${noCompiler ? ` (skipped: ${noCompiler})` : ''}`, () => {
  const btf = readBtf(fixture('basic'));
  const peer = btf.find('struct', 'peer')!.id;

  test('become data: bit fields, enumerators, arrays of arrays, 64-bit numbers', () => {
    expect(btfDecoder(btf, peer)(peerBytes)).toEqual({
      address: 0x0001_2a0a,
      port: 0x1821,
      flags: 5,
      age: 26,
      state: 'PEER_LOST',
      macs: [
        [2, 0, 0, 0, 0, 1],
        [2, 0, 0, 0, 0, 2],
      ],
      packets: 2 ** 32,
    });
  });

  test('keep a number that is not exact as text', () => {
    const bytes = peerBytes.with(31, 0xff);
    expect(btfDecoder(btf, peer)(bytes)).toMatchObject({ packets: String(0xff00_0001_0000_0000n) });
  });

  test('are decoded by who knows more of a type or a member, or left out', () => {
    const decode = btfDecoder(btf, peer, ({ typedefs, member }, plain) => {
      if (typedefs[0] === '__be16') return (bytes) => bytes[0]! * 256 + bytes[1]!;
      if (member === 'peer.address') return (bytes) => bytes.subarray(0, 4).join('.');
      if (member === 'peer.packets') return (bytes) => `${String(plain(bytes))} packets`;
      return member === 'peer.macs' ? null : undefined;
    });
    expect(decode(peerBytes)).toEqual({
      address: '10.42.1.0',
      port: 8472,
      flags: 5,
      age: 26,
      state: 'PEER_LOST',
      packets: '4294967296 packets',
    });
  });

  test('of a section of constants are an object of its variables', () => {
    const section = btf.find('datasec', '.rodata')!;
    const { udp_port: port, verdict } = btfDecoder(
      btf,
      section.id,
    )(new Uint8Array(section.size).fill(1)) as Record<string, unknown>;
    expect({ port, verdict }).toEqual({ port: 0x0101, verdict: 0x0101_0101 });
  });
});

describe.skipIf(noKernel)(`a map of the kernel's${noKernel ? ` (skipped: ${noKernel})` : ''}`, () => {
  test('tells of its types, also to who only has its pin', () => {
    using bpffs = new TemporaryBpffs();
    using object = BpfObject.open(fixture('basic'), { name: 'basic' });
    object.load();
    const map = object.map('peers');
    map.update(Uint8Array.of(10, 42, 1, 0, 24, 0, 0, 0), peerBytes);
    map.pin(bpffs.file('peers'));

    using pinned = BpfMap.openPinned(bpffs.file('peers'));
    const { btfId, keyTypeId, valueTypeId } = pinned.info;
    const btf = kernelBtf(btfId);
    const [[key, value] = []] = pinned.lookupBatch();
    expect(btfDecoder(btf, keyTypeId)(key!)).toMatchObject({ prefix_length: 24 });
    expect(btfDecoder(btf, valueTypeId)(value!)).toMatchObject({ state: 'PEER_LOST', age: 26 });
  });

  test('tells how much memory it takes: more for more entries', () => {
    using small = BpfMap.create('array', 'small', 4, 8, 10);
    using large = BpfMap.create('array', 'large', 4, 8, 10_000);
    expect(small.memoryBytes).toBeGreaterThanOrEqual(80);
    expect(large.memoryBytes - small.memoryBytes).toBeGreaterThanOrEqual(79_000);
  });

  test('is not confused with a program that is pinned', () => {
    using bpffs = new TemporaryBpffs();
    using object = BpfObject.open(fixture('basic'), { name: 'basic' });
    object.load();
    object.program('count_tc').pin(bpffs.file('count_tc'));
    expect(() => BpfMap.openPinned(bpffs.file('count_tc'))).toThrow('is a bpf-prog, not a map');
  });
});
