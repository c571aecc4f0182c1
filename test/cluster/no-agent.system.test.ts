// SPDX-License-Identifier: Apache-2.0
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { HostLocalStore } from '../../src/cni/host-local.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { listLinks } from '../../src/host/links.ts';
import {
  addPod,
  giveBack,
  nodeDir,
  type NodeState,
  removePod,
  startAgent,
  stopAgent,
} from '../../src/lab/index.ts';
import {
  bpffsOf,
  bytesOf,
  cniStatus,
  inNetns,
  missingHere,
  ping,
  podOf,
  ripstopJson,
  serveIn,
  useLab,
  whileTalking,
} from './support.ts';

describe.skipIf(missingHere())('on a node whose agent is away', () => {
  const cluster = useLab('noagent', { nodes: 2, pods: 1 });
  const node = (): NodeState => cluster.nodes[0]!;
  const dirOf = (name: string): string => join(nodeDir(cluster.lab, node()), name);
  const deferred = (): string[] =>
    existsSync(dirOf('state/deferred')) ? readdirSync(dirOf('state/deferred')).toSorted() : [];

  beforeAll(async () => {
    for (const one of cluster.nodes) await serveIn(podOf(one));
  });

  function leases(): string[] {
    const all = new HostLocalStore(dirOf('ipam')).list('cbr0');
    return all.map(({ ip }) => ip).toSorted();
  }

  /** Everything that has entries for pods. */
  async function traces(): Promise<object> {
    const links = [...(await listLinks(inNetns(node()))).keys()].filter((name) => name.startsWith('veth'));
    const routes = await ipJson<{ dst: string; dev?: string }>(['route'], inNetns(node()));
    return {
      leases: leases(),
      veths: links.toSorted(),
      routes: routes.map(({ dst, dev }) => `${dst} ${dev}`).toSorted(),
      endpoints: bytesOf(bpffsOf(cluster.lab, node()), 'endpoints'),
      attachments: readdirSync(dirOf('run/endpoints')),
      deferred: deferred(),
    };
  }

  /** Check that the pods that stay can talk to each other during `work`, both ways, without a loss. */
  async function unharmed(work: () => Promise<unknown>): Promise<void> {
    const [near, far] = [podOf(node()), podOf(cluster.nodes[1])];
    const both = [
      [near, far.ip],
      [far, near.ip],
    ] as const;
    const { lost, reports } = await whileTalking({ pings: both, connections: both }, 200, work);
    expect(lost).toEqual([[], []]);
    for (const report of reports) expect(report).not.toHaveProperty('error');
  }

  it('pods are deleted, none can start, and a new agent removes all their traces', async () => {
    await startAgentAnew();
    const before = await traces();
    for (let i = 0; i < 3; i++) await addPod(cluster.lab, node());
    const ips = node().pods.map(({ ip }) => ip);
    await unharmed(async () => {
      await stopAgent(cluster.lab, node(), 'SIGKILL');
      // The container runtime also deletes pods that it could not start.
      await expect(addPod(cluster.lab, node())).rejects.toThrow(/code 11: .*gave no answer/);
      for (const pod of node().pods.slice(1)) await removePod(cluster.lab, node(), pod);
      expect(deferred()).toHaveLength(3);
      // These addresses must not be reused while the programs know them.
      expect(leases()).toEqual(ips.toSorted());
      await startAgent(cluster.lab, node());
      await expect.poll(traces).toEqual(before);
    });
    const added = await addPod(cluster.lab, node());
    await ping(added, podOf(cluster.nodes[1]).ip);
    await removePod(cluster.lab, node(), added);
  });

  it('pods can be deleted, also while a new agent does not know its Node yet', async () => {
    const before = await traces();
    const pod = await addPod(cluster.lab, node());
    await stopAgent(cluster.lab, node(), 'SIGKILL');
    rmSync(dirOf('state/last-known.json'), { force: true });
    const apiServer = cluster.lab.state.apiServerPid!;
    process.kill(apiServer, 'SIGSTOP');
    let started: Promise<void> | undefined;
    try {
      started = startAgent(cluster.lab, node());
      // At any time: some of these come before there is a socket, the agent carries out the others at once.
      while (!(await cniStatus(cluster.lab, node()))?.includes('not ready'))
        await expect(addPod(cluster.lab, node())).rejects.toThrow(/code 11/);
      await removePod(cluster.lab, node(), pod);
      await expect.poll(leases).toEqual([podOf(node()).ip]);
    } finally {
      process.kill(apiServer, 'SIGCONT');
      await started;
    }
    await expect.poll(traces).toEqual(before);
  });

  it('uninstall releases the addresses of deleted pods, and flannel can use them', async () => {
    const pod = await addPod(cluster.lab, node());
    await stopAgent(cluster.lab, node(), 'SIGKILL');
    await removePod(cluster.lab, node(), pod);
    expect(leases()).toContain(pod.ip);
    const said = await giveBack(cluster.lab, node());
    expect(said).toContain('released the addresses of 1 pods that were deleted while no agent ran');
    expect(leases()).toEqual([podOf(node()).ip]);
    const added = await addPod(cluster.lab, node());
    await ping(added, podOf(cluster.nodes[1]).ip);
    await ping(added, podOf(node()).ip);
  });

  /** Makes the state that is compared later. */
  async function startAgentAnew(): Promise<void> {
    await stopAgent(cluster.lab, node());
    await startAgent(cluster.lab, node());
    const api = () => ripstopJson<{ agent: { api: { synced: boolean } } }>(cluster.lab, node(), 'status');
    await expect.poll(async () => (await api()).agent.api.synced).toBe(true);
  }
});
