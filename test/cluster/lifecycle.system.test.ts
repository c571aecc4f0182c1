// SPDX-License-Identifier: Apache-2.0
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BpfLink } from '#libbpf-ts';
import { beforeAll, describe, expect, it } from 'vitest';
import { readPeers } from '../../src/cli/rows.ts';
import { pinPaths } from '../../src/dataplane/tables.ts';
import { listLinks } from '../../src/dataplane/links.ts';
import { readForwardCounters } from '../../src/lab/rule-counters.ts';
import {
  type Lab,
  type NodeState,
  restartAgent,
  startAgent,
  stopAgent,
  removePrograms,
} from '../../src/lab/index.ts';
import {
  agentLog,
  bpffsOf,
  bytesOf,
  carriedDuring,
  cniStatus,
  inNetns,
  missingHere,
  ping,
  podOf,
  ripstopJson,
  serveIn,
  talkTcp,
  useLab,
  type Talk,
  whileTalking,
} from './support.ts';

/** The parts of a node's data plane that a restart must not change. */
function pinned(lab: Lab, node: NodeState): object {
  const bpffs = bpffsOf(lab, node);
  const { links } = pinPaths(bpffs);
  return {
    peers: bytesOf(bpffs, 'peers'),
    vteps: bytesOf(bpffs, 'vteps'),
    endpoints: bytesOf(bpffs, 'endpoints'),
    links: [...listLinks(links).keys()].toSorted().map((pin) => {
      using link = BpfLink.openPinned(join(links, pin));
      const { id, ifindex } = link.info();
      return { pin, id, ifindex };
    }),
  };
}

/** The first packets and ends of flows, and one packet of each flow every few seconds. */
const MOST_ON_KERNEL_PATH = 60;

