// SPDX-License-Identifier: Apache-2.0
/** Flows that never rest, between pods of a lab, and what has arrived of them: see numbers.ts. */
import { join } from 'node:path';
import { expect } from 'vitest';
import { type Background, startIn } from '../../src/lab/lab.support.ts';
import { type Arrivals, monotonicMs } from './numbers.ts';
import { PORT } from './support.ts';

/** The port where the flows arrive. */
export const NUMBERS_PORT = PORT + 2;
/** Where they go: to a pod on the client's node, and to one on another. */
export const PAIR = ['near', 'far'] as const;

const NUMBERS = join(import.meta.dirname, 'numbers.ts');
/** TCP comes back with its next retransmission. */
const RETURN_MS = 5000;

/** The kinds of flows: held all the time, and begun anew; in both protocols and families. */
export const KINDS = ['held', 'fresh'].flatMap((kind) =>
  ['udp4', 'udp6', 'tcp4', 'tcp6'].map((flow) => `${kind} ${flow}`),
);
export const FRESH = KINDS.filter((kind) => kind.startsWith('fresh'));

/** A pod that takes the flows. */
export class Receiver {
  readonly #program: Background;

  private constructor(program: Background) {
    this.#program = program;
  }

  static async start({ netns }: { netns: string }): Promise<Receiver> {
    const program = startIn(netns, process.execPath, NUMBERS, 'receive', String(NUMBERS_PORT));
    await program.prints(/receiving\n\{.*\n/);
    return new Receiver(program);
  }

  arrivals(): Arrivals {
    return JSON.parse(this.#program.output().split('\n').at(-2)!) as Arrivals;
  }

  /** The kinds of flows of which a message has come since. */
  since(ms: number): string[] {
    const arrivals = this.arrivals();
    return KINDS.filter((kind) => (arrivals[kind] ?? 0) > ms);
  }

  /** How long after a moment the last message of any flow came, in ms. */
  lastAfter(ms: number): number {
    return Math.round(Math.max(0, ...Object.values(this.arrivals())) - ms);
  }

  /** Resolves when messages of these kinds have come since. */
  async takes(kinds: readonly string[] = KINDS, sinceMs = monotonicMs()): Promise<void> {
    const taken = expect.poll(() => this.since(sinceMs), { timeout: RETURN_MS });
    await taken.toEqual(expect.arrayContaining([...kinds]));
  }

  stop(): Promise<string> {
    return this.#program.stop();
  }
}

/** Let a pod send such flows to these addresses. */
export const sendTo = ({ netns }: { netns: string }, addresses: readonly string[]): Background =>
  startIn(netns, process.execPath, NUMBERS, 'send', String(NUMBERS_PORT), ...addresses);
