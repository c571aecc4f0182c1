// SPDX-License-Identifier: Apache-2.0
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { readPeers } from '../../src/cli/rows.ts';
import { openTables } from '../../src/dataplane/tables.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { addPod, nodeDir } from '../../src/lab/index.ts';
import { listNodes } from '../../src/lab/kube.ts';
import { startIn } from '../../src/lab/lab.support.ts';
import {
  agentLog,
  bpffsOf,
  carriedDuring,
  inNetns,
  missingHere,
  nudge,
  ping,
  podOf,
  holdFrom,
  released,
  ripstopJson,
  serveIn,
  talkBoth,
  useLab,
} from './support.ts';
import { inUnderlay } from './underlay.ts';

const missing = missingHere('tcpdump', 'ethtool');
const PREFIX = 'flannel.alpha.coreos.com';

interface AgentView {
  readonly agent: {
    readonly ready: boolean;
    readonly families: readonly { readonly vtep: object }[];
    readonly targets: readonly {
      readonly name: string;
      readonly failures: readonly { readonly key: string; readonly why: string }[];
    }[];
  };
}

describe.skipIf(missing)('the backend host-gw', () => {
  const cluster = useLab('hostgw', { nodes: 2, pods: 2, backend: 'host-gw', wire: 'mtu' });
  const [pod1, pod2] = [() => podOf(cluster.nodes[0]), () => podOf(cluster.nodes[1])];
  const status = () => ripstopJson<AgentView>(cluster.lab, cluster.nodes[0]!, 'status');

  beforeAll(() => serveIn(pod2()));

  it('carries pods’ packets unmodified, on the fast path both ways', async () => {
    const [node1, node2] = [cluster.nodes[0]!, cluster.nodes[1]!];
    const wire = startIn(node1.netns, 'tcpdump', '-l', '-nn', '-i', 'eth0', 'udp or icmp');
    await wire.prints(/listening/);
    const [one, two] = await carriedDuring(cluster.lab, [node1, node2], async () => {
      await ping(pod1(), pod2().ip, 20);
      expect(await talkBoth(pod1(), pod2().ip)).toBe(pod1().ip);
    });
    const seen = await wire.stop();
    expect(seen).toContain(`${pod1().ip} > ${pod2().ip}: ICMP echo request`);
    expect(seen).not.toMatch(/VXLAN|\.8472/);
    for (const carried of [one!, two!]) {
      expect(carried.by['from_pod fast_direct']).toBeGreaterThan(20);
      expect(carried.by['from_wire fast_direct']).toBeGreaterThan(20);
      expect(carried.forwarded).toBeLessThan(30);
    }
  });

  it('has no VTEP device, gives pods the whole MTU, and publishes what flannel would', async () => {
    const [node1, node2] = [cluster.nodes[0]!, cluster.nodes[1]!];
    expect(await ipJson(['link', 'show', 'type', 'vxlan'], inNetns(node1))).toEqual([]);
    const [eth0] = await ipJson<{ mtu: number }>(['link', 'show', 'eth0'], inNetns(pod1()));
    expect(eth0).toMatchObject({ mtu: 1500 });
    expect(await ipJson(['route', 'show', node2.podCIDR], inNetns(node1))).toMatchObject([
      { gateway: node2.ip, dev: 'eth0' },
    ]);
    const { metadata } = (await listNodes(cluster.lab)).find((node) => node.metadata.name === node1.name)!;
    expect(metadata.annotations).toMatchObject({
      [`${PREFIX}/backend-type`]: 'host-gw',
      [`${PREFIX}/backend-data`]: 'null',
      [`${PREFIX}/kube-subnet-manager`]: 'true',
      [`${PREFIX}/public-ip`]: node1.ip,
    });
    expect(await readFile(join(nodeDir(cluster.lab, node1), 'subnet.env'), 'utf8')).toContain(
      'FLANNEL_MTU=1500\n',
    );
    expect((await status()).agent).toMatchObject({ ready: true, families: [{ vtep: { ip: node1.ip } }] });
  });

  it('carries packets of full size, also for a pod that is added later', async () => {
    const full = await tryRun(
      'ping',
      ['-n', '-M', 'do', '-s', '1472', '-c', '2', '-W', '1', pod2().ip],
      inNetns(pod1()),
    );
    expect(full.stdout).toContain('2 received');
    const late = await addPod(cluster.lab, cluster.nodes[0]!);
    await ping(late, pod2().ip);
    await ping(pod2(), late.ip);
  });

  it('heeds an MTU that somebody gives to the route of a podCIDR, since the underlay carries no more (row 76)', async () => {
    const routes = cluster.nodes.map((node, i) => ({
      node,
      route: [cluster.nodes[1 - i]!.podCIDR, 'via', cluster.nodes[1 - i]!.ip, 'dev', 'eth0'],
    }));
    const setMtus = async (underlay: number, ...metric: string[]) => {
      await run('ip', ['link', 'set', 'node2', 'mtu', String(underlay)], inUnderlay(cluster.lab));
      for (const { node, route } of routes)
        await run('ip', ['route', 'change', ...route, ...metric], inNetns(node));
    };
    const peerMtu = (): number | undefined => {
      using tables = openTables(bpffsOf(cluster.lab, cluster.nodes[0]!));
      return [...tables.peers.entries({ skipZero: true })][0]?.[1].head.mtu;
    };
    const held = await holdFrom(pod1(), pod2().ip, 5000);
    await setMtus(1400, 'mtu', '1400');
    await expect.poll(peerMtu).toBe(1400);
    expect(await talkBoth(pod1(), pod2().ip)).toBe(pod1().ip);
    expect(await released(held)).not.toHaveProperty('error');
    await setMtus(1500, 'mtu', '1500');
    await expect.poll(peerMtu).toBe(1500);
  });

  it('raises an alarm for a peer behind a router, and sends no packets for it to the router', async () => {
    const [node1, node2] = [cluster.nodes[0]!, cluster.nodes[1]!];
    const behind = ['route', 'replace', `${node2.ip}/32`, 'via', '172.31.255.254', 'dev', 'eth0'];
    await tryRun('ip', behind, inNetns(node1));
    const failures = async () => (await status()).agent.targets.flatMap((target) => target.failures);
    await expect.poll(failures).toMatchObject([
      {
        key: node2.podCIDR,
        why: expect.stringContaining(`not node2 (${node2.ip}); use the backend vxlan`),
      },
    ]);
    expect(await ipJson(['route', 'show', node2.podCIDR], inNetns(node1))).toEqual([]);
    expect(readPeers(bpffsOf(cluster.lab, node1), undefined)).toEqual([]);
    await tryRun('ip', ['route', 'del', `${node2.ip}/32`], inNetns(node1));
    await expect.poll(failures).toEqual([]);
    await ping(pod1(), pod2().ip);
  });

  it('removes the VTEP device of an earlier configuration', async () => {
    const node1 = cluster.nodes[0]!;
    const device = ['flannel.1', 'type', 'vxlan', 'id', '1', 'dev', 'eth0', 'dstport', '8472'];
    await tryRun('ip', ['link', 'add', ...device], inNetns(node1));
    await nudge(node1);
    await expect.poll(() => ipJson(['link', 'show', 'type', 'vxlan'], inNetns(node1))).toEqual([]);
    await expect
      .poll(() => agentLog(cluster.lab, node1))
      .toContain('removed: it belongs to an earlier configuration');
  });
});

