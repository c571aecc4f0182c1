// SPDX-License-Identifier: Apache-2.0
/** Which peers the fast path serves, and why not the others. Pure, and the only place that decides it. */
import type { Peer } from '../../cluster/index.ts';
import { type PeerNextHop, requiresChecksum, whyNoEntry } from '../../dataplane/desired.ts';
import { ipsecOf } from '../../host/ipsec.ts';
import type { NextHop } from '../../host/neighbours.ts';
import { vtepDeviceName } from '../../host/vtep-device.ts';
import { addressFamily, type Cidr, familyKey, formatCidr } from '../../net/ip.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import type { PlanOptions } from './inputs.ts';
import type { Outline } from './outline.ts';

/** Why the kernel path alone serves a peer. Metrics have these as labels, so they are few. */
export const KERNEL_PATH_REASONS = [
  'backend',
  'no_programs',
  'no_route',
  'other_interface',
  'no_ethernet',
  'gateway_family',
  'not_direct',
  'pod_cidr',
  'checksum',
  'ipsec',
  'shaped',
] as const;

export interface KernelPathOnly {
  readonly reason: (typeof KERNEL_PATH_REASONS)[number];
  /** The reason for people, with names and addresses. */
  readonly why: string;
}

/** What is decided about a peer. */
export interface PeerService {
  /** Undefined: the peers maps have no entry for it. */
  readonly nextHop?: PeerNextHop;
  /** Undefined: the fast path serves it. */
  readonly kernelPathOnly?: KernelPathOnly;
}

/** Decides about one peer after another, by the same snapshot. */
export function peerService(
  outline: Outline,
  node: NodeSnapshot,
  options: PlanOptions,
): (peer: Peer) => PeerService {
  const isTransformed = ipsecFor(outline, node);
  const shapedDevice = shapedVteps(outline, node);
  return (peer) => {
    const { vtepIp } = peer;
    const hop = node.nextHops.value.get(vtepIp);
    const kernelPathOnly = whyNoWay(peer, hop, outline, node, options);
    if (kernelPathOnly || !hop) return { ...(kernelPathOnly && { kernelPathOnly }) };
    const nextHop = withRouteMtu(toPeerNextHop(outline, vtepIp, hop), peer, node);
    const why = whyNoEntry(outline.settings, peer, nextHop);
    if (why === 'not_direct')
      return only(why, `${vtepIp} is not on our own L2, and the backend has no tunnels`);
    if (why) return only(why, whyPodCidr(peer, outline));
    if (requiresChecksum(peer, nextHop))
      return { nextHop, ...only('checksum', 'its VXLAN device requires UDP checksums over IPv6') };
    if (isTransformed(peer, nextHop)) {
      const to = nextHop.direct ? formatCidr(peer.podCidr) : vtepIp;
      return marked(nextHop, 'ipsec', `an IPsec policy concerns all packets to ${to}`);
    }
    const shaped = nextHop.direct ? undefined : shapedDevice(peer);
    if (shaped !== undefined)
      return marked(nextHop, 'shaped', `somebody shapes or filters packets on ${shaped} in tc`);
    return { nextHop };
  };
}

function only(reason: KernelPathOnly['reason'], why: string): { kernelPathOnly: KernelPathOnly } {
  return { kernelPathOnly: { reason, why } };
}

/** The maps have an entry, which leaves the peer's packets to the kernel path. */
function marked(nextHop: PeerNextHop, reason: KernelPathOnly['reason'], why: string): PeerService {
  return { nextHop: { ...nextHop, kernelPath: true }, ...only(reason, why) };
}

/** Why the programs cannot send to a peer by the kernel's next hop; undefined when they can. */
function whyNoWay(
  { vtepIp, podCidr }: Peer,
  hop: NextHop | undefined,
  { uplink: { name } }: Outline,
  { programs, links }: NodeSnapshot,
  { backend }: PlanOptions,
): KernelPathOnly | undefined {
  if (backend.type === 'alloc')
    return { reason: 'backend', why: 'with the backend alloc others carry packets to other nodes' };
  if (!programs.value) return { reason: 'no_programs', why: 'no programs are loaded' };
  if (!hop) return { reason: 'no_route', why: `the kernel has no route to ${vtepIp}` };
  if (hop.dev !== name)
    return { reason: 'other_interface', why: `the route to ${vtepIp} leads over ${hop.dev}, not ${name}` };
  if (links.value.get(name)?.mac === undefined)
    return { reason: 'no_ethernet', why: `packets on ${name} have no Ethernet header` };
  if (hop.gateway !== undefined && addressFamily(hop.gateway) !== podCidr.family)
    return { reason: 'gateway_family', why: `its gateway ${hop.gateway} is of the other address family` };
  return undefined;
}

function whyPodCidr({ podCidr }: Peer, { settings }: Outline): string {
  const own = settings[familyKey(podCidr.family)];
  const wanted = own ? `no /${own.podCidr.length} of ${formatCidr(own.network)}` : 'of a family that is off';
  return `its podCIDR ${formatCidr(podCidr)} is ${wanted}`;
}

/** A next hop as the maps have it. */
export function toPeerNextHop(
  { settings, uplink }: Outline,
  vtepIp: string,
  { gateway, mtu = uplink.mtu }: NextHop,
): PeerNextHop {
  return { ip: gateway ?? vtepIp, direct: settings.directRouting === true && gateway === undefined, mtu };
}

/** The route of the podCIDR may promise less than the one to the node. */
function withRouteMtu(nextHop: PeerNextHop, { podCidr }: Peer, { nextHops }: NodeSnapshot): PeerNextHop {
  const { mtu = Infinity } = (nextHop.direct && nextHops.value.get(podCidr.base)) || {};
  return mtu < nextHop.mtu ? { ...nextHop, mtu } : nextHop;
}

/** The VTEP device of a peer's family, if somebody shapes it: the fast path passes by it. */
function shapedVteps(
  { settings: { tunnel } }: Outline,
  { shaped, links }: NodeSnapshot,
): (peer: Peer) => string | undefined {
  return ({ podCidr }) => {
    if (!tunnel) return undefined;
    const name = vtepDeviceName(podCidr.family, tunnel.vni);
    return shaped.value.includes(links.value.get(name)?.ifindex ?? 0) ? name : undefined;
  };
}

/** Whether IPsec transforms or drops all packets that bring pods' packets to a peer. */
function ipsecFor(
  { settings, uplink: { ifindex } }: Outline,
  { policies }: NodeSnapshot,
): (peer: Peer, nextHop: PeerNextHop) => boolean {
  if (policies.value.length === 0) return () => false;
  const concerns = ipsecOf(policies.value);
  return ({ podCidr, vtepIp }, { direct }) => {
    const own = settings[familyKey(podCidr.family)];
    if (!own) return false;
    if (direct) return concerns({ src: own.podCidr, dst: podCidr, ifindex });
    const host = { family: podCidr.family, length: podCidr.family === 4 ? 32 : 128 };
    const [src, dst] = [own.vtepIp, vtepIp].map((base) => ({ ...host, base })) as [Cidr, Cidr];
    return concerns({ src, dst, ifindex, udpPort: settings.tunnel?.port });
  };
}
