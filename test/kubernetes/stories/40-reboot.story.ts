// SPDX-License-Identifier: Apache-2.0
import { afterAll, expect, it } from 'vitest';
import { inNode, rebootNode } from '../node.ts';
import type { ClusterNode } from '../state.ts';
import { storyCluster } from '../story.ts';
import { at, probeFrom, unharmed, UNHARMED } from '../traffic.ts';
import { until } from '../until.ts';
import { agentReady, clusterIpOf, nodesReady, type Pod, podsOf, rolledOut } from '../workload.ts';

/** A node loses power and boots: with an empty /run, a new network, no BPF file system, and the same disk. */

const cluster = storyCluster();
const [node1, node2] = cluster.nodes as [ClusterNode, ClusterNode];

afterAll(async () => {
  await rebootNode(cluster, node2);
  await settled();
});

async function settled(): Promise<void> {
  await agentReady(node2);
  await nodesReady(cluster);
  for (const name of ['echo', 'client']) await rolledOut(cluster, `daemonset/${name}`);
  await rolledOut(cluster, 'deployment/coredns', 'kube-system');
}

/** The pods of node2 that have addresses of their own, and host-local's leases there. */
async function leasesAndPods(): Promise<{ leases: string[]; pods: string[] }> {
  const leases = (await inNode(node2, 'ls', '/var/lib/cni/networks/cbr0'))
    .split('\n')
    .filter((name) => /^\d/.test(name));
  const pods = await Promise.all(
    ['echo', 'client', 'coredns'].map(async (app): Promise<Pod | undefined> => {
      const namespace = app === 'coredns' ? 'kube-system' : 'default';
      return (await podsOf(cluster, app, namespace)).get(node2.name);
    }),
  );
  return { leases: leases.toSorted(), pods: pods.flatMap((pod) => pod?.ips[0] ?? []).toSorted() };
}

it('its pods answer again, and the other nodes lose nothing', async () => {
  await unharmed(cluster, [node1], async () => {
    await rebootNode(cluster, node2, { bpffs: false });
    await settled();
  });
  const [clients, echoes] = [await podsOf(cluster, 'client'), await podsOf(cluster, 'echo')];
  const ways = [
    [clients.get(node1.name)!, at(echoes.get(node2.name)!.ips[0]!, 7)],
    [clients.get(node2.name)!, at(echoes.get(node1.name)!.ips[0]!, 7)],
    [clients.get(node2.name)!, at(await clusterIpOf(cluster, 'echo'), 70)],
  ] as const;
  for (const [from, to] of ways) {
    expect(await probeFrom(cluster, from, 'connect', to, 20)).toMatchObject(UNHARMED);
    expect(await probeFrom(cluster, from, 'udp', to, 20)).toMatchObject(UNHARMED);
  }
});

it('no lease of an earlier pod is left', async () => {
  await until('leases are those of the pods that there are', 60_000, async () => {
    const { leases, pods } = await leasesAndPods();
    expect(leases).toEqual(pods);
  });
});
