// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { BpfMap, type MapType } from '#libbpf-ts';
import { TemporaryBpffs } from '../libbpf-ts/libbpf.support.ts';
import { openTables, typedTable } from './tables.ts';

const missing = process.getuid?.() === 0 ? undefined : 'needs root to create BPF maps';

describe.skipIf(missing)(`a table${missing ? ` (skipped: ${missing})` : ''}`, () => {
  let bpffs: TemporaryBpffs;
  beforeAll(() => {
    bpffs = new TemporaryBpffs();
  });
  afterAll(() => bpffs[Symbol.dispose]());

  it('reads and writes a map of its layout', () => {
    using map = BpfMap.create('array', 'endpoint_state', 4, 4, 2);
    const table = typedTable('endpoint_state', map);
    table.set(1, { forwards: 7 });
    expect([...table]).toEqual([
      [0, { forwards: 0 }],
      [1, { forwards: 7 }],
    ]);
  });

  it.each([
    ['peers', 'array', 4, 72, 'its values have 72 bytes, the codec 112'],
    ['vteps', 'hash', 4, 4, 'its keys have 4 bytes, the codec 16'],
    [
      'flows6',
      'hash',
      16,
      48,
      'its keys have 16 bytes, the codec 40; its values have 48 bytes, the codec 104',
    ],
  ] as const)(
    '%s refuses a %s of another layout before a byte is read',
    (name, type: MapType, key, value, why) => {
      using map = BpfMap.create(type, name, key, value, 4);
      expect(() => typedTable(name, map)).toThrow(`map ${name}: ${why}`);
    },
  );

  it('that are not pinned are an error that asks whether the agent runs', () => {
    expect(() => openTables(bpffs.path)).toThrow(`no ripstop maps are pinned below ${bpffs.path}`);
  });
});
