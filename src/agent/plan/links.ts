// SPDX-License-Identifier: Apache-2.0
/** The programs on the node's own interfaces, and the hook at which packets from the uplink are decapsulated. Pure. */
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
  /** The maps of the loaded programs as the ones in use, once all links lead to these programs. */
  readonly maps?: Desired<true>;
  /** The programs that move the epoch when the kernel changes its rules. */
  readonly changes?: Desired<true>;
}

/**
 * Whether programs may be attached or replaced. Attached programs have filled maps, so they stay until the new maps are
 * filled too: with all peers, or with the last-known ones.
 */
export function mayAttach({ programs }: NodeSnapshot, { peers, synced }: Peers): boolean {
  return programs.value !== undefined && !(programs.value.pending && !synced && peers.length === 0);
}

export function planLinks(
  outline: Outline,
  peers: Peers,
  node: NodeSnapshot,
  { agent }: PlanOptions,
): LinkPlan {
  const { uplink, vteps } = outline;
  const wire = node.links.value.get(uplink.name);
  const ingress = chooseIngress(agent.ingress, wire, wire && node.xdpRefusals.get(xdpKey(wire)));
  const programs = node.programs.value;
  if (!programs || !mayAttach(node, peers)) return { ingress };
  const hooked: HookedInterface[] = wire
    ? [{ hook: 'to_wire', ifname: uplink.name, ifindex: wire.ifindex }]
    : [];
  // With empty maps they would drop packets of all peers as those of strangers.
  const mayReceive =
    peers.synced || peers.peers.length > 0 || node.attached.has(linkKey('from_wire', uplink.name));
  for (const name of vteps.keys()) {
    const device = node.links.value.get(name);
    if (!device) continue;
    const { ifindex } = device;
    hooked.push({ hook: 'to_vtep', ifname: name, ifindex });
    if (mayReceive) hooked.push({ hook: 'from_vtep', ifname: name, ifindex });
  }
  if (wire && mayReceive) {
    const { ifindex, mtu } = wire;
    hooked.push({ hook: 'from_wire', ifname: uplink.name, ifindex });
    // After from_wire, which must handle the packets that XDP passes on.
    if (ingress.hook === 'xdp') hooked.push({ hook: 'xdp_from_wire', ifname: uplink.name, ifindex, mtu });
  }
  const revision = `${node.programs.revision} ${JSON.stringify(hooked)}`;
  const loaded: Desired<true> = {
    revision: String(node.programs.revision),
    entries: () => new Map([[ProgramSet.KEY, true]]),
    complete: true,
  };
  return {
    ingress,
    nodeLinks: { revision, entries: () => desiredLinks(programs.ids, hooked), complete: true },
    maps: loaded,
    changes: loaded,
  };
}
