// SPDX-License-Identifier: Apache-2.0
/**
 * `ripstop maps diff`: an audit. The agent plans once more, for the cluster as the API server lists it now and the node
 * as the kernel shows it now; this process reads the maps itself, and compares bytes.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { DesiredMap, DesiredMaps } from '../agent/desired-maps.ts';
import { type Kind, kindCodec } from '../dataplane/codec.ts';
import { layout } from '../dataplane/layout.gen.ts';
import { RipstopError } from '../errors.ts';
import { requireAgent } from './ask-agent.ts';
import { hexText } from './map-values.ts';
import { memberChanges, type MemberChange } from './map-watch.ts';
import { entryDecoder, inline, openMap, readEntries, usedEntries } from './maps.ts';
import type { Column } from './table.ts';

export interface MapDifference {
  readonly map: string;
  readonly key: unknown;
  /** `missing`: it should be there. `unexpected`: it should not. `differs`: in these members. */
  readonly problem: 'missing' | 'unexpected' | 'differs';
  /** `from` is what is there, `to` what should be. */
  readonly members?: readonly MemberChange[];
  /** The whole value that is missing or unexpected. */
  readonly value?: unknown;
}

export interface MapAudit {
  /** How many entries there should be, by map. */
  readonly checked: Readonly<Record<string, number>>;
  readonly differences: readonly MapDifference[];
}

export const differenceColumns: Column<MapDifference>[] = [
  { title: 'MAP', value: (row) => row.map },
  { title: 'KEY', value: (row) => inline(row.key) },
  { title: 'PROBLEM', value: (row) => row.problem, color: () => 'red' },
  { title: 'WHAT', value: whatDiffers },
];

function whatDiffers({ members, value }: MapDifference): string {
  if (!members) return inline(value);
  return members
    .map(({ member, from, to }) => {
      const name = member === '' ? '' : `${member} `;
      return `${name}is ${inline(from)}, should be ${inline(to)}`;
    })
    .join('; ');
}

/** How long the agent may take: it lists the cluster. */
const ANSWER_MS = 60_000;
/** What differs twice, this far apart, is no change that was under way. */
const AGAIN_MS = 1000;

/** @throws RipstopError when there is no agent, or it cannot tell. */
export async function auditMaps(bpffs: string, runDir: string): Promise<MapAudit> {
  const first = await lookOnce(bpffs, runDir);
  if (first.differences.length === 0) return first;
  await sleep(AGAIN_MS);
  const second = await lookOnce(bpffs, runDir);
  const before = new Set(first.differences.map(nameOf));
  return { ...second, differences: second.differences.filter((one) => before.has(nameOf(one))) };
}

const nameOf = ({ map, key, problem }: MapDifference): string => JSON.stringify([map, key, problem]);

async function lookOnce(bpffs: string, runDir: string): Promise<MapAudit> {
  const desired = (await requireAgent(runDir, '/maps/desired', ANSWER_MS)) as DesiredMaps;
  if (desired.layout !== layout.version) {
    throw new RipstopError(
      `the agent's maps have layout ${desired.layout}, and this ripstop knows layout ${layout.version}: ` +
        'use the ripstop of the agent',
    );
  }
  const differences = await configDifferences(bpffs, desired.config);
  for (const map of desired.maps) differences.push(...(await mapDifferences(bpffs, map)));
  const sizes = desired.maps.map(({ name, entries }) => [name, entries.length] as const);
  return {
    checked: { ...Object.fromEntries(sizes), config: Object.keys(desired.config).length },
    differences,
  };
}

async function mapDifferences(
  bpffs: string,
  { name, complete, entries }: DesiredMap,
): Promise<MapDifference[]> {
  using open = openMap(bpffs, name);
  const { key: keyKind, value: valueKind }: { key: Kind; value: Kind } = layout.maps[name];
  const hasSlots = keyKind === 'u32';
  const decode = await entryDecoder(bpffs, open);
  const actual = new Map(usedEntries(open.map).map((entry) => [hexText(entry.key), entry]));
  const differences: MapDifference[] = [];
  for (const [text, value] of entries) {
    const wanted = {
      key: encode(keyKind, hasSlots ? Number(text) : text),
      value: encode(valueKind, value),
    };
    const found = actual.get(hexText(wanted.key));
    actual.delete(hexText(wanted.key));
    if (found && hexText(found.value) === hexText(wanted.value)) continue;
    const to = decode(wanted);
    if (!found) differences.push({ map: name, ...to, problem: 'missing' });
    else {
      const members = memberChanges(decode(found).value, to.value);
      differences.push({ map: name, key: to.key, problem: 'differs', members });
    }
  }
  if (complete)
    for (const entry of actual.values())
      differences.push({ map: name, ...decode(entry), problem: 'unexpected' });
  return differences;
}

async function configDifferences(
  bpffs: string,
  desired: Readonly<Record<string, unknown>>,
): Promise<MapDifference[]> {
  using open = openMap(bpffs, 'config');
  const entries = await readEntries(bpffs, open, false);
  return entries.flatMap(({ key, value }) => {
    // What only the process that has loaded the programs knows is not planned.
    if (!(String(key) in desired)) return [];
    const members = memberChanges(value, desired[String(key)]);
    return members.length === 0 ? [] : [{ map: 'config', key, problem: 'differs', members }];
  });
}

function encode(kind: Kind, value: unknown): Uint8Array {
  const codec = kindCodec(kind);
  const bytes = new Uint8Array(codec.size);
  codec.encode(value as never, bytes);
  return bytes;
}
