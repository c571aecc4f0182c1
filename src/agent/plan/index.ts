// SPDX-License-Identifier: Apache-2.0
/** The plan: from snapshots to the desired entries of all targets. Pure. This is the only place that decides. */
import { lazily, type Peers, type PlanOptions } from './inputs.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import { type LinkPlan, mayAttach, planLinks } from './links.ts';
import { type NodePlan, planNode } from './node.ts';
import { type Outline, planOutline } from './outline.ts';
import { type PeerPlan, planPeers } from './peers.ts';
import { hostVeths, planPods, type PodPlan, type Pods, podsOf } from './pods.ts';

export { KERNEL_PATH_REASONS, type KernelPathOnly, type PeerService, peerService } from './fast-path.ts';
export type { NodeFamily, Peers, PlanOptions } from './inputs.ts';
export type { LinkPlan } from './links.ts';
export type { NodePlan } from './node.ts';
export type { Outline } from './outline.ts';
export type { PeerPlan } from './peers.ts';
export { podKeys, type PodPlan, renamedPods } from './pods.ts';

export interface Plan {
  readonly outline: Outline;
  readonly node: NodePlan;
  readonly peers: PeerPlan;
  readonly pods: PodPlan;
  readonly links: LinkPlan;
  /** How many host veths there are. */
  readonly podCount: () => number;
  /** Why pods cannot be added, whatever the states of the targets; undefined when they can. */
  readonly blocked: string | undefined;
}

/** The parts of a plan that are kept after its pass. The rest is as large as the cluster. */
export type KeptPlan = Pick<Plan, 'outline' | 'links' | 'podCount' | 'blocked'>;

export function keptOf({ outline, links, podCount, blocked }: Plan): KeptPlan {
  return { outline, links, podCount, blocked };
}

/** @throws RipstopError when there is no suitable uplink, without which nothing can be planned. */
export function plan(peers: Peers, node: NodeSnapshot, options: PlanOptions): Plan {
  const outline = planOutline(node, options);
  const pods = podsOf(node, options);
  return {
    outline,
    node: planNode(outline, pods, peers, node, options),
    peers: planPeers(outline, peers, node, options),
    pods: planPods(outline, () => pods, node, options, mayAttach(node, peers)),
    links: planLinks(outline, peers, node, options),
    podCount: lazily(() => podCountOf(pods)),
    blocked: foreignPrograms(node),
  };
}

/** Plan the pods again, after pods were added or deleted; the other parts stay as they are. */
export function replanPods(
  { outline }: KeptPlan,
  peers: Peers,
  node: NodeSnapshot,
  options: PlanOptions,
): Pick<Plan, 'pods' | 'podCount'> {
  const pods = lazily(() => podsOf(node, options));
  return {
    pods: planPods(outline, pods, node, options, mayAttach(node, peers)),
    podCount: lazily(() => podCountOf(pods())),
  };
}

function podCountOf({ routed, bridged }: Pods): number {
  return hostVeths([...routed, ...bridged]).size;
}

/** Plan the links again, after a driver refused XDP. */
export function replanLinks(
  { outline }: KeptPlan,
  peers: Peers,
  node: NodeSnapshot,
  options: PlanOptions,
): LinkPlan {
  return planLinks(outline, peers, node, options);
}

/**
 * Attached programs that we cannot replace would deliver packets for a new pod to the previous pod with its address.
 */
function foreignPrograms({ programs, attached }: NodeSnapshot): string | undefined {
  if (programs.value || attached.size === 0) return undefined;
  return (
    'another version of ripstop attached the programs, and this one cannot replace them, so no pod can be added: ' +
    'run the version that attached them, or remove them with `ripstop uninstall --restore-flannel`'
  );
}
