// SPDX-License-Identifier: Apache-2.0
/** Maps as `ripstop maps` reads them: ripstop's by name, and any other by its pin or its id. */
import { readdirSync, statSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { BpfMap, BpfProgram } from '#libbpf-ts';
import { readCounters } from '../dataplane/counters.ts';
import { currentGeneration } from '../dataplane/generation.ts';
import { layout } from '../dataplane/layout.gen.ts';
import { mapNames, pinPaths, requirePins, typedTable } from '../dataplane/tables.ts';
import { errorText, RipstopError } from '../errors.ts';
import { listLinks } from '../host/links.ts';
import { intToIpv4, ipv4ToInt } from '../net/ip.ts';
import { hasMembers, hexText, mapDecoders, mapTypes, Shown } from './map-values.ts';
import type { Column } from './table.ts';
import { bytesText } from './text.ts';

/** The programs' constants, as a map: they are in the `.rodata` of each object, which the kernel keeps as one. */
const CONFIG = 'config';

export interface MapRow {
  readonly name: string;
  readonly id: number;
  readonly type: string;
  /** The C types. */
  readonly key: string;
  readonly value: string;
  /** Entries; of an array, the slots that are not all zero. Undefined where they cannot be read. */
  readonly used?: number;
  readonly maxEntries: number;
  /** What the kernel has allocated for it, in bytes. */
  readonly memoryBytes: number;
  readonly pin?: string;
  /** The version of its layout; undefined for maps of others. */
  readonly layout?: number;
}

export const mapColumns: Column<MapRow>[] = [
  { title: 'MAP', value: (row) => row.name },
  { title: 'ID', align: 'right', value: (row) => row.id },
  { title: 'TYPE', value: (row) => row.type },
  { title: 'USED', align: 'right', value: (row) => row.used },
  { title: 'MAX', align: 'right', value: (row) => row.maxEntries },
  {
    title: 'FULL',
    align: 'right',
    value: (row) => (row.used === undefined ? undefined : `${Math.round(fullness(row) * 100)}%`),
    color: (row) => (row.type === 'hash' && fullness(row) > 0.9 ? 'red' : undefined),
  },
  { title: 'MEMORY', align: 'right', value: (row) => bytesText(row.memoryBytes) },
  { title: 'LAYOUT', align: 'right', value: (row) => row.layout },
  { title: 'KEY', wide: true, value: (row) => row.key },
  { title: 'VALUE', wide: true, value: (row) => row.value },
  { title: 'PIN', wide: true, value: (row) => row.pin },
];

const fullness = ({ used = 0, maxEntries }: MapRow): number => used / Math.max(1, maxEntries);

/** One entry, decoded or as hexadecimal bytes. */
export interface MapEntry {
  readonly key: unknown;
  readonly value: unknown;
}

export const entryColumns: Column<MapEntry>[] = [
  { title: 'KEY', value: (row) => inline(row.key) },
  { title: 'VALUE', value: (row) => inline(row.value) },
];

/** An open map. */
export interface OpenMap extends Disposable {
  readonly name: string;
  readonly map: BpfMap;
  readonly pin?: string;
  /** Set for maps of ripstop's. */
  readonly layout?: number;
}

/** ripstop's maps. @throws RipstopError when nothing is pinned. */
export function openOwnMaps(bpffs: string): OpenMap[] {
  requirePins(bpffs);
  const { maps } = pinPaths(bpffs);
  return [
    ...readdirSync(maps)
      .sort()
      .map((name) => openOwn(bpffs, name)),
    ...openConfig(bpffs),
  ];
}

function openOwn(bpffs: string, name: string): OpenMap {
  const { maps } = pinPaths(bpffs);
  const version = currentGeneration({ maps })?.version;
  return { ...openPin(join(maps, name)), ...(version !== undefined && { layout: version }) };
}

function openPin(pin: string): OpenMap {
  const map = openAny(pin, () => BpfMap.openPinned(pin));
  return { name: basename(pin), map, pin, [Symbol.dispose]: () => map.close() };
}

function openConfig(bpffs: string): OpenMap[] {
  const path = join(pinPaths(bpffs).programs, 'from_pod');
  if (!statSync(path, { throwIfNoEntry: false })) return [];
  using program = BpfProgram.openPinned(path);
  for (const id of program.info.mapIds) {
    const map = BpfMap.fromId(id);
    if (map.info.name.endsWith('.rodata'))
      return [{ name: CONFIG, map, [Symbol.dispose]: () => map.close() }];
    map.close();
  }
  return [];
}

/**
 * The map that an operator names: one of ripstop's, a pin by its path, or the id of any map.
 * @throws RipstopError when there is none.
 */
export function openMap(bpffs: string, name: string): OpenMap {
  if (name.includes('/')) return openPin(resolve(name));
  if (/^\d+$/.test(name)) {
    const map = openAny(`map id ${name}`, () => BpfMap.fromId(Number(name)));
    return { name: map.info.name, map, [Symbol.dispose]: () => map.close() };
  }
  const known = [...mapNames, CONFIG];
  if (!known.includes(name)) {
    throw new RipstopError(
      `there is no map "${name}"; the maps are ${known.join(', ')}; others by the path of their pin, or by their id`,
      { exitCode: 2 },
    );
  }
  requirePins(bpffs);
  const [config] = name === CONFIG ? openConfig(bpffs) : [openOwn(bpffs, name)];
  if (!config) throw new RipstopError('no programs are pinned, whose constants `config` are');
  return config;
}

function openAny(what: string, open: () => BpfMap): BpfMap {
  try {
    return open();
  } catch (cause) {
    throw new RipstopError(`cannot open ${what}: ${errorText(cause)}`, { cause });
  }
}

/** What `ripstop maps` lists. @param path a directory of pins, at any depth; undefined: ripstop's own maps. */
export function listMaps(bpffs: string, path?: string): MapRow[] {
  const opened = path === undefined ? openOwnMaps(bpffs) : openPinsBelow(path);
  try {
    return opened.map(rowOf);
  } finally {
    for (const one of opened) one[Symbol.dispose]();
  }
}

/** The maps among the pins of a directory; programs and links are left out. */
function openPinsBelow(path: string): OpenMap[] {
  const files = readdirSync(path, { recursive: true, withFileTypes: true }).filter((file) => file.isFile());
  return files
    .map(({ parentPath, name }) => join(parentPath, name))
    .sort()
    .flatMap((pin) => {
      try {
        const map = BpfMap.openPinned(pin);
        return [{ name: basename(pin), map, pin, [Symbol.dispose]: () => map.close() }];
      } catch (error) {
        // The kernel has files of its own there, and a pin may be gone by now.
        if (error instanceof TypeError || (error as NodeJS.ErrnoException).code === 'ENOENT') return [];
        throw error;
      }
    });
}

function rowOf({ name, map, pin, layout: version }: OpenMap): MapRow {
  const { info, memoryBytes } = map;
  const used = countUsed(map);
  return {
    name,
    id: info.id,
    type: info.type,
    ...mapTypes(map),
    ...(used !== undefined && { used }),
    maxEntries: info.maxEntries,
    memoryBytes,
    ...(pin !== undefined && { pin }),
    ...(version !== undefined && { layout: version }),
  };
}

function countUsed(map: BpfMap): number | undefined {
  try {
    return new Set(usedEntries(map).map(({ key }) => hexText(key))).size;
  } catch {
    return undefined;
  }
}

/** An entry as the kernel has it. In a per-CPU map `value` is that of one CPU, and only of CPUs that have one. */
export interface RawEntry {
  readonly key: Uint8Array;
  readonly cpu?: number;
  readonly value: Uint8Array;
}

/** Slots of an array always exist: those that are all zero are left out. */
export function usedEntries(map: BpfMap): RawEntry[] {
  const isArray = map.info.type.endsWith('array');
  const isUsed = ({ value }: RawEntry): boolean => !isArray || value.some((byte) => byte !== 0);
  if (!map.isPerCpu) {
    return map.lookupBatch({ skipZero: isArray }).map(([key, value]) => ({ key, value }));
  }
  return [...map.keys()].flatMap((key) => {
    const values = map.lookupPerCpu(key) ?? [];
    return values.map((value, cpu) => ({ key, cpu, value })).filter(isUsed);
  });
}

/**
 * The entries of a map, decoded by its own BTF, or as hexadecimal bytes. Values of a per-CPU map are an entry for each
 * CPU; ripstop's counters are summed.
 */
export async function readEntries(bpffs: string, open: OpenMap, raw: boolean): Promise<MapEntry[]> {
  if (raw) return rawEntries(open);
  if (open.name === 'counters' && open.layout === layout.version) {
    return readCounters({ counters: typedTable('counters', open.map) })
      .filter(({ packets }) => packets > 0)
      .map(({ packets, bytes, ...key }) => ({ key, value: { packets, bytes } }));
  }
  const decode = await entryDecoder(bpffs, open);
  const decoded = readable(open, () => usedEntries(open.map)).map(decode);
  return open.name === CONFIG ? decoded.flatMap(({ value }) => constants(value)) : decoded;
}

/** Decodes the entries of one map. */
export async function entryDecoder(bpffs: string, open: OpenMap): Promise<(entry: RawEntry) => MapEntry> {
  const decoders = mapDecoders(open.map, await deviceNames());
  const slotOf = open.layout === undefined ? undefined : slotNames(open.name, await readConfig(bpffs));
  return ({ key, cpu, value }) => {
    const decoded = decoders.key(key);
    const named = slotOf && typeof decoded === 'number' ? slotOf(decoded) : decoded;
    return { key: withCpu(named, cpu), value: decoders.value(value) };
  };
}

/** The entries of a map as hexadecimal bytes. */
export function rawEntries(open: OpenMap): MapEntry[] {
  return readable(open, () => usedEntries(open.map)).map(({ key, cpu, value }) => ({
    key: withCpu(hexText(key), cpu),
    value: hexText(value),
  }));
}

/** @throws RipstopError for maps such as ring buffers, of which the kernel shows no entries. */
function readable<T>({ name, map }: OpenMap, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    throw new RipstopError(`cannot read the entries of ${name} (${map.info.type}): ${errorText(cause)}`, {
      cause,
    });
  }
}

