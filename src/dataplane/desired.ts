// SPDX-License-Identifier: Apache-2.0
/**
 * What the maps should hold, as a pure function of what the node is, who its peers are and which pods live on it.
 * Nothing here touches the world; the targets next door do.
 */
import { type Cidr, ipv4ToInt } from '../net/ip.ts';
import { encode, type Struct } from './codec.ts';
import { layout } from './layout.gen.ts';

/** What this node is. Fixed while the programs are loaded: a change loads them anew. */
export interface NodeSettings {
  /** The cluster network, e.g. 10.42.0.0/16. */
  readonly network: Cidr;
  /** This node's part of it. All nodes' podCIDRs have its length, or they are left to the kernel path. */
  readonly podCidr: Cidr;
  readonly vni: number;
  /** VXLAN's UDP port, 8472 in flannel. */
  readonly port: number;
  /** flannel.1's MAC address: peers put it into the inner frames for us. */
  readonly vtepMac: string;
  readonly uplink: { readonly ifindex: number; readonly ip: string; readonly mtu: number };
  /** net.ipv4.ip_local_port_range, both ends included; outer source ports are hashed into it as the kernel does. */
  readonly sourcePorts: { readonly min: number; readonly max: number };
}

/** Another node, as far as its packets are concerned. */
export interface Peer {
  readonly name: string;
  readonly podCidr: Cidr;
  readonly vtepIp: string;
  readonly vtepMac: string;
  /** It publishes public-ip-overwrite: packets from it may carry any outer source. */
  readonly behindNat: boolean;
}

/** A pod on this node. */
export interface Endpoint {
  readonly ip: string;
  readonly hostIfname: string;
  readonly hostIfindex: number;
  readonly podMac: string;
  readonly hostMac: string;
  readonly mtu: number;
  /** Kept on the kernel path, where iptables-based policy acts. */
  readonly slow: boolean;
}

/** Bytes that encapsulation adds in front of an IP packet: outer IP 20, UDP 8, VXLAN 8, inner Ethernet 14. */
export const ENCAP_BYTES = 50;

const { peer_flags, vtep_flags, endpoint_flags } = layout.enums;

function hostMask(length: number): number {
  return length === 0 ? 0xffff_ffff : 2 ** (32 - length) - 1;
}

function maskText(length: number): string {
  const mask = (0xffff_ffff ^ hostMask(length)) >>> 0;
  return [24, 16, 8, 0].map((shift) => (mask >>> shift) & 255).join('.');
}

/** Slots in the peers map: one for each podCIDR that the cluster network has room for. */
export function peerCapacity(settings: NodeSettings): number {
  return 2 ** (settings.podCidr.length - settings.network.length);
}

/** Slots in the endpoint maps: one for each address of the podCIDR. */
export function endpointCapacity(settings: NodeSettings): number {
  return 2 ** (32 - settings.podCidr.length);
}

/** The peers slot of a podCIDR, or undefined when the index cannot hold it (another length, or outside the network). */
export function peerSlot(settings: NodeSettings, podCidr: Cidr): number | undefined {
  if (podCidr.family !== 4 || podCidr.length !== settings.podCidr.length) return undefined;
  const offset = ipv4ToInt(podCidr.base) - ipv4ToInt(settings.network.base);
  const slot = Math.floor(offset / endpointCapacity(settings));
  return slot >= 0 && slot < peerCapacity(settings) ? slot : undefined;
}

/** The endpoints slot of a pod's address, or undefined when it is not in our podCIDR. */
export function endpointSlot(settings: NodeSettings, ip: string): number | undefined {
  const slot = ipv4ToInt(ip) - ipv4ToInt(settings.podCidr.base);
  return slot >= 0 && slot < endpointCapacity(settings) ? slot : undefined;
}

/** The largest IP packet that a pod may send to another node. */
export function podMtu(settings: NodeSettings): number {
  return settings.uplink.mtu - ENCAP_BYTES;
}

/** The programs' read-only configuration. */
export function desiredConfig(settings: NodeSettings): Struct<'config'> {
  return {
    network: settings.network.base,
    network_mask: maskText(settings.network.length),
    pod_cidr: settings.podCidr.base,
    pod_cidr_mask: maskText(settings.podCidr.length),
    vtep_ip: settings.uplink.ip,
    vxlan_port: settings.port,
    vtep_mac: settings.vtepMac,
    vni: settings.vni,
    subnet_shift: 32 - settings.podCidr.length,
    uplink_ifindex: settings.uplink.ifindex,
    pod_mtu: podMtu(settings),
    source_port_min: settings.sourcePorts.min,
    source_port_count: settings.sourcePorts.max - settings.sourcePorts.min + 1,
  };
}

