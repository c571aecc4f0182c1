// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { hostVethName } from '../../src/cni/pod-network.ts';
import type { PeerRow } from '../../src/cli/rows.ts';
import { run } from '../../src/host/run.ts';
import {
  addressesOf,
  carriedDuring,
  inNetns,
  missingHere,
  podOf,
  ripstopJson,
  serveIn,
  talkTcp,
  timeUntil,
  useLab,
} from './support.ts';

interface Row {
  readonly device: string;
  readonly flags: readonly string[];
  readonly fastPath: boolean;
  readonly why?: string;
}

describe.skipIf(missingHere('tc'))('a pod whose traffic somebody shapes', () => {
  const cluster = useLab('shaping', { pods: 2, ipv6: true });
  const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);
  const hostVeth = () => hostVethName({ containerId: pod(1).containerId, ifname: 'eth0' });
  const tc = (command: string) =>
    run('tc', command.replace('VETH', hostVeth()).split(' '), inNetns(cluster.nodes[0]!));

  beforeAll(async () => {
    await Promise.all([pod(1, 1), pod(2)].map((one) => serveIn(one)));
  });

  /** The pod as `endpoints` shows it, once for each family. */
  async function shown(): Promise<readonly Row[]> {
    const rows = await ripstopJson<Row[]>(cluster.lab, cluster.nodes[0]!, 'endpoints');
    return rows.filter(({ device }) => device === hostVeth());
  }
  const flags = async () => (await shown()).flatMap((row) => row.flags);
  const bothFamilies = (...names: string[]) => [...names, ...names];

  /** Talk to a pod of each node. Returns how many packets took the fast path on the pod's node. */
  async function fastPackets(): Promise<number> {
    const [carried] = await carriedDuring(cluster.lab, cluster.nodes, async () => {
      const addresses = [pod(1, 1), pod(2)].flatMap(addressesOf);
      await Promise.all(addresses.map((address) => talkTcp(pod(1), address, 1 << 20)));
    });
    return carried!.fast;
  }

  it.each([
    [
      'with a queueing discipline',
      ['qdisc add dev VETH root tbf rate 1gbit burst 1m latency 10ms'],
      'qdisc del dev VETH root',
    ],
    [
      'with a filter at its ingress, as the bandwidth plugin makes one',
      ['qdisc add dev VETH ingress', 'filter add dev VETH ingress protocol all u32 match u32 0 0 flowid :1'],
      'qdisc del dev VETH ingress',
    ],
  ])('%s is on the kernel path from then on, both ways, and until then', async (_, begin, end) => {
    expect(await flags()).toEqual([]);
    for (const command of begin) await tc(command);
    await timeUntil(async () => (await flags()).includes('kernel_path'));
    expect(await flags()).toEqual(bothFamilies('kernel_path', 'shaped'));
    const shaped = { fastPath: false, why: 'somebody shapes or filters its packets in tc' };
    expect(await shown()).toMatchObject([shaped, shaped]);
    expect(await fastPackets()).toBe(0);
    await tc(end);
    await timeUntil(async () => (await flags()).length === 0);
    expect(await fastPackets()).toBeGreaterThan(100);
  });

  it('on flannel.1 is on the kernel path to other nodes, as long as that lasts', async () => {
    const shapedPeers = async () => {
      const rows = await ripstopJson<PeerRow[]>(cluster.lab, cluster.nodes[0]!, 'peers');
      return rows.filter(({ reason }) => reason === 'shaped').map(({ vtepIp }) => vtepIp);
    };
    const fastTo = async (address: string) => {
      await talkTcp(pod(1), address); // so that the agent's changes are over, and flows are learned
      const [carried] = await carriedDuring(cluster.lab, cluster.nodes, () =>
        talkTcp(pod(1), address, 1 << 20),
      );
      return carried!.fast;
    };
    const { ip, ip6 } = pod(2);
    expect(await shapedPeers()).toEqual([]);
    await tc('qdisc add dev flannel.1 root tbf rate 1gbit burst 1m latency 10ms');
    await expect.poll(shapedPeers).toEqual([cluster.nodes[1]!.ip]);
    expect(await fastTo(ip)).toBe(0);
    expect(await fastTo(ip6!)).toBeGreaterThan(20);
    await tc('qdisc del dev flannel.1 root');
    await expect.poll(shapedPeers).toEqual([]);
    expect(await fastTo(ip)).toBeGreaterThan(20);
  });

  it('leaves the fast path with flows that were learned before', async () => {
    const [carried] = await carriedDuring(cluster.lab, cluster.nodes, async () => {
      // One flow, by its identifier: learned from the first echo, fast from then on, until half of them are out.
      const pinging = run(
        'ping',
        ['-n', '-e', '4711', '-i', '0.02', '-c', '100', pod(2).ip],
        inNetns(pod(1)),
      );
      await sleep(1000);
      await tc('qdisc add dev VETH root pfifo');
      expect(await pinging).toContain('100 received');
    });
    await tc('qdisc del dev VETH root');
    for (const reason of ['from_pod fast_encap', 'from_wire fast_decap']) {
      expect(carried!.by[reason]).toBeGreaterThan(30);
      expect(carried!.by[reason]).toBeLessThan(70);
    }
  });
});