function withCpu(key: unknown, cpu: number | undefined): unknown {
  if (cpu === undefined) return key;
  return hasMembers(key) ? { ...key, cpu } : { key, cpu };
}

/** Names of interfaces by their indexes. */
/** Names of this node's devices by their index. */
export async function deviceNames(): Promise<ReadonlyMap<number, string>> {
  const links = await listLinks();
  return new Map(links.values().map(({ ifindex, name }) => [ifindex, name]));
}

/** The members of the variables in `.rodata`. */
function constants(variables: unknown): MapEntry[] {
  const { config = {} } = variables as { config?: object };
  return Object.entries(config).map(([key, value]) => ({ key, value: value as unknown }));
}

/** Arrays whose slots are the enumerators of bpf/types.h. */
const slotEnums: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  invalidations: layout.enums.cause,
  flow_changes: layout.enums.flow_change,
};

/** What a slot number stands for in our arrays. Undefined for other maps, and where there is no IPv4. */
function slotNames(
  map: string,
  config: ReadonlyMap<string, unknown>,
): ((slot: number) => unknown) | undefined {
  const enumerators = slotEnums[map];
  if (enumerators) {
    const names = new Map(Object.entries(enumerators).map(([name, number]) => [number, name.toLowerCase()]));
    return (slot) => new Shown(slot, `${slot} (${names.get(slot) ?? 'unknown'})`);
  }
  const [network, podCidr, shift] = ['network', 'pod_cidr', 'subnet_shift'].map((name) => config.get(name));
  if (typeof network !== 'string' || typeof podCidr !== 'string' || typeof shift !== 'number')
    return undefined;
  const at = (base: string, offset: number): string => intToIpv4((ipv4ToInt(base) + offset) >>> 0);
  if (map === 'peers')
    return (slot) => new Shown(slot, `${slot} (${at(network, slot * 2 ** shift)}/${32 - shift})`);
  if (map === 'endpoints') return (slot) => new Shown(slot, `${slot} (${at(podCidr, slot)})`);
  return undefined;
}

