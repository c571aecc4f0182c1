// SPDX-License-Identifier: Apache-2.0
/** `route get`: which way a pod's packets to an address go, by the fast path and by the kernel path. */
import { linkKey, listLinks } from '../dataplane/links.ts';
import { readConfig } from '../dataplane/rehearsal.ts';
import { pinPaths } from '../dataplane/tables.ts';
import { askKernel, type KernelAnswer } from '../host/kernel-answer.ts';
import { protocols } from '../net/packets.ts';
import { type Lookup, lookUpAddress, lookUpFlow } from './lookups.ts';
import { addressLike, type End, findPod } from './pods.ts';
import { knownFlows, openNode } from './trace.ts';
import { renderFlows, renderKernel, renderLookup } from './trace-text.ts';

export interface RouteAnswer {
  /** Of the pod, and of the address if it is of the cluster network. */
  readonly fastPath: readonly Lookup[];
  /** Flows of this pair in the flow table, the youngest first. */
  readonly flows: readonly Lookup[];
  /** Undefined: no program is attached to the pod, so it has no fast path. */
  readonly programId?: number;
  readonly kernel: KernelAnswer;
}

/** @throws RipstopError */
export async function getRoute(bpffs: string, runDir: string, from: End, to: End): Promise<RouteAnswer> {
  const pod = await findPod(runDir, from.host);
  const src = addressLike(pod, to.host);
  using node = await openNode(bpffs, runDir);
  const programId = listLinks(pinPaths(bpffs).links).get(linkKey('from_pod', pod.hostIfname))?.programId;
  const packet = {
    src,
    dst: to.host,
    protocol: protocols.tcp,
    srcPort: from.port ?? 0,
    dstPort: to.port ?? 0,
  };
  const kernel = await askKernel({ ...packet, iif: pod.hostIfindex, tos: 0 });
  if (!programId) return { fastPath: [], flows: [], kernel };
  const book = { ...node, config: readConfig(programId) };
  const fastPath = [src, to.host].map((address) => lookUpAddress(book, address));
  return {
    fastPath: fastPath.filter((lookup) => lookup !== undefined),
    flows: knownFlows(node, pod, src, { from, to }).map(([flow]) => lookUpFlow(book, flow)),
    programId,
    kernel,
  };
}

export function renderRoute({ fastPath, flows, programId, kernel }: RouteAnswer): string {
  const parts = [
    ...fastPath.map(renderLookup),
    renderFlows(flows) ||
      '  flows      none: the first packets of each flow to a pod take the kernel path, and teach it\n',
  ];
  const fast = programId ? parts.join('') : '  no program is attached to the pod\n';
  return `fast path\n${fast}\nkernel path\n${renderKernel(kernel)}`;
}
