// SPDX-License-Identifier: Apache-2.0
/** The programs on the node's own interfaces, and where packets from the wire are decapsulated. Pure. */
import { chooseIngress, type Ingress } from '../../dataplane/ingress.ts';
import {
  desiredLinks,
  type HookedInterface,
  linkKey,
  type LinkState,
  xdpKey,
} from '../../dataplane/links.ts';
import { ProgramSet } from '../../dataplane/programs.ts';
import type { Desired } from '../../reconcile/reconciled.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import type { Peers, PlanOptions } from './inputs.ts';
import type { Outline } from './outline.ts';

export interface LinkPlan {
  readonly ingress: Ingress;
  /** Undefined while nothing may be attached. */
  readonly nodeLinks?: Desired<LinkState>;
  /** The maps of the loaded programs are in use, once all links lead to those. */
  readonly maps?: Desired<true>;
}

/**
 * Whether programs may be attached or replaced. What is attached has maps that are full, and keeps them until the new ones
 * are: of peers that were not asked for yet, there may be those that were last known.
 */
export function mayAttach({ programs }: NodeSnapshot, { peers, synced }: Peers): boolean {
  return programs.value !== undefined && !(programs.value.pending && !synced && peers.length === 0);
}

export function planLinks(of: Outline, peers: Peers, node: NodeSnapshot, { agent }: PlanOptions): LinkPlan {
  const { uplink, vteps } = of;
  const wire = node.links.value.get(uplink.name);
  const ingress = chooseIngress(agent.ingress, wire, wire && node.xdpRefusals.get(xdpKey(wire)));
  const programs = node.programs.value;
  if (!programs || !mayAttach(node, peers)) return { ingress };
  const hooked: HookedInterface[] = [...vteps.keys()].flatMap((name) => {
    const device = node.links.value.get(name);
    return device ? [{ hook: 'to_vtep', ifname: name, ifindex: device.ifindex }] : [];
  });
  // With empty maps from_wire would take every node for a stranger and drop what it sends; the kernel path does not.
  const areKnown =
    peers.synced || peers.peers.length > 0 || node.attached.has(linkKey('from_wire', uplink.name));
  if (wire && areKnown) {
    const { ifindex, mtu } = wire;
    hooked.push({ hook: 'from_wire', ifname: uplink.name, ifindex });
    // After from_wire, which alone knows what to do with what XDP leaves.
    if (ingress.hook === 'xdp') hooked.push({ hook: 'xdp_from_wire', ifname: uplink.name, ifindex, mtu });
  }
  const revision = `${node.programs.revision} ${JSON.stringify(hooked)}`;
  return {
    ingress,
    nodeLinks: { revision, entries: () => desiredLinks(programs.ids, hooked), complete: true },
    maps: {
      revision: String(node.programs.revision),
      entries: () => new Map([[ProgramSet.KEY, true]]),
      complete: true,
    },
  };
}
