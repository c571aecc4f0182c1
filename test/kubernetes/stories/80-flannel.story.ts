// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { deleteFlannel } from '../flannel.ts';
import { kubectl } from '../kubectl.ts';
import { inNode, tryInNode } from '../node.ts';
import { commandsOf } from '../../support/commands.ts';
import { takeOff, type } from '../readme.ts';
import type { ClusterNode } from '../state.ts';
import { storyCluster } from '../story.ts';
import { at, inventory, probeFrom, UNHARMED, unharmed } from '../traffic.ts';
import { clusterIpOf, deletePod, listPods, type Pod, podsOf, rolledOut, runPod } from '../workload.ts';

/**
 * From ripstop to the real flannel and back, by the commands of deploy/README.md. Pods that run talk on all the while;
 * those that one of the two has attached can be deleted under the other.
 */

const cluster = storyCluster();
const { nodes } = cluster;
const ECHO = ['probe', 'echo', ':7'];
/** A pod on each node, by node. */
type Pair = ReadonlyMap<ClusterNode, Pod>;

/** Start a pod on each node. */
async function start(phase: string): Promise<Pair> {
  const started = await Promise.all(
    nodes.map(async (node) => [node, await runPod(cluster, `${phase}-${node.name}`, node, ECHO)] as const),
  );
  return new Map(started);
}

/** Delete them. Resolves when no lease of theirs is left. */
async function end(pods: Pair): Promise<void> {
  await Promise.all([...pods.values()].map(({ name }) => deletePod(cluster, name)));
  for (const [node, { name, ips }] of pods) {
    const leases = (await inventory(node))['lease'];
    expect(leases, `the lease of ${name}`).not.toContain(ips[0]);
  }
}

/** Counted messages, TCP and UDP, from each of these pods to each of those, and through the service. */
async function talk(from: Pair, to: Pair): Promise<void> {
  const service = at(await clusterIpOf(cluster, 'echo'), 70);
  const addresses = [service, ...[...to.values()].map(({ ips }) => at(ips[0]!, 7))];
  const talkFrom = async (pod: Pod) => {
    for (const address of addresses) {
      for (const kind of ['udp', 'tcp', 'connect'] as const) {
        const report = await probeFrom(cluster, pod, kind, address, 20);
        expect(report, `${kind} from ${pod.name} to ${address}`).toMatchObject({ ...UNHARMED, sent: 20 });
      }
    }
  };
  await Promise.all([...from.values()].map(talkFrom));
}

/** How many pods of a node flannel's plugin has attached: they are ports of its bridge. */
async function bridgePorts(node: ClusterNode): Promise<number> {
  const { stdout } = await tryInNode(node, 'ls', '/sys/class/net/cni0/brif');
  return stdout.split('\n').filter((line) => line !== '').length;
}

let before: Record<string, string[]>[];
let attachedByRipstop: Pair;
let attachedByFlannel: Pair;
let clients: Pair;

beforeAll(async () => {
  before = await Promise.all(nodes.map(inventory));
  const byNode = await podsOf(cluster, 'client');
  clients = new Map(nodes.map((node) => [node, byNode.get(node.name)!]));
  attachedByRipstop = await start('by-ripstop');
});

describe('deploy/README.md, "Roll back": from ripstop to flannel', () => {
  const [remove, flannel] = commandsOf('- To flannel:') as [string, string];

  it('ripstop is taken off: no message is lost', async () => {
    await unharmed(cluster, nodes, async () => {
      await takeOff(cluster);
      await type(cluster, remove);
    });
    for (const node of nodes) {
      expect((await inventory(node))['pin']).toEqual([]);
      expect(await inNode(node, 'nft', 'list', 'tables')).not.toContain('inet ripstop');
    }
  });

  it('flannel takes over: pods talk on', async () => {
    await unharmed(cluster, nodes, async () => {
      await type(cluster, flannel);
      await rolledOut(cluster, 'daemonset/kube-flannel-ds', 'kube-flannel');
    });
  });

  it('new pods are flannel’s, and talk with those of ripstop', async () => {
    attachedByFlannel = await start('by-flannel');
    for (const node of nodes) expect(await bridgePorts(node), node.name).toBe(1);
    await talk(attachedByFlannel, attachedByRipstop);
    await talk(attachedByRipstop, attachedByFlannel);
  });

  it('pods of ripstop can be deleted', async () => {
    await end(attachedByRipstop);
  });
});

const ROUNDS = Array.from({ length: 10 }, (_, i) => i + 1);

describe.each(ROUNDS)('deploy/README.md, "Boost a running flannel", round %d', () => {
  /** Packets between pods that the fast path has carried, on all nodes. */
  async function carriedFast(): Promise<number> {
    const agents = await listPods(cluster, 'ripstop', 'kube-ripstop-boost');
    const counted = agents.map(async ({ name }) => {
      const argv = [
        '-n',
        'kube-ripstop-boost',
        'exec',
        name,
        '-c',
        'ripstop',
        '--',
        'ripstop',
        'stats',
        '-o',
        'json',
      ];
      const rows = JSON.parse(await kubectl(cluster, ...argv)) as { verdict: string; packets: number }[];
      return rows.reduce((sum, { verdict, packets }) => sum + (verdict === 'fast' ? packets : 0), 0);
    });
    return (await Promise.all(counted)).reduce((sum, packets) => sum + packets, 0);
  }

  it('makes flannel’s pods fast: no pod is restarted, and no message is lost', async () => {
    await unharmed(cluster, nodes, async () => {
      for (const command of commandsOf('## Boost a running flannel')) await type(cluster, command);
    });
    const before = await carriedFast();
    await talk(attachedByFlannel, attachedByFlannel);
    expect((await carriedFast()) - before).toBeGreaterThan(100);
  });

  it('is taken back by one command: no message is lost, and no program is left', async () => {
    await unharmed(cluster, nodes, async () => {
      for (const command of commandsOf('One command brings every node back')) await type(cluster, command);
    });
    for (const node of nodes) expect((await inventory(node))['pin']).toEqual([]);
  });
});

describe('deploy/README.md, "From a running flannel": back to ripstop', () => {
  it('ripstop takes over: no message is lost', async () => {
    await unharmed(cluster, nodes, async () => {
      for (const command of commandsOf('**From a running flannel.**')) await type(cluster, command);
      await rolledOut(cluster, 'daemonset/kube-ripstop-ds', 'kube-ripstop');
    });
  });

  it('new pods are ripstop’s, and talk with those of flannel', async () => {
    const again = await start('again');
    for (const node of nodes) expect(await bridgePorts(node), node.name).toBe(1);
    await talk(again, attachedByFlannel);
    await talk(attachedByFlannel, again);
    await talk(clients, attachedByFlannel);
    await end(again);
  });

  it('pods of flannel can be deleted, and nothing of theirs is left', async () => {
    await end(attachedByFlannel);
    await expect.poll(() => Promise.all(nodes.map(inventory))).toEqual(before);
  });
});

afterAll(() => deleteFlannel(cluster));
