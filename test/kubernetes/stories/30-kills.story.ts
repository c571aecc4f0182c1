// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { apiServerReady, type ControlPlanePart, killPart, startPart } from '../control-plane.ts';
import { killService } from '../node.ts';
import type { ClusterNode } from '../state.ts';
import { storyCluster } from '../story.ts';
import { at, inventory, probeFrom, UNHARMED, unharmed } from '../traffic.ts';
import { until } from '../until.ts';
import { agentReady, deletePod, killAgent, nodesReady, podsOf, runPod } from '../workload.ts';

/** Parts of a cluster are killed under traffic: no message is lost, and pods can be created and deleted afterwards. */

const cluster = storyCluster();
const [node1, node2] = cluster.nodes as [ClusterNode, ClusterNode];
let before: Record<string, string[]>;

beforeAll(async () => {
  before = await inventory(node1);
});

/** Check that a new pod is attached, answers a pod of the other node, and leaves nothing behind. */
async function podsComeAndGo(): Promise<void> {
  const pod = await runPod(cluster, 'after', node1, ['probe', 'echo', ':7']);
  const client = (await podsOf(cluster, 'client')).get(node2.name)!;
  expect(await probeFrom(cluster, client, 'connect', at(pod.ips[0]!, 7), 10)).toMatchObject(UNHARMED);
  await deletePod(cluster, 'after');
  await until('nothing of the pod is left', 30_000, async () => {
    expect(await inventory(node1)).toEqual(before);
  });
}

afterEach(podsComeAndGo);

describe('on a node', () => {
  it('the agent', async () => {
    await unharmed(cluster, [node1, node2], async () => {
      await killAgent(node1);
      await sleep(1000);
      await agentReady(node1);
    });
  });

  it.each(['containerd', 'kubelet', 'kube-proxy'] as const)('%s', async (service) => {
    await unharmed(cluster, [node1, node2], async () => {
      await killService(node1, service);
      await sleep(4000);
    });
    await nodesReady(cluster);
  });
});

describe('of the control plane', () => {
  const parts: ControlPlanePart[] = ['kube-apiserver', 'etcd', 'kube-controller-manager'];
  it.each(parts)('%s', async (part) => {
    await unharmed(cluster, [node1, node2], async () => {
      killPart(cluster, part);
      await sleep(3000);
      startPart(cluster, part);
      await apiServerReady(cluster);
    });
    await agentReady(node1);
  });
});
