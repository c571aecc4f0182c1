// SPDX-License-Identifier: Apache-2.0
import { afterAll, describe, expect, it } from 'vitest';
import { commandsOf } from '../../support/commands.ts';
import { deleteFlannel } from '../flannel.ts';
import { tryKubectl } from '../kubectl.ts';
import { type } from '../readme.ts';
import type { ClusterNode } from '../state.ts';
import { storyCluster } from '../story.ts';
import { at, inventory, probeFrom, UNHARMED, unharmed } from '../traffic.ts';
import { until } from '../until.ts';
import { deletePod, listPods, type Pod, rolledOut, runPod } from '../workload.ts';

/** From ripstop to the real flannel node by node, and back, by the commands of deploy/MIGRATE.md. */

const cluster = storyCluster();
const { nodes } = cluster;
const ECHO = ['probe', 'echo', ':7'];
const before = await Promise.all(nodes.map(inventory));
const commands = (after: string) => commandsOf(after, 'MIGRATE.md');
/** A command for one node. */
const forNode = (command: string, { name }: ClusterNode) => command.replace('worker-1', name);

/** Whose agents are on a node. */
async function networkOf(node: ClusterNode): Promise<string[]> {
  const agents = await Promise.all([
    listPods(cluster, 'ripstop', 'kube-ripstop'),
    listPods(cluster, 'flannel', 'kube-flannel'),
  ]);
  return agents.flat().flatMap((pod) => (pod.node === node.name ? [pod.name.replace(/-ds-.*/, '')] : []));
}

/** A pod of this moment's network on each node; all talk with each other both ways, and can be deleted. */
async function newPodsTalk(phase: string): Promise<void> {
  const pods = await Promise.all(nodes.map((node) => runPod(cluster, `${phase}-${node.name}`, node, ECHO)));
  const pairs = pods.flatMap((from) => pods.filter((to) => to !== from).map((to) => [from, to] as const));
  await Promise.all(
    pairs.map(async ([from, to]: readonly [Pod, Pod]) => {
      for (const kind of ['udp', 'tcp'] as const) {
        const report = await probeFrom(cluster, from, kind, at(to.ips[0]!, 7), 20);
        expect(report, `${kind} from ${from.name} to ${to.name}`).toMatchObject({ ...UNHARMED, sent: 20 });
      }
    }),
  );
  await Promise.all(pods.map(({ name }) => deletePod(cluster, name)));
}

async function bringBack(node: ClusterNode): Promise<void> {
  const [restore, logs, flannel] = commands('One node goes back to flannel').map((one) => forNode(one, node));
  await type(cluster, restore!);
  await until('the node has said "done"', 120_000, async () =>
    /^\[pod\/\S+\] done$/m.test(await type(cluster, logs!)),
  );
  await type(cluster, flannel!);
  await until(
    `flannel runs on ${node.name}`,
    120_000,
    async () => String(await networkOf(node)) === 'kube-flannel',
  );
  await rolledOut(cluster, 'daemonset/kube-flannel-ds', 'kube-flannel');
}

describe('deploy/MIGRATE.md, "Node by node"', () => {
  const [label, ...setUp] = commands('## Node by node') as [string, ...string[]];

  it('begins where all nodes are ripstop’s: each network keeps to its label', async () => {
    await unharmed(cluster, nodes, async () => {
      await type(cluster, label.replace('network=flannel', 'network=ripstop'));
      for (const command of setUp) await type(cluster, command);
      await rolledOut(cluster, 'daemonset/kube-ripstop-ds', 'kube-ripstop');
    });
    for (const node of nodes) expect(await networkOf(node)).toEqual(['kube-ripstop']);
  });

  it.each(nodes.map((node) => ({ node, name: node.name })))(
    'brings $name back to flannel: no message is lost',
    async ({ node }) => {
      await unharmed(cluster, nodes, () => bringBack(node));
      expect((await inventory(node))['pin']).toEqual([]);
      await newPodsTalk('back');
    },
  );

  it('ends where all nodes are flannel’s: nothing of ripstop is in the cluster', async () => {
    await unharmed(cluster, nodes, async () => {
      for (const command of commands("## When all nodes are flannel's again")) await type(cluster, command);
      await rolledOut(cluster, 'daemonset/kube-flannel-ds', 'kube-flannel');
    });
    expect((await tryKubectl(cluster, 'get', 'namespace', 'kube-ripstop')).code).not.toBe(0);
    for (const node of nodes) expect(await networkOf(node)).toEqual(['kube-flannel']);
  });

  it('begins where all nodes are flannel’s: no ripstop is started yet', async () => {
    await unharmed(cluster, nodes, async () => {
      for (const command of [label, ...setUp]) await type(cluster, command);
      await rolledOut(cluster, 'daemonset/kube-flannel-ds', 'kube-flannel');
    });
    for (const node of nodes) expect(await networkOf(node)).toEqual(['kube-flannel']);
  });

  it.each(nodes.map((node) => ({ node, name: node.name })))(
    'takes $name to ripstop: no message is lost',
    async ({ node }) => {
      await unharmed(cluster, nodes, async () => {
        const [label, rollout] = commands('One node goes to ripstop').map((one) => forNode(one, node));
        await type(cluster, label!);
        await until(
          `ripstop runs on ${node.name}`,
          120_000,
          async () => String(await networkOf(node)) === 'kube-ripstop',
        );
        await type(cluster, rollout!);
      });
      await newPodsTalk('there');
    },
  );

  it('ends where all nodes are ripstop’s, as they were at the begin', async () => {
    await unharmed(cluster, nodes, async () => {
      for (const command of commands("## When all nodes are ripstop's")) await type(cluster, command);
      await rolledOut(cluster, 'daemonset/kube-ripstop-ds', 'kube-ripstop');
    });
    for (const node of nodes) expect(await networkOf(node)).toEqual(['kube-ripstop']);
    await expect.poll(() => Promise.all(nodes.map(inventory))).toEqual(before);
  });
});

afterAll(() => deleteFlannel(cluster));
