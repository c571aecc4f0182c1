// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { BpfObject, BpfProgram, RingBuffer } from './index.ts';
import { fixture, noKernel, TemporaryBpffs, u32 } from './libbpf.support.ts';

/** `struct __sk_buff` of linux/bpf.h: `mark` is its third word. */
const SK_BUFF_BYTES = 192;
const MARK_OFFSET = 8;

function contextWithMark(mark: number): Uint8Array {
  const context = new Uint8Array(SK_BUFF_BYTES);
  context.set(u32(mark), MARK_OFFSET);
  return context;
}

function loaded(): BpfObject {
  const object = BpfObject.open(fixture('basic'));
  object.load();
  return object;
}

describe.skipIf(noKernel)(`a program${noKernel ? ` (skipped: ${noKernel})` : ''}`, () => {
  test('runs on a packet and returns packet, context and verdict', () => {
    using object = loaded();
    const result = object.program('mangle').testRun({
      data: new Uint8Array(64).fill(0xee),
      context: contextWithMark(21),
      contextOut: SK_BUFF_BYTES,
    });
    expect(result.returnValue).toBe(0);
    expect([...result.data.subarray(0, 7)]).toEqual([2, 0, 0, 0, 0, 1, 0xee]);
    expect(result.data.length).toBe(68);
    expect(result.context?.subarray(MARK_OFFSET, MARK_OFFSET + 4)).toEqual(u32(42));
    expect(result.durationNs).toBeGreaterThan(0);
  });

  test('returns the kernel’s action as an unsigned number', () => {
    using object = loaded();
    expect(object.program('count_tc').testRun({ data: new Uint8Array(64) }).returnValue).toBe(0xffff_ffff);
    expect(object.program('count_xdp').testRun({ data: new Uint8Array(64), repeat: 100 }).returnValue).toBe(
      2,
    );
  });

  test('throws ENOSPC when the packet outgrows its buffer', () => {
    using object = loaded();
    const mangle = object.program('mangle');
    expect(() => mangle.testRun({ data: new Uint8Array(64), dataOut: 64 })).toThrow(
      'bpf_prog_test_run_opts (program mangle) failed: ENOSPC',
    );
  });

  test('has information about itself, with the ids of its maps', () => {
    using object = loaded();
    const { info } = object.program('mangle');
    expect(info).toMatchObject({ name: 'mangle', type: 'sched_cls' });
    expect(info.tag).toMatch(/^[0-9a-f]{16}$/);
    expect(new Set(info.mapIds)).toEqual(
      new Set(['events', 'per_cpu', '.rodata'].map((name) => object.map(name).info.id)),
    );
    expect(info.loadedAt).toBeGreaterThan(0n);
    expect(info.xlatedLength).toBeGreaterThan(0);
    expect(info.verifiedInstructions).toBeGreaterThan(0);
  });

  test('lives on in its pin', () => {
    using bpffs = new TemporaryBpffs();
    const object = loaded();
    const { id } = object.program('mangle').info;
    object.program('mangle').pin(bpffs.file('mangle'));
    object.close();
    using pinned = BpfProgram.openPinned(bpffs.file('mangle'));
    using byId = BpfProgram.fromId(id);
    expect([pinned.info.id, byId.info.id]).toEqual([id, id]);
  });
});

describe.skipIf(noKernel)('a ring buffer', () => {
  test('delivers all records in order, also those from before it was opened', async () => {
    using object = loaded();
    const mangle = object.program('mangle');
    const announce = (mark: number) =>
      mangle.testRun({ data: new Uint8Array(64), context: contextWithMark(mark) });
    announce(1);
    announce(2);
    const got: number[] = [];
    let wake: () => void = () => {};
    const ring = new RingBuffer(object.map('events'), (bytes) => {
      got.push(new DataView(bytes.buffer).getUint32(0, true));
      wake();
    });
    const until = async (count: number) => {
      while (got.length < count) await new Promise<void>((resolve) => (wake = resolve));
    };
    await until(2);
    await sleep(5);
    announce(3);
    announce(4);
    await until(4);
    announce(5);
    await until(5);
    expect(got).toEqual([1, 2, 3, 4, 5]);
    ring.close();
    ring.close();
    announce(6);
    await sleep(20);
    expect(got.length).toBe(5);
  });

  test('needs a map of its type', () => {
    using object = loaded();
    expect(() => new RingBuffer(object.map('counters'), () => {})).toThrow(
      /ring_buffer__new \(map counters\) failed: EINVAL/,
    );
  });
});
