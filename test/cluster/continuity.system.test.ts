// SPDX-License-Identifier: Apache-2.0
/** Numbered messages of pods, plain and through a Service, near and far, lose nothing while ripstop itself changes. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { pinPaths } from '../../src/dataplane/tables.ts';
import { run } from '../../src/host/run.ts';
import {
  giveBack,
  type NodeState,
  restartAgent,
  setServices,
  startAgent,
  stopAgent,
  unboost,
} from '../../src/lab/index.ts';
import { missingRelease } from '../support/release.ts';
import {
  bpffsOf,
  carriedDuring,
  inNetns,
  missingHere,
  podOf,
  PORT,
  serveIn,
  serviceOf,
  type Talk,
  useLab,
  whileNumbering,
} from './support.ts';
import { Version } from './versions.ts';

const SERVICE = { near: '10.43.0.1', far: '10.43.0.2' };

/** As on most nodes: what conntrack takes for no part of a connection is dropped. */
const INVALID_DROP = [
  'add table ip strict',
  'add chain ip strict forward { type filter hook forward priority -1; }',
  'add rule ip strict forward ct state invalid drop',
].join('; ');

/** Two nodes with pods that talk to each other, and through Services. */
function useTalkingLab(name: string) {
  const cluster = useLab(name, { nodes: 2, pods: 2, kubeProxy: 'iptables' });
  const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);
  beforeAll(async () => {
    for (const node of cluster.nodes) {
      await setServices(cluster.lab, node, [
        ...serviceOf('near', SERVICE.near, PORT, pod(1, 1).ip),
        ...serviceOf('far', SERVICE.far, PORT, pod(2).ip),
      ]);
      await run('nft', [INVALID_DROP], inNetns(node));
    }
    for (const one of pods()) await serveIn(one);
  }, 60_000);
  const pods = () => [pod(1), pod(1, 1), pod(2)];
  const talks = (): Record<string, Talk> => ({
    'to a pod of the same node': [pod(1), pod(1, 1).ip],
    'to a pod of another node': [pod(1), pod(2).ip],
    'from a pod of another node': [pod(2), pod(1).ip],
    'through a Service to the same node': [pod(1), SERVICE.near],
    'through a Service to another node': [pod(1), SERVICE.far],
  });
  /** Let them talk while something happens. */
  const during = (work: () => Promise<unknown>): Promise<void> => whileNumbering(talks(), pods(), work);
  return { cluster, during };
}

describe.skipIf(missingHere('iptables-restore'))('numbered messages of pods lose nothing while', () => {
  const { cluster, during } = useTalkingLab('numbered');
  const eachNode = async (act: (node: NodeState) => Promise<unknown>): Promise<void> => {
    for (const node of cluster.nodes) await act(node);
  };

  it('the agents of both nodes are killed, and started again', async () => {
    await during(() => eachNode((node) => restartAgent(cluster.lab, node, 'SIGKILL')));
  });

  it('the programs are removed by hand, and an agent attaches them again', async () => {
    await during(() =>
      eachNode(async (node) => {
        await unboost(cluster.lab, node);
        await startAgent(cluster.lab, node);
      }),
    );
  });

  it('a node is uninstalled, and given back to flannel', async () => {
    await during(() => giveBack(cluster.lab, cluster.nodes[0]!));
  });
});

const missing = missingHere('iptables-restore', 'clang-19') ?? missingRelease();

describe.skipIf(missing)(`numbered messages of pods${missing ? ` (skipped: ${missing})` : ''}`, () => {
  const { cluster, during } = useTalkingLab('from01');

  /** Which of them a node has pinned: a program that only that version has, and a map that only this one has. */
  const pinsOf = (node: NodeState) => {
    const { programs, maps } = pinPaths(bpffsOf(cluster.lab, node));
    return { to_vtep: existsSync(join(programs, 'to_vtep')), flows4: existsSync(join(maps, 'flows4')) };
  };

  it('lose nothing while both nodes are upgraded from ripstop 0.1.0, and are fast afterwards', async () => {
    using previous = await Version.previous();
    await previous.build();
    for (const node of cluster.nodes) await unboost(cluster.lab, node);
    process.env['RIPSTOP_LAB_COMMAND'] = previous.main;
    try {
      for (const node of cluster.nodes) await startAgent(cluster.lab, node);
    } finally {
      delete process.env['RIPSTOP_LAB_COMMAND'];
    }
    for (const node of cluster.nodes) expect(pinsOf(node)).toEqual({ to_vtep: true, flows4: false });
    await during(async () => {
      for (const node of cluster.nodes) {
        await stopAgent(cluster.lab, node);
        await startAgent(cluster.lab, node);
        await expect.poll(() => pinsOf(node), { timeout: 10_000 }).toEqual({ to_vtep: false, flows4: true });
      }
    });
    const carried = await carriedDuring(cluster.lab, cluster.nodes, () => during(async () => {}));
    for (const { fast, forwarded } of carried) expect(fast).toBeGreaterThan(10 * forwarded);
  });
});