/**
 * A peer's slot: the outer header with everything filled in that is the same for all packets to it (RFC 7348; TTL 64 and
 * DF clear, as the kernel's VXLAN device sends), and the checksum of that part.
 */
export function peerValue(settings: NodeSettings, peer: Peer, nextHop: string): Struct<'peer'> {
  const noMac = '00:00:00:00:00:00';
  const header: Struct<'outer_header'> = {
    // The kernel's neighbour table fills these in on the way out, so no MAC here can go stale.
    ether: { dst: noMac, src: noMac, type: 0x0800 },
    ip: {
      version_ihl: 0x45,
      tos: 0,
      total_length: 0,
      id: 0,
      fragment: 0,
      ttl: 64,
      protocol: 17,
      checksum: 0,
      src: settings.uplink.ip,
      dst: peer.vtepIp,
    },
    udp: { src_port: 0, dst_port: settings.port, length: 0, checksum: 0 },
    vxlan: { flags: 0x0800_0000, vni: (settings.vni << 8) >>> 0 },
    inner_ether: { dst: peer.vtepMac, src: settings.vtepMac, type: 0x0800 },
  };
  const words = new Uint16Array(encode({ struct: 'ipv4' }, header.ip).buffer);
  return {
    header,
    flags: peer_flags.PEER_PRESENT | (peer.behindNat ? peer_flags.PEER_BEHIND_NAT : 0),
    checksum_base: words.reduce((sum, word) => sum + word, 0),
    vtep_ip: peer.vtepIp,
    next_hop: nextHop,
  };
}

/**
 * The peers map. A peer whose podCIDR the index cannot hold is left out, and so to the kernel path.
 * @param nextHopTo where the uplink sends packets to this address; undefined (no route): left out too.
 */
export function desiredPeers(
  settings: NodeSettings,
  peers: readonly Peer[],
  nextHopTo: (address: string) => string | undefined,
): Map<string, Struct<'peer'>> {
  const slots = new Map<string, Struct<'peer'>>();
  for (const peer of peers) {
    const slot = peerSlot(settings, peer.podCidr);
    const nextHop = nextHopTo(peer.vtepIp);
    if (slot !== undefined && nextHop !== undefined)
      slots.set(String(slot), peerValue(settings, peer, nextHop));
  }
  return slots;
}

/**
 * The vteps map: every node's underlay address, ours marked as such, and those of nodes that `indexed` (the peers map, as
 * {@link desiredPeers} gives it) has no slot for: what they send is the stack's to judge.
 */
export function desiredVteps(
  settings: NodeSettings,
  peers: readonly Peer[],
  indexed: ReadonlyMap<string, unknown>,
): Map<string, Struct<'vtep'>> {
  const vteps = new Map<string, Struct<'vtep'>>();
  for (const { podCidr, vtepIp } of peers) {
    const missing = !indexed.has(String(peerSlot(settings, podCidr)));
    const flags = (vteps.get(vtepIp)?.flags ?? 0) | vtep_flags.VTEP_REMOTE;
    vteps.set(vtepIp, { flags: missing ? flags | vtep_flags.VTEP_UNINDEXED : flags });
  }
  vteps.set(settings.uplink.ip, { flags: vtep_flags.VTEP_LOCAL });
  return vteps;
}

/** The endpoints map. */
export function desiredEndpoints(
  settings: NodeSettings,
  endpoints: readonly Endpoint[],
): Map<string, Struct<'endpoint'>> {
  const slots = new Map<string, Struct<'endpoint'>>();
  for (const endpoint of endpoints) {
    const slot = endpointSlot(settings, endpoint.ip);
    if (slot === undefined) continue;
    slots.set(String(slot), {
      ifindex: endpoint.hostIfindex,
      flags: endpoint.slow ? endpoint_flags.ENDPOINT_SLOW : 0,
      pod_mac: endpoint.podMac,
      host_mac: endpoint.hostMac,
      mtu: endpoint.mtu,
    });
  }
  return slots;
}