describe.skipIf(missingHere())('what is pinned on two ripstop nodes', () => {
  const cluster = useLab('life', { nodes: 2, pods: 2 });
  const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);
  const near = () => pod(1, 1);
  const far = () => pod(2);

  beforeAll(async () => {
    await Promise.all([pod(1), near(), far()].map((one) => serveIn(one)));
  });

  /**
   * Check pings and connections during `work` on node 1: between its pods, and with those of the other node, both ways.
   */
  async function unharmed(work: () => Promise<unknown>): Promise<void> {
    const pairs: Talk[] = [
      [pod(1), near().ip],
      [pod(1), far().ip],
      [far(), pod(1).ip],
    ];
    const { lost, reports } = await whileTalking({ pings: pairs, connections: pairs }, 200, work);
    expect(lost).toEqual([[], [], []]);
    for (const report of reports) {
      expect(report).not.toHaveProperty('error');
      expect(report.rounds).toBeGreaterThan(10);
      expect(report.longestMs).toBeLessThan(500);
    }
  }

  it.each(['SIGTERM', 'SIGKILL'] as const)(
    'is adopted by a new agent after %s: no ping lost, no map written, no link replaced',
    async (signal) => {
      const node = cluster.nodes[0]!;
      const before = pinned(cluster.lab, node);
      const logged = agentLog(cluster.lab, node).length;
      await unharmed(async () => {
        await restartAgent(cluster.lab, node, signal);
        await expect.poll(() => isSynced(node)).toBe(true);
      });
      expect(pinned(cluster.lab, node)).toEqual(before);
      const applied = agentLog(cluster.lab, node)
        .slice(logged)
        .matchAll(/"changed":"([^"]*)"/g);
      const targets = Array.from(applied, ([, changed]) => changed!.replaceAll(/ [+]\d+ -\d+/g, ''));
      expect(targets.join(', ').split(', ').toSorted()).toEqual([
        'changes',
        'node-links',
        'pod-links',
        'programs',
      ]);
    },
  );

  const isSynced = async (node: NodeState): Promise<boolean> => {
    const { agent } = await ripstopJson<{ agent?: { api: { synced: boolean } } }>(
      cluster.lab,
      node,
      'status',
    );
    return agent?.api.synced ?? false;
  };

  it('forwards while no agent runs', async () => {
    const node = cluster.nodes[0]!;
    await stopAgent(cluster.lab, node, 'SIGKILL');
    const [carried] = await carriedDuring(cluster.lab, [node], () => unharmed(() => sleep(300)));
    expect(carried!.fast).toBeGreaterThan(100);
    expect(carried!.forwarded).toBeLessThan(MOST_ON_KERNEL_PATH);
    const { agent } = await ripstopJson<{ agent?: object }>(cluster.lab, node, 'status');
    expect(agent).toBeUndefined();
    expect(await cniStatus(cluster.lab, node)).toMatch(/code 50/);
    await startAgent(cluster.lab, node);
  });

  it('may be removed and restored without a loss for pods', async () => {
    const node = cluster.nodes[0]!;
    await unharmed(async () => {
      await removePrograms(cluster.lab, node);
      const before = (await readForwardCounters(inNetns(node)))!.packets;
      await talkTcp(pod(1), far().ip, 1 << 20);
      await talkTcp(pod(1), near().ip, 1 << 20);
      await ping(far(), pod(1).ip);
      expect((await readForwardCounters(inNetns(node)))!.packets).toBeGreaterThan(before + 50);

      await startAgent(cluster.lab, node);
      await expect.poll(() => isSynced(node)).toBe(true);
      await expect.poll(() => readPeers(bpffsOf(cluster.lab, node), undefined).length).toBe(1);
      await sleep(100);
      const [carried] = await carriedDuring(cluster.lab, [node], async () => {
        await talkTcp(pod(1), far().ip, 1 << 20);
        await talkTcp(pod(1), near().ip, 1 << 20);
        await sleep(200);
      });
      expect(carried!.fast).toBeGreaterThan(100);
      // Connections that began on the fast path return to it.
      expect(carried!.forwarded).toBeLessThan(MOST_ON_KERNEL_PATH);
    });
  });

  it('keeps forwarding while the API server hangs, and an agent that starts meanwhile waits for it', async () => {
    const node = cluster.nodes[0]!;
    const apiServer = cluster.lab.state.apiServerPid!;
    const before = pinned(cluster.lab, node);
    process.kill(apiServer, 'SIGSTOP');
    try {
      await unharmed(() => sleep(500));
      expect(pinned(cluster.lab, node)).toEqual(before);
      expect(await cniStatus(cluster.lab, node)).toBeUndefined();

      await stopAgent(cluster.lab, node);
      const started = startAgent(cluster.lab, node);
      await expect.poll(() => cniStatus(cluster.lab, node)).toMatch(/code 50/);
      await unharmed(() => sleep(500));
      expect(pinned(cluster.lab, node)).toEqual(before);
      process.kill(apiServer, 'SIGCONT');
      await started;
    } finally {
      process.kill(apiServer, 'SIGCONT');
    }
    expect(await cniStatus(cluster.lab, node)).toBeUndefined();
    await expect.poll(() => isSynced(node)).toBe(true);
    expect(pinned(cluster.lab, node)).toEqual(before);
  });

  it('keeps forwarding when the API server is gone, also when an agent starts then', async () => {
    const node = cluster.nodes[0]!;
    const before = pinned(cluster.lab, node);
    process.kill(cluster.lab.state.apiServerPid!, 'SIGKILL');
    await unharmed(() => sleep(500));
    const { agent } = await ripstopJson<{ agent?: { api: { connected: boolean; lastError?: string } } }>(
      cluster.lab,
      node,
      'status',
    );
    expect(agent!.api.connected).toBe(false);
    expect(agent!.api.lastError).toBeTruthy();

    await stopAgent(cluster.lab, node);
    await unharmed(() => startAgent(cluster.lab, node));
    expect(pinned(cluster.lab, node)).toEqual(before);
    // It is ready, on the last-known state of the previous agent.
    expect(await cniStatus(cluster.lab, node)).toBeUndefined();
  });
});
