// SPDX-License-Identifier: Apache-2.0
/**
 * The desired entries of the maps, as pure functions of the node's settings, its peers and its pods. map-targets.ts
 * writes them.
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
  /** This node's part of it. Peers with podCIDRs of another length are left to the kernel path. */
  readonly podCidr: Cidr;
  /** The MAC of flannel.1 or flannel-v6.1: the destination of inner frames to this node. All zero without tunnels. */
  readonly vtepMac: string;
  /** The uplink's address: the outer destination of tunnelled packets to this node. */
  readonly vtepIp: string;
}

/** The settings of this node, compiled into the loaded programs: a change loads them again. */
export interface NodeSettings {
  readonly v4?: FamilySettings | undefined;
  readonly v6?: FamilySettings | undefined;
  /** Undefined: there are no tunnels (host-gw, alloc), and only peers on our own L2 are reached. */
  readonly tunnel?: Tunnel | undefined;
  readonly uplink: {
    readonly ifindex: number;
    readonly mtu: number;
    readonly mac: string;
    /** The most segments of a super-packet that its driver takes. */
    readonly gsoMaxSegs: number;
  };
  /** Peers on our own L2 are reached without encapsulation. */
  readonly directRouting?: boolean | undefined;
  /** The index of the bridge with our podCIDR, if there is one. */
  readonly bridge?: number | undefined;
  /** Whether VXLAN from addresses that no node has is left to the kernel path, and not dropped. */
  readonly admitsStrangers?: boolean | undefined;
  /** Whether pods may have netkits. */
  readonly netkit?: boolean | undefined;
  /** Room for flows, in each family. */
  readonly flowTableSize: number;
}

export interface Tunnel {
  readonly vni: number;
  /** VXLAN's UDP port, 8472 in flannel. */
  readonly port: number;
}

/** Another node in one address family; a dual-stack node is two peers. */
export interface Peer {
  readonly name: string;
  readonly podCidr: Cidr;
  readonly vtepIp: string;
  /** All zero without tunnels. */
  readonly vtepMac: string;
  /** It publishes public-ip-overwrite: packets from it may have any outer source address. */
  readonly behindNat: boolean;
  /** Addresses from which its packets may come, too. */
  readonly otherIps?: readonly string[];
  /** IPv6: whether its VXLAN device accepts outer UDP checksums of zero. BPF programs can send no others. */
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
  /** Whether its packets stay on the kernel path, for example because iptables rules of a policy must see them. */
  readonly kernelPath: boolean;
}

/**
 * How long a learned flow is valid. Then one of its packets takes the kernel path, which renews conntrack's timeout and
 * may decide anew; so this also bounds how long a change goes unnoticed that no event tells of, or while no agent runs.
 * It is shorter than conntrack's shortest timeout (30 s, for UDP without replies and for ICMP).
 */
export const FLOW_LIFETIME_MS = 5000;

/** Bytes that encapsulation adds in front of an IP packet: outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14. */
export const encapBytes = { 4: 50, 6: 70 } as const;

const { peer_flags, vtep_flags, endpoint_flags } = layout.enums;

/** For a node without IPv4: with IPv4, the size of the podCIDR determines the number of slots. */
const DEFAULT_ENDPOINT_SLOTS = 256;

function maskBytes(length: number, bytes: number): Uint8Array {
  return Uint8Array.from({ length: bytes }, (_, i) => 0xff00 >> Math.min(8, Math.max(0, length - i * 8)));
}

/** A prefix length as an address: 16 → 255.255.0.0, 56 → ffff:ffff:ffff:ff00::. */
function maskText({ family, length }: Cidr): string {
  return bytesToAddress(maskBytes(length, family === 4 ? 4 : 16));
}

/** Slots in the peers map: one for each podCIDR that fits into the cluster network. */
export function peerCapacity({ v4 }: NodeSettings): number {
  return v4 ? 2 ** (v4.podCidr.length - v4.network.length) : 1;
}

/** Slots in the endpoint maps: one for each address of the podCIDR. */
export function endpointCapacity({ v4 }: NodeSettings): number {
  return v4 ? 2 ** (32 - v4.podCidr.length) : DEFAULT_ENDPOINT_SLOTS;
}

/** The peers slot of an IPv4 podCIDR; undefined when it has another length than ours, or is outside the network. */
export function peerSlot(settings: NodeSettings, podCidr: Cidr): number | undefined {
  const { v4 } = settings;
  if (!v4 || podCidr.family !== 4 || podCidr.length !== v4.podCidr.length) return undefined;
  const offset = ipv4ToInt(podCidr.base) - ipv4ToInt(v4.network.base);
  const slot = Math.floor(offset / endpointCapacity(settings));
  return slot >= 0 && slot < peerCapacity(settings) ? slot : undefined;
}

