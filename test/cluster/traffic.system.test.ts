// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { OUTSIDE_ADDRESS, underlayNetns } from '../../src/lab/index.ts';
import { startIn } from '../../src/lab/testing.ts';
import { missingHere, ping, podOf, serveIn, talkTcp, talkUdp, useLab } from './support.ts';

const missing = missingHere('tcpdump');
const MANY_BYTES = 20 << 20;

/** What tcpdump thinks of what passes a device while something goes on. */
async function dumpDuring(
  places: { netns: string; device: string; filter: string[] }[],
  work: () => Promise<unknown>,
): Promise<Dump[]> {
  const dumps = places.map(({ netns, device, filter }) =>
    startIn(netns, 'tcpdump', '-l', '-nn', '-vv', '-s', '0', '-B', '65536', '-i', device, ...filter),
  );
  await Promise.all(dumps.map((dump) => dump.prints(/listening/)));
  await work();
  await sleep(300); // The kernel hands captured packets over now and then, not one by one.
  return Promise.all(dumps.map(async (dump) => judge(await dump.stop())));
}

interface Dump {
  /** The lines that find fault with a packet. */
  bad: string[];
  /** Checksums that were found right. */
  correct: number;
  udp: boolean;
  icmp: boolean;
  /** Whether tcpdump was too slow to see everything. */
  lost: boolean;
}

function judge(output: string): Dump {
  return {
    bad: output
      .split('\n')
      .filter((line) => /\b(incorrect|bad|wrong|invalid)\b/i.test(line) && !isSuperPacket(line)),
    correct: output.match(/\(correct\)|sum ok/g)?.length ?? 0,
    udp: /\[udp sum ok\] UDP, length 1000/.test(output),
    icmp: /ICMP echo/.test(output),
    lost: !/^0 packets dropped by kernel/m.test(output),
  };
}

/** Packets that GRO has put together carry the checksum of the pseudo header only (CHECKSUM_PARTIAL); each was verified before. */
function isSuperPacket(line: string): boolean {
  return Number(/length (\d+)$/.exec(line)?.[1]) > 1450;
}

describe.skipIf(missing)('on a wire of super-packets, two ripstop nodes and a flannel node', () => {
  const cluster = useLab('gso', { datapath: 'ripstop,ripstop,flannel', pods: 2 });
  const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);

  const ways = [
    { way: 'a pod and its neighbour on the node', from: () => pod(1), to: () => pod(1, 1) },
    { way: 'pods of two ripstop nodes', from: () => pod(1), to: () => pod(2) },
    { way: 'a ripstop pod and a flannel pod', from: () => pod(1), to: () => pod(3) },
    { way: 'a flannel pod and a ripstop pod', from: () => pod(3, 1), to: () => pod(2, 1) },
  ];

  it.each(ways)('carry 20 MB there and back between $way, and datagrams and pings', async ({ from, to }) => {
    const server = await serveIn(to());
    try {
      const report = await talkTcp(from(), to().ip, MANY_BYTES);
      expect(report.seenAs).toBe(from().ip);
      expect((await talkUdp(from(), to().ip)).seenAs).toBe(from().ip);
      await ping(from(), to().ip);
      await ping(to(), from().ip);
    } finally {
      await server.stop();
    }
  });

  it('carry datagrams that are too big for one packet, in fragments', async () => {
    for (const to of [pod(1, 1), pod(2), pod(3)]) {
      const server = await serveIn(to);
      await talkUdp(pod(1), to.ip, 3, 4000);
      await server.stop();
    }
  });

  it('let a node talk to its own pods, to other nodes’ pods, and pods to nodes', async () => {
    const [one, two, three] = cluster.nodes;
    for (const to of [pod(1), pod(2), pod(3)]) {
      const server = await serveIn(to);
      await ping(one!, to.ip);
      await talkTcp(one!, to.ip, 1 << 20);
      await talkUdp(one!, to.ip);
      await server.stop();
    }
    const server = await serveIn(one!);
    await ping(pod(1), one!.ip);
    expect((await talkTcp(pod(1), one!.ip, 1 << 20)).seenAs).toBe(pod(1).ip);
    for (const [from, node] of [
      [pod(2), two!],
      [pod(3), three!],
    ] as const) {
      await ping(from, one!.ip);
      // Another node is the world to a pod: it is masqueraded.
      expect((await talkTcp(from, one!.ip, 1 << 20)).seenAs).toBe(node.ip);
    }
    await server.stop();
  });

  it('hide pods behind their node’s address outside of the cluster', async () => {
    const server = await serveIn({ netns: underlayNetns(cluster.lab.name) }, OUTSIDE_ADDRESS);
    for (const [i, node] of cluster.nodes.entries()) {
      expect((await talkTcp(pod(i + 1), OUTSIDE_ADDRESS, 1 << 20)).seenAs).toBe(node.ip);
      expect((await talkUdp(pod(i + 1), OUTSIDE_ADDRESS)).seenAs).toBe(node.ip);
      await ping(pod(i + 1), OUTSIDE_ADDRESS);
    }
    await server.stop();
  });
});

describe.skipIf(missing)(
  'on a wire of MTU-sized packets, a ripstop node with a ripstop and a flannel one',
  () => {
    const cluster = useLab('mtu', { datapath: 'ripstop,ripstop,flannel', pods: 1, wire: 'mtu' });

    it.each([2, 3])(
      'exchange checksums with node %i that are right, on the wire and in the pods',
      async (other) => {
        const from = podOf(cluster.nodes[0]);
        const to = podOf(cluster.nodes[other - 1]);
        const server = await serveIn(to);
        const wire = { netns: underlayNetns(cluster.lab.name), device: `node${other}` };
        const [onTheWire, inPod] = await dumpDuring(
          [
            { ...wire, filter: ['udp port 8472'] },
            // What the pod sends, its veth checksums later; what it receives shall be right.
            { netns: to.netns, device: 'eth0', filter: ['-Q', 'in', 'ip'] },
          ],
          async () => {
            await talkTcp(from, to.ip, 200_000);
            await talkUdp(from, to.ip, 20, 1000);
            await ping(from, to.ip);
          },
        );
        await server.stop();
        const right = { bad: [], udp: true, icmp: true, lost: false };
        expect(onTheWire).toMatchObject(right);
        expect(inPod).toMatchObject(right);
        expect(onTheWire!.correct).toBeGreaterThan(200);
        expect(inPod!.correct).toBeGreaterThan(20);
      },
    );

    it.each([2, 3])('carry 20 MB there and back with node %i', async (other) => {
      const to = podOf(cluster.nodes[other - 1]);
      const server = await serveIn(to);
      await talkTcp(podOf(cluster.nodes[0]), to.ip, MANY_BYTES);
      await server.stop();
    });
  },
);
