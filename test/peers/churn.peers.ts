// SPDX-License-Identifier: Apache-2.0
/** A full node on which pods come and go, in both modes. */
import { readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cpuSeconds, memoryOf } from '../../bench/scale-measure.ts';
import { usedEntries } from '../../src/cli/maps.ts';
import { readEndpoints } from '../../src/cli/rows.ts';
import { listLinks as listBpfLinks } from '../../src/dataplane/links.ts';
import { openTables, pinPaths } from '../../src/dataplane/tables.ts';
import { listLinks } from '../../src/host/links.ts';
import { addPod, boost, type Lab, labDown, type NodeState, removePod } from '../../src/lab/index.ts';
import { tracesOf } from '../../src/lab/lab.support.ts';
import { netnsPath } from '../../src/lab/netns.ts';
import { agentLog, bpffsOf, ping, podOf, runDirOf, timeUntil } from '../cluster/support.ts';
import { Random } from '../support/random.ts';
import { labNameFor, realLab } from './support.ts';

const NAME = labNameFor('churn');
const PODS = 250;
const MINUTES = 10;
const A_MINUTE = 100;
const SEED = 17;

/** What a node has of its pods, and what its agent holds. */
interface Holdings {
  readonly veths: number;
  readonly pins: number;
  readonly endpoints: number;
  readonly files: number;
}

describe(`${PODS} pods on a node, ${A_MINUTE} of them replaced each minute for ${MINUTES} minutes (seed ${SEED})`, () => {
  let lab: Lab;
  const random = new Random(SEED);
  const nodes = (): readonly NodeState[] => lab.state.nodes;

  beforeAll(async () => {
    lab = await realLab('churn', ['flannel', 'ripstop'], { pods: 1, kubeProxy: 'none' });
    await boost(lab, nodes()[0]!);
    await Promise.all(nodes().map(fill));
  }, 600_000);
  afterAll(async () => {
    await labDown(NAME);
    expect(await tracesOf(NAME)).toEqual([]);
  }, 300_000);

  async function fill(node: NodeState): Promise<void> {
    while (node.pods.length < PODS) await start(node);
  }

  /** A pod that talks to the first one of its node until the fast path knows it: on a bridge a pod is known by that. */
  async function start(node: NodeState): Promise<void> {
    const added = await addPod(lab, node);
    const isKnown = async (): Promise<boolean> => {
      await ping(added, podOf(node).ip, 1);
      const endpoints = await readEndpoints(bpffsOf(lab, node), runDirOf(lab, node));
      return endpoints.some(({ ip }) => ip === added.ip);
    };
    expect(await timeUntil(isKnown)).toBeLessThan(10_000);
  }

  async function holdings(node: NodeState): Promise<Holdings> {
    const bpffs = bpffsOf(lab, node);
    using tables = openTables(bpffs);
    const links = await listLinks({ netns: netnsPath(node.netns) });
    return {
      veths: [...links.keys()].filter((name) => name.startsWith('veth')).length,
      pins: listBpfLinks(pinPaths(bpffs).links).size,
      endpoints: usedEntries(tables.endpoints.map).length,
      files: readdirSync(`/proc/${node.agentPid!}/fd`).length,
    };
  }

  /** Replace pods at an even pace. Returns the agent's share of a core, and its resident memory each minute. */
  async function churn(node: NodeState): Promise<{ cpu: number; seconds: number; memory: number[] }> {
    const pid = node.agentPid!;
    const memory: number[] = [];
    const [began, spent] = [performance.now(), cpuSeconds(pid)];
    for (let i = 0; i < MINUTES * A_MINUTE; i++) {
      await sleep(Math.max(0, began + (i * 60_000) / A_MINUTE - performance.now()));
      // The first one stays: the others talk to it.
      await removePod(lab, node, random.pick(node.pods.slice(1)));
      await start(node);
      if (i % A_MINUTE === A_MINUTE - 1) memory.push(memoryOf(pid).rss);
    }
    const seconds = (performance.now() - began) / 1000;
    return { cpu: (cpuSeconds(pid) - spent) / seconds, seconds, memory };
  }

  it(
    'leaks nothing, and costs its agent little',
    async () => {
      for (const node of nodes())
        await expect.poll(() => holdings(node)).toMatchObject({ endpoints: PODS, veths: PODS });
      const [before, pids] = [await Promise.all(nodes().map(holdings)), nodes().map((node) => node.agentPid)];
      const results = await Promise.all(nodes().map(churn));
      for (const [i, { cpu, memory }] of results.entries()) {
        const inMb = memory.map((bytes) => Math.round(bytes / 1e6)).join(' ');
        console.log(`${i === 0 ? 'boost' : 'cni'}: ${(cpu * 100).toFixed(1)} % of a core; MB: ${inMb}`);
      }
      for (const [i, node] of nodes().entries()) {
        const { cpu, seconds, memory } = results[i]!;
        const { files, ...kept } = before[i]!;
        await expect.poll(() => holdings(node), { timeout: 30_000 }).toMatchObject(kept);
        expect((await holdings(node)).files).toBeLessThanOrEqual(files);
        // The aim is 5 % of a core. Measured, with the other core busy: 3.3 % in boost, 5.1 % in cni.
        expect(cpu).toBeLessThan(0.06);
        // A slower pace would prove less.
        expect(seconds).toBeLessThan(1.1 * 60 * MINUTES);
        // The collector of garbage lets it swing.
        expect(memory.at(-1)).toBeLessThan(1.15 * memory[1]!);
        expect(agentLog(lab, node)).not.toContain('"level":50');
      }
      expect(nodes().map((node) => node.agentPid)).toEqual(pids);
    },
    (MINUTES + 5) * 60_000,
  );
});
