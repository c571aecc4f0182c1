// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, expect, it } from 'vitest';
import { apply, kubectl } from '../kubectl.ts';
import type { ClusterNode } from '../state.ts';
import { storyCluster } from '../story.ts';
import { at, inventory, probeFrom, UNHARMED, unharmed } from '../traffic.ts';
import { until } from '../until.ts';
import { deploymentObject, listPods, podsGone, podsOf, rolledOut } from '../workload.ts';

/** Many pods are created and deleted, and nothing of them is left. */

const cluster = storyCluster();
const [node1, node2] = cluster.nodes as [ClusterNode, ClusterNode];
const nodes = [node1, node2];
/** RIPSTOP_CHURN_ROUNDS=50 is for a long run of some 40 minutes. */
const ROUNDS = Number(process.env['RIPSTOP_CHURN_ROUNDS'] ?? 2);
const PODS = 50;
/** kubelet's own limit, which node.ts leaves at its default. */
const MAX_PODS = 110;
let before: Record<string, string[]>[];

const inventories = (): Promise<Record<string, string[]>[]> => Promise.all(nodes.map(inventory));

beforeAll(async () => {
  before = await inventories();
});

afterAll(async () => {
  await kubectl(cluster, 'delete', 'deployment', 'churn', 'full', '--ignore-not-found');
});

async function scale(name: string, replicas: number): Promise<void> {
  await kubectl(cluster, 'scale', `deployment/${name}`, `--replicas=${replicas}`);
}

async function nothingStays(): Promise<void> {
  await until('nothing of the pods is left', 60_000, async () => {
    expect(await inventories()).toEqual(before);
  });
}

it(
  `${PODS} pods are made and deleted ${ROUNDS} times under traffic`,
  async () => {
    await apply(cluster, [deploymentObject('churn', 0)]);
    await unharmed(cluster, nodes, async () => {
      for (let round = 0; round < ROUNDS; round++) {
        await scale('churn', PODS);
        await rolledOut(cluster, 'deployment/churn');
        const ips = (await listPods(cluster, 'churn')).map((pod) => pod.ips[0]);
        expect(new Set(ips).size).toBe(PODS);
        await scale('churn', 0);
        await podsGone(cluster, 'app=churn');
      }
    });
    await nothingStays();
  },
  ROUNDS * 180_000,
);

it(`a node takes ${MAX_PODS} pods, and each of them answers`, async () => {
  const there = (
    await kubectl(cluster, 'get', 'pods', '-A', `--field-selector=spec.nodeName=${node1.name}`, '-o', 'name')
  ).split('\n').length;
  await apply(cluster, [deploymentObject('full', MAX_PODS - there, { node: node1 })]);
  await rolledOut(cluster, 'deployment/full');
  const pods = await listPods(cluster, 'full');
  expect(new Set(pods.map((pod) => pod.ips[0])).size).toBe(MAX_PODS - there);
  const client = (await podsOf(cluster, 'client')).get(node2.name)!;
  for (const pod of pods) {
    expect(await probeFrom(cluster, client, 'connect', at(pod.ips[0]!, 7), 1)).toMatchObject(UNHARMED);
  }
  await kubectl(cluster, 'delete', 'deployment', 'full');
  await podsGone(cluster, 'app=full');
  await nothingStays();
});
