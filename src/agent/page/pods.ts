// SPDX-License-Identifier: Apache-2.0
import type { Attachment } from '../../cni/attachments.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import type { PodFacts } from './overview.ts';

/**
 * The pods of this node: those that ripstop's plugin attached, by their names, and those on bridges, by their host
 * veths. Pure.
 * @param node as of the last pass; undefined before there was one.
 */
export function podFacts(
  attachments: readonly Attachment[],
  node: Pick<NodeSnapshot, 'links' | 'bridged' | 'shaped'> | undefined,
): PodFacts[] {
  const shaped = new Set(node?.shaped.value);
  const whyKernelPath = (ifindex: number, isMarked = false): Pick<PodFacts, 'kernelPath'> => {
    if (shaped.has(ifindex)) return { kernelPath: 'somebody shapes or filters its packets in tc' };
    return isMarked ? { kernelPath: 'marked for the kernel path' } : {};
  };
  const pods = new Map<number, PodFacts>();
  for (const { hostIfindex, hostIfname, podNamespace = 'default', podName, ips, kernelPath } of attachments) {
    const name = podName === undefined ? hostIfname : `${podNamespace}/${podName}`;
    pods.set(hostIfindex, { ifindex: hostIfindex, name, ips, ...whyKernelPath(hostIfindex, kernelPath) });
  }
  if (!node || node.bridged.value.pods.length === 0) return [...pods.values()];
  const names = new Map(node.links.value.values().map(({ ifindex, name }) => [ifindex, name]));
  for (const { ip, port } of node.bridged.value.pods) {
    const { ips = [], ...known } = pods.get(port) ?? {};
    if (ips.includes(ip)) continue;
    const name = names.get(port) ?? ip;
    pods.set(port, { ifindex: port, name, ...whyKernelPath(port), ...known, ips: [...ips, ip] });
  }
  return [...pods.values()];
}
