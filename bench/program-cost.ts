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

/**
 * The time that the kernel counts for a program that does nothing: counting adds at least this to every other figure.
 * @param directory the directory for the compiled program
 */
export async function countingCost(directory: string, compiler = 'clang-19'): Promise<number> {
  const object = join(directory, 'empty.bpf.o');
  const source = join(import.meta.dirname, 'empty.bpf.c');
  await run(compiler, ['-O2', '-g', '-target', 'bpf', '-c', source, '-o', object]);
  using loaded = BpfObject.open(object);
  loaded.load();
  const program = loaded.program('empty');
  return whileCounting(async () => {
    program.testRun({ data: new Uint8Array(64), repeat: 1_000_000 });
    const { runCount, runTimeNs } = program.info;
    return Number(runTimeNs) / Number(runCount);
  });
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
