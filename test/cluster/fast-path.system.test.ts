// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { run } from '../../src/host/run.ts';
import {
  addressesOf,
  carriedDuring,
  holdFrom,
  inNetns,
  missingHere,
  ping,
  podOf,
  released,
  ripstopJson,
  serveIn,
  markForKernelPath,
  talkTcp,
  talkUdp,
  useLab,
} from './support.ts';

/** Handshakes, the first packet of each flow, and ends: of a ping, a connection and two UDP conversations per family. */
const MOST_ON_KERNEL_PATH = 60;

describe.skipIf(missingHere('nstat'))('of two ripstop nodes beside a flannel node, the fast path', () => {
  const cluster = useLab('fast', { datapath: 'ripstop,ripstop,flannel', pods: 2, wire: 'mtu', ipv6: true });
  const ripstopNodes = () => cluster.nodes.slice(0, 2);
  const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);

  /** Traffic of all kinds from pod 1 of node 1, and back, in both address families or in these. */
  async function stream(
    to: { netns: string; ip: string; ip6?: string },
    bytes: number,
    addresses = addressesOf(to),
  ): Promise<void> {
    const server = await serveIn(to);
    try {
      for (const address of addresses) {
        await ping(pod(1), address);
        await talkTcp(pod(1), address, bytes);
        for (const size of [1, 1000]) await talkUdp(pod(1), address, 20, size);
      }
    } finally {
      await server.stop();
    }
  }

  it('carries at least 99 % of the packets between pods of two nodes, and the kernel path the first of each flow', async () => {
    const carried = await carriedDuring(cluster.lab, ripstopNodes(), () => stream(pod(2), 50 << 20));
    for (const { by, fast, vtep, forwarded } of carried) {
      expect(by['from_pod fast_encap']).toBeGreaterThan(200);
      expect(by['from_wire fast_decap']).toBeGreaterThan(200);
      expect(fast / (fast + vtep + forwarded)).toBeGreaterThanOrEqual(0.99);
      expect(vtep).toBeLessThan(MOST_ON_KERNEL_PATH);
      expect(forwarded).toBeLessThan(MOST_ON_KERNEL_PATH);
    }
  });

  it('carries at least 99 % of the packets between pods of one node', async () => {
    const [carried, other] = await carriedDuring(cluster.lab, ripstopNodes(), () =>
      stream(pod(1, 1), 50 << 20),
    );
    expect(carried!.by['from_pod fast_local']).toBeGreaterThan(200);
    expect(carried!.forwarded).toBeLessThan(MOST_ON_KERNEL_PATH);
    expect(other!.fast).toBe(0);
  });

  it('carries at least 99 % of the packets to and from a flannel node, whose tunnel has checksums', async () => {
    const [carried] = await carriedDuring(cluster.lab, ripstopNodes(), () =>
      stream(pod(3), 50 << 20, [pod(3).ip]),
    );
    const { by, fast, vtep, forwarded } = carried!;
    expect(by['from_pod fast_encap']).toBeGreaterThan(200);
    expect(by).not.toHaveProperty(['from_wire kernel_outer_checksum']);
    expect(fast / (fast + vtep + forwarded)).toBeGreaterThanOrEqual(0.99);
  });

  it('leaves IPv6 with a flannel node, whose tunnel requires checksums, to the kernel path both ways', async () => {
    const [carried] = await carriedDuring(cluster.lab, ripstopNodes(), () =>
      stream(pod(3), 1 << 20, [pod(3).ip6!]),
    );
    expect(carried!.fast).toBe(0);
    expect(carried!.by['to_wire kernel_marked']).toBeGreaterThan(30);
    expect(carried!.by['from_wire kernel_marked']).toBeGreaterThan(40);
    expect(carried!.vtep).toBeGreaterThan(80);
  });

  it('carries super-packets that are lists of packets (rx-gro-list), which no receiver can verify again', async () => {
    const node = inNetns(cluster.nodes[1]!);
    await run('ethtool', ['-K', 'eth0', 'gro', 'on', 'rx-gro-list', 'on'], node);
    try {
      const [, carried] = await carriedDuring(cluster.lab, ripstopNodes(), () => stream(pod(2), 10 << 20));
      expect(carried!.by['from_wire fast_decap']).toBeGreaterThan(200);
      expect(carried!.vtep).toBeLessThan(MOST_ON_KERNEL_PATH);
      const counters = await run('nstat', ['-a', '-z', '-j'], inNetns(pod(2)));
      expect(JSON.parse(counters)).toMatchObject({
        kernel: { TcpInCsumErrors: 0, UdpInCsumErrors: 0, Udp6InCsumErrors: 0 },
      });
    } finally {
      await run('ethtool', ['-K', 'eth0', 'rx-gro-list', 'off'], node);
    }
  });

  describe('leaves a pod that is marked for the kernel path', () => {
    it('to the kernel path, in both directions, on its node and to another', async () => {
      const [one] = cluster.nodes;
      await markForKernelPath(cluster.lab, one!, pod(1), true);
      const shown = await ripstopJson<{ ip: string; flags: string[] }[]>(cluster.lab, one!, 'endpoints');
      expect(shown.find(({ ip }) => ip === pod(1).ip)!.flags).toEqual(['kernel_path']);

      const [near] = await carriedDuring(cluster.lab, ripstopNodes(), () => stream(pod(1, 1), 1 << 20));
      expect(near!.fast).toBe(0);
      expect(near!.by['from_pod kernel_marked']).toBeGreaterThan(40);
      expect(near!.forwarded).toBeGreaterThanOrEqual(near!.by['from_pod kernel_marked']!);

      const [here, there] = await carriedDuring(cluster.lab, ripstopNodes(), () => stream(pod(2), 1 << 20));
      expect(here!.fast).toBe(0);
      expect(here!.by['from_pod kernel_marked']).toBeGreaterThan(20);
      expect(here!.by['to_pod kernel_marked']).toBeGreaterThan(20);
      expect(here!.vtep).toBeGreaterThan(40);
      // The mark of the other end is that node's own matter.
      expect(there!.by['from_pod fast_encap']).toBeGreaterThan(20);
      expect(there!.by['from_wire fast_decap']).toBeGreaterThan(20);
      expect(there!.vtep).toBeLessThan(MOST_ON_KERNEL_PATH);

      await markForKernelPath(cluster.lab, one!, pod(1), false);
      const [again] = await carriedDuring(cluster.lab, ripstopNodes(), () => stream(pod(2), 1 << 20));
      expect(again!.by['from_pod fast_encap']).toBeGreaterThan(20);
      expect(again!.vtep).toBeLessThan(MOST_ON_KERNEL_PATH);
    });

    it('without breaking its connections, neither when it begins nor when it ends', async () => {
      const [one] = cluster.nodes;
      for (const to of [pod(1, 1), pod(2)]) {
        const server = await serveIn(to);
        const held = await holdFrom(pod(1), to.ip);
        const [meanwhile] = await carriedDuring(cluster.lab, ripstopNodes(), async () => {
          await markForKernelPath(cluster.lab, one!, pod(1), true);
          await talkTcp(pod(1), to.ip);
        });
        expect(meanwhile!.by['from_pod kernel_marked']).toBeGreaterThan(0);
        await markForKernelPath(cluster.lab, one!, pod(1), false);
        await talkTcp(pod(1), to.ip);
        const report = await released(held);
        expect(report).not.toHaveProperty('error');
        expect(report.rounds).toBeGreaterThan(5);
        expect(report.longestMs).toBeLessThan(1000);
        await server.stop();
      }
    });
  });
});
