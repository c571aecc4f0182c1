// SPDX-License-Identifier: Apache-2.0
import { afterEach, describe, expect, it } from 'vitest';
import { readPeers } from '../../src/cli/rows.ts';
import { run } from '../../src/host/run.ts';
import { bridgeJson, ipJson } from '../../src/lab/ip.ts';
import { addPod, type NodeState, removePod, syncFlannel } from '../../src/lab/index.ts';
import { createKubeNode, deleteKubeNode, eventsOn, listNodes, patchNodeStatus } from '../../src/lab/kube.ts';
import {
  agentLog,
  bpffsOf,
  inNetns,
  missingHere,
  nudge,
  podOf,
  ping,
  ripstopJson,
  timeUntil,
  useLab,
} from './support.ts';

const PREFIX = 'flannel.alpha.coreos.com';

/** A node's entries for a peer. */
interface Place {
  podCIDR: string;
  ip: string;
  mac: string;
}

const WHERE: Place = { podCIDR: '10.42.9.0/24', ip: '172.31.0.109', mac: '02:00:00:00:09:01' };

function lease({ ip, mac }: { ip: string; mac: string }): Record<string, string> {
  return {
    [`${PREFIX}/kube-subnet-manager`]: 'true',
    [`${PREFIX}/backend-type`]: 'vxlan',
    [`${PREFIX}/backend-data`]: `{"VNI":1,"VtepMAC":"${mac}"}`,
    [`${PREFIX}/public-ip`]: ip,
  };
}

