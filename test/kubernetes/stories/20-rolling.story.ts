// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { importImages } from '../cluster.ts';
import { kubectl } from '../kubectl.ts';
import { inNode } from '../node.ts';
import { previousRelease, type Release } from '../previous.ts';
import { takeOff } from '../readme.ts';
import { storyCluster } from '../story.ts';
import { inventory, unharmed } from '../traffic.ts';
import { deletePod, installRipstop, podsOf, rolledOut, runPod } from '../workload.ts';

/** Agents are replaced node by node, also by another release, while pods talk and are created and deleted. */

const cluster = storyCluster();
const { nodes } = cluster;
const SLEEP = ['sleep', '100000'];

/** The agents' pods, by node. */
async function agents(): Promise<Record<string, string>> {
  const pods = [...(await podsOf(cluster, 'ripstop', 'kube-ripstop')).values()];
  return Object.fromEntries(pods.map(({ node, name }) => [node, name]));
}

async function imagesOfAgents(): Promise<string> {
  const argv = '-n kube-ripstop get pods -l app=ripstop -o jsonpath={.items[*].spec.containers[0].image}';
  return kubectl(cluster, ...argv.split(' '));
}

/** Replace the agents under traffic, while a pod of each node is deleted and another one is created. */
async function renewed(name: string, renew: () => Promise<unknown>): Promise<void> {
  const before = await agents();
  await Promise.all(nodes.map((node) => runPod(cluster, `${name}-old-${node.name}`, node, SLEEP)));
  await unharmed(cluster, nodes, async () => {
    await Promise.all([
      renew(),
      ...nodes.map((node) => deletePod(cluster, `${name}-old-${node.name}`)),
      ...nodes.map((node) => runPod(cluster, `${name}-new-${node.name}`, node, SLEEP)),
    ]);
    await rolledOut(cluster, 'daemonset/kube-ripstop-ds', 'kube-ripstop');
  });
  const after = await agents();
  for (const node of nodes) expect(after[node.name], node.name).not.toBe(before[node.name]);
  await Promise.all(nodes.map((node) => deletePod(cluster, `${name}-new-${node.name}`)));
}

let before: Record<string, string[]>[];
const inventories = () => Promise.all(nodes.map(inventory));

beforeAll(async () => {
  before = await inventories();
});

it('kubectl rollout restart', async () => {
  await renewed('restart', () =>
    kubectl(cluster, '-n', 'kube-ripstop', 'rollout', 'restart', 'daemonset/kube-ripstop-ds'),
  );
  await expect.poll(inventories, { timeout: 60_000 }).toEqual(before);
});

describe('the release before this one', () => {
  let previous: Release;

  beforeAll(async () => {
    previous = await previousRelease(console.log);
    await Promise.all(nodes.map((node) => importImages(node, [previous.image])));
  });

  afterAll(async () => {
    const [name] = previous.image.names;
    await Promise.all(nodes.map((node) => inNode(node, 'ctr', '-n', 'k8s.io', 'images', 'rm', name!)));
  });

  it('is rolled back to by the commands of deploy/README.md: its maps have an earlier layout', async () => {
    await renewed('back', async () => {
      await takeOff(cluster);
      await installRipstop(cluster, previous.manifest);
    });
    expect(await imagesOfAgents()).toMatch(/^(ripstop:\S+-previous ?){2}$/);
  });

  it('is upgraded to this one by the manifest, which keeps the pods that it has attached', async () => {
    await Promise.all(nodes.map((node) => runPod(cluster, `kept-${node.name}`, node, SLEEP)));
    await renewed('forward', () => installRipstop(cluster));
    await Promise.all(nodes.map((node) => deletePod(cluster, `kept-${node.name}`)));
    expect(await imagesOfAgents()).not.toContain('previous');
    await expect.poll(inventories, { timeout: 60_000 }).toEqual(before);
  });
});
