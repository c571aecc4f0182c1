// SPDX-License-Identifier: Apache-2.0
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { Status } from '../../src/cli/status.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { addPod, nodeDir, type NodeState, startAgent, stopAgent } from '../../src/lab/index.ts';
import { createKubeNode, deleteKubeNode } from '../../src/lab/kube.ts';
import {
  agentLog,
  bpffsOf,
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
} from './support.ts';

describe.skipIf(missingHere())('a node that starts while the API server is silent', () => {
  const cluster = useLab('cold', { nodes: 3, pods: 1 });
  const stateFile = (node: NodeState): string => join(nodeDir(cluster.lab, node), 'state/last-known.json');

  const lastKnownOf = (node: NodeState): { own: { vtepMac: object }; peers: object[] } =>
    JSON.parse(readFileSync(stateFile(node), 'utf8'));

  afterEach(() => void process.kill(cluster.lab.state.apiServerPid!, 'SIGCONT'));

  async function apiOf(node: NodeState): Promise<NonNullable<Status['agent']>['api']> {
    return (await ripstopJson<{ agent: NonNullable<Status['agent']> }>(cluster.lab, node, 'status')).agent
      .api;
  }

  /**
   * Remove everything of ripstop except its files, and all of its kernel path, as a reboot does. The lab's pods stay.
   */
  async function losePower(node: NodeState): Promise<void> {
    await stopAgent(cluster.lab, node, 'SIGKILL');
    rmSync(join(bpffsOf(cluster.lab, node), 'ripstop'), { recursive: true });
    await run('ip', ['link', 'delete', 'flannel.1'], inNetns(node));
    await run('nft', ['flush', 'ruleset'], inNetns(node));
    await tryRun('ip', ['route', 'flush', 'root', '10.42.0.0/16'], inNetns(node));
    rmSync(join(nodeDir(cluster.lab, node), 'subnet.env'));
  }

  it('stores its MAC address before it publishes it, since it may crash a moment later', async () => {
    const node = cluster.nodes[2]!;
    await stopAgent(cluster.lab, node);
    rmSync(stateFile(node));
    await run('ip', ['link', 'delete', 'flannel.1'], inNetns(node));
    await deleteKubeNode(cluster.lab, node.name);
    await createKubeNode(cluster.lab, node);
    await startAgent(cluster.lab, node);
    await expect.poll(() => existsSync(stateFile(node))).toBe(true);
    const [device] = await ipJson<{ address: string }>(['link', 'show', 'flannel.1'], inNetns(node));
    expect(lastKnownOf(node).own.vtepMac).toEqual({ v4: device!.address });
  });

  it('runs on the last-known state: old pods talk, new ones are added, and the API server takes over without a loss', async () => {
    const [node, other, leaver] = cluster.nodes as [NodeState, NodeState, NodeState];
    await expect.poll(() => lastKnownOf(node).peers.length, { timeout: 20_000 }).toBe(2);
    await serveIn(podOf(node));
    await serveIn(podOf(other));
    await stopAgent(cluster.lab, leaver);

    process.kill(cluster.lab.state.apiServerPid!, 'SIGSTOP');
    await losePower(node);
    expect((await tryRun('ping', ['-c1', '-W1', podOf(other).ip], inNetns(podOf(node)))).code).not.toBe(0);
    await startAgent(cluster.lab, node);

    const api = await apiOf(node);
    expect(api).toMatchObject({ connected: false, synced: false, lastKnownAgeMs: expect.any(Number) });
    expect(api.lastKnownAgeMs).toBeLessThan(60_000);
    expect(agentLog(cluster.lab, node)).toMatch(/going on with the last-known state/);
    await talkTcp(podOf(node), podOf(other).ip);
    await talkTcp(podOf(other), podOf(node).ip);
    const added = await addPod(cluster.lab, node);
    await ping(added, podOf(other).ip);
    await ping(added, podOf(node).ip);
    await ping(podOf(other), added.ip);
    const [carried] = await carriedDuring(cluster.lab, [node], () => talkTcp(podOf(node), podOf(other).ip));
    expect(carried!.by).toMatchObject({
      'from_pod fast_encap': expect.any(Number),
      'from_wire fast_decap': expect.any(Number),
    });

    process.kill(cluster.lab.state.apiServerPid!, 'SIGCONT');
    await expect.poll(async () => (await apiOf(node)).synced, { timeout: 60_000, interval: 200 }).toBe(true);
    expect(await apiOf(node)).not.toHaveProperty('lastKnownAgeMs');
    await talkTcp(podOf(node), podOf(other).ip);
    await deleteKubeNode(cluster.lab, leaver.name);
    const peers = async () =>
      (await ripstopJson<{ node: string }[]>(cluster.lab, node, 'peers')).map((row) => row.node);
    await expect.poll(peers).toEqual([other.name]);
  });

  it('waits for the API server when its last-known state is unusable', async () => {
    const node = cluster.nodes[0]!;
    await stopAgent(cluster.lab, node);
    writeFileSync(stateFile(node), readFileSync(stateFile(node), 'utf8').replace('"node1"', '"node9"'));
    process.kill(cluster.lab.state.apiServerPid!, 'SIGSTOP');
    const started = startAgent(cluster.lab, node);
    await expect
      .poll(() => agentLog(cluster.lab, node), { timeout: 10_000 })
      .toMatch(/cannot use the last-known state/);
    await ping(podOf(node), podOf(cluster.nodes[1]).ip);
    process.kill(cluster.lab.state.apiServerPid!, 'SIGCONT');
    await started;
    expect(await apiOf(node)).not.toHaveProperty('lastKnownAgeMs');
  });

  it('changes to another podCIDR, with a warning, when its Node was re-created with one', async () => {
    const [node, other] = cluster.nodes as [NodeState, NodeState];
    const podCIDR = '10.42.77.0/24';
    await stopAgent(cluster.lab, node);
    process.kill(cluster.lab.state.apiServerPid!, 'SIGSTOP');
    await startAgent(cluster.lab, node);
    expect(await apiOf(node)).toHaveProperty('lastKnownAgeMs');
    process.kill(cluster.lab.state.apiServerPid!, 'SIGCONT');
    await deleteKubeNode(cluster.lab, node.name);
    await createKubeNode(cluster.lab, { ...node, podCIDR });
    await expect
      .poll(() => readFileSync(join(nodeDir(cluster.lab, node), 'subnet.env'), 'utf8'), { timeout: 60_000 })
      .toContain('FLANNEL_SUBNET=10.42.77.1/24');
    expect(agentLog(cluster.lab, node)).toMatch(/"was":"10.42.0.0\/24","is":"10.42.77.0\/24"/);
    await expect.poll(() => cniStatus(cluster.lab, node)).toBeUndefined();
    const added = await addPod(cluster.lab, node);
    expect(added.ip).toMatch(/^10\.42\.77\./);
    await expect
      .poll(async () => (await tryRun('ping', ['-c1', '-W1', added.ip], inNetns(podOf(other)))).code)
      .toBe(0);
    await talkTcp(added, podOf(other).ip);
  });
});
