// SPDX-License-Identifier: Apache-2.0
/**
 * Packet fixtures, after those of katran's tester: a packet in, a verdict with its reason, a packet out, and a sentence
 * that says what is meant. One runner for all.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { ProgramName } from '../../src/dataplane/programs.ts';
import { missing, openNode, type Remembered, type RunOptions, type TestNode } from './node.ts';

export interface Fixture extends RunOptions {
  /** What happens, as a sentence. `(row n)`: a row of the list of faults that the data plane must stand. */
  readonly says: string;
  readonly packet: Uint8Array;
  /** As the counters name it: the verdict and its reason. */
  readonly verdict: `${'fast' | 'stack' | 'drop'} ${string}`;
  /** Unmodified when left out; as a function of what came out, where parts of it are not ours to foresee. */
  readonly out?: Uint8Array | ((packet: Uint8Array) => Uint8Array);
  /** Translated flows that the programs know of. */
  readonly remembered?: Remembered;
}

/** Bytes as text, 16 a line, so that a failed comparison shows where. */
export function hexDump(bytes: Uint8Array): string {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const line = Array.from(bytes.subarray(at, at + 16), (byte) => byte.toString(16).padStart(2, '0'));
    lines.push(`${String(at).padStart(4)}  ${line.join(' ')}`);
  }
  return lines.join('\n');
}

/** A group of tests over a node of its own. */
export function describeOnNode(title: string, tests: (node: () => TestNode) => void): void {
  describe.skipIf(missing)(`${title}${missing ? ` (skipped: ${missing})` : ''}`, () => {
    let node: TestNode | undefined;
    beforeAll(() => {
      node = openNode();
    });
    afterAll(() => node?.[Symbol.dispose]());
    tests(() => node!);
  });
}

/** Each fixture as a test: exactly one counter moves, by one packet of the size that left. */
export function runFixtures(program: ProgramName, groups: Record<string, readonly Fixture[]>): void {
  describeOnNode(program, (node) => {
    for (const [group, fixtures] of Object.entries(groups)) {
      describe(group, () => {
        it.each(fixtures)('$says', (fixture) => {
          using _ = fixture.remembered && node().remember(fixture.remembered);
          const { packet, ...outcome } = node().run(program, fixture.packet, fixture);
          const wanted = typeof fixture.out === 'function' ? fixture.out(packet) : fixture.out;
          expect({ ...outcome, packet: hexDump(packet) }).toEqual({
            verdict: fixture.verdict.split(' ')[0],
            counted: `${program}: ${fixture.verdict}`,
            bytes: packet.length,
            packet: hexDump(wanted ?? fixture.packet),
          });
        });
      });
    }
  });
}
