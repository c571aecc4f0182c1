// SPDX-License-Identifier: Apache-2.0
/**
 * What the node should be, from what was observed: the one place that decides. Pure: snapshots in, desired entries of every
 * target out.
 */
import type { Peers, PlanOptions } from './inputs.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import { type LinkPlan, mayAttach, planLinks } from './links.ts';
import { type NodePlan, planNode } from './node.ts';
import { type Outline, outline } from './outline.ts';
import { type PeerPlan, planPeers } from './peers.ts';
import { planPods, type PodPlan, podsOf } from './pods.ts';

export type { NodeFamily, Peers, PlanOptions } from './inputs.ts';
export type { LinkPlan } from './links.ts';
export type { NodePlan } from './node.ts';
export type { Outline } from './outline.ts';
export type { PeerPlan } from './peers.ts';
export { podKeys, type PodPlan } from './pods.ts';

export interface Plan {
  readonly outline: Outline;
  readonly node: NodePlan;
  readonly peers: PeerPlan;
  readonly pods: PodPlan;
  readonly links: LinkPlan;
  /** How many host veths there are. */
  readonly podCount: number;
  /** Why pods cannot be added, whatever becomes of the targets; undefined when they can. */
  readonly blocked: string | undefined;
}

/** What of a plan is kept after its pass. The rest is as large as the cluster. */
export type KeptPlan = Pick<Plan, 'outline' | 'links' | 'podCount' | 'blocked'>;

export function keptOf({ outline, links, podCount, blocked }: Plan): KeptPlan {
  return { outline, links, podCount, blocked };
}

/** @throws RipstopError when no interface fits as the uplink: then nothing can be said of the node. */
export function plan(peers: Peers, node: NodeSnapshot, options: PlanOptions): Plan {
  const of = outline(node, options);
  const pods = podsOf(node, options);
  return {
    outline: of,
    node: planNode(of, pods, peers, node, options),
    peers: planPeers(of, peers, node),
    pods: planPods(of, pods, node, options, mayAttach(node, peers)),
    links: planLinks(of, peers, node, options),
    podCount: pods.devices.size,
    blocked: foreignPrograms(node),
  };
}

/** The pods' part of a plan again, for pods that came or went since: all else stays as it was. */
export function replanPods(
  { outline: of }: KeptPlan,
  peers: Peers,
  node: NodeSnapshot,
  options: PlanOptions,
): PodPlan {
  return planPods(of, podsOf(node, options), node, options, mayAttach(node, peers));
}

/** The links' part of a plan again, once a driver has refused XDP. */
export function replanLinks(
  { outline: of }: KeptPlan,
  peers: Peers,
  node: NodeSnapshot,
  options: PlanOptions,
): LinkPlan {
  return planLinks(of, peers, node, options);
}

/** Programs that we could not replace would send a new pod's packets to whoever had its address before. */
function foreignPrograms({ programs, attached }: NodeSnapshot): string | undefined {
  if (programs.value || attached.size === 0) return undefined;
  return 'the attached programs are not ours to maintain, so no pod can be added: run the ripstop that attached them, or take them off with `ripstop uninstall --restore-flannel`';
}
