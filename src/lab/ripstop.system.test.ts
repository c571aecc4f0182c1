// SPDX-License-Identifier: Apache-2.0
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { tryRun } from '../host/run.ts';
import {
  type Lab,
  type NodeState,
  addNode,
  addPod,
  labDown,
  labUp,
  netnsPath,
  nodeDir,
  openLab,
  parseLabOptions,
  removeNode,
  removePod,
  restartAgent,
  startAgent,
  stopAgent,
  removePrograms,
} from './index.ts';
import { isAlive } from './netns.ts';
import { missingForLab, tracesOf } from './lab.support.ts';

const missing = missingForLab();
if (missing) console.log(`skipped: ${missing}`);

describe.skipIf(missing)('two ripstop nodes and a flannel node, dual-stack', () => {
  const name = `t${process.pid}-ripstop`;
  let lab: Lab;
  let node: NodeState;

  beforeAll(async () => {
    await labUp(parseLabOptions({ name, datapath: 'ripstop,flannel,ripstop', pods: 1, ipv6: true }));
    lab = openLab(name);
    node = lab.state.nodes[0]!;
  });
  afterAll(async () => {
    await labDown(name);
    expect(await tracesOf(name)).toEqual([]);
  });

  /** The pairs of a pod and another pod's address between which no ping is answered. */
  async function unreachable(): Promise<string[]> {
    const pods = lab.state.nodes.flatMap((one) => one.pods);
    const ways = pods.flatMap((from) => pods.flatMap((to) => [to.ip, to.ip6!].map((to) => ({ from, to }))));
    const answers = await Promise.all(
      ways.map(({ from, to }) =>
        tryRun('ping', ['-n', '-c', '1', '-W', '2', to], { netns: netnsPath(from.netns) }),
      ),
    );
    return ways.filter((_, i) => answers[i]!.code !== 0).map(({ from, to }) => `${from.netns} → ${to}`);
  }

  it('let every pod ping every pod', async () => {
    expect(await unreachable()).toEqual([]);
  });

  // test/cluster/lifecycle.system.test.ts checks the traffic meanwhile; this checks the lab.
  it('have agents that restart as other processes, and pins that can be removed', async () => {
    const before = node.agentPid!;
    await stopAgent(lab, node, 'SIGKILL');
    expect(isAlive(before)).toBe(false);
    await startAgent(lab, node);
    const second = node.agentPid!;
    await restartAgent(lab, node);
    expect(isAlive(second)).toBe(false);
    expect(isAlive(node.agentPid!)).toBe(true);
    await removePrograms(lab, node);
    expect(node.agentPid).toBeUndefined();
    expect(existsSync(join(nodeDir(lab, node), 'bpf/ripstop'))).toBe(false);
    await startAgent(lab, node);
    expect(await unreachable()).toEqual([]);
  });

  it('start and end pods and nodes at any time', async () => {
    const pod = await addPod(lab, node);
    expect(await unreachable()).toEqual([]);
    await removePod(lab, node, pod);
    const joined = await addNode(lab, 'ripstop', 1);
    // The other agents get it from the API server a little later.
    await expect.poll(unreachable, { timeout: 10_000 }).toEqual([]);
    await removeNode(lab, joined);
    expect(await tracesOf(joined.netns)).toEqual([]);
    expect(await unreachable()).toEqual([]);
  });
});
