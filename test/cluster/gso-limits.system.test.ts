// SPDX-License-Identifier: Apache-2.0
/**
 * The uplink's limits for super-packets. The kernel segments what is larger on the way to any device (gso_features_check),
 * after a redirect of a BPF program as after its own VXLAN device. But once BPF has encapsulated a packet, the kernel does
 * not know any more how many segments it has, so from_pod keeps that limit, gso_max_segs.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/run.ts';
import { startIn } from '../../src/lab/lab.support.ts';
import type { NodeState } from '../../src/lab/index.ts';
import {
  addressOf,
  type Carried,
  carriedDuring,
  FAMILIES,
  inNetns,
  missingHere,
  nudge,
  podOf,
  serveIn,
  talkTcp,
  useLab,
} from './support.ts';

const BYTES = 4 << 20;
const KERNEL_LIMIT = 65536;
const MTU_FRAME = 1514;

describe.skipIf(missingHere('tcpdump'))('an uplink that takes smaller super-packets than pods send', () => {
  const cluster = useLab('gsolimit', { datapath: 'ripstop,ripstop,flannel', pods: 1, ipv6: true });
  const node = (n: number) => cluster.nodes[n - 1]!;
  const setLimits = async (of: NodeState, size: number, segments: number) => {
    const limits = ['gso_max_size', String(size), 'gso_max_segs', String(segments)];
    await run('ip', ['link', 'set', 'eth0', ...limits], inNetns(of));
    // The kernel tells nobody. Drivers set their limits once, and an audit would find it.
    await nudge(of);
  };

  beforeAll(async () => {
    await serveIn(podOf(node(2)));
  });
  afterEach(async () => {
    for (const one of [node(1), node(3)]) await setLimits(one, KERNEL_LIMIT, 65535);
  });

  /** Send from the pod of a node to that of node2. Returns the largest VXLAN frame that arrived, and what carried them. */
  async function largestOnWire(from: NodeState, family: 4 | 6): Promise<{ bytes: number; carried: Carried }> {
    const filter = ['udp', 'port', '8472', 'and', 'src', 'host', addressOf(from, family)];
    const how = ['-l', '-nn', '-e', '-q', '-s', '96', '-B', '32768', '-Q', 'in', '-i', 'eth0'];
    const capture = startIn(node(2).netns, 'tcpdump', ...how, ...filter);
    await capture.prints(/listening/);
    const [carried] = await carriedDuring(cluster.lab, [node(1)], () =>
      talkTcp(podOf(from), addressOf(podOf(node(2)), family), BYTES),
    );
    await sleep(200); // The kernel delivers captured packets in batches.
    const frames = (await capture.stop()).matchAll(/ IPv\d, length (\d+):/g);
    const sizes = Array.from(frames, ([, length]) => Number(length));
    expect(sizes.length).toBeGreaterThan(10);
    return { bytes: Math.max(...sizes), carried: carried! };
  }

  describe.each(FAMILIES)('over IPv%i', (family) => {
    it.each([
      ['ripstop, on the fast path', () => node(1)],
      ['flannel, on the kernel path', () => node(3)],
    ])('gets none larger from %s, and all data arrive', async (_, from) => {
      // Until now super-packets of any size cross this wire whole.
      const before = await largestOnWire(from(), family);
      expect(before.bytes).toBeGreaterThan(20_000);

      await setLimits(from(), 16_384, 65535);
      const smaller = await largestOnWire(from(), family);
      expect(smaller.bytes).toBeLessThan(16_384);

      await setLimits(from(), KERNEL_LIMIT, 4);
      let fewer = smaller;
      const bytes = async () => (fewer = await largestOnWire(from(), family)).bytes;
      await expect.poll(bytes).toBeLessThanOrEqual(4 * MTU_FRAME);

      if (from() !== node(1)) return;
      for (const { carried } of [before, smaller])
        expect(carried.by['from_pod fast_encap']).toBeGreaterThan(20);
      expect(fewer.carried.by['from_pod kernel_no_room']).toBeGreaterThan(0);
      await setLimits(from(), KERNEL_LIMIT, 65535);
      const isWhole = async () => (await largestOnWire(from(), family)).bytes > 20_000;
      await expect.poll(isWhole).toBe(true);
    });
  });
});