describe.skipIf(missing)('the backend alloc', () => {
  const cluster = useLab('alloc', { nodes: 2, pods: 2, backend: 'alloc' });

  it('publishes leases and connects the pods of a node, but adds no routes to other nodes', async () => {
    const [node1, node2] = [cluster.nodes[0]!, cluster.nodes[1]!];
    const [carried] = await carriedDuring(cluster.lab, [node1], () =>
      ping(podOf(node1, 0), podOf(node1, 1).ip, 10),
    );
    expect(carried!.by['from_pod fast_local']).toBeGreaterThanOrEqual(15);
    expect(await ipJson(['route', 'show', node2.podCIDR], inNetns(node1))).toEqual([]);
    for (const { metadata } of await listNodes(cluster.lab))
      expect(metadata.annotations).toMatchObject({ [`${PREFIX}/backend-type`]: 'alloc' });

    // A cloud's route table would have this route; here it is the node's.
    const there = (to: typeof node1) => ['route', 'add', to.podCIDR, 'via', to.ip];
    await tryRun('ip', there(node2), inNetns(node1));
    await tryRun('ip', there(node1), inNetns(node2));
    await serveIn(podOf(node2));
    expect(await talkBoth(podOf(node1), podOf(node2).ip)).toBe(podOf(node1).ip);
    expect(agentLog(cluster.lab, node1)).not.toMatch(/"level":(50|60)/);
  });
});
