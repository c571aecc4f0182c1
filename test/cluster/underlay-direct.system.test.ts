// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ipBatch, ipJson } from '../../src/lab/ip.ts';
import { readForwardCounters } from '../../src/lab/rule-counters.ts';
import { run, tryRun } from '../../src/host/run.ts';
import {
  netnsPath,
  type NodeState,
  restartAgent,
  startAgent,
  underlayNetns,
  removePrograms,
} from '../../src/lab/index.ts';
import { addNetns, deleteNetns, setSysctls } from '../../src/lab/netns.ts';
import { randomMac } from '../../src/net/mac.ts';
import {
  carriedDuring,
  inNetns,
  missingHere,
  ping,
  podOf,
  ripstopJson,
  serveIn,
  talkTcp,
  talkUdp,
  useLab,
} from './support.ts';
import {
  configure,
  countedDuringPings,
  inUnderlay,
  lostDuring,
  untilReached,
  type Way,
  waysBetween,
} from './underlay.ts';

/*
 *   node1 ─┬─ br0 ── the underlay's namespace ── br1 ─── node3
 *   node2 ─┘   │       172.3x.255.254, ::fffe     │
 *              └────── the other gateway ─────────┘
 *                      172.3x.255.253, ::fffd
 *   172.31.0.0/16, fd00:31::/64      172.32.0.0/16, fd00:32::/64
 */
