// SPDX-License-Identifier: Apache-2.0
/**
 * Packet fixtures, as in katran's tester: a packet in, a verdict with its reason, a packet out, and a sentence that
 * explains it; and a runner for all of them.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { NodeSettings } from '../../src/dataplane/desired.ts';
import type { ProgramName } from '../../src/dataplane/programs.ts';
import {
  type LearnedFlow,
  missing,
  noteArrival,
  type NotedArrival,
  openNode,
  type RunOptions,
  type SeenTunnel,
  seeTunnel,
  type TestNode,
} from './node.ts';

export interface Fixture extends RunOptions {
  /** What happens, as a sentence. `(row n)` is a row of the list of faults that the data plane must withstand. */
  readonly says: string;
  readonly packet: Uint8Array;
  /** The verdict and its reason, as the counters name them; `nothing` when nothing is counted. */
  readonly verdict: `${'fast' | 'kernel' | 'drop'} ${string}` | 'nothing';
  /**
   * The packet that leaves. Default: unmodified. A function of the actual packet, where the programs may choose parts
   * of it.
   */
  readonly out?: Uint8Array | ((packet: Uint8Array) => Uint8Array);
  /** What is in the flow table. */
  readonly flows?: readonly LearnedFlow[];
  /** A packet that was left to the kernel path before. */
  readonly noted?: NotedArrival;
  /** The tunnel that the kernel path was seen to use. */
  readonly tunnel?: SeenTunnel;
  /** Whether the program carries the packet through the tunnel, though the kernel path decides. */
  readonly isCarried?: boolean;
}

/** Bytes as text, 16 on each line, so that a failed comparison shows where they differ. */
function hexDump(bytes: Uint8Array): string {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const line = Array.from(bytes.subarray(at, at + 16), (byte) => byte.toString(16).padStart(2, '0'));
    lines.push(`${String(at).padStart(4)}  ${line.join(' ')}`);
  }
  return lines.join('\n');
}

/** A group of tests on a node of its own, optionally with other settings. */
export function describeOnNode(
  title: string,
  tests: (node: () => TestNode) => void,
  settings?: NodeSettings,
): void {
  describe.skipIf(missing)(`${title}${missing ? ` (skipped: ${missing})` : ''}`, () => {
    let node: TestNode | undefined;
    beforeAll(() => {
      node = openNode(settings);
    });
    afterAll(() => node?.[Symbol.dispose]());
    tests(() => node!);
  });
}

/**
 * Run each fixture as a test: exactly one counter moves, by one packet of the size that leaves (for XDP: that came). The
 * flow table stays as it is.
 */
export function runFixtures(
  program: ProgramName,
  title: string,
  groups: Record<string, readonly Fixture[]>,
  settings?: NodeSettings,
): void {
  const isXdp = program === 'xdp_from_wire';
  const tests = (node: () => TestNode): void => {
    for (const [group, fixtures] of Object.entries(groups)) {
      describe(group, () => {
        it.each(fixtures)('$says', (fixture) => {
          const { flows = [], tunnel, isCarried = false } = fixture;
          using _ = node().learn(flows);
          const { tunnels } = node().tables;
          tunnels.deleteMany([...tunnels.keys()]);
          if (tunnel) seeTunnel(node().tables, tunnel);
          if (fixture.noted) noteArrival(node().tables, fixture.noted);
          const { packet, beside: _beside, ...outcome } = node().run(program, fixture.packet, fixture);
          const expected = typeof fixture.out === 'function' ? fixture.out(packet) : fixture.out;
          const isCounted = fixture.verdict !== 'nothing';
          const counts = isXdp ? fixture.packet.length : packet.length;
          expect({ ...outcome, packet: hexDump(packet) }).toEqual({
            verdict: isXdp
              ? 'pass'
              : isCarried
                ? 'fast'
                : isCounted
                  ? fixture.verdict.split(' ')[0]
                  : 'kernel',
            counted: isCounted ? `${program}: ${fixture.verdict}` : '',
            bytes: isCounted ? counts : 0,
            packet: hexDump(expected ?? fixture.packet),
          });
          expect(new Set(node().flows())).toEqual(new Set(flows.map(({ flow }) => flow)));
        });
      });
    }
  };
  describeOnNode(`${program}, ${title}`, tests, settings);
}
