// SPDX-License-Identifier: Apache-2.0
/**
 * Sends the same packets through a flannel lab and a ripstop lab. What arrives must be the same, or a rule must explain
 * it.
 */
import { join } from 'node:path';
import type { Mode } from '../../src/agent/options.ts';
import { readCounters } from '../../src/dataplane/counters.ts';
import { openTables } from '../../src/dataplane/tables.ts';
import { type Datapath, nodeDir, openLab } from '../../src/lab/index.ts';
import { settleAll } from '../../src/lab/nodes.ts';
import { type Case, caseOf } from './cases.ts';
import { type Difference, differences } from './compare.ts';
import { dissect } from './dissect.ts';
import { exchange, type Outcome, type Stray } from './exchange.ts';
import { type DiffLab, openDiffLab } from './labs.ts';
import { isComplete } from './reassemble.ts';
import { type Context, rules } from './rules.ts';

export interface Unexplained extends Context {
  readonly differences: readonly Difference[];
}

export interface Report {
  readonly cases: number;
  /** Frames that came out of flannel's lab, and of ripstop's. */
  readonly arrivals: readonly [flannel: number, ripstop: number];
  /** How many differences each rule has explained. */
  readonly explained: ReadonlyMap<string, number>;
  readonly unexplained: readonly Unexplained[];
  /** The numbers of cases with an unexplained difference that did not recur when they were sent again. */
  readonly unrepeated: readonly number[];
  /** Packets that belong to no case. */
  readonly strays: readonly Stray[];
  /** Packets counted by ripstop's programs, by `hook verdict_reason`. */
  readonly carried: ReadonlyMap<string, number>;
}

export type Labs = readonly [flannel: DiffLab, ripstop: DiffLab];

/**
 * The number of cases that are sent together, with one wait for the last packets of all of them. It is done before what
 * ripstop has learned expires.
 */
const CHUNK = 2500;

/** Bring up both labs. @param name the prefix of their names. @param mode how ripstop runs. */
export const openLabs = (name: string, mode: Mode = 'cni'): Promise<Labs & AsyncDisposable> =>
  openBoth(name, (each, datapath) => openDiffLab(each, datapath, mode));

/** Open a lab of each datapath, which are closed together. @param name the prefix of their names */
export async function openBoth<L extends AsyncDisposable>(
  name: string,
  open: (name: string, datapath: Datapath) => Promise<L>,
): Promise<readonly [flannel: L, ripstop: L] & AsyncDisposable> {
  const opening = [open(`${name}f`, 'flannel'), open(`${name}r`, 'ripstop')] as const;
  try {
    const [flannel, ripstop] = await settleAll(opening);
    const close = async () => {
      await settleAll([flannel!, ripstop!].map(async (lab) => lab[Symbol.asyncDispose]()));
    };
    return Object.assign([flannel!, ripstop!] as const, { [Symbol.asyncDispose]: close });
  } catch (error) {
    for (const result of await Promise.allSettled(opening))
      if (result.status === 'fulfilled') await result.value[Symbol.asyncDispose]();
    throw error;
  }
}

/** Send cases `first` … `first + count − 1` of the seed through both labs. @param onProgress gets the number done. */
export async function compareLabs(
  labs: Labs,
  { seed, first = 0, count }: { seed: number; first?: number; count: number },
  onProgress: (done: number) => void = () => {},
): Promise<Report> {
  const explained = new Map<string, number>();
  const unexplained: Unexplained[] = [];
  const unrepeated: number[] = [];
  const strays: Stray[] = [];
  const arrivals: [number, number] = [0, 0];
  /** @returns those of these cases with unexplained differences */
  const send = async (cases: readonly Case[]): Promise<Unexplained[]> => {
    // ripstop learns what its kernel path does with each flow, and then does it itself.
    await exchange(labs, cases);
    const result = await exchange(labs, cases);
    strays.push(...result.strays);
    return [...result.outcomes].flatMap(([one, outcomes]) => {
      outcomes.forEach((outcome, i) => (arrivals[i as 0 | 1] += outcome.arrivals.length));
      return judge(labs, one, outcomes as [Outcome, Outcome], explained) ?? [];
    });
  };
  for (let done = 0; done < count; onProgress(done)) {
    const size = Math.min(CHUNK, count - done);
    const suspects = await send(Array.from({ length: size }, (_, i) => caseOf(seed, first + done + i)));
    // On a busy machine the kernel drops packets at times, and conntrack may assign a packet to an earlier case's
    // connection, in either lab. A real difference recurs.
    if (suspects.length > 0) await Promise.all(labs.map((lab) => lab.forgetConnections()));
    const again = suspects.length === 0 ? [] : await send(suspects.map((one) => one.case));
    unexplained.push(...again);
    const faulty = new Set(again.map((one) => one.case));
    unrepeated.push(...suspects.flatMap((one) => (faulty.has(one.case) ? [] : [one.case.number])));
    done += size;
  }
  return {
    cases: count,
    arrivals,
    explained,
    unexplained,
    unrepeated,
    strays,
    carried: carriedBy(labs[1].name),
  };
}

/** Compare the outcomes of a case, count the differences that rules explain, and return the rest, if any. */
function judge(
  labs: Labs,
  one: Case,
  outcomes: readonly [Outcome, Outcome],
  explained: Map<string, number>,
): Unexplained | undefined {
  const all = differences(labs, outcomes);
  if (all.length === 0) return undefined;
  const [withFlannel, frames] = labs.map(({ macs }) => one.frames.map(({ frame }) => frame(macs))) as [
    Uint8Array[],
    Uint8Array[],
  ];
  const context = {
    case: one,
    isBoosted: labs[1].isBridged,
    sent: dissect({ frame: frames[0]! }, labs[1].names),
    sentWithFlannel: dissect({ frame: withFlannel[0]! }, labs[0].names),
    largest: Math.max(...frames.map(({ length }) => length - 14)),
    isWhole: isComplete(frames),
  };
  const left = all.filter((difference) => {
    const rule = rules.find(({ explains }) => explains(difference, context));
    if (rule) explained.set(rule.name, (explained.get(rule.name) ?? 0) + 1);
    return !rule;
  });
  return left.length === 0 ? undefined : { ...context, differences: left };
}

/** Packets counted by a lab's programs, by `hook verdict_reason`. */
export function carriedBy(name: string): Map<string, number> {
  const lab = openLab(name);
  const carried = new Map<string, number>();
  for (const node of lab.state.nodes) {
    using tables = openTables(join(nodeDir(lab, node), 'bpf'));
    for (const { hook, verdict, reason, packets } of readCounters(tables)) {
      const key = `${hook} ${verdict}_${reason}`;
      if (packets > 0) carried.set(key, (carried.get(key) ?? 0) + packets);
    }
  }
  return carried;
}
