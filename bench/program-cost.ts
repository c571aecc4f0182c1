// SPDX-License-Identifier: Apache-2.0
/** The cost of a run of each BPF program, counted by the kernel during a known load. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { BpfObject, BpfProgram } from '#libbpf-ts';
import { pinPaths } from '../src/dataplane/tables.ts';
import { run } from '../src/host/run.ts';
import type { Arm } from './arms.ts';

/** Run by the agent, not by packets. */
const OFF_PATH: readonly string[] = [];

const SWITCH = '/proc/sys/kernel/bpf_stats_enabled';

export interface ProgramCost {
  readonly program: string;
  readonly runs: number;
  /** Mean time of one run, including the kernel's reading of the clock. */
  readonly nsPerRun: number;
}

interface Totals {
  runs: number;
  ns: number;
}

/**
 * Make the kernel count runs and their time during `load`, on all nodes of an arm. Programs that did not run are left
 * out. Counting slows all programs of the machine a little, so nothing may be compared meanwhile. It ends with the
 * load.
 */
export function programCosts(arm: Arm, load: () => Promise<unknown>): Promise<ProgramCost[]> {
  return whileCounting(async () => {
    const start = readTotals(arm);
    await load();
    return costsBetween(start, readTotals(arm));
  });
}

/** What a part of a program costs alone. */
export interface PartCost {
  readonly part: string;
  readonly ns: number;
}

/** The programs of program-parts.bpf.c. The first does nothing. */
const PARTS = {
  empty: 'counting',
  read_clock: 'reading the clock',
  look_up_peer: 'a lookup in an array: a peer, an endpoint, a counter',
  look_up_flow: 'a lookup in the flow table',
  look_up_flow_among_many: 'the same among 100,000 flows',
  make_room: 'room for the outer headers made and taken',
};

/**
 * What parts of programs cost, each run alone on one packet. The first is the time that the kernel counts for a program
 * that does nothing: counting adds at least this to every other figure, and from the other parts it is deducted.
 * @param directory the directory for the compiled programs
 */
export async function partCosts(directory: string, compiler = 'clang-19'): Promise<PartCost[]> {
  const object = join(directory, 'program-parts.o'); // not among the product's own, `*.bpf.o`
  const source = join(import.meta.dirname, 'program-parts.bpf.c');
  // With BPF as its target, clang does not search the host's directory of <asm/types.h>.
  const triplet = process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu';
  const flags = ['-O2', '-g', '-target', 'bpf', `-I/usr/include/${triplet}`];
  await run(compiler, [...flags, '-c', source, '-o', object]);
  using loaded = BpfObject.open(object);
  loaded.load();
  fillParts(loaded);
  return whileCounting(async () => {
    const all = Object.entries(PARTS).map(([name, part]) => ({ part, ns: nsAlone(loaded.program(name)) }));
    const [counting, ...others] = all as [PartCost, ...PartCost[]];
    return [counting, ...others.map(({ part, ns }) => ({ part, ns: ns - counting.ns }))];
  });
}

/** The entries that the programs look up: key 0, and in the large table 99,999 others. */
function fillParts(loaded: BpfObject): void {
  const entries = Array.from({ length: 100_000 }, (_, i) => {
    const [key, value] = [new Uint8Array(16), new Uint8Array(56)];
    new DataView(key.buffer).setUint32(0, i);
    return [key, value] as const;
  });
  loaded.map('flows').updateBatch(entries.slice(0, 1));
  loaded.map('many_flows').updateBatch(entries);
}

function nsAlone(program: BpfProgram): number {
  const data = new Uint8Array(128);
  data.set([0x08, 0x00, 0x45], 12); // Ethernet, then IPv4 without options
  program.testRun({ data, repeat: 1_000_000 });
  const { runCount, runTimeNs } = program.info;
  return Number(runTimeNs) / Number(runCount);
}

async function whileCounting<T>(act: () => Promise<T>): Promise<T> {
  const before = readFileSync(SWITCH, 'utf8');
  try {
    writeFileSync(SWITCH, '1');
    return await act();
  } finally {
    writeFileSync(SWITCH, before);
  }
}

/** The difference of two readings. */
export function costsBetween(
  start: ReadonlyMap<string, Totals>,
  end: ReadonlyMap<string, Totals>,
): ProgramCost[] {
  return Array.from(end, ([program, { runs, ns }]) => {
    const from = start.get(program) ?? { runs: 0, ns: 0 };
    const more = runs - from.runs;
    return { program, runs: more, nsPerRun: (ns - from.ns) / more };
  }).filter(({ runs }) => runs > 0);
}

function readTotals(arm: Arm): Map<string, Totals> {
  const totals = new Map<string, Totals>();
  for (const path of arm.bpffs) {
    const directory = pinPaths(path).programs;
    for (const name of readdirSync(directory).filter((one) => !OFF_PATH.includes(one))) {
      using program = BpfProgram.openPinned(join(directory, name));
      const { runCount, runTimeNs } = program.info;
      const total = totals.get(name) ?? { runs: 0, ns: 0 };
      totals.set(name, { runs: total.runs + Number(runCount), ns: total.ns + Number(runTimeNs) });
    }
  }
  return totals;
}
