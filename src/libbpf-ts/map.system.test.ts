// SPDX-License-Identifier: Apache-2.0
import { describe, expect, test } from 'vitest';
import { BatchError, BpfError, BpfMap, possibleCpus, TypedMap, type Codec } from './index.ts';
import { noKernel, TemporaryBpffs, u32, u64 } from './libbpf.support.ts';

const number32: Codec<number> = {
  size: 4,
  encode: (value, into) => new DataView(into.buffer, into.byteOffset).setUint32(0, value, true),
  decode: (bytes) => new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true),
};
const number64: Codec<bigint> = {
  size: 8,
  encode: (value, into) => new DataView(into.buffer, into.byteOffset).setBigUint64(0, value, true),
  decode: (bytes) => new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true),
};

const byKey = ([a]: [Uint8Array, Uint8Array], [b]: [Uint8Array, Uint8Array]) => Buffer.compare(a, b);

describe.skipIf(noKernel)(`a map of bytes${noKernel ? ` (skipped: ${noKernel})` : ''}`, () => {
  test('has exactly the entries that were written', () => {
    using map = BpfMap.create('hash', 'plain', 4, 8, 10);
    expect(map.lookup(u32(1))).toBeUndefined();
    map.update(u32(1), u64(11));
    map.update(u32(2), u64(22));
    expect(map.lookup(u32(1))).toEqual(u64(11));
    expect([...map.keys()].sort((a, b) => Buffer.compare(a, b))).toEqual([u32(1), u32(2)]);
    expect([...map.entries()].sort(byKey)).toEqual([
      [u32(1), u64(11)],
      [u32(2), u64(22)],
    ]);
    expect(map.delete(u32(1))).toBe(true);
    expect(map.delete(u32(1))).toBe(false);
    expect(map.lookup(u32(1))).toBeUndefined();
  });

  test('obeys the update flags and names the call that failed', () => {
    using map = BpfMap.create('hash', 'flags', 4, 8, 1);
    expect(() => map.update(u32(1), u64(1), 'exist')).toThrow(
      'bpf_map_update_elem (map flags) failed: ENOENT, no such file or directory',
    );
    map.update(u32(1), u64(1), 'noexist');
    expect(() => map.update(u32(1), u64(1), 'noexist')).toThrow(/EEXIST/);
    expect(() => map.update(u32(2), u64(1))).toThrow('E2BIG, the map is full');
  });

  test('refuses keys and values of another size before C sees them', () => {
    using map = BpfMap.create('hash', 'sizes', 4, 8, 1);
    expect(() => map.lookup(u64(1))).toThrow('map sizes: the key has 8 bytes, not 4');
    expect(() => map.update(u32(1), u32(1))).toThrow('map sizes: the value has 4 bytes, not 8');
    expect(() => map.deleteBatch([u32(1), u64(1)])).toThrow(RangeError);
  });

  test('allows the deletion of each key during a walk', () => {
    using map = BpfMap.create('hash', 'walk', 4, 8, 100);
    map.updateBatch(Array.from({ length: 100 }, (_, i) => [u32(i), u64(i)]));
    let deleted = 0;
    for (const key of map.keys()) deleted += Number(map.delete(key));
    expect(deleted).toBe(100);
  });

  test.each(['hash', 'array', 'lpm_trie'] as const)('moves many entries of a %s at once', (type) => {
    const count = 10_000;
    const keySize = type === 'lpm_trie' ? 8 : 4;
    const key = (i: number) => (type === 'lpm_trie' ? new Uint8Array([...u32(32), ...u32(i)]) : u32(i));
    using map = BpfMap.create(type, 'many', keySize, 8, count, type === 'lpm_trie' ? 1 : 0);
    map.updateBatch(Array.from({ length: count }, (_, i) => [key(i), u64(i * 3)]));
    const entries = map.lookupBatch().sort(byKey);
    expect(entries.length).toBe(count);
    expect(entries).toEqual(
      Array.from({ length: count }, (_, i) => [key(i), u64(i * 3)] as const).sort(([a], [b]) =>
        Buffer.compare(a, b),
      ),
    );
    if (type === 'array') return;
    const everyOther = Array.from({ length: count }, (_, i) => key(i * 2));
    expect(map.deleteBatch(everyOther)).toBe(count / 2);
    expect(map.lookupBatch().length).toBe(count / 2);
  });

  test('supports empty batches', () => {
    using map = BpfMap.create('hash', 'empty', 4, 8, 10);
    expect(map.lookupBatch()).toEqual([]);
    map.updateBatch([]);
    expect(map.deleteBatch([u32(1)])).toBe(0);
  });

  test('that is full reports how much of a batch it took', () => {
    using map = BpfMap.create('hash', 'full', 4, 8, 5);
    let error: unknown;
    try {
      map.updateBatch(Array.from({ length: 9 }, (_, i) => [u32(i), u64(i)]));
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(BatchError);
    expect(error).toMatchObject({ code: 'E2BIG', done: 5 });
    expect(map.lookupBatch().length).toBe(5);
  });

  test('per CPU has a value for each, without the padding', () => {
    using map = BpfMap.create('percpu_hash', 'cpus', 4, 12, 4);
    expect(map.lookupPerCpu(u32(1))).toBeUndefined();
    const value = new Uint8Array(12).fill(5);
    map.update(u32(1), value);
    map.updateBatch([[u32(2), value]]);
    expect(map.lookupPerCpu(u32(1))).toEqual(Array.from({ length: possibleCpus() }, () => value));
    expect(map.lookupPerCpu(u32(2))?.length).toBe(possibleCpus());
    const different = Array.from({ length: possibleCpus() }, (_, cpu) => value.map((byte) => byte + cpu));
    map.updatePerCpu(u32(1), different);
    expect(map.lookupPerCpu(u32(1))).toEqual(different);
    expect(() => map.updatePerCpu(u32(1), [])).toThrow('0 values');
    expect(() => map.lookup(u32(1))).toThrow('use lookupPerCpu');
  });

  test('is found again by its pin and by its id', () => {
    using bpffs = new TemporaryBpffs();
    using map = BpfMap.create('hash', 'found', 4, 8, 1);
    map.update(u32(1), u64(77));
    map.pin(bpffs.file('found'));
    using pinned = BpfMap.openPinned(bpffs.file('found'));
    using byId = BpfMap.fromId(map.info.id);
    expect([pinned.lookup(u32(1)), byId.info]).toEqual([u64(77), map.info]);
    expect(() => BpfMap.openPinned(bpffs.file('lost'))).toThrow(BpfError);
  });
});

describe.skipIf(noKernel)('a typed map', () => {
  test('behaves like a Map of values', () => {
    using bytes = BpfMap.create('hash', 'typed', 4, 8, 100);
    const map = new TypedMap(bytes, number32, number64);
    map.set(1, 10n);
    expect([map.get(1), map.get(2), map.has(1), map.has(2)]).toEqual([10n, undefined, true, false]);
    map.setMany(Array.from({ length: 50 }, (_, i) => [i, BigInt(i)] as const));
    expect([...map].sort(([a], [b]) => a - b)).toEqual(Array.from({ length: 50 }, (_, i) => [i, BigInt(i)]));
    expect(map.deleteMany([1, 2, 3, 1000])).toBe(3);
    expect([...map.keys()].length).toBe(47);
    expect([map.delete(1), map.delete(4)]).toEqual([false, true]);
  });

  test('reads per-CPU values', () => {
    using bytes = BpfMap.create('percpu_array', 'typed_cpu', 4, 8, 1);
    expect(new TypedMap(bytes, number32, number64).getPerCpu(0)).toEqual(
      Array.from({ length: possibleCpus() }, () => 0n),
    );
  });

  test('is refused for a map with other sizes, with both differences', () => {
    using bytes = BpfMap.create('hash', 'other', 8, 4, 1);
    expect(() => new TypedMap(bytes, number32, number64)).toThrow(
      'map other: its keys have 8 bytes, the codec 4; its values have 4 bytes, the codec 8',
    );
  });
});

describe.skipIf(noKernel)(
  `the difference between a map and the desired entries${noKernel ? ` (skipped: ${noKernel})` : ''}`,
  () => {
    test('of a hash has the entries that are missing, different or superfluous', () => {
      using map = BpfMap.create('hash', 'diff', 4, 8, 10);
      const typed = new TypedMap(map, number32, number64);
      typed.setMany([
        [1, 10n],
        [2, 20n],
        [3, 0n],
      ]);
      expect(
        typed.difference([
          [1, 10n],
          [2, 21n],
          [4, 40n],
        ]),
      ).toEqual({
        upserts: [
          [2, 21n],
          [4, 40n],
        ],
        removals: [[3, 0n]],
      });
    });

    test('of a large array skips unused entries', () => {
      using map = BpfMap.create('array', 'slots', 4, 8, 10_000);
      const typed = new TypedMap(map, number32, number64);
      typed.setMany([
        [1, 10n],
        [9_999, 20n],
      ]);
      expect([...typed.entries({ skipZero: true })]).toEqual([
        [1, 10n],
        [9_999, 20n],
      ]);
      expect([...typed.entries()].length).toBe(10_000);
      expect(typed.difference([[1, 10n]], { skipZero: true })).toEqual({
        upserts: [],
        removals: [[9_999, 20n]],
      });
    });
  },
);
