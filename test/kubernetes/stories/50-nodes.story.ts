// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { RunResult } from '../../../src/host/run.ts';
import { addNode, isReady, podCidrsOf, removeNode } from '../cluster.ts';
import { get, kubectl } from '../kubectl.ts';
import { inNode, resumeService, stopService, tryInNode } from '../node.ts';
import type { ClusterNode } from '../state.ts';
import { storyCluster } from '../story.ts';
import { at, probeFrom, UNHARMED, unharmed } from '../traffic.ts';
import { routeToPods } from '../underlay.ts';
import { until } from '../until.ts';
import { agentReady, killAgent, nodesReady, podsOf, rolledOut } from '../workload.ts';

/** Nodes join and leave: the third one has the current containerd and portmap, and kube-proxy in its other mode. */

const cluster = storyCluster();
const [node1, node2] = cluster.nodes as [ClusterNode, ClusterNode];
let node3: ClusterNode;
/** The status of its agent when its kubelet first called the node ready. */
let agentWhenReady: RunResult;

async function settled(): Promise<void> {
  await nodesReady(cluster);
  for (const name of ['echo', 'client']) await rolledOut(cluster, `daemonset/${name}`);
  await agentReady(node3);
}

/** Check that pods of node3 and of the other nodes reach each other. */
async function node3Talks(): Promise<void> {
  const [clients, echoes] = [await podsOf(cluster, 'client'), await podsOf(cluster, 'echo')];
  for (const [a, b] of [
    [node1, node3],
    [node3, node2],
    [node3, node3],
  ] as const) {
    for (const kind of ['udp', 'connect'] as const) {
      const report = await probeFrom(
        cluster,
        clients.get(a.name)!,
        kind,
        at(echoes.get(b.name)!.ips[0]!, 7),
        20,
      );
      expect(report).toMatchObject({ ...UNHARMED, sent: 20 });
    }
  }
}

const routesOf = (node: ClusterNode): Promise<string> => inNode(node, 'ip', 'route');

/** What the agent of a node offers its runtime, in which version pods were added, and whether the runtime asks. */
async function cniOf(node: ClusterNode): Promise<{ offered: unknown; spoken: string[]; isAsked: boolean }> {
  const conflist = await inNode(node, 'cat', '/etc/cni/net.d/10-flannel.conflist');
  const notes = await inNode(node, 'sh', '-c', 'cat /var/lib/cni/results/cbr0-*');
  const agent = (await podsOf(cluster, 'ripstop', 'kube-ripstop')).get(node.name)!;
  const log = await kubectl(cluster, '-n', 'kube-ripstop', 'logs', agent.name, '-c', 'ripstop');
  return {
    offered: (JSON.parse(conflist) as { cniVersions?: unknown }).cniVersions,
    spoken: [...new Set(Array.from(notes.matchAll(/"result":\{"cniVersion":"([^"]*)"/g), ([, one]) => one!))],
    isAsked: log.includes('"command":"STATUS"'),
  };
}

/** Since when the node is ready. */
async function readySince(node: ClusterNode): Promise<string | undefined> {
  const { status } = await get<{
    status: { conditions: { type: string; status: string; lastTransitionTime: string }[] };
  }>(cluster, 'node', node.name);
  return status.conditions.find((one) => one.type === 'Ready' && one.status === 'True')?.lastTransitionTime;
}

beforeAll(async () => {
  await unharmed(cluster, [node1, node2], async () => {
    node3 = await addNode(cluster, {
      index: 3,
      containerd: 'current',
      proxyMode: cluster.options.proxyMode === 'iptables' ? 'nftables' : 'iptables',
    });
    await until('node3 is ready', 120_000, () => isReady(cluster, node3));
    agentWhenReady = await tryInNode(node3, 'probe', 'get', 'http://127.0.0.1:9480/readyz');
    await settled();
  });
});

afterAll(async () => {
  for (const node of cluster.nodes.slice(2)) await removeNode(cluster, node);
});

describe('a third node', () => {
  it('has joined under traffic, and its pods talk', async () => {
    await until('the pods of node3 and of the others reach each other', 30_000, node3Talks);
  });

  it('was not ready before pods could be attached', () => {
    expect(agentWhenReady).toMatchObject({ code: 0 });
  });

  it('speaks CNI 1.1 with containerd 2, which asks whether pods can be added, as others speak 1.0 with 1.6', async () => {
    expect(await cniOf(node3)).toEqual({ offered: ['1.0.0', '1.1.0'], spoken: ['1.1.0'], isAsked: true });
    expect(await cniOf(node1)).toEqual({ offered: ['1.0.0'], spoken: ['1.0.0'], isAsked: false });
  });

  it('stays ready while its agent is killed', async () => {
    const before = await readySince(node3);
    expect(before).toBeDefined();
    await killAgent(node3);
    // The kubelet asks every five seconds, and waits for the plugin, which waits for the agent.
    await sleep(6000);
    await agentReady(node3);
    await sleep(6000);
    expect(await readySince(node3)).toBe(before);
  });

  it('has another podCIDR after it is deleted and added again, and no route to the old one is left', async () => {
    const before = (await podCidrsOf(cluster, node3))[0]!;
    await unharmed(cluster, [node1, node2], async () => {
      await stopService(node3, 'kubelet');
      await kubectl(cluster, 'delete', 'node', node3.name);
      // Every 20 s Kubernetes collects the pods of nodes that it has missed for 40 s.
      await until('its pods are gone', 120_000, async () => !(await podsOf(cluster, 'echo')).has(node3.name));
      await resumeService(node3, 'kubelet');
      const now = await podCidrsOf(cluster, node3);
      expect(now[0]).not.toBe(before);
      await routeToPods(cluster, node3, now);
      await settled();
    });
    // The other nodes must have seen it first.
    await until('the pods of node3 and of the others reach each other', 30_000, node3Talks);
    for (const node of [node1, node2]) expect(await routesOf(node)).not.toContain(before);
    await until('its own old addresses are gone', 60_000, async () => {
      expect(await inNode(node3, 'ip', 'address', 'show', 'dev', 'flannel.1')).not.toContain(
        before.split('/')[0],
      );
    });
  });

  it('is forgotten by the others when it is removed for good', async () => {
    const [podCidr] = await podCidrsOf(cluster, node3);
    await unharmed(cluster, [node1, node2], async () => {
      await removeNode(cluster, node3);
      await until('no route leads to it', 30_000, async () => {
        for (const node of [node1, node2]) expect(await routesOf(node)).not.toContain(podCidr);
      });
    });
  });
});
