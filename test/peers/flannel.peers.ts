// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ipJson } from '../../src/lab/ip.ts';
import { run } from '../../src/host/run.ts';
import { parseCidr } from '../../src/net/ip.ts';
import { startFlanneld, stopFlanneld } from '../../src/lab/flanneld.ts';
import {
  addNode,
  addPod,
  giveBack,
  type Lab,
  labDown,
  nodeDir,
  type NodeState,
  type PodState,
  removeNode,
  removePod,
  takeOver,
} from '../../src/lab/index.ts';
import { tracesOf } from '../../src/lab/lab.support.ts';
import {
  addressOf,
  agentLog,
  carriedDuring,
  holdFrom,
  inNetns,
  ping,
  pingOn,
  podOf,
  released,
  ripstopJson,
  serveIn,
  talkBoth,
} from '../cluster/support.ts';
import { clientOf, labNameFor, realLab } from './support.ts';

const NAME = labNameFor('flannel');

describe('a cluster of the real API server, where node 1 is run by the real flanneld and node 2 by ripstop', () => {
  let lab: Lab;
  const node = (i: number): NodeState => lab.state.nodes[i - 1]!;

  beforeAll(async () => {
    lab = await realLab('flannel', ['flannel', 'ripstop'], { pods: 2, ipv6: true });
    await Promise.all(lab.state.nodes.flatMap(({ pods }) => pods.map((pod) => serveIn(pod))));
  });
  afterAll(async () => {
    await labDown(NAME);
    expect(await tracesOf(NAME)).toEqual([]);
  });

  /** Send ICMP, TCP and UDP from every pod to every other, in both families. Each must see the other's own address. */
  async function allTalk(pods: readonly PodState[]): Promise<void> {
    for (const from of pods) {
      for (const to of pods) {
        if (from === to) continue;
        for (const family of [4, 6] as const) {
          await ping(from, addressOf(to, family));
          expect(await talkBoth(from, addressOf(to, family))).toBe(addressOf(from, family));
        }
      }
    }
  }

  const everyPod = (): PodState[] => lab.state.nodes.flatMap(({ pods }) => pods);

  async function annotationsOf(name: string): Promise<Record<string, string>> {
    const client = clientOf(lab);
    const { metadata } = (await client.get(`/api/v1/nodes/${name}`)).body;
    client.close();
    return Object.fromEntries(
      Object.entries(metadata.annotations ?? {}).filter(([key]) => key.startsWith('flannel.')),
    );
  }

  async function conditionsOf(name: string): Promise<unknown> {
    const client = clientOf(lab);
    const { status } = (await client.get(`/api/v1/nodes/${name}`)).body;
    client.close();
    return (status as { conditions: unknown }).conditions;
  }

  /** The kernel's entries of a node for the pods of another. */
  async function wayTo(from: NodeState, to: NodeState): Promise<object> {
    const [routes, neighbours, fdb] = await Promise.all([
      ipJson<{ gateway?: string; dev: string }>(['route', 'show', to.podCIDR], inNetns(from)),
      ipJson<{ dst: string; lladdr: string }>(['neigh', 'show', 'dev', 'flannel.1'], inNetns(from)),
      run('bridge', ['fdb', 'show', 'dev', 'flannel.1'], inNetns(from)),
    ]);
    const base = to.podCIDR.split('/')[0];
    const mac = neighbours.find(({ dst }) => dst === base)?.lladdr;
    return {
      routes: routes.map(({ gateway, dev }) => `via ${gateway} dev ${dev}`),
      neighbours: mac === undefined ? 0 : 1,
      fdb: fdb.split('\n').filter((line) => line.includes(` dst ${to.ip} `)).length,
    };
  }

  it('has leases with the same fields from both', async () => {
    const [flanneld, ripstop] = await Promise.all([annotationsOf('node1'), annotationsOf('node2')]);
    const shape = (annotations: Record<string, string>, { ip, ip6 = '' }: NodeState): object =>
      Object.fromEntries(
        Object.entries(annotations).map(([key, value]) => [
          key,
          value
            .replaceAll(/([0-9a-f]{2}:){5}[0-9a-f]{2}/g, 'MAC')
            .replaceAll(ip6, 'IPv6')
            .replaceAll(ip, 'IP'),
        ]),
      );
    expect(shape(ripstop, node(2))).toEqual(shape(flanneld, node(1)));
    for (const name of ['node1', 'node2']) {
      expect(await conditionsOf(name)).toMatchObject([
        { type: 'NetworkUnavailable', status: 'False', reason: 'FlannelIsUp' },
      ]);
    }
    const subnetEnv = ({ name }: NodeState): string =>
      readFileSync(join(nodeDir(lab, { name }), 'subnet.env'), 'utf8');
    const addresses = ({ podCIDR, podCIDR6 = '' }: NodeState): string[] =>
      [podCIDR, podCIDR6].map((cidr) => `=${parseCidr(cidr).base.replace(/0$|$/, '1')}/`);
    const [one, two] = [node(1), node(2)].map(addresses);
    // flannel does not consider that IPv6's header is 20 bytes longer.
    const expected = subnetEnv(node(1)).replace('MTU=1450', 'MTU=1430');
    expect(subnetEnv(node(2))).toBe(
      two!.reduce((text, address, i) => text.replace(one![i]!, address), expected),
    );
  });

  it('has pods that talk both ways, on ripstop’s node by the fast path', async () => {
    await allTalk(everyPod());
    const [near, far] = [podOf(node(1)), podOf(node(2))];
    const [carried] = await carriedDuring(lab, [node(2)], async () => {
      expect(await talkBoth(near, far.ip)).toBe(near.ip);
      expect(await talkBoth(far, near.ip)).toBe(far.ip);
    });
    expect(carried!.by['from_pod fast_encap']).toBeGreaterThan(40);
    expect(carried!.by['from_wire fast_decap']).toBeGreaterThan(40);
    // The kernel path carries the first packets of each flow.
    expect(carried!.vtep).toBeLessThan(carried!.fast);
    expect(await wayTo(node(1), node(2))).toEqual(await sameWay(node(2), node(1)));
    expect(await ripstopJson<{ node: string }[]>(lab, node(2), 'peers')).toMatchObject([
      { node: 'node1' },
      { node: 'node1' },
    ]);
  });

  /** The other node's entries for this node. */
  async function sameWay(from: NodeState, to: NodeState): Promise<object> {
    const way = (await wayTo(from, to)) as { routes: string[] };
    const swap = (text: string): string =>
      text.replace(to.podCIDR.split('/')[0]!, from.podCIDR.split('/')[0]!);
    return { ...way, routes: way.routes.map(swap) };
  }

  it('adds and removes nodes of both kinds', async () => {
    const [third, fourth] = [await addNode(lab, 'flannel', 1), await addNode(lab, 'ripstop', 1)];
    await Promise.all([third, fourth].map((one) => serveIn(podOf(one))));
    for (const one of [1, 2].map(node)) {
      for (const other of [third, fourth])
        await expect.poll(() => wayTo(one, other)).toMatchObject({ neighbours: 1, fdb: 1 });
    }
    await allTalk([podOf(node(1)), podOf(node(2)), podOf(third), podOf(fourth)]);
    for (const gone of [third, fourth]) await removeNode(lab, gone);
    for (const one of [1, 2].map(node)) {
      for (const gone of [third, fourth])
        await expect.poll(() => wayTo(one, gone)).toEqual({ routes: [], neighbours: 0, fdb: 0 });
    }
    await allTalk([podOf(node(1)), podOf(node(2))]);
  });

  /** Check that during `work` on node 1 no ping or connection of its old pods is lost. */
  async function unharmed(work: () => Promise<unknown>, mayLose = 0): Promise<void> {
    const [here, beside, far] = [podOf(node(1)), podOf(node(1), 1), podOf(node(2))];
    const pairs: [PodState, PodState][] = [
      [here, beside],
      [here, far],
      [far, here],
    ];
    const ways = pairs.flatMap(([from, to]) =>
      ([4, 6] as const).map((family) => ({ from, to: addressOf(to, family) })),
    );
    const pings = await Promise.all(ways.map(({ from, to }) => pingOn(from, to)));
    const held = await Promise.all(ways.map(({ from, to }) => holdFrom(from, to)));
    let lost: number[][] = [];
    try {
      await work();
      await sleep(300);
    } finally {
      lost = await Promise.all(pings.map((one) => one.lost()));
      const reports = await Promise.all(held.map(released));
      expect(reports.filter((report) => 'error' in report)).toEqual([]);
    }
    const harmed = ways.map(({ from, to }, i) => ({ from: from.netns, to, lost: lost[i]!.length }));
    expect(harmed.filter((one) => one.lost > mayLose)).toEqual([]);
  }

  it('lets ripstop take over the node of flanneld without a loss for its pods', async () => {
    const before = await annotationsOf('node1');
    await unharmed(async () => {
      await stopFlanneld(lab, node(1));
      await takeOver(lab, node(1));
    });
    expect(await annotationsOf('node1')).toEqual(before);
    expect(agentLog(lab, node(1))).not.toMatch(/"level":(50|60)/);
    const fresh = await addPod(lab, node(1));
    await serveIn(fresh);
    await allTalk(everyPod());
  });

  it('gives it back to flanneld, whose plugin handles the pods of both', async () => {
    const before = await annotationsOf('node1');
    await unharmed(() => giveBack(lab, node(1)));
    // When it starts, flanneld flushes and refills its chains, and this node's FORWARD policy is DROP: at 100 pings
    // a second, some may be lost in that moment, whatever ripstop does.
    await unharmed(() => startFlanneld(lab, node(1)), 30);
    expect(await annotationsOf('node1')).toEqual(before);
    const fresh = await addPod(lab, node(1));
    await serveIn(fresh);
    await allTalk(everyPod());
    for (const pod of node(1).pods.slice(2)) await removePod(lab, node(1), pod);
    await allTalk(everyPod());
  });
});
