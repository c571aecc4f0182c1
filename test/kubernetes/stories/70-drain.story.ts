// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, expect, it } from 'vitest';
import { apply, kubectl } from '../kubectl.ts';
import type { ClusterNode } from '../state.ts';
import { storyCluster } from '../story.ts';
import { at, startFlows, UNHARMED } from '../traffic.ts';
import { clusterIpOf, deploymentObject, listPods, podsGone, podsOf, rolledOut } from '../workload.ts';

/** `kubectl drain`: pods that move to another node can always be reached through their Service. */

const cluster = storyCluster();
const [node1, node2] = cluster.nodes as [ClusterNode, ClusterNode];

beforeAll(async () => {
  const service = {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { name: 'moving' },
    spec: { selector: { app: 'moving' }, ports: [{ port: 70, targetPort: 7 }] },
  };
  await apply(cluster, [deploymentObject('moving', 4, { graceSeconds: 5 }), service]);
  await rolledOut(cluster, 'deployment/moving');
});

afterAll(async () => {
  await kubectl(cluster, 'uncordon', node2.name);
  await kubectl(cluster, 'delete', 'deployment/moving', 'service/moving');
  await podsGone(cluster, 'app=moving');
  await rolledOut(cluster, 'deployment/coredns', 'kube-system');
});

it('every connection is answered while a node is drained', async () => {
  const from = (await podsOf(cluster, 'client')).get(node1.name)!;
  const to = at(await clusterIpOf(cluster, 'moving'), 70);
  const stop = await startFlows(cluster, [{ what: 'connections to the service', from, kind: 'connect', to }]);
  await kubectl(
    cluster,
    'drain',
    node2.name,
    '--ignore-daemonsets',
    '--delete-emptydir-data',
    '--timeout=120s',
  );
  await rolledOut(cluster, 'deployment/moving');
  expect(await stop()).toMatchObject({ 'connections to the service': UNHARMED });
  expect(new Set((await listPods(cluster, 'moving')).map((pod) => pod.node))).toEqual(new Set([node1.name]));
});
