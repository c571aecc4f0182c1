// SPDX-License-Identifier: Apache-2.0
/** The jobs of a pass: targets with their desired entries, in the order in which they are reconciled. */
import { type Job, job } from '../reconcile/reconcile.ts';
import type { LinkPlan, NodePlan, PeerPlan, PodPlan } from './plan/index.ts';
import type { Targets } from './targets.ts';

export function nodeJobs(targets: Targets, node: NodePlan): Job[] {
  return [
    job(targets.vtepDevices, node.vtepDevices),
    job(targets.kernelModules, node.kernelModules),
    job(targets.sysctls, node.sysctls),
    job(targets.rules, node.rules),
    job(targets.files, node.files),
  ];
}

/** What replaces a previous flanneld, once our own kernel path is in place; then the programs. */
export function programJobs(targets: Targets, node: NodePlan): Job[] {
  return [
    job(targets.flannelRoutes, node.flannelRoutes),
    job(targets.flannelRules, node.flannelRules),
    job(targets.idleBridges, node.idleBridges),
    job(targets.programs, node.programs),
  ];
}

/** In the reverse order of a packet's lookups, so that an entry is written after those that it leads to. */
export function peerJobs(targets: Targets, peers: PeerPlan): Job[] {
  return [
    job(targets.vtepSet, peers.vtepSet),
    job(targets.neighbours, peers.neighbours),
    job(targets.fdb, peers.fdb),
    job(targets.peerRoutes, peers.peerRoutes),
    ...(peers.vteps ? [job(targets.vteps, peers.vteps)] : []),
    ...(peers.peers ? [job(targets.peers, peers.peers)] : []),
    ...(peers.peers6 ? [job(targets.peers6, peers.peers6)] : []),
  ];
}

export function podJobs(targets: Targets, pods: PodPlan): Job[] {
  return [
    job(targets.podRoutes, pods.podRoutes),
    job(targets.proxies, pods.proxies),
    ...(pods.endpoints ? [job(targets.endpoints, pods.endpoints)] : []),
    ...(pods.endpoints6 ? [job(targets.endpoints6, pods.endpoints6)] : []),
  ];
}

export function podLinkJobs(targets: Targets, { podLinks }: PodPlan): Job[] {
  return podLinks ? [job(targets.podLinks, podLinks)] : [];
}

export function linkJobs(targets: Targets, { nodeLinks, maps, changes }: LinkPlan): Job[] {
  return [
    ...(nodeLinks ? [job(targets.nodeLinks, nodeLinks)] : []),
    ...(maps ? [job(targets.maps, maps)] : []),
    ...(changes ? [job(targets.changes, changes)] : []),
  ];
}
