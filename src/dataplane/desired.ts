// SPDX-License-Identifier: Apache-2.0
/**
 * What the maps should hold, as a pure function of what the node is, who its peers are and which pods live on it.
 * Nothing here touches the world; the targets next door do.
 */
import {
  addressFamily,
  addressToBytes,
  bytesToAddress,
  type Cidr,
  cidrContains,
  type Family,
  ipv4ToInt,
  parseCidr,
} from '../net/ip.ts';
import { NO_MAC } from '../net/mac.ts';
import type { Struct } from './codec.ts';
import { layout } from './layout.gen.ts';

/** One address family of this node. */
export interface FamilySettings {
  /** The cluster network, e.g. 10.42.0.0/16. */
  readonly network: Cidr;
  /** This node's part of it. All nodes' podCIDRs have its length, or they are left to the kernel path. */
  readonly podCidr: Cidr;
  /** MAC address of flannel.1, or flannel-v6.1: peers put it into the inner frames for us. All zero without tunnels. */
  readonly vtepMac: string;
  /** The uplink's address that peers dial. */
  readonly vtepIp: string;
}

/** What this node is. Fixed while the programs are loaded: a change loads them anew. */
export interface NodeSettings {
  readonly v4?: FamilySettings | undefined;
  readonly v6?: FamilySettings | undefined;
  /** The tunnels'; without it there are none (host-gw, alloc), and only peers on our own L2 are reached. */
  readonly tunnel?: Tunnel | undefined;
  readonly uplink: { readonly ifindex: number; readonly mtu: number; readonly mac: string };
  /** net.ipv4.ip_local_port_range, both ends included; outer source ports are hashed into it as the kernel does. */
  readonly sourcePorts: { readonly min: number; readonly max: number };
  /** Peers on our own L2 are reached without encapsulation. */
  readonly directRouting?: boolean | undefined;
}

export interface Tunnel {
  readonly vni: number;
  /** VXLAN's UDP port, 8472 in flannel. */
  readonly port: number;
}

/** Another node, as far as its packets of one family are concerned; a dual-stack node is two. */
export interface Peer {
  readonly name: string;
  readonly podCidr: Cidr;
  readonly vtepIp: string;
  /** All zero without tunnels. */
  readonly vtepMac: string;
  /** It publishes public-ip-overwrite: packets from it may carry any outer source. */
  readonly behindNat: boolean;
  /** IPv6: its VXLAN device accepts outer UDP checksums of zero, the only ones that BPF can send. */
  readonly zeroChecksum?: boolean;
}

/** A pod on this node, by one of its addresses. */
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

/** Bytes that encapsulation adds in front of an IP packet: outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14. */
export const encapBytes = { 4: 50, 6: 70 } as const;

const { peer_flags, vtep_flags, endpoint_flags } = layout.enums;

/** Slots of a node without IPv4, whose podCIDR would say how many. */
const DEFAULT_ENDPOINT_SLOTS = 256;

function maskBytes(length: number, bytes: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, i) => 0xff00 >> Math.min(8, Math.max(0, length - i * 8)));
}

/** A prefix length as an address: 16 → 255.255.0.0, 56 → ffff:ffff:ffff:ff00::. */
function maskText({ family, length }: Cidr): string {
  return bytesToAddress(maskBytes(length, family === 4 ? 4 : 16));
}

/** Slots in the peers map: one for each podCIDR that the cluster network has room for. */
export function peerCapacity({ v4 }: NodeSettings): number {
  return v4 ? 2 ** (v4.podCidr.length - v4.network.length) : 1;
}

/** Slots in the endpoint maps: one for each address of the podCIDR. */
export function endpointCapacity({ v4 }: NodeSettings): number {
  return v4 ? 2 ** (32 - v4.podCidr.length) : DEFAULT_ENDPOINT_SLOTS;
}

/** The peers slot of an IPv4 podCIDR, or undefined when the index cannot hold it (another length, or outside the network). */
export function peerSlot(settings: NodeSettings, podCidr: Cidr): number | undefined {
  const { v4 } = settings;
  if (!v4 || podCidr.family !== 4 || podCidr.length !== v4.podCidr.length) return undefined;
  const offset = ipv4ToInt(podCidr.base) - ipv4ToInt(v4.network.base);
  const slot = Math.floor(offset / endpointCapacity(settings));
  return slot >= 0 && slot < peerCapacity(settings) ? slot : undefined;
}

/** The peers6 key of an IPv6 podCIDR: its base; undefined when it has another length than ours, or is outside the network. */
export function peerKey({ v6 }: NodeSettings, podCidr: Cidr): string | undefined {
  if (!v6 || podCidr.length !== v6.podCidr.length) return undefined;
  return cidrContains(v6.network, podCidr.base) ? podCidr.base : undefined;
}

/** The endpoints slot of a pod's IPv4 address, or undefined when it is not in our podCIDR. */
export function endpointSlot(settings: NodeSettings, ip: string): number | undefined {
  if (!settings.v4 || addressFamily(ip) !== 4) return undefined;
  const slot = ipv4ToInt(ip) - ipv4ToInt(settings.v4.podCidr.base);
  return slot >= 0 && slot < endpointCapacity(settings) ? slot : undefined;
}

