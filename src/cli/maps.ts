// SPDX-License-Identifier: Apache-2.0
import { decode, type Kind } from '../dataplane/codec.ts';
import { readCounters } from '../dataplane/counters.ts';
import { layout } from '../dataplane/layout.gen.ts';
import { type MapName, mapNames, openTables, type Tables } from '../dataplane/tables.ts';
import { RipstopError } from '../errors.ts';
import type { Column } from './table.ts';

export interface MapRow {
  readonly name: MapName;
  readonly id: number;
  readonly type: string;
  readonly key: string;
  readonly value: string;
  /** Entries; of an array, the slots that are not all zero. */
  readonly used: number;
  readonly maxEntries: number;
}

export const mapColumns: Column<MapRow>[] = [
  { title: 'MAP', value: (row) => row.name },
  { title: 'ID', align: 'right', value: (row) => row.id },
  { title: 'TYPE', value: (row) => row.type },
  { title: 'KEY', value: (row) => row.key },
  { title: 'VALUE', value: (row) => row.value },
  { title: 'USED', align: 'right', value: (row) => row.used },
  { title: 'MAX', align: 'right', value: (row) => row.maxEntries },
];

/** One entry, decoded by the layout, or as hexadecimal bytes. */
export interface MapEntry {
  readonly key: unknown;
  readonly value: unknown;
}

export const entryColumns: Column<MapEntry>[] = [
  { title: 'KEY', value: (row) => inline(row.key) },
  { title: 'VALUE', value: (row) => inline(row.value) },
];

export function listMaps(bpffs: string): MapRow[] {
  using tables = openTables(bpffs);
  return mapNames.map((name) => {
    const { info } = tables[name].map;
    return {
      name,
      id: info.id,
      type: info.type,
      key: kindName(layout.maps[name].key),
      value: kindName(layout.maps[name].value),
      used: usedEntries(tables, name).length,
      maxEntries: info.maxEntries,
    };
  });
}

/**
 * The entries of one map; array slots that are all zero are left out. Of per-CPU maps counters are summed when decoded,
 * and others are an entry for each CPU; raw values are one after another.
 * @throws RipstopError for a name that no map has.
 */
export function dumpMap(bpffs: string, name: string, raw: boolean): MapEntry[] {
  const map = mapNames.find((one) => one === name);
  if (map === undefined) {
    throw new RipstopError(`there is no map "${name}"; the maps are ${mapNames.join(', ')}`, { exitCode: 2 });
  }
  using tables = openTables(bpffs);
  if (raw) return usedEntries(tables, map).map(([key, value]) => ({ key: hex(key), value: hex(value) }));
  if (map === 'counters') {
    return readCounters(tables)
      .filter(({ packets }) => packets > 0)
      .map(({ packets, bytes, ...key }) => ({ key, value: { packets, bytes } }));
  }
  const { type, key: keyKind, value: valueKind } = layout.maps[map];
  const decoded = (value: Uint8Array): unknown => named(valueKind, decode<Kind>(valueKind, value));
  const entries = usedEntries(tables, map).map(
    ([key, value]) => [decode<Kind>(keyKind, key), value] as const,
  );
  if (type !== 'percpu_array') return entries.map(([key, value]) => ({ key, value: decoded(value) }));
  const { valueSize } = tables[map].map.info;
  return entries.flatMap(([slot, values]) =>
    Array.from({ length: values.length / valueSize }, (_, cpu) => ({
      key: { slot, cpu },
      bytes: values.subarray(cpu * valueSize, (cpu + 1) * valueSize),
    }))
      .filter(({ bytes }) => bytes.some((byte) => byte !== 0))
      .map(({ key, bytes }) => ({ key, value: decoded(bytes) })),
  );
}

/** Keys and values as the kernel has them. Slots of an array always exist: those that are all zero are left out. */
function usedEntries(tables: Tables, name: MapName): [key: Uint8Array, value: Uint8Array][] {
  const { map } = tables[name];
  const { type } = layout.maps[name];
  const entries =
    type === 'percpu_array'
      ? [...map.keys()].map((key): [Uint8Array, Uint8Array] => [
          key,
          Buffer.concat(map.lookupPerCpu(key) ?? []),
        ])
      : map.lookupBatch();
  return type === 'hash' ? entries : entries.filter(([, value]) => value.some((byte) => byte !== 0));
}

/** Members that are flags get their enumerators' names. */
function named(kind: Kind, value: unknown): unknown {
  if (typeof kind === 'string') return value;
  const fields: Record<string, { kind: Kind; enum?: keyof typeof layout.enums }> =
    layout.structs[kind.struct].fields;
  return Object.fromEntries(
    Object.entries(value as Record<string, unknown>).map(([name, member]) => {
      const field = fields[name]!;
      return [
        name,
        field.enum === undefined
          ? named(field.kind, member)
          : flagNames(layout.enums[field.enum], member as number),
      ];
    }),
  );
}

/** `{PEER_PRESENT: 1, PEER_BEHIND_NAT: 2}`, 3 → `['present', 'behind_nat']`. */
export function flagNames(flags: Readonly<Record<string, number>>, value: number): string[] {
  return Object.entries(flags)
    .filter(([, bit]) => (value & bit) !== 0)
    .map(([name]) => name.slice(name.indexOf('_') + 1).toLowerCase());
}

/** A value on one line: `a=1 b={c=2}`. */
export function inline(value: unknown): string {
  if (Array.isArray(value)) return value.join(',') || '-';
  if (typeof value !== 'object' || value === null) return String(value);
  return Object.entries(value)
    .map(([name, member]) => {
      const nested = typeof member === 'object' && member !== null && !Array.isArray(member);
      return `${name}=${nested ? `{${inline(member)}}` : inline(member)}`;
    })
    .join(' ');
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

function kindName(kind: Kind): string {
  return typeof kind === 'string' ? kind : `struct ${kind.struct}`;
}
