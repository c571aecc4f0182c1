// SPDX-License-Identifier: Apache-2.0
import { type Kind } from '../dataplane/codec.ts';
import { layout } from '../dataplane/layout.gen.ts';
import { type MapName, mapNames, openTables } from '../dataplane/tables.ts';
import { splitReason } from '../dataplane/counters.ts';
import { RipstopError } from '../errors.ts';

export interface MapRow {
  readonly name: MapName;
  readonly id: number;
  readonly type: string;
  readonly key: string;
  readonly value: string;
  /** Entries that are not all zero. */
  readonly used: number;
  readonly maxEntries: number;
}

/** One entry, decoded by the layout, or as hexadecimal bytes. */
export interface MapEntry {
  readonly key: unknown;
  readonly value: unknown;
}

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
      used: dumpMap(bpffs, name, true).length,
      maxEntries: info.maxEntries,
    };
  });
}

/**
 * The entries of one map; array slots that hold nothing but zeros are left out. Per-CPU values are summed in the decoded
 * form, and one after the other in the raw one.
 * @throws RipstopError for a name that no map has.
 */
export function dumpMap(bpffs: string, name: string, raw: boolean): MapEntry[] {
  if (!(name in layout.maps)) {
    throw new RipstopError(`there is no map "${name}"; the maps are ${mapNames.join(', ')}`, { exitCode: 2 });
  }
  using tables = openTables(bpffs);
  const table = tables[name as MapName];
  if (name === 'counters') return dumpCounters(tables.counters, raw);
  const rows: MapEntry[] = [];
  const decoded = new Map(
    [...(table.entries() as Iterable<[unknown, unknown]>)].map((entry, i) => [i, entry]),
  );
  let i = 0;
  for (const [key, value] of table.map.entries()) {
    const entry = decoded.get(i++);
    if (value.every((byte) => byte === 0)) continue;
    if (raw) rows.push({ key: hex(key), value: hex(value) });
    else if (entry) rows.push({ key: entry[0], value: named(layout.maps[name as MapName].value, entry[1]) });
  }
  return rows;
}

function dumpCounters(table: ReturnType<typeof openTables>['counters'], raw: boolean): MapEntry[] {
  const { REASONS, ...reasons } = layout.enums.reason;
  const { HOOKS, ...hooks } = layout.enums.hook;
  const rows: MapEntry[] = [];
  for (let index = 0; index < HOOKS * REASONS; index++) {
    const perCpu = table.getPerCpu(index) ?? [];
    const sum = perCpu.reduce(
      (total, one) => ({ packets: total.packets + one.packets, bytes: total.bytes + one.bytes }),
      { packets: 0, bytes: 0 },
    );
    if (sum.packets === 0) continue;
    const hook = nameOf(hooks, Math.floor(index / REASONS))
      .replace(/^HOOK_/, '')
      .toLowerCase();
    const { verdict, reason } = splitReason(nameOf(reasons, index % REASONS));
    rows.push(raw ? { key: index, value: perCpu } : { key: { hook, verdict, reason }, value: sum });
  }
  return rows;
}

function nameOf(names: Readonly<Record<string, number>>, value: number): string {
  return Object.keys(names).find((name) => names[name] === value) ?? String(value);
}

/** Members that are flags get their enumerators' names. */
function named(kind: { readonly struct: keyof typeof layout.structs }, value: unknown): unknown {
  const fields: Record<string, { kind: Kind; enum?: keyof typeof layout.enums }> =
    layout.structs[kind.struct].fields;
  return Object.fromEntries(
    Object.entries(value as Record<string, unknown>).map(([name, member]) => {
      const names = fields[name]?.enum;
      return [name, names === undefined ? member : flagNames(layout.enums[names], member as number)];
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