/** The endpoint_state slot of a pod's address of either family, as bpf/lookup.h has it. */
export function stateSlot(settings: NodeSettings, ip: string): number | undefined {
  return addressFamily(ip) === 6 ? stateSlot6(endpointCapacity(settings), ip) : endpointSlot(settings, ip);
}

/** The same of an IPv6 address, with so many slots for IPv4 before. */
export function stateSlot6(slots: number, ip: string): number {
  return slots + (new DataView(addressToBytes(ip).buffer).getUint32(12) % slots);
}

/** The largest IP packet that a pod may send to another node. */
export function podMtu({ uplink, tunnel }: NodeSettings, family: Family): number {
  return tunnel ? uplink.mtu - encapBytes[family] : uplink.mtu;
}

const nothing = {
  v4: parseCidr('255.255.255.255/32'),
  v6: parseCidr('ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128'),
};
/** No packet has it: there are 24 bits for a VNI on the wire. */
const noVni = 0xffff_ffff;

/** The programs' read-only configuration. */
export function desiredConfig(settings: NodeSettings): Struct<'config'> {
  const { v4, v6 } = settings;
  return {
    network: (v4?.network ?? nothing.v4).base,
    network_mask: maskText(v4?.network ?? nothing.v4),
    pod_cidr: (v4?.podCidr ?? nothing.v4).base,
    pod_cidr_mask: maskText(v4?.podCidr ?? nothing.v4),
    vtep_ip: v4?.vtepIp ?? nothing.v4.base,
    vxlan_port: settings.tunnel?.port ?? 0,
    vtep_mac: v4?.vtepMac ?? NO_MAC,
    vtep_mac6: v6?.vtepMac ?? NO_MAC,
    uplink_mac: settings.uplink.mac,
    network6: (v6?.network ?? nothing.v6).base,
    network6_mask: maskText(v6?.network ?? nothing.v6),
    pod_cidr6: (v6?.podCidr ?? nothing.v6).base,
    pod_cidr6_mask: maskText(v6?.podCidr ?? nothing.v6),
    vtep_ip6: v6?.vtepIp ?? nothing.v6.base,
    vni: settings.tunnel?.vni ?? noVni,
    subnet_shift: 32 - (v4?.podCidr ?? nothing.v4).length,
    endpoint_slots: endpointCapacity(settings),
    uplink_ifindex: settings.uplink.ifindex,
    uplink_mtu: settings.uplink.mtu,
    pod_mtu: podMtu(settings, 4),
    pod_mtu6: podMtu(settings, 6),
    source_port_min: settings.sourcePorts.min,
    source_port_count: settings.sourcePorts.max - settings.sourcePorts.min + 1,
    direct_routing: settings.directRouting ? 1 : 0,
  };
}

/**
 * What of the outer header is the same for all packets to a peer (RFC 7348; TTL 64 and DF clear, as the kernel's VXLAN
 * device sends). The kernel's neighbour table fills in the outer MACs on the way out, so none here can go stale.
 */
function template<Ip>(tunnel: Tunnel, own: FamilySettings, peer: Peer, ethertype: number, ip: Ip) {
  return {
    ether: noEther[ethertype]!,
    ip,
    ...tunnelHeaders(tunnel),
    inner_ether: { dst: peer.vtepMac, src: own.vtepMac, type: ethertype },
  };
}

const noEther: Readonly<Record<number, Struct<'ether'>>> = Object.fromEntries(
  [0x0800, 0x86dd].map((type) => [type, { dst: NO_MAC, src: NO_MAC, type }]),
);

function tunnelHeaders({ vni, port }: Tunnel) {
  return {
    udp: { src_port: 0, dst_port: port, length: 0, checksum: 0 },
    vxlan: { flags: 0x0800_0000, vni: (vni << 8) >>> 0 },
  };
}

/** Where the uplink sends what goes to a peer. */
export interface PeerHop {
  /** The neighbour that gets the frame: a gateway, or the peer itself. */
  readonly ip: string;
  /** The peer is on our own L2, and gets its pods' packets as they are. */
  readonly direct: boolean;
}

/** Of peers that are reached without one. */
const noTunnel: Tunnel = { vni: 0, port: 0 };

function peerHead(peer: Peer, { ip, direct }: PeerHop): Struct<'peer_head'> {
  const slow = peer.podCidr.family === 6 && peer.zeroChecksum !== true && !direct;
  return {
    flags:
      peer_flags.PEER_PRESENT |
      (peer.behindNat ? peer_flags.PEER_BEHIND_NAT : 0) |
      (direct ? peer_flags.PEER_DIRECT : 0) |
      (slow ? peer_flags.PEER_KERNEL_PATH : 0),
    checksum_base: 0,
    vtep_ip: peer.vtepIp,
    next_hop: ip,
  };
}

/** The sum of the outer IPv4 header's constant words: version, length of the header, TTL and protocol. */
const CONSTANT_SUM = sumOfWords(Uint8Array.of(0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0));