/** The peers6 key of an IPv6 podCIDR, its base; undefined when it has another length, or is outside the network. */
export function peerKey({ v6 }: NodeSettings, podCidr: Cidr): string | undefined {
  if (!v6 || podCidr.length !== v6.podCidr.length) return undefined;
  return cidrContains(v6.network, podCidr.base) ? podCidr.base : undefined;
}

/** The endpoints slot of a pod's IPv4 address; undefined when the address is not in our podCIDR. */
export function endpointSlot(settings: NodeSettings, ip: string): number | undefined {
  if (!settings.v4 || addressFamily(ip) !== 4) return undefined;
  const slot = ipv4ToInt(ip) - ipv4ToInt(settings.v4.podCidr.base);
  return slot >= 0 && slot < endpointCapacity(settings) ? slot : undefined;
}

/** The endpoint_state slot of a pod's address of either family, as bpf/lookup.h has it. */
export function stateSlot(settings: NodeSettings, ip: string): number | undefined {
  return addressFamily(ip) === 6 ? stateSlot6(endpointCapacity(settings), ip) : endpointSlot(settings, ip);
}

/** The same for an IPv6 address. @param slots the number of IPv4 slots, which come first. */
export function stateSlot6(slots: number, ip: string): number {
  return slots + (new DataView(addressToBytes(ip).buffer).getUint32(12) % slots);
}

/** The largest IP packet that a pod may send to another node. */
export function podMtu({ uplink, tunnel }: NodeSettings, family: Family): number {
  return tunnel ? uplink.mtu - encapBytes[family] : uplink.mtu;
}

/** Blocks that contain no address of a packet, for a family that is off. */
const nothing = {
  v4: parseCidr('255.255.255.255/32'),
  v6: parseCidr('ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128'),
};
/** No packet has this VNI: a VNI has 24 bits. */
const noVni = 0xffff_ffff;

/** The programs' read-only configuration, without what only the running process knows. */
export function desiredConfig(
  settings: NodeSettings,
): Omit<Struct<'config'>, 'netns' | 'source_port' | 'source_ports'> {
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
    uplink_gso_segs: settings.uplink.gsoMaxSegs,
    pod_mtu: podMtu(settings, 4),
    pod_mtu6: podMtu(settings, 6),
    direct_routing: settings.directRouting ? 1 : 0,
    lifetime_ns: FLOW_LIFETIME_MS * 1e6,
    bridge_ifindex: settings.bridge ?? 0,
    admits_strangers: settings.admitsStrangers ? 1 : 0,
  };
}

/**
 * The outer headers of packets to a peer, as far as they are the same for all packets (RFC 7348; TTL 64 and DF clear,
 * as the kernel's VXLAN device sends them). The outer MACs are filled in from the kernel's neighbour table when a
 * packet is sent, so they cannot be outdated here.
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

/** The next hop to a peer. */
export interface PeerNextHop {
  /** The neighbour that gets the frame: a gateway, or the peer itself. */
  readonly ip: string;
  /** Whether the peer is on our own L2 and gets packets without encapsulation. */
  readonly direct: boolean;
  /** Of the route, in bytes. */
  readonly mtu: number;
  /** Whether the kernel path alone may serve the peer. */
  readonly kernelPath?: boolean;
}

/** For peers that are reached without a tunnel. */
const noTunnel: Tunnel = { vni: 0, port: 0 };

/** Whether the VXLAN device of a peer requires outer UDP checksums, which BPF programs cannot make over IPv6. */
export function requiresChecksum({ podCidr, zeroChecksum }: Peer, { direct }: PeerNextHop): boolean {
  return podCidr.family === 6 && zeroChecksum !== true && !direct;
}

function peerHead(peer: Peer, nextHop: PeerNextHop): Struct<'peer_head'> {
  const { ip, direct, mtu, kernelPath = requiresChecksum(peer, nextHop) } = nextHop;
  return {
    flags:
      peer_flags.PEER_PRESENT |
      (peer.behindNat ? peer_flags.PEER_BEHIND_NAT : 0) |
      (direct ? peer_flags.PEER_DIRECT : 0) |
      (kernelPath ? peer_flags.PEER_KERNEL_PATH : 0),
    checksum_base: 0,
    vtep_ip: peer.vtepIp,
    next_hop: ip,
    mtu,
  };
}

/** The sum of the constant words of the outer IPv4 header: version, header length, TTL and protocol. */
const CONSTANT_SUM = sumOfWords(Uint8Array.of(0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0));

/** The words are in the machine's byte order, as in the programs. */
function sumOfWords(bytes: Uint8Array): number {
  return new Uint16Array(bytes.buffer).reduce((sum, word) => sum + word, 0);
}

/**
 * The value of a peer's slot; `checksum_base` sums the words of the outer IPv4 header that are the same in all packets.
 */