/** The programs' constants, by name. Empty when no programs are loaded. */
export async function readConfig(bpffs: string): Promise<ReadonlyMap<string, unknown>> {
  const [config] = openConfig(bpffs);
  if (!config) return new Map();
  using opened = config;
  const entries = await readEntries(bpffs, opened, false);
  return new Map(entries.map(({ key, value }) => [String(key), value]));
}

/**
 * The entries that terms name. A term is a key as the table or JSON shows it, or its bytes, or a member of a key, as
 * `src=10.42.0.2`; all members that are given must agree.
 */
export function selectEntries(entries: readonly MapEntry[], terms: readonly string[]): MapEntry[] {
  return entries.filter(({ key }) => {
    const members = hasMembers(key) ? Object.entries(key) : [];
    return terms.every((term) => {
      const [name, wanted] = term.split('=', 2);
      if (wanted === undefined) return spellings(key).includes(term);
      return members.some(([member, value]) => member === name && spellings(value).includes(wanted));
    });
  });
}

function spellings(value: unknown): string[] {
  if (!(value instanceof Shown)) return [inline(value)];
  const [, inParentheses] = /\((.*)\)$/.exec(value.text) ?? [];
  return [value.text, String(value.value), ...(inParentheses === undefined ? [] : [inParentheses])];
}

/** A value on one line: `a=1 b={c=2}`. Text with spaces is in quotes. */
export function inline(value: unknown): string {
  if (Array.isArray(value)) return value.map(inline).join(',') || '-';
  if (!hasMembers(value)) return String(value);
  return Object.entries(value)
    .map(([name, member]) => {
      if (hasMembers(member)) return `${name}={${inline(member)}}`;
      const text = inline(member);
      return `${name}=${text.includes(' ') ? JSON.stringify(text) : text}`;
    })
    .join(' ');
}
