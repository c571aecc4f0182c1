// SPDX-License-Identifier: Apache-2.0
/** `ripstop maps export` and `import`: all maps as JSON, for bug reports, and into a lab to look at one. */
import { release } from 'node:os';
import { z } from 'zod';
import packageJson from '../../package.json' with { type: 'json' };
import type { BpfMap } from '#libbpf-ts';
import { currentGeneration } from '../dataplane/generation.ts';
import { pinPaths } from '../dataplane/tables.ts';
import { errorText, RipstopError } from '../errors.ts';
import { askAgent } from './ask-agent.ts';
import { hexText } from './map-values.ts';
import { entryDecoder, inline, openOwnMaps, type OpenMap, usedEntries } from './maps.ts';
import type { Column } from './table.ts';

const hex = z.string().regex(/^(?:[0-9a-f]{2})*$/);
const Dump = z.object({
  ripstop: z.string(),
  /** The version of the maps' layout. */
  layout: z.int(),
  kernel: z.string(),
  /** Undefined when no agent ran. */
  node: z.string().optional(),
  takenAt: z.string(),
  maps: z.record(
    z.string(),
    z.object({
      type: z.string(),
      maxEntries: z.int(),
      keySize: z.int(),
      valueSize: z.int(),
      /** The bytes, and what they mean, for people. */
      entries: z.array(z.object({ key: hex, cpu: z.int().optional(), value: hex, means: z.unknown() })),
    }),
  ),
});
type Dump = z.infer<typeof Dump>;
type DumpedMap = Dump['maps'][string];

/** All maps of ripstop, and the programs' constants. There are no secrets in them, but addresses of pods and nodes. */
export async function exportMaps(bpffs: string, runDir: string): Promise<Dump> {
  const node = (await askAgent(runDir))?.node;
  const opened = openOwnMaps(bpffs);
  try {
    const maps: Record<string, DumpedMap> = {};
    for (const open of opened) maps[open.name] = await dumpOf(bpffs, open);
    return {
      ripstop: packageJson.version,
      layout: currentGeneration(pinPaths(bpffs))?.version ?? 0,
      kernel: release(),
      ...(node !== undefined && { node }),
      takenAt: new Date().toISOString(),
      maps,
    };
  } finally {
    for (const open of opened) open[Symbol.dispose]();
  }
}

async function dumpOf(bpffs: string, open: OpenMap): Promise<DumpedMap> {
  const decode = await entryDecoder(bpffs, open);
  const { type, maxEntries, keySize, valueSize } = open.map.info;
  const entries = usedEntries(open.map).map((entry) => {
    const { key, value } = decode(entry);
    return {
      key: hexText(entry.key),
      ...(entry.cpu !== undefined && { cpu: entry.cpu }),
      value: hexText(entry.value),
      means: `${inline(key)}  ${inline(value)}`,
    };
  });
  return { type, maxEntries, keySize, valueSize, entries };
}

export interface ImportRow {
  readonly map: string;
  readonly entries: number;
  /** Why it was left as it is. */
  readonly skipped?: string;
}

export const importColumns: Column<ImportRow>[] = [
  { title: 'MAP', value: (row) => row.map },
  { title: 'ENTRIES', align: 'right', value: (row) => row.entries },
  { title: 'SKIPPED', value: (row) => row.skipped },
];

/**
 * Give the maps of a lab's node the entries of a dump, and no others. What the programs keep for each CPU is left out,
 * and so are their constants, which cannot be written.
 * @throws RipstopError before anything is written, when the dump does not fit these maps.
 */
export function importMaps(bpffs: string, text: string): ImportRow[] {
  const { layout, maps } = parseDump(text);
  const opened = openOwnMaps(bpffs);
  try {
    const version = currentGeneration(pinPaths(bpffs))?.version;
    if (layout !== version)
      throw new RipstopError(`the dump has maps of layout ${layout}, and this node has layout ${version}`);
    const plans = opened.map(({ name, map, pin }) => {
      const skipped = whySkipped(map, pin);
      const dump = maps[name];
      if (skipped === undefined && dump) checkFits(name, map, dump);
      return { name, map, dump, skipped: skipped ?? (dump ? undefined : 'not in the dump') };
    });
    return plans.map(({ name, map, dump, skipped }) => {
      if (skipped !== undefined || !dump) return { map: name, entries: 0, skipped: skipped! };
      replace(map, dump.entries);
      return { map: name, entries: dump.entries.length };
    });
  } finally {
    for (const open of opened) open[Symbol.dispose]();
  }
}

/** Values of CPUs are history, and other types refer to what is in this kernel alone. */
function whySkipped({ info, isPerCpu }: BpfMap, pin: string | undefined): string | undefined {
  if (pin === undefined) return 'constants';
  if (isPerCpu) return 'values of CPUs';
  return ['array', 'hash', 'lru_hash'].includes(info.type) ? undefined : info.type;
}

function parseDump(text: string): Dump {
  try {
    return Dump.parse(JSON.parse(text));
  } catch (cause) {
    const why = cause instanceof z.ZodError ? z.prettifyError(cause) : errorText(cause);
    throw new RipstopError(`this is no dump of \`ripstop maps export\`: ${why}`, { cause });
  }
}

function checkFits(name: string, { info }: BpfMap, dump: DumpedMap): void {
  for (const what of ['type', 'keySize', 'valueSize'] as const)
    if (info[what] !== dump[what])
      throw new RipstopError(`${name}: its ${what} is ${info[what]} here, and ${dump[what]} in the dump`);
  const isOutside = ({ key }: { key: string }): boolean =>
    Buffer.from(key, 'hex').readUInt32LE() >= info.maxEntries;
  const outside = info.type === 'array' ? dump.entries.filter(isOutside).length : 0;
  if (outside > 0 || dump.entries.length > info.maxEntries) {
    throw new RipstopError(
      `${name} has room for ${info.maxEntries} entries here, and had for ${dump.maxEntries} in the dump: ` +
        'raise the lab with networks of the same sizes',
    );
  }
}

function replace(map: BpfMap, entries: DumpedMap['entries']): void {
  const wanted = new Map(entries.map(({ key, value }) => [key, Buffer.from(value, 'hex')] as const));
  const others = usedEntries(map)
    .map(({ key }) => key)
    .filter((key) => !wanted.has(hexText(key)));
  if (map.info.type === 'array')
    map.updateBatch(others.map((key) => [key, new Uint8Array(map.info.valueSize)] as const));
  else map.deleteBatch(others);
  map.updateBatch(wanted.entries().map(([key, value]) => [Buffer.from(key, 'hex'), value] as const));
}
