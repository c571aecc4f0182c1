// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ipBatch, ipJson } from '../../src/lab/ip.ts';
import { run, tryRun } from '../../src/host/run.ts';
import type { NodeState, PodState } from '../../src/lab/index.ts';
import { type Family, addressFamily } from '../../src/net/ip.ts';
import { Random } from '../support/random.ts';
import { BEHIND, forwardTo, routeFor, tcpPortOf, udpPortOf } from './forwarder.ts';
import {
  addressesOf,
  carriedDuring,
  inNetns,
  missingHere,
  ping,
  podOf,
  sendDatagrams,
  serveIn,
  talkTcp,
  useLab,
} from './support.ts';

const SEED = 6407;
/** The largest packet of a pod that the path between two nodes carries. */
const PATH_MTU = { 4: 1450, 6: 1430 };
const IP_AND_UDP = { 4: 28, 6: 48 };
const LARGEST = 65_507;
const WIDE_MTU = 9000;

/** Sizes around every limit for a datagram, and some random ones. */
function datagramSizes(family: Family): number[] {
  const random = new Random(SEED);
  const whole = PATH_MTU[family] - IP_AND_UDP[family];
  const edges = [1, 2, 3, whole - 1, whole, whole + 1, 2 * whole, 9000, 32_768, LARGEST - 1, LARGEST];
  return [...edges, ...Array.from({ length: 8 }, () => 1 + random.below(LARGEST))];
}

/** Sizes of super-packets: whole segments, and some with a shorter last segment. */
function superPackets(segment: number): number[] {
  return Array.from({ length: 16 }, (_, i) => Math.min(LARGEST, segment * (45 - i) - i));
}

async function inBothFamilies(
  to: { ip: string; ip6?: string },
  work: (address: string, family: Family) => Promise<void>,
): Promise<void> {
  await Promise.all(addressesOf(to).map((address) => work(address, addressFamily(address)!)));
}

