// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { OUTSIDE_ADDRESS, OUTSIDE_ADDRESS6, underlayNetns } from '../../src/lab/index.ts';
import { startIn } from '../../src/lab/lab.support.ts';
import {
  addressesOf,
  addressOf,
  missingHere,
  ping,
  podOf,
  PORT,
  serveIn,
  talkBoth,
  talkTcp,
  talkUdp,
  useLab,
} from './support.ts';

const missing = missingHere('tcpdump');
const MANY_BYTES = 20 << 20;
const FAMILIES = [4, 6] as const;

/** tcpdump's checks of the packets on a device during `work`. */
async function dumpDuring(
  places: { netns: string; device: string; filter: string[] }[],
  work: () => Promise<unknown>,
): Promise<Dump[]> {
  const dumps = places.map(({ netns, device, filter }) =>
    startIn(netns, 'tcpdump', '-l', '-nn', '-vv', '-s', '0', '-B', '65536', '-i', device, ...filter),
  );
  await Promise.all(dumps.map((dump) => dump.prints(/listening/)));
  await work();
  await sleep(300); // The kernel delivers captured packets in batches.
  return Promise.all(dumps.map(async (dump) => judge(await dump.stop())));
}

interface Dump {
  /** The lines about invalid packets. */
  bad: string[];
  /** The number of correct checksums. */
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
      .filter(
        (line) => /\b(incorrect|bad|wrong|invalid)\b/i.test(line) && !isSuperPacket(line) && !isBare(line),
      ),
    correct: output.match(/\(correct\)|sum ok/g)?.length ?? 0,
    udp: /\[udp sum ok\] UDP, length 1000/.test(output),
    icmp: /ICMP echo/.test(output) && /ICMP6, echo/.test(output),
    lost: !/^0 packets dropped by kernel/m.test(output),
  };
}

/**
 * Between ripstop nodes the outer UDP header has no checksum over IPv6. RFC 6935 allows that for tunnels; tcpdump
 * reports it.
 */
function isBare(line: string): boolean {
  return /\.8472: \[bad udp cksum 0x0000 ->/.test(line);
}

/** Packets that GRO has merged have only the pseudo header's sum (CHECKSUM_PARTIAL); each was verified before. */
function isSuperPacket(line: string): boolean {
  // A pod's MTU, 1450 and for IPv6 1430, without headers and TCP's time stamps.
  const largest = line.includes(' IP6 ') ? 1358 : 1398;
  return Number(/length (\d+)$/.exec(line)?.[1]) > largest;
}

describe.skipIf(missing)('on a wire of super-packets, two ripstop nodes and a flannel node', () => {
  const cluster = useLab('gso', { datapath: 'ripstop,ripstop,flannel', pods: 2, ipv6: true });
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
      for (const family of FAMILIES) {
        const [source, target] = [addressOf(from(), family), addressOf(to(), family)];
        expect(await talkBoth(from(), target, PORT, MANY_BYTES)).toBe(source);
        await ping(from(), target);
        await ping(to(), source);
      }
    } finally {
      await server.stop();
    }
  });

  it('let a node talk to its own and other nodes’ pods (row 65)', async () => {
    const [one] = cluster.nodes;
    for (const to of [pod(1), pod(2), pod(3)]) {
      const server = await serveIn(to);
      for (const address of addressesOf(to)) {
        await ping(one!, address);
        await talkBoth(one!, address);
      }
      await server.stop();
    }
  });

  it('let pods talk to nodes (row 65)', async () => {
    const [one] = cluster.nodes;
    const server = await serveIn(one!);
    for (const family of FAMILIES) {
      const target = addressOf(one!, family);
      for (const [i, node] of cluster.nodes.entries()) {
        const from = pod(i + 1);
        await ping(from, target);
        // To a pod another node is outside, so the pod is masqueraded.
        expect((await talkTcp(from, target, 1 << 20)).seenAs).toBe(
          addressOf(node === one ? from : node, family),
        );
      }
    }
    await server.stop();
  });

  it('masquerade pods outside the cluster', async () => {
    for (const [family, address] of [
      [4, OUTSIDE_ADDRESS],
      [6, OUTSIDE_ADDRESS6],
    ] as const) {
      const server = await serveIn({ netns: underlayNetns(cluster.lab.name) }, address);
      for (const [i, node] of cluster.nodes.entries()) {
        expect(await talkBoth(pod(i + 1), address)).toBe(addressOf(node, family));
        await ping(pod(i + 1), address);
      }
      await server.stop();
    }
  });
});

describe.skipIf(missing)(
  'on a wire of MTU-sized packets, a ripstop node with a ripstop and a flannel one',
  () => {
    const cluster = useLab('mtu', { datapath: 'ripstop,ripstop,flannel', pods: 1, wire: 'mtu', ipv6: true });

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
            // Packets that the pod sends are checksummed later; those that it receives must be correct.
            { netns: to.netns, device: 'eth0', filter: ['-Q', 'in', 'ip or ip6'] },
          ],
          async () => {
            for (const address of addressesOf(to)) {
              await talkTcp(from, address, 200_000);
              await talkUdp(from, address, 20, 1000);
              await ping(from, address);
            }
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
      for (const address of addressesOf(to)) await talkTcp(podOf(cluster.nodes[0]), address, MANY_BYTES);
      await server.stop();
    });
  },
);
