// SPDX-License-Identifier: Apache-2.0
/** The jobs of a pass: targets with their desired entries, in the order in which they are reconciled. */
import { type Job, job } from '../reconcile/reconcile.ts';
import type { LinkPlan, NodePlan, PeerPlan, PodPlan } from './plan/index.ts';
import type { Targets } from './targets.ts';

export function nodeJobs(to: Targets, node: NodePlan): Job[] {
  return [
    job(to.vtepDevices, node.vtepDevices),
    job(to.kernelModules, node.kernelModules),
    job(to.sysctls, node.sysctls),
    job(to.rules, node.rules),
    job(to.files, node.files),
  ];
}

/** What replaces a previous flanneld, once our own kernel path is in place; then the programs. */
export function programJobs(to: Targets, node: NodePlan): Job[] {
  return [
    job(to.flannelRoutes, node.flannelRoutes),
    job(to.flannelRules, node.flannelRules),
    job(to.idleBridges, node.idleBridges),
    job(to.programs, node.programs),
  ];
}

/** In the reverse order of a packet's lookups, so that an entry is written after those that it leads to. */
export function peerJobs(to: Targets, peers: PeerPlan): Job[] {
  return [
    job(to.vtepSet, peers.vtepSet),
    job(to.neighbours, peers.neighbours),
    job(to.fdb, peers.fdb),
    job(to.peerRoutes, peers.peerRoutes),
    ...(peers.vteps ? [job(to.vteps, peers.vteps)] : []),
    ...(peers.peers ? [job(to.peers, peers.peers)] : []),
    ...(peers.peers6 ? [job(to.peers6, peers.peers6)] : []),
  ];
}

export function podJobs(to: Targets, pods: PodPlan): Job[] {
  return [
    job(to.podRoutes, pods.podRoutes),
    job(to.proxies, pods.proxies),
    ...(pods.endpoints ? [job(to.endpoints, pods.endpoints)] : []),
    ...(pods.endpoints6 ? [job(to.endpoints6, pods.endpoints6)] : []),
  ];
}

export function podLinkJobs(to: Targets, { podLinks }: PodPlan): Job[] {
  return podLinks ? [job(to.podLinks, podLinks)] : [];
}

export function linkJobs(to: Targets, { nodeLinks, maps }: LinkPlan): Job[] {
  return [...(nodeLinks ? [job(to.nodeLinks, nodeLinks)] : []), ...(maps ? [job(to.maps, maps)] : [])];
}