/** In memory's order, as the programs add them up. */
function sumOfWords(bytes: Uint8Array): number {
  return new Uint16Array(bytes.buffer).reduce((sum, word) => sum + word, 0);
}

/** A peer's slot, with the checksum of those words of the outer IPv4 header that are the same for all packets to it. */
export function peerValue(
  settings: NodeSettings,
  own: FamilySettings,
  peer: Peer,
  hop: PeerHop,
): Struct<'peer'> {
  const addresses = sumOfWords(addressToBytes(own.vtepIp)) + sumOfWords(addressToBytes(peer.vtepIp));
  return {
    head: { ...peerHead(peer, hop), checksum_base: CONSTANT_SUM + addresses },
    header: template(settings.tunnel ?? noTunnel, own, peer, 0x0800, {
      version_ihl: 0x45,
      tos: 0,
      total_length: 0,
      id: 0,
      fragment: 0,
      ttl: 64,
      protocol: 17,
      checksum: 0,
      src: own.vtepIp,
      dst: peer.vtepIp,
    }),
  };
}

/** The same of an IPv6 peer. */
export function peer6Value(
  settings: NodeSettings,
  own: FamilySettings,
  peer: Peer,
  hop: PeerHop,
): Struct<'peer6'> {
  return {
    head: peerHead(peer, hop),
    header: template(settings.tunnel ?? noTunnel, own, peer, 0x86dd, {
      version_class_flow: 0x6000_0000,
      payload_length: 0,
      next_header: 17,
      hop_limit: 64,
      src: own.vtepIp,
      dst: peer.vtepIp,
    }),
  };
}

/** The entries of the two peers maps, by their keys as text. */
export interface PeerMaps {
  readonly peers: Map<string, Struct<'peer'>>;
  readonly peers6: Map<string, Struct<'peer6'>>;
}

/**
 * The peers maps. A peer whose podCIDR the index cannot hold is left out, and so to the kernel path.
 * @param hopTo the way to this address; undefined (no route over the uplink): left out too, as is without tunnels who is
 * not direct.
 */
export function desiredPeers(
  settings: NodeSettings,
  all: readonly Peer[],
  hopTo: (address: string) => PeerHop | undefined,
): PeerMaps {
  const { v4, v6 } = settings;
  const maps: PeerMaps = { peers: new Map(), peers6: new Map() };
  for (const peer of all) {
    const hop = hopTo(peer.vtepIp);
    if (!hop || !(settings.tunnel || hop.direct)) continue;
    const slot = peerSlot(settings, peer.podCidr);
    const key = peerKey(settings, peer.podCidr);
    if (v4 && slot !== undefined) maps.peers.set(String(slot), peerValue(settings, v4, peer, hop));
    if (v6 && key !== undefined) maps.peers6.set(key, peer6Value(settings, v6, peer, hop));
  }
  return maps;
}

/**
 * The vteps map: every node's underlay addresses, ours marked as such, and those of nodes that `indexed` (the peers maps, as
 * {@link desiredPeers} gives them) has no entry for: what they send is the kernel path's to judge.
 */
export function desiredVteps(
  settings: NodeSettings,
  all: readonly Peer[],
  indexed: PeerMaps,
): Map<string, Struct<'vtep'>> {
  const vteps = new Map<string, Struct<'vtep'>>();
  for (const { podCidr, vtepIp } of all) {
    const missing =
      podCidr.family === 4
        ? !indexed.peers.has(String(peerSlot(settings, podCidr)))
        : !indexed.peers6.has(String(peerKey(settings, podCidr)));
    const flags = (vteps.get(vtepIp)?.flags ?? 0) | vtep_flags.VTEP_REMOTE;
    vteps.set(vtepIp, { flags: missing ? flags | vtep_flags.VTEP_UNINDEXED : flags });
  }
  for (const own of [settings.v4, settings.v6])
    if (own) vteps.set(own.vtepIp, { flags: vtep_flags.VTEP_LOCAL });
  return vteps;
}

/** The entries of the two endpoints maps, by their keys as text. */
export interface EndpointMaps {
  readonly endpoints: Map<string, Struct<'endpoint'>>;
  readonly endpoints6: Map<string, Struct<'endpoint'>>;
}

/** The endpoints maps. An address outside our podCIDRs is left to the kernel path. */
export function desiredEndpoints(settings: NodeSettings, all: readonly Endpoint[]): EndpointMaps {
  const maps: EndpointMaps = { endpoints: new Map(), endpoints6: new Map() };
  for (const endpoint of all) {
    const value: Struct<'endpoint'> = {
      ifindex: endpoint.hostIfindex,
      flags: endpoint.slow ? endpoint_flags.ENDPOINT_KERNEL_PATH : 0,
      pod_mac: endpoint.podMac,
      host_mac: endpoint.hostMac,
      mtu: endpoint.mtu,
    };
    const slot = endpointSlot(settings, endpoint.ip);
    if (slot !== undefined) maps.endpoints.set(String(slot), value);
    else if (settings.v6 && cidrContains(settings.v6.podCidr, endpoint.ip))
      maps.endpoints6.set(endpoint.ip, value);
  }
  return maps;
}
