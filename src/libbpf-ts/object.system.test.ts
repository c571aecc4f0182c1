// SPDX-License-Identifier: Apache-2.0
import { existsSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import {
  BpfError,
  BpfMap,
  BpfObject,
  MapMismatchError,
  readBtf,
  setLogSink,
  VerifierError,
} from './index.ts';
import { fixture, noKernel, TemporaryBpffs, u32 } from './libbpf.support.ts';

/** The error that `run` throws. */
function thrownBy(run: () => void): unknown {
  try {
    run();
  } catch (error) {
    return error;
  }
  return undefined;
}

describe.skipIf(noKernel)(`a BPF object${noKernel ? ` (skipped: ${noKernel})` : ''}`, () => {
  test('lists its maps and programs, and returns them once it is loaded', () => {
    using object = BpfObject.open(fixture('basic'), { name: 'basic.v1' });
    expect([...object.mapNames].sort()).toEqual(
      ['.rodata', 'counters', 'events', 'inner_map', 'outer', 'peers', 'per_cpu'].sort(),
    );
    expect([...object.programNames].sort()).toEqual(
      ['count_tc', 'count_tc_next', 'count_xdp', 'mangle', 'use_peers'].sort(),
    );
    expect(() => object.map('peers')).toThrow('load the object before taking peers from it');
    object.load();
    expect(object.map('peers').info).toMatchObject({
      name: 'peers',
      type: 'hash',
      keySize: 8,
      valueSize: 32,
      maxEntries: 1024,
      flags: 1,
    });
    expect(object.program('count_xdp').info).toMatchObject({ name: 'count_xdp', type: 'xdp' });
    expect(() => object.map('piers')).toThrow(/the object has no map piers; it has .*peers/);
  });

  test('closes its maps with itself, and a closed map throws instead of using another file’s descriptor', () => {
    const object = BpfObject.open(fixture('basic'));
    object.load();
    const map = object.map('counters');
    object.close();
    object.close();
    expect(() => map.lookup(u32(0))).toThrow('map counters is closed');
  });

  test('is loaded with the sizes and without the programs of the options', () => {
    using object = BpfObject.open(fixture('basic'), {
      maxEntries: { peers: 7 },
      skipPrograms: ['count_xdp'],
    });
    object.load();
    expect(object.map('peers').info.maxEntries).toBe(7);
    expect(() => object.program('count_xdp')).toThrow(/program count_xdp was skipped/);
  });

  test('gets its settings before it is loaded, at the offsets of its BTF', () => {
    const btf = readBtf(fixture('basic'));
    const places = new Map(
      btf.find('datasec', '.rodata')?.variables.map((v) => {
        const variable = btf.type(v.typeId);
        return [variable.kind === 'var' ? variable.name : '', v.offset] as const;
      }),
    );
    using object = BpfObject.open(fixture('basic'));
    object.patchGlobal('.rodata', places.get('verdict')!, u32(42));
    expect(() => object.patchGlobal('.rodata', 1000, u32(1))).toThrow(/\.rodata has 14 bytes/);
    object.load();
    expect(object.program('mangle').testRun({ data: new Uint8Array(64) }).returnValue).toBe(42);
    expect(() => object.patchGlobal('.rodata', 0, u32(1))).toThrow('only before load');
  });

  test('names the program that the verifier refuses, with the end of its log', () => {
    using object = BpfObject.open(fixture('refused'));
    const error = thrownBy(() => object.load());
    expect(error).toBeInstanceOf(VerifierError);
    const refusal = error as VerifierError;
    expect(refusal).toMatchObject({ program: 'careless', code: 'EACCES', call: 'bpf_object__load' });
    expect(refusal.message).toMatch(
      /^the verifier refused program careless: invalid access to packet, off=0/,
    );
    expect(refusal.message).not.toContain('\n');
    expect(refusal.log).toMatch(/^processed \d+ insns/m);
    expect(refusal.details).toContain("prog 'careless': BPF program load failed");
  });

  test('says what is wrong with a file that is not an object', () => {
    const error = thrownBy(() => BpfObject.open(new Uint8Array(100), { name: 'junk' }));
    expect(error).toBeInstanceOf(BpfError);
    expect(error).toMatchObject({ code: 'FORMAT', call: 'bpf_object__open_mem' });
    expect((error as BpfError).message).toContain("'junk' is not a proper ELF object");
    expect(() => BpfObject.open('/nonexistent.o')).toThrow('ENOENT');
  });

  test('keeps libbpf quiet, unless there is a sink', () => {
    const lines: string[] = [];
    setLogSink((level, line) => lines.push(`${level}: ${line}`));
    try {
      BpfObject.open(fixture('basic')).close();
    } finally {
      setLogSink();
    }
    expect(
      lines.some((line) => line.startsWith("debug: libbpf: map 'peers': found max_entries = 1024")),
    ).toBe(true);
  });
});

describe.skipIf(noKernel)('pinned maps', () => {
  test('are created at the first load, and reused with their entries at the next', () => {
    using bpffs = new TemporaryBpffs();
    const pinPaths = { counters: bpffs.file('counters') };
    using first = BpfObject.open(fixture('basic'), { pinPaths });
    first.load();
    first.map('counters').update(u32(1), new Uint8Array(8).fill(9));
    using second = BpfObject.open(fixture('basic'), { pinPaths });
    second.load();
    expect(second.map('counters').info.id).toBe(first.map('counters').info.id);
    using opened = BpfMap.openPinned(pinPaths.counters);
    expect(opened.lookup(u32(1))).toEqual(new Uint8Array(8).fill(9));
  });

  test('of another layout are refused, with every difference of every map in one error', () => {
    using bpffs = new TemporaryBpffs();
    using hash = BpfMap.create('hash', 'counters', 4, 16, 8);
    using array = BpfMap.create('array', 'per_cpu', 4, 12, 2);
    hash.pin(bpffs.file('counters'));
    array.pin(bpffs.file('per_cpu'));
    using object = BpfObject.open(fixture('basic'), {
      pinPaths: { counters: bpffs.file('counters'), per_cpu: bpffs.file('per_cpu') },
    });
    const error = thrownBy(() => object.load());
    expect(error).toBeInstanceOf(MapMismatchError);
    expect((error as MapMismatchError).differences).toEqual([
      'counters: type is hash, the object wants array',
      'counters: value size is 16, the object wants 8',
      'counters: max entries is 8, the object wants 4',
      'per_cpu: type is array, the object wants percpu_array',
    ]);
    expect((error as Error).message).not.toContain('\n');
  });

  test('are not left behind by a load that fails', () => {
    using bpffs = new TemporaryBpffs();
    const path = bpffs.file('counters');
    using object = BpfObject.open(fixture('refused'), { pinPaths: { counters: path } });
    expect(() => object.load()).toThrow(VerifierError);
    expect(existsSync(path)).toBe(false);
  });

  test('need a directory, which the error names', () => {
    using bpffs = new TemporaryBpffs();
    using object = BpfObject.open(fixture('basic'), { pinPaths: { counters: bpffs.file('none/counters') } });
    expect(() => object.load()).toThrow(/bpf_obj_pin \(map counters at .*none\/counters\) failed: ENOENT/);
  });
});