describe.skipIf(missingHere('ping')).each(['gso', 'mtu'])(
  'on a %s wire, two ripstop nodes beside a flannel node',
  (wire) => {
    const cluster = useLab(`size-${wire}`, {
      datapath: 'ripstop,ripstop,flannel',
      pods: 2,
      wire,
      ipv6: true,
    });
    const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);

    beforeAll(async () => {
      await Promise.all(cluster.nodes.flatMap(({ pods }) => pods).map((one) => serveIn(one)));
      // flannel's pod MTU is 20 bytes too large for IPv6; hosts learn the path's MTU after some datagrams.
      await tryRun('ping', ['-c', '1', '-W', '1', '-s', '1402', pod(2).ip6!], inNetns(pod(3)));
    });

    const neighbours = {
      way: 'a pod to its neighbour on the node',
      from: () => pod(1),
      to: () => pod(1, 1),
    };
    const ways = [
      ...(wire === 'gso' ? [neighbours] : []), // There is no wire between them.
      { way: 'a ripstop pod to another', from: () => pod(1), to: () => pod(2) },
      { way: 'a ripstop pod to a flannel pod', from: () => pod(2), to: () => pod(3) },
      { way: 'a flannel pod to a ripstop pod', from: () => pod(3), to: () => pod(2) },
    ];

    it.each(ways)(
      'carry datagrams of 1 to 65,507 bytes from $way, whole and in order',
      async ({ from, to }) => {
        await inBothFamilies(to(), async (address, family) => {
          const sizes = datagramSizes(family);
          expect(await sendDatagrams({ from: from(), to: to(), address, sizes })).toEqual(sizes);
        });
      },
    );

    it.each(ways)(
      'carry UDP super-packets (UDP_SEGMENT) from $way, to readers of either kind',
      async ({ from, to }) => {
        await inBothFamilies(to(), async (address, family) => {
          const largest = PATH_MTU[family] - IP_AND_UDP[family];
          const single = { from: from(), to: to(), address, segment: largest, sizes: superPackets(largest) };
          expect(Math.max(...(await sendDatagrams(single)))).toBe(largest);
          await sendDatagrams({ ...single, segment: 1200, sizes: superPackets(1200), asSuper: true });
        });
      },
    );

    describe('through a pod that forwards', () => {
      const forwarder = () => pod(2);
      const targets = () => [pod(2, 1), pod(1, 1), pod(3)];
      const clients = [
        { client: 'a ripstop node', from: () => pod(1) },
        { client: 'a flannel node', from: () => pod(3, 1) },
      ];
      beforeAll(() => forwardTo(forwarder(), targets()));

      it.each(clients)(
        'carry TCP from $client to pods near and far, unharmed and without stalls',
        async ({ from }) => {
          for (const [i, target] of targets().entries()) {
            if (target === from()) continue;
            await inBothFamilies(forwarder(), async (address) => {
              const begun = performance.now();
              expect((await talkTcp(from(), address, 5 << 20, tcpPortOf(i))).seenAs).toBe(address);
              expect(performance.now() - begun).toBeLessThan(5000);
            });
          }
        },
      );

      it.each(clients)('carry UDP super-packets from $client to pods near and far', async ({ from }) => {
        for (const [i, to] of targets().entries()) {
          if (to === from()) continue;
          await inBothFamilies(forwarder(), async (via, family) => {
            const address = addressesOf(to)[family === 4 ? 0 : 1]!;
            const way = { from: from(), to, address, via: { address: via, port: udpPortOf(i) } };
            await sendDatagrams({ ...way, segment: 1200, sizes: superPackets(1200) });
          });
        }
      });

      it('carry TCP and UDP super-packets between a machine that it routes for and a pod on its node', async () => {
        const behind = { netns: `${cluster.lab.name}-node2-pod9`, ...BEHIND };
        await routeFor(behind.netns, forwarder(), cluster.nodes[1]!);
        await serveIn(behind);
        const near = pod(2, 1);
        for (const [from, to] of [
          [near, behind],
          [behind, near],
        ] as const) {
          await inBothFamilies(to, async (address) => {
            expect(addressesOf(from)).toContain((await talkTcp(from, address, 5 << 20)).seenAs);
            await sendDatagrams({ from, to, address, segment: 1200, sizes: superPackets(1200) });
          });
        }
      });
    });

    describe('when pods’ interfaces promise more than the path holds (row 56)', () => {
      const wide = () => [pod(1, 1), pod(2, 1)].map((pod, i) => [cluster.nodes[i]!, pod] as const);
      const from = () => pod(1, 1);
      const to = () => pod(2, 1);

      beforeAll(async () => {
        for (const [node, pod] of wide()) await setMtu(node, pod, WIDE_MTU);
      });
      afterAll(async () => {
        for (const [node, pod] of wide()) await setMtu(node, pod, PATH_MTU[4]);
      });

      it('the kernel path tells the sender the size, and the fast path carries nothing', async () => {
        const [here] = await carriedDuring(cluster.lab, cluster.nodes.slice(0, 1), async () => {
          for (const address of addressesOf(to())) {
            const { stdout } = await tryRun(
              'ping',
              ['-n', '-M', 'do', '-c', '1', '-W', '1', '-s', '4000', address],
              inNetns(from()),
            );
            expect(stdout).toMatch(
              addressFamily(address) === 4
                ? /From \S+ icmp_seq=1 Frag needed and DF set \(mtu = 1450\)/
                : /From \S+ icmp_seq=1 Packet too big: mtu=1430/,
            );
          }
        });
        expect(here!.by).not.toHaveProperty(['from_pod fast_encap']);
      });

      it('a sender that knows the size gets through', async () => {
        await forget(from());
        await tryRun('ping', ['-c', '1', '-W', '1', '-s', '4000', to().ip6!], inNetns(from()));
        await ping(from(), to().ip6!);
        for (const address of addressesOf(to())) {
          await forget(from());
          await forget(to());
          await talkTcp(from(), address, 5 << 20);
        }
      });

      it('IPv4 packets without DF are fragmented', async () => {
        const [here, there] = await carriedDuring(cluster.lab, cluster.nodes.slice(0, 2), async () => {
          const how = ['-n', '-M', 'dont', '-i', '0.01', '-c', '5', '-W', '1', '-s', '4000'];
          const { stdout } = await tryRun('ping', [...how, to().ip], inNetns(from()));
          expect(stdout).toContain('5 packets transmitted, 5 received');
        });
        for (const { by } of [here!, there!]) expect(by).not.toHaveProperty(['from_pod fast_encap']);
      });
    });
  },
);

/** Set the MTU of both ends of a pod's veth pair, and of its IPv6 routes. */
async function setMtu(node: NodeState, { netns }: PodState, mtu: number): Promise<void> {
  const [eth0] = await ipJson<{ link_index: number }>(['link', 'show', 'dev', 'eth0'], inNetns({ netns }));
  const links = await ipJson<{ ifindex: number; ifname: string }>(['link'], inNetns(node));
  const { ifname } = links.find(({ ifindex }) => ifindex === eth0!.link_index)!;
  await ipBatch([`link set ${ifname} mtu ${mtu}`], inNetns(node));
  const routes = await ipJson<{ dst: string; gateway?: string }>(['-6', 'route'], inNetns({ netns }));
  await ipBatch(
    [
      `link set eth0 mtu ${mtu}`,
      ...routes
        .filter(({ gateway }) => gateway)
        .map(
          ({ dst, gateway }) =>
            `route replace ${dst} via ${gateway} dev eth0 metric 1024 mtu ${Math.min(mtu, WIDE_MTU)}`,
        ),
    ],
    inNetns({ netns }),
  );
  await forget({ netns });
}

/** Let a pod forget the path MTUs that it has learned. */
async function forget(pod: { netns: string }): Promise<void> {
  for (const family of ['-4', '-6']) await run('ip', [family, 'route', 'flush', 'cache'], inNetns(pod));
}
