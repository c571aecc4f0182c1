// SPDX-License-Identifier: Apache-2.0
/**
 * The program of a machine in the story of drivers.ts. It accepts calls on its serial port, a line of JSON each,
 * several at once, and answers each with a line. Its first line says that it is ready.
 */
import { createInterface } from 'node:readline';
import { ipBatch } from '../../src/lab/ip.ts';
import { ensureBpffs } from '../../src/host/mount.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { connectPod, countersOf, pass, strip } from './node.ts';
import { endTalker, startTalker, talk, type Talker } from './talk.ts';

const talkers = new Map<number, Talker>();

export const calls = {
  run,
  tryRun,
  ipBatch,
  ensureBpffs,
  connectPod,
  pass,
  strip,
  countersOf: async (node: { bpffs: string }) => countersOf(node),
  talk: (netns: string, args: readonly string[]): Promise<unknown> => talk(netns, args),
  startTalker: async (netns: string, word: string, args: readonly string[]): Promise<number> => {
    const talker = await startTalker(netns, word, args);
    talkers.set(talker.pid!, talker);
    return talker.pid!;
  },
  endTalker: (pid: number): Promise<unknown> => endTalker(talkers.get(pid)!),
};
export type Calls = typeof calls;

export interface Call {
  readonly id: number;
  readonly name: keyof Calls;
  readonly args: readonly unknown[];
}
/** The id of the call; 0 in the line that says "ready". */
export interface Answer {
  readonly id: number;
  readonly result?: unknown;
  readonly error?: string;
}

function say(answer: Answer): void {
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

async function answer({ id, name, args }: Call): Promise<void> {
  try {
    say({ id, result: await (calls[name] as (...args: readonly unknown[]) => unknown)(...args) });
  } catch (error) {
    say({ id, error: error instanceof Error ? error.message : String(error) });
  }
}

if (import.meta.main) {
  process.stdin.setRawMode(true); // otherwise the port echoes its input
  createInterface({ input: process.stdin }).on('line', (line) => void answer(JSON.parse(line) as Call));
  say({ id: 0 });
}