describe.skipIf(missingHere())('with DirectRouting, two nodes of one L2 and one behind a router', () => {
  const cluster = useLab('direct', { nodes: 3, pods: 1, ipv6: true, directRouting: true });
  const node = (i: number) => cluster.nodes[i - 1]!;
  const pod = (i: number) => podOf(node(i));
  const direct = () => waysBetween(pod(1), pod(2));
  const tunnelled = () => waysBetween(pod(1), pod(3));
  const all = () => [...direct(), ...tunnelled()];
  const gateway = () => `t${process.pid}-gateway`;

  beforeAll(async () => {
    await putBehindRouter();
    await Promise.all([pod(2), pod(3)].map((one) => serveIn(one)));
  });
  afterAll(() => deleteNetns(gateway()));

  async function putBehindRouter(): Promise<void> {
    const underlay = underlayNetns(cluster.lab.name);
    await addNetns(gateway());
    for (const router of [underlay, gateway()]) {
      await setSysctls(router, {
        'ipv4.ip_forward': 1,
        'ipv6.conf.all.forwarding': 1,
        'ipv6.conf.default.accept_dad': 0,
      });
    }
    await ipBatch(
      [
        `link add br1 address ${randomMac()} type bridge stp_state 0`,
        'address add 172.32.255.254/16 dev br1',
        'address add fd00:32::fffe/64 dev br1',
        'link set br1 up',
        `link set ${node(3).name} master br1`,
        ...[0, 1].flatMap((side) => [
          `link add gateway${side} type veth peer name eth${side} netns ${gateway()}`,
          `link set gateway${side} master br${side} up`,
        ]),
      ],
      inUnderlay(cluster.lab),
    );
    await ipBatch(
      [0, 1].flatMap((side) => [
        `address add 172.3${side + 1}.255.253/16 dev eth${side}`,
        `address add fd00:3${side + 1}::fffd/64 dev eth${side}`,
        `link set eth${side} up`,
      ]),
      { netns: netnsPath(gateway()) },
    );
    await ipBatch(
      [
        'address flush dev eth0 scope global',
        'address add 172.32.0.3/16 dev eth0',
        'address add fd00:32::3/64 dev eth0',
        'route replace default via 172.32.255.254 dev eth0',
        'route replace default via fd00:32::fffe dev eth0',
      ],
      inNetns(node(3)),
    );
    await restartAgent(cluster.lab, node(3));
    await untilReached(all());
  }

  async function wayOf(one: NodeState, peer: NodeState): Promise<object[]> {
    const rows = await ipJson<{ dst: string; gateway?: string; dev: string }>(
      ['route', 'show', peer.podCIDR],
      inNetns(one),
    );
    const rows6 = await ipJson<{ dst: string; gateway?: string; dev: string }>(
      ['-6', 'route', 'show', peer.podCIDR6!],
      inNetns(one),
    );
    return [...rows, ...rows6].map(({ gateway, dev }) => ({ gateway, dev }));
  }

  it('use no tunnel on the same L2 and a tunnel elsewhere, on the fast path both ways', async () => {
    expect(await wayOf(node(1), node(2))).toEqual([
      { gateway: '172.31.0.2', dev: 'eth0' },
      { gateway: 'fd00:31::2', dev: 'eth0' },
    ]);
    expect(await wayOf(node(1), node(3))).toEqual([
      { gateway: '10.42.2.0', dev: 'flannel.1' },
      { gateway: 'fd00:42:0:3::', dev: 'flannel-v6.1' },
    ]);
    const carried = await carriedDuring(cluster.lab, cluster.nodes, async () => {
      for (const { from, to } of all()) {
        await talkTcp(from, to, 1 << 20);
        await talkUdp(from, to);
      }
    });
    const [one, two, three] = carried.map(({ by }) => by);
    for (const by of [one!, two!]) {
      expect(by['from_pod fast_direct']).toBeGreaterThan(60);
      expect(by['from_wire fast_direct']).toBeGreaterThan(60);
    }
    for (const by of [one!, three!]) {
      expect(by['from_pod fast_encap']).toBeGreaterThan(60);
      expect(by['from_wire fast_decap']).toBeGreaterThan(60);
    }
    expect(two!).not.toHaveProperty(['from_wire fast_decap']);
    expect(three!).not.toHaveProperty(['from_wire fast_direct']);
    for (const { vtep, forwarded } of carried) expect(vtep + forwarded).toBeLessThan(250);
  });

  it('use the same routes without programs, without a loss', async () => {
    const lost = await lostDuring(all(), async () => {
      for (const one of [node(1), node(2)]) await removePrograms(cluster.lab, one);
      const forwarded = () =>
        Promise.all(
          [node(1), node(2)].map(async (one) => (await readForwardCounters(inNetns(one)))!.packets),
        );
      const before = await forwarded();
      for (const { from, to } of direct()) await ping(from, to, 20);
      const after = await forwarded();
      for (const [i, packets] of after.entries()) expect(packets - before[i]!).toBeGreaterThanOrEqual(80);
      await Promise.all([node(1), node(2)].map((one) => startAgent(cluster.lab, one)));
      await sleep(500);
    });
    expect(lost).toEqual([0, 0, 0, 0]);
    const [one] = await countedDuringPings(cluster.lab, [node(1)], all());
    expect(one!['from_pod fast_direct']).toBeGreaterThanOrEqual(30);
    expect(one!['from_pod fast_encap']).toBeGreaterThanOrEqual(30);
  });

  it('accept plain packets only from peers to which they send plain packets', async () => {
    const where = inUnderlay(cluster.lab);
    const forged = ['10.42.2.99', 'fd00:42:0:3::99'];
    await ipBatch(
      [
        ...forged.map((address) => `address add ${address} dev lo`),
        `route add ${pod(1).ip} via ${node(1).ip}`,
        `route add ${pod(1).ip6!} via ${node(1).ip6!}`,
      ],
      where,
    );
    const [by] = await countedDuringForgery();
    expect(by).not.toHaveProperty(['from_wire fast_direct']);
    expect(by!['from_wire kernel_not_vxlan']).toBeGreaterThanOrEqual(10);
    await ipBatch(
      [
        ...forged.map((address) => `address del ${address} dev lo`),
        `route del ${pod(1).ip}`,
        `route del ${pod(1).ip6!}`,
      ],
      where,
    );

    async function countedDuringForgery() {
      const carried = await carriedDuring(cluster.lab, [node(1)], async () => {
        for (const [i, address] of [pod(1).ip, pod(1).ip6!].entries()) {
          await tryRun(
            'ping',
            ['-n', '-c', '5', '-i', '0.01', '-W', '0.1', '-I', forged[i]!, address],
            where,
          );
        }
      });
      return carried.map(({ by }) => by);
    }
  });

  it('lose only what the wire loses when an uplink flaps', async () => {
    await lostDuring(all(), async () => {
      await run('ip', ['link', 'set', 'eth0', 'down'], inNetns(node(1)));
      await sleep(200);
      await configure(cluster.lab, node(1));
      await untilReached(all());
    });
    await expect
      .poll(() => wayOf(node(1), node(2)))
      .toEqual([
        { gateway: '172.31.0.2', dev: 'eth0' },
        { gateway: 'fd00:31::2', dev: 'eth0' },
      ]);
    const [one] = await countedDuringPings(cluster.lab, [node(1)], all());
    expect(one!['from_pod fast_direct']).toBeGreaterThanOrEqual(30);
    expect(one!['from_pod fast_encap']).toBeGreaterThanOrEqual(30);
  });

  it('follow a route to another gateway, and back, without a loss', async () => {
    const forwardedBy = async () =>
      (
        await ipJson<{ stats64: { tx: { packets: number } } }>(['-s', 'link', 'show', 'dev', 'eth1'], {
          netns: netnsPath(gateway()),
        })
      )[0]!.stats64.tx.packets;
    const nextHops = async () => {
      const peers = await ripstopJson<{ node: string; nextHop: string }[]>(cluster.lab, node(1), 'peers');
      return peers
        .filter(({ node }) => node === 'node3')
        .map(({ nextHop }) => nextHop)
        .toSorted();
    };
    expect(await nextHops()).toEqual(['172.31.255.254', 'fd00:31::fffe']);
    const lost = await lostDuring(tunnelled(), async () => {
      await ipBatch(
        ['route add 172.32.0.0/16 via 172.31.255.253', 'route add fd00:32::/64 via fd00:31::fffd'],
        inNetns(node(1)),
      );
      await expect.poll(nextHops).toEqual(['172.31.255.253', 'fd00:31::fffd']);
      const before = await forwardedBy();
      for (const { from, to } of tunnelled()) await ping(from, to, 20);
      expect((await forwardedBy()) - before).toBeGreaterThanOrEqual(30);
      await ipBatch(['route del 172.32.0.0/16', 'route del fd00:32::/64'], inNetns(node(1)));
      await expect.poll(nextHops).toEqual(['172.31.255.254', 'fd00:31::fffe']);
    });
    expect(lost).toEqual([0, 0]);
  });

  describe('follow a MAC address that changes', () => {
    const changers: {
      who: string;
      netns: () => string;
      device: string;
      at: () => string[];
      ways: () => Way[];
    }[] = [
      {
        who: 'a peer',
        netns: () => node(2).netns,
        device: 'eth0',
        at: () => [node(2).ip, node(2).ip6!],
        ways: direct,
      },
      {
        who: 'a gateway',
        netns: () => underlayNetns(cluster.lab.name),
        device: 'br0',
        at: () => ['172.31.255.254', 'fd00:31::fffe'],
        ways: tunnelled,
      },
    ];

    /** The MACs of these addresses in node1's neighbour table. */
    async function macsSeen(addresses: string[]): Promise<(string | undefined)[]> {
      const rows = await ipJson<{ dst: string; lladdr?: string }>(
        ['neigh', 'show', 'dev', 'eth0'],
        inNetns(node(1)),
      );
      return addresses.map((address) => rows.find(({ dst }) => dst === address)?.lladdr);
    }

    async function changeMac(netns: string, device: string): Promise<string> {
      const mac = randomMac();
      await run('ip', ['link', 'set', device, 'address', mac], { netns: netnsPath(netns) });
      return mac;
    }

    it.each(changers)('of $who that announces it, at once', async ({ netns, device, at, ways }) => {
      await setSysctls(netns(), {
        [`ipv4.conf.${device}.arp_notify`]: 1,
        [`ipv6.conf.${device}.ndisc_notify`]: 1,
      });
      const lost = await lostDuring(ways(), async () => {
        const mac = await changeMac(netns(), device);
        await expect.poll(() => macsSeen(at()), { timeout: 2000 }).toEqual([mac, mac]);
        await sleep(200);
      });
      for (const n of lost) expect(n).toBeLessThanOrEqual(20);
    });

    it.each(changers)(
      'of $who that says nothing: when the kernel asks',
      async ({ netns, device, at, ways }) => {
        await setSysctls(netns(), {
          [`ipv4.conf.${device}.arp_notify`]: 0,
          [`ipv6.conf.${device}.ndisc_notify`]: 0,
        });
        // The kernel takes half a minute until an entry is stale, and eight seconds to probe it.
        for (const family of ['ipv4', 'ipv6']) {
          await setSysctls(node(1).netns, {
            [`${family}.neigh.eth0.base_reachable_time_ms`]: 200,
            [`${family}.neigh.eth0.delay_first_probe_time`]: 1,
            [`${family}.neigh.eth0.retrans_time_ms`]: 100,
          });
        }
        const lost = await lostDuring(ways(), async () => {
          const mac = await changeMac(netns(), device);
          await expect.poll(() => macsSeen(at())).toEqual([mac, mac]);
          const seenAt = performance.now();
          await untilReached(ways());
          expect(performance.now() - seenAt).toBeLessThan(500);
        });
        for (const n of lost) expect(n).toBeLessThanOrEqual(300);
      },
    );
  });
});
