// SPDX-License-Identifier: Apache-2.0
/** The jobs of a pass: targets with their desired entries, in the order in which they are reconciled. */
import { type Job, job } from '../reconcile/reconcile.ts';
import type { LinkPlan, NodePlan, PeerPlan, PodPlan } from './plan/index.ts';
import type { Targets } from './targets.ts';

export function nodeJobs(targets: Targets, { kernelModules, sysctls, kernelPath }: NodePlan): Job[] {
  return [
    ...(kernelPath ? [job(targets.vtepDevices, kernelPath.vtepDevices)] : []),
    job(targets.kernelModules, kernelModules),
    job(targets.sysctls, sysctls),
    ...(kernelPath ? [job(targets.rules, kernelPath.rules), job(targets.files, kernelPath.files)] : []),
  ];
}

/** What replaces a previous flanneld, once our own kernel path is in place; then the programs. */
export function programJobs(targets: Targets, { kernelPath, programs }: NodePlan): Job[] {
  return [
    ...(kernelPath
      ? [
          job(targets.flannelRoutes, kernelPath.flannelRoutes),
          job(targets.flannelRules, kernelPath.flannelRules),
          job(targets.idleBridges, kernelPath.idleBridges),
        ]
      : []),
    job(targets.programs, programs),
  ];
}

/** In the reverse order of a packet's lookups, so that an entry is written after those that it leads to. */
export function peerJobs(targets: Targets, peers: PeerPlan): Job[] {
  const { kernelPath } = peers;
  return [
    ...(kernelPath
      ? [
          job(targets.vtepSet, kernelPath.vtepSet),
          job(targets.neighbours, kernelPath.neighbours),
          job(targets.fdb, kernelPath.fdb),
          job(targets.peerRoutes, kernelPath.peerRoutes),
        ]
      : []),
    ...(peers.vteps ? [job(targets.vteps, peers.vteps)] : []),
    ...(peers.peers ? [job(targets.peers, peers.peers)] : []),
    ...(peers.peers6 ? [job(targets.peers6, peers.peers6)] : []),
  ];
}

export function podJobs(targets: Targets, pods: PodPlan): Job[] {
  const { kernelPath } = pods;
  return [
    ...(kernelPath
      ? [
          job(targets.podSysctls, kernelPath.podSysctls),
          job(targets.podRoutes, kernelPath.podRoutes),
          job(targets.proxies, kernelPath.proxies),
        ]
      : []),
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