describe.skipIf(missingHere())('a Node', () => {
  const cluster = useLab('nodes', { datapath: 'ripstop,flannel,ripstop', pods: 1 });
  const made = new Set<string>();

  afterEach(async () => {
    // The other nodes keep working, whatever happens to one.
    await ping(podOf(cluster.nodes[0]), podOf(cluster.nodes[1]).ip);
    for (const name of made) await remove(name);
    // Otherwise the next test may find entries of this one.
    await expect.poll(() => actualEntries(WHERE.podCIDR)).toEqual(nothing);
  });

  async function create(name: string, { podCIDR, ip }: Place): Promise<void> {
    const node: NodeState = { name, index: 99, netns: '', ip, podCIDR, datapath: 'host', pods: [] };
    await createKubeNode(cluster.lab, node);
    made.add(name);
  }
  const annotate = (name: string, annotations: Record<string, string | null>) =>
    patchNodeStatus(cluster.lab, name, { metadata: { annotations } });
  const remove = async (name: string) => {
    made.delete(name);
    await deleteKubeNode(cluster.lab, name);
  };

  /** All entries of node 1 for a podCIDR, in BPF maps and in the kernel. */
  async function actualEntries(
    podCIDR: string,
  ): Promise<{ bpf: unknown[]; routes: unknown[]; neighbours: unknown[]; fdb: unknown[] }> {
    const node = cluster.nodes[0]!;
    const base = podCIDR.split('/')[0]!;
    const slot = base.split('.')[2];
    const [routes, neighbours, fdb] = await Promise.all([
      ipJson<{ dst: string; gateway?: string; dev: string }>(['route', 'show', podCIDR], inNetns(node)),
      ipJson<{ dst: string; lladdr?: string }>(['neigh', 'show', base, 'dev', 'flannel.1'], inNetns(node)),
      bridgeJson<{ mac: string; dst?: string }>(['fdb', 'show', 'dev', 'flannel.1'], inNetns(node)),
    ]);
    const others = readPeers(bpffsOf(cluster.lab, node), undefined).filter((row) => row.key === '1');
    expect(others.map(({ vtepIp }) => vtepIp)).toEqual([cluster.nodes[1]!.ip]);
    return {
      bpf: readPeers(bpffsOf(cluster.lab, node), undefined)
        .filter((row) => row.key === slot)
        .map(({ vtepIp, vtepMac }) => ({ vtepIp, vtepMac })),
      routes: routes.map(({ gateway, dev }) => ({ gateway, dev })),
      neighbours: neighbours.map(({ lladdr }) => lladdr),
      fdb: fdb
        .filter(({ mac, dst }) => mac.startsWith('02:00:00:00:09:') || dst?.startsWith('172.31.0.1'))
        .map(({ mac, dst }) => ({ mac, dst })),
    };
  }

  async function vtepMacOf(node: NodeState): Promise<string> {
    const [link] = await ipJson<{ address: string }>(['link', 'show', 'flannel.1'], inNetns(node));
    return link!.address;
  }

  const nothing = { bpf: [], routes: [], neighbours: [], fdb: [] };
  const expectedEntries = ({ podCIDR, ip, mac }: Place) => ({
    bpf: [{ vtepIp: ip, vtepMac: mac }],
    routes: [{ gateway: podCIDR.split('/')[0], dev: 'flannel.1' }],
    neighbours: [mac],
    fdb: [{ mac, dst: ip }],
  });

  /** Do `work`, and expect exactly these entries on node 1 within a second. */
  async function followed(
    what: string,
    act: () => Promise<unknown>,
    place: Place | undefined,
  ): Promise<void> {
    const expected = place ? expectedEntries(place) : nothing;
    await act();
    const tookMs = await timeUntil(async () => {
      return JSON.stringify(await actualEntries(WHERE.podCIDR)) === JSON.stringify(expected);
    });
    expect(await actualEntries(WHERE.podCIDR)).toEqual(expected);
    console.log(`${what}: maps and kernel path followed in ${tookMs} ms`);
    expect(tookMs).toBeLessThan(1000);
  }

  /** The alarms of node 1's agent about a Node. */
  async function alarmsOf(name: string): Promise<string[]> {
    const { agent } = await ripstopJson<{ agent: { alarms: { node: string; reason: string }[] } }>(
      cluster.lab,
      cluster.nodes[0]!,
      'status',
    );
    return agent.alarms.filter(({ node }) => node === name).map(({ reason }) => reason);
  }

  it('that is added, changes its address or its MAC, and is removed, is followed within a second', async () => {
    const moved = { ...WHERE, ip: '172.31.0.110' };
    const renewed = { ...moved, mac: '02:00:00:00:09:02' };
    await create('joins', WHERE);
    await followed('a new Node', () => annotate('joins', lease(WHERE)), WHERE);
    const rows = await ripstopJson<object[]>(cluster.lab, cluster.nodes[0]!, 'peers');
    expect(rows).toContainEqual({
      node: 'joins',
      podCidr: WHERE.podCIDR,
      key: '9',
      vtepIp: WHERE.ip,
      vtepMac: WHERE.mac,
      nextHop: WHERE.ip,
      flags: ['present'],
      fastPath: true,
      live: { flows: 0, packets: 0, bytes: 0 },
    });
    await followed('a new VTEP address', () => annotate('joins', lease(moved)), moved);
    await followed('a new VTEP MAC', () => annotate('joins', lease(renewed)), renewed);
    await followed('both at once', () => annotate('joins', lease(WHERE)), WHERE);
    await followed('a deleted Node', () => remove('joins'), undefined);
  });

  it('that is deleted and re-created elsewhere is followed within a second', async () => {
    const elsewhere = { ...WHERE, ip: '172.31.0.111', mac: '02:00:00:00:09:03' };
    await create('returns', WHERE);
    await followed('a new Node', () => annotate('returns', lease(WHERE)), WHERE);
    const again = async () => {
      await remove('returns');
      await create('returns', elsewhere);
      await annotate('returns', lease(elsewhere));
    };
    await followed('a Node made again', again, elsewhere);
  });

  it('that loses its kube-subnet-manager annotation is removed, and returns with it', async () => {
    const key = `${PREFIX}/kube-subnet-manager`;
    await create('leaves', WHERE);
    await followed('a new Node', () => annotate('leaves', lease(WHERE)), WHERE);
    await followed('a lease withdrawn', () => annotate('leaves', { [key]: null }), undefined);
    await followed('a lease given again', () => annotate('leaves', { [key]: 'true' }), WHERE);
  });

  it('with broken annotations keeps its last good state, with an alarm, while others are followed', async () => {
    const data = `${PREFIX}/backend-data`;
    const repaired = { ...WHERE, ip: '172.31.0.112' };
    await create('breaks', WHERE);
    await followed('a new Node', () => annotate('breaks', lease(WHERE)), WHERE);
    for (const broken of [
      '{"VNI":1,"VtepMAC":"$(reboot)"}',
      '{',
      '{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}',
    ]) {
      await annotate('breaks', { [data]: broken });
      await expect
        .poll(() => alarmsOf('breaks'))
        .toContainEqual(expect.stringMatching(/^quarantined with its last good lease: /));
      expect(await actualEntries(WHERE.podCIDR)).toEqual(expectedEntries(WHERE));
    }
    const other = { podCIDR: '10.42.10.0/24', ip: '172.31.0.113', mac: '02:00:00:00:10:01' };
    await create('other', other);
    await annotate('other', lease(other));
    const tookMs = await timeUntil(async () => (await actualEntries(other.podCIDR)).bpf.length === 1);
    expect(tookMs).toBeLessThan(1000);
    await remove('other');
    await followed('a repaired lease', () => annotate('breaks', lease(repaired)), repaired);
    expect(await alarmsOf('breaks')).toEqual([]);
  });

  it('with a podCIDR outside the cluster network is refused, with an alarm', async () => {
    const outside = { podCIDR: '192.168.7.0/24', ip: '172.31.0.114', mac: '02:00:00:00:09:07' };
    await create('outside', outside);
    await annotate('outside', lease(outside));
    await expect
      .poll(() => alarmsOf('outside'))
      .toEqual([expect.stringContaining('podCIDR 192.168.7.0/24 is outside Network 10.42.0.0/16')]);
    // The alarm is raised as soon as the pass begins that also removes what the previous test has left.
    await expect.poll(() => actualEntries(outside.podCIDR)).toEqual(nothing);
  });

  it('with the podCIDR of an older one, or ours, is refused, with an alarm, and leaves no trace when it is removed', async () => {
    const thief = { ...WHERE, ip: '172.31.0.115', mac: '02:00:00:00:09:08' };
    await create('owner', WHERE);
    await followed('a new Node', () => annotate('owner', lease(WHERE)), WHERE);
    // Creation times are whole seconds.
    await new Promise((resolve) => setTimeout(resolve, 1100));
    await create('thief', thief);
    await annotate('thief', lease(thief));
    await expect
      .poll(() => alarmsOf('thief'))
      .toContainEqual(expect.stringContaining('overlaps 10.42.9.0/24 of owner'));
    expect(await actualEntries(WHERE.podCIDR)).toEqual(expectedEntries(WHERE));
    // Both nodes with ripstop see it; one of them writes an Event on the Node.
    const events = async () =>
      (await eventsOn(cluster.lab, 'thief')).filter(({ reason }) => reason === 'PodcidrConflict');
    await expect.poll(events).toHaveLength(1);
    expect(await events()).toMatchObject([
      {
        type: 'Warning',
        message: expect.stringContaining('overlaps 10.42.9.0/24 of owner'),
        source: { component: 'ripstop', host: expect.stringMatching(/^node[13]$/) },
        count: 1,
      },
    ]);
    await remove('thief');
    await expect.poll(() => alarmsOf('thief')).toEqual([]);
    expect(await actualEntries(WHERE.podCIDR)).toEqual(expectedEntries(WHERE));

    const ours = { ...thief, podCIDR: cluster.nodes[0]!.podCIDR };
    await create('thief', ours);
    await annotate('thief', lease(ours));
    await expect
      .poll(() => alarmsOf('thief'))
      .toContainEqual(expect.stringContaining('of node1 (this node)'));
    expect((await actualEntries(ours.podCIDR)).bpf).toEqual([]);
  });

  it('with the VTEP of an older one, or ours, is refused, with an alarm, and diverts nothing (row 88)', async () => {
    const own = await vtepMacOf(cluster.nodes[0]!);
    const elsewhere = { podCIDR: '10.42.10.0/24', ip: '172.31.0.116', mac: '02:00:00:00:09:09' };
    await create('owner', WHERE);
    await followed('a new Node', () => annotate('owner', lease(WHERE)), WHERE);
    await new Promise((resolve) => setTimeout(resolve, 1100));
    await create('thief', elsewhere);
    for (const [what, loot, holder] of [
      ['public IP', { ip: WHERE.ip }, 'owner'],
      ['IPv4 VTEP MAC', { mac: WHERE.mac }, 'owner'],
      ['public IP', { ip: cluster.nodes[0]!.ip }, 'node1 (this node)'],
      ['IPv4 VTEP MAC', { mac: own }, 'node1 (this node)'],
    ] as const) {
      await annotate('thief', lease({ ...elsewhere, ...loot }));
      const reason = `refused: ${what} ${Object.values(loot)[0]} is that of ${holder}`;
      await expect.poll(() => alarmsOf('thief')).toEqual([reason]);
      expect(await actualEntries(WHERE.podCIDR)).toEqual(expectedEntries(WHERE));
      expect((await actualEntries(elsewhere.podCIDR)).routes).toEqual([]);
    }
    await annotate('thief', lease(elsewhere));
    await expect.poll(() => alarmsOf('thief')).toEqual([]);
  });

  it('of flannel that publishes another address than it sends from talks all the same (row 89)', async () => {
    const [near, flannel] = cluster.nodes;
    const published = '172.31.0.122';
    await run('ip', ['address', 'add', `${published}/16`, 'dev', 'eth0'], inNetns(flannel!));
    await annotate(flannel!.name, { [`${PREFIX}/public-ip`]: published });
    const peerRow = () => readPeers(bpffsOf(cluster.lab, near!), undefined).find((row) => row.key === '1');
    await expect.poll(() => peerRow()?.vtepIp).toBe(published);
    for (let i = 0; i < 2; i++) {
      await ping(podOf(near), podOf(flannel).ip);
      await ping(podOf(flannel), podOf(near).ip);
    }
    await annotate(flannel!.name, { [`${PREFIX}/public-ip`]: flannel!.ip });
    await expect.poll(() => peerRow()?.vtepIp).toBe(flannel!.ip);
    await run('ip', ['address', 'del', `${published}/16`, 'dev', 'eth0'], inNetns(flannel!));
  });

  it('that is our own may be deleted without harm, and is published again once it is back (row 27)', async () => {
    const [node, other] = cluster.nodes;
    const published = async () => {
      const nodes = await listNodes(cluster.lab);
      const annotations = nodes.find(({ metadata }) => metadata.name === node!.name)?.metadata.annotations;
      return annotations && ['backend-data', 'public-ip'].map((key) => annotations[`${PREFIX}/${key}`]);
    };
    const before = await published();
    const logged = agentLog(cluster.lab, node!).length;
    const complaints = () =>
      agentLog(cluster.lab, node!)
        .slice(logged)
        .match(/cannot publish our lease/g) ?? [];
    await deleteKubeNode(cluster.lab, node!.name);
    await expect.poll(complaints).toHaveLength(1);
    for (let i = 0; i < 3; i++) {
      await nudge(node!);
      await ping(podOf(node), podOf(other).ip, 20);
      // New peers are still followed.
      if (i === 0) await create('joins', WHERE);
      if (i === 1) await annotate('joins', lease(WHERE));
      if (i === 2) await expect.poll(() => actualEntries(WHERE.podCIDR)).toEqual(expectedEntries(WHERE));
    }
    // A pod can start and end.
    const pod = await addPod(cluster.lab, node!);
    await ping(pod, podOf(other).ip);
    await removePod(cluster.lab, node!, pod);
    expect(complaints()).toHaveLength(1);

    await createKubeNode(cluster.lab, node!);
    await expect.poll(published).toEqual(before);
    await syncFlannel(cluster.lab);
    await ping(podOf(other), podOf(node).ip);
  });
});
