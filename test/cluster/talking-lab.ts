// SPDX-License-Identifier: Apache-2.0
import { beforeAll } from 'vitest';
import { run } from '../../src/host/run.ts';
import { type LabFlags, setServices } from '../../src/lab/index.ts';
import { inNetns, podOf, PORT, serveIn, serviceOf, type Talk, useLab, whileNumbering } from './support.ts';

const SERVICE = { near: '10.43.0.1', far: '10.43.0.2' };

/** As on most nodes: what conntrack takes for no part of a connection is dropped. */
export const INVALID_DROP = [
  'add table ip strict',
  'add chain ip strict forward { type filter hook forward priority -1; }',
  'add rule ip strict forward ct state invalid drop',
].join('; ');

/** Two nodes with pods that talk to each other, and through Services. */
export function useTalkingLab(name: string, flags: LabFlags = {}) {
  const cluster = useLab(name, { nodes: 2, pods: 2, kubeProxy: 'iptables', ...flags });
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