export function peerValue(
  settings: NodeSettings,
  own: FamilySettings,
  peer: Peer,
  nextHop: PeerNextHop,
): Struct<'peer'> {
  const addresses = sumOfWords(addressToBytes(own.vtepIp)) + sumOfWords(addressToBytes(peer.vtepIp));
  return {
    head: { ...peerHead(peer, nextHop), checksum_base: CONSTANT_SUM + addresses },
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

/** The value of an IPv6 peer. */
export function peer6Value(
  settings: NodeSettings,
  own: FamilySettings,
  peer: Peer,
  nextHop: PeerNextHop,
): Struct<'peer6'> {
  return {
    head: peerHead(peer, nextHop),
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
 * Why the peers maps cannot hold a peer; undefined when they can. `not_direct`: there are no tunnels, and it is not on
 * our own L2. `pod_cidr`: its podCIDR has another length than ours, or lies outside the cluster network.
 */
export function whyNoEntry(
  settings: NodeSettings,
  { podCidr }: Peer,
  { direct }: PeerNextHop,
): 'not_direct' | 'pod_cidr' | undefined {
  if (!settings.tunnel && !direct) return 'not_direct';
  const key = podCidr.family === 4 ? peerSlot(settings, podCidr) : peerKey(settings, podCidr);
  return key === undefined ? 'pod_cidr' : undefined;
}

/**
 * The peers maps. What they lack is left to the kernel path: peers that they cannot hold, and peers without a next hop.
 * @param nextHopTo the next hop to a peer; undefined when the fast path must not serve it.
 */
export function desiredPeers<P extends Peer>(
  settings: NodeSettings,
  all: readonly P[],
  nextHopTo: (peer: P) => PeerNextHop | undefined,
): PeerMaps {
  const { v4, v6 } = settings;
  const maps: PeerMaps = { peers: new Map(), peers6: new Map() };
  for (const peer of all) {
    const nextHop = nextHopTo(peer);
    if (!nextHop || whyNoEntry(settings, peer, nextHop)) continue;
    const slot = peerSlot(settings, peer.podCidr);
    const key = peerKey(settings, peer.podCidr);
    if (v4 && slot !== undefined) maps.peers.set(String(slot), peerValue(settings, v4, peer, nextHop));
    if (v6 && key !== undefined) maps.peers6.set(key, peer6Value(settings, v6, peer, nextHop));
  }
  return maps;
}

/**
 * The vteps map: the underlay addresses of all nodes. Ours are marked, and so are those of peers that the peers maps
 * lack: their packets are left to the kernel path.
 * @param maps the peers maps, from {@link desiredPeers}.
 */
export function desiredVteps(
  settings: NodeSettings,
  all: readonly Peer[],
  maps: PeerMaps,
): Map<string, Struct<'vtep'>> {
  const { VTEP_LOCAL, VTEP_REMOTE, VTEP_UNINDEXED } = vtep_flags;
  const vteps = new Map<string, Struct<'vtep'>>();
  /** Several peers may send from one address: it belongs to the first, and has the flags of all. */
  const add = (address: string, vtepIp: string, flags: number): void => {
    const known = vteps.get(address);
    vteps.set(address, { flags: (known?.flags ?? 0) | flags, vtep_ip: known?.vtep_ip ?? vtepIp });
  };
  const flagsOf = (peer: Peer): number => VTEP_REMOTE | (hasEntry(settings, peer, maps) ? 0 : VTEP_UNINDEXED);
  // First the addresses that peers publish, so that each belongs to its own peer.
  for (const peer of all) add(peer.vtepIp, peer.vtepIp, flagsOf(peer));
  for (const peer of all) for (const address of peer.otherIps ?? []) add(address, peer.vtepIp, flagsOf(peer));
  // Of a sender over IPv6, from_vtep knows the last 32 bits only.
  const over6 = vteps.entries().filter(([address]) => addressFamily(address) === 6);
  for (const [address, { flags, vtep_ip }] of over6.toArray()) add(last32Bits(address), vtep_ip, flags);
  for (const own of [settings.v4, settings.v6])
    if (own) vteps.set(own.vtepIp, { flags: VTEP_LOCAL, vtep_ip: own.vtepIp });
  return vteps;
}

function hasEntry(settings: NodeSettings, { podCidr }: Peer, { peers, peers6 }: PeerMaps): boolean {
  if (podCidr.family === 4) return peers.has(String(peerSlot(settings, podCidr)));
  return peers6.has(String(peerKey(settings, podCidr)));
}

/** The last 32 bits of an IPv6 address, as an address. */
function last32Bits(address: string): string {
  return bytesToAddress(addressToBytes(address).fill(0, 0, 12));
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
      flags: endpoint.kernelPath ? endpoint_flags.ENDPOINT_KERNEL_PATH : 0,
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
