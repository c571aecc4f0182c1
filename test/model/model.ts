// SPDX-License-Identifier: Apache-2.0
/**
 * The verdict on a packet according to the specification: the one rule ("take a packet only when certain"), bpf/types.h
 * for each reason, and RFC 791 (IPv4), 8200 (IPv6), 4861 (neighbour discovery), 768 (UDP), 7348 (VXLAN), 6040 (ECN over
 * tunnels) and 1624 (checksum updates). It is written independently of the programs, so that the two can be compared:
 * never adapt one to the other.
 *
 * All reasons for the kernel path that apply to a packet are listed, since the programs may choose which one to count;
 * a valid packet has at most one. A drop must be certain: nothing else may speak against taking the packet, except that
 * its IP header is malformed, which the kernel might repair.
 */
import type { Verdict } from '../../src/dataplane/counters.ts';
import {
  encapBytes,
  type Endpoint,
  type FamilySettings,
  type Peer,
  podMtu,
  stateSlot,
} from '../../src/dataplane/desired.ts';
import { addressToBytes, type Family, familyKey } from '../../src/net/ip.ts';
import { macToBytes } from '../../src/net/mac.ts';
import { tunnel } from '../bpf/node.ts';
import { checksum, protocols } from '../support/packets.ts';
import {
  addressNumber,
  decrementTtl,
  familyOf,
  headerLength,
  type IpPacket,
  isIcmp,
  isInformational,
  isNeighbourDiscovery,
  membership,
  pseudoHeaderSum,
  readIp,
  setEcn,
  setU16,
  sum,
  u16,
} from './read.ts';
import type { World, WorldName } from './world.ts';

export type Hook = 'from_pod' | 'from_wire' | 'to_pod' | 'to_vtep' | 'xdp_from_wire';

export interface Arrival {
  /** The node that it arrives at. */
  readonly node: WorldName;
  readonly hook: Hook;
  /** From the Ethernet header on. */
  readonly packet: Uint8Array;
  readonly ifindex: number;
  /** Payload bytes of each segment of a GSO super-packet; 0 for other packets. */
  readonly gsoSize: number;
}

export interface Decision {
  readonly verdict: Verdict;
  /** Those that apply, such as `malformed`. Any one of them may be counted. If there is none, nothing is counted. */
  readonly reasons: readonly string[];
  /**
   * The packet that leaves; an encapsulated one as from {@link withoutChoices}. Unmodified unless the verdict is fast.
   */
  readonly out: Uint8Array;
}

type Decided = Omit<Decision, 'out'> & Partial<Decision>;
const kernel = (...reasons: string[]): Decided => ({ verdict: 'kernel', reasons });
const drop = (reason: string): Decided => ({ verdict: 'drop', reasons: [reason] });

/** A decapsulated packet that a local pod may get, before its TTL is decremented. */
interface Detunnelled {
  readonly receiver: Endpoint;
  readonly inner: Uint8Array;
}

const ETHER = 14;
const [NOT_ECT, ECT1, ECT0, CE] = [0, 1, 2, 3];
/** IEEE 802.3: shorter payloads are padded. */
const SHORTEST_PAYLOAD = 46;
/** UDP's header, and a ping's. */
const SHORTEST_TRANSPORT = 8;

/** RFC 6040, figure 4: the ECN field that leaves the tunnel, or undefined for a drop. */
function ecnOut(inner: number, outer: number): number | undefined {
  if (outer === CE) return inner === NOT_ECT ? undefined : CE;
  if (outer === ECT1 && inner === ECT0) return ECT1;
  return inner;
}

/** The slot of a pod's flows. IPv6 pods may share one: it has only the lowest bits of the address. */
type FlowKeeper = number;

/** One family's part of the world, by addresses as numbers. */
class FamilyView {
  readonly family: Family;
  readonly own: FamilySettings;
  readonly vtepIp: bigint;
  readonly isInNetwork: (address: bigint) => boolean;
  readonly isOurs: (address: bigint) => boolean;
  readonly endpoints: ReadonlyMap<bigint, Endpoint>;
  /** Peers' underlay addresses. */
  readonly nodes: ReadonlyMap<bigint, Peer>;
  readonly #world: World;
  readonly #peers: readonly { readonly peer: Peer; readonly owns: (address: bigint) => boolean }[];

  constructor(world: World, family: Family) {
    this.#world = world;
    this.family = family;
    this.own = world.settings[familyKey(family)]!;
    this.vtepIp = addressNumber(this.own.vtepIp);
    this.isInNetwork = membership(this.own.network);
    this.isOurs = membership(this.own.podCidr);
    const endpoints = world.endpoints.filter(
      ({ ip }) => addressToBytes(ip).length === (family === 4 ? 4 : 16),
    );
    this.endpoints = new Map(endpoints.map((endpoint) => [addressNumber(endpoint.ip), endpoint]));
    const peers = world.peers.filter(({ podCidr }) => podCidr.family === family);
    this.nodes = new Map(peers.map((peer) => [addressNumber(peer.vtepIp), peer]));
    this.#peers = peers
      .filter((peer) => this.isIndexed(peer))
      .map((peer) => ({ peer, owns: membership(peer.podCidr) }));
  }

  /** The maps hold only peers whose podCIDR is as long as ours. */
  isIndexed({ podCidr }: Peer): boolean {
    return podCidr.length === this.own.podCidr.length;
  }

  /** The peer whose podCIDR contains the address. */
  peerOf(address: bigint): Peer | undefined {
    return this.#peers.find(({ owns }) => owns(address))?.peer;
  }

  /** Whether the peer is on our L2 and reached without encapsulation. */
  isDirect({ vtepIp }: Peer): boolean {
    return this.#world.nextHopTo(vtepIp).direct;
  }

  /** Whether the peer requires outer checksums over IPv6, which BPF cannot make. */
  isForKernelPath(peer: Peer): boolean {
    return this.family === 6 && !peer.zeroChecksum && !this.isDirect(peer);
  }
}

export class Model {
  readonly #world: World;
  readonly #views: Readonly<Record<Family, FamilyView>>;
  readonly #flows: ReadonlySet<string>;
  readonly #flowKeepers: ReadonlySet<FlowKeeper>;
  readonly #overflowed: ReadonlySet<FlowKeeper>;
  readonly #hostMac: Uint8Array;

  constructor(world: World) {
    this.#world = world;
    this.#views = { 4: new FamilyView(world, 4), 6: new FamilyView(world, 6) };
    this.#hostMac = macToBytes(world.settings.uplink.mac);
    this.#flows = new Set(
      world.flows.map(({ flow }) =>
        flowKey(
          addressNumber(flow.src),
          addressNumber(flow.dst),
          [flow.src_port, flow.dst_port],
          flow.protocol,
        ),
      ),
    );
    this.#flowKeepers = new Set(world.flows.map(({ pod }) => this.#keeperOf(pod)));
    this.#overflowed = new Set(world.overflowed.map((pod) => this.#keeperOf(pod)));
  }

  #keeperOf(pod: string): FlowKeeper {
    return stateSlot(this.#world.settings, pod)!;
  }

  decide(arrival: Arrival): Decision {
    return { out: arrival.packet, ...this.#byHook(arrival) };
  }

  #byHook(arrival: Arrival): Decided {
    const { hook, packet } = arrival;
    const isForUs = starts(packet, 0, this.#hostMac) || hook === 'to_pod' || hook === 'to_vtep';
    const reasons = isForUs ? [] : ['other_mac'];
    const family = familyOf(u16(packet, 12));
    if (!family) return kernel(...reasons, 'not_ip');
    const ip = readIp(packet.subarray(ETHER), family);
    if (!ip) return kernel(...reasons, 'malformed');
    const view = this.#views[family];
    switch (hook) {
      case 'from_pod':
        return this.#fromPod(arrival, ip, view, reasons);
      case 'from_wire':
        return isForUs ? this.#fromWire(arrival, ip, view) : kernel(...reasons);
      case 'xdp_from_wire':
        return isForUs ? this.#xdpFromWire(arrival, ip, view) : kernel(...reasons);
      default:
        return this.#fromStack(arrival, ip, view);
    }
  }

  #fromPod(arrival: Arrival, ip: IpPacket, view: FamilyView, otherMac: readonly string[]): Decided {
    const { packet, ifindex, gsoSize } = arrival;
    const { settings } = this.#world;
    const reasons = [...otherMac, ...ip.faults];
    const sender = view.endpoints.get(ip.src);
    if (sender?.hostIfindex !== ifindex) reasons.push('other_source');
    if (!view.isInNetwork(ip.dst))
      return this.#isVxlanToNode(ip, view) ? drop('vxlan_from_pod') : kernel(...reasons, 'outside');
    if (ip.fragment !== 'none') reasons.push('fragment'); // conntrack reassembles it
    if (isNeighbourDiscovery(ip)) reasons.push('neighbour');

    if (view.isOurs(ip.dst)) {
      const receiver = view.endpoints.get(ip.dst);
      reasons.push(...this.#keptOnStack(ip, sender, receiver));
      if (!receiver || receiver.hostIfindex === ifindex) return kernel(...reasons, 'no_endpoint');
      if (isTooBig(arrival, ip, receiver.mtu)) reasons.push('too_big');
      if (reasons.length > 0) return kernel(...reasons);
      return { verdict: 'fast', reasons: ['local'], out: delivered(packet.subarray(ETHER), receiver) };
    }

    const peer = view.peerOf(ip.dst);
    reasons.push(...this.#keptOnStack(ip, sender));
    if (!peer) return kernel(...reasons, 'no_peer');
    if (view.isForKernelPath(peer)) reasons.push('marked');
    if (ip.ttl <= 1) reasons.push('ttl');
    const direct = view.isDirect(peer);
    const mtu = direct ? settings.uplink.mtu : podMtu(settings, view.family);
    if (isTooBig(arrival, ip, mtu)) reasons.push('too_big');
    if (reasons.length > 0) return kernel(...reasons);
    const out = packet.slice();
    decrementTtl(out.subarray(ETHER), view.family);
    if (direct) return { verdict: 'fast', reasons: ['direct'], out };
    if (gsoSize > 0) return kernel('no_room'); // a test run's GSO packets have no type, so none may grow
    const encapsulated = this.#encapsulated(out.subarray(ETHER), ip.tos & 3, peer, view);
    return { verdict: 'fast', reasons: ['encap'], out: encapsulated };
  }

  /**
   * UDP to the VXLAN port of a node, whatever else is wrong with the packet; in IPv6 also packets to a node whose
   * extension headers hide the ports. Later fragments show no port, and make no packet without the first one.
   */
  #isVxlanToNode(ip: IpPacket, { nodes, vtepIp, family }: FamilyView): boolean {
    if (ip.fragment === 'later' || !(ip.dst === vtepIp || nodes.has(ip.dst))) return false;
    if (family === 6 && ip.faults.includes('ip_options')) return true;
    return (
      ip.protocol === protocols.udp &&
      ip.headerEnd >= headerLength[family] &&
      ip.payload.length >= 4 &&
      u16(ip.payload, 2) === tunnel.port
    );
  }

  #fromWire(arrival: Arrival, ip: IpPacket, view: FamilyView): Decided {
    if (this.#world.settings.directRouting && view.isOurs(ip.dst))
      return this.#fromDirectPeer(arrival, ip, view);
    const found = this.#detunnel(arrival, ip, view);
    if ('verdict' in found) return found;
    if (arrival.gsoSize > 0) return kernel('no_room'); // as above: nor shrink
    decrementTtl(found.inner, view.family);
    return { verdict: 'fast', reasons: ['decap'], out: delivered(found.inner, found.receiver) };
  }

  /**
   * The packet becomes a plain frame with the MAC addresses of the outer frame, and a mark before it. Drops are left to
   * from_wire, so here such a packet passes unchanged.
   */
  #xdpFromWire(arrival: Arrival, ip: IpPacket, view: FamilyView): Decided {
    const found = this.#detunnel(arrival, ip, view);
    if ('verdict' in found) return found.verdict === 'drop' ? kernel() : found;
    const mark = new Uint8Array(Uint32Array.of(0x72697073, tunnel.vni).buffer);
    const out = Uint8Array.from([...mark, ...arrival.packet.subarray(0, ETHER), ...found.inner]);
    return { verdict: 'fast', reasons: ['decap'], out };
  }

  /** The inner packet of a VXLAN packet for a local pod, if all of it is valid. */
  #detunnel({ packet, gsoSize, hook }: Arrival, outer: IpPacket, view: FamilyView): Decided | Detunnelled {
    const { family, own, nodes } = view;
    // The port of a fragment, or of a packet with options, is unknown.
    if (outer.fragment !== 'none') return kernel(...outer.faults, 'fragment', 'not_vxlan');
    if (outer.protocol !== protocols.udp || outer.dst !== view.vtepIp)
      return kernel(...outer.faults, 'not_vxlan');
    if (outer.faults.includes('ip_options') || outer.payload.length < 8)
      return kernel(...outer.faults, 'malformed', 'not_vxlan');
    const datagram = outer.payload;
    if (u16(datagram, 2) !== tunnel.port) return kernel(...outer.faults, 'not_vxlan');

    const reasons = [...outer.faults, ...(u16(datagram, 4) === datagram.length ? [] : ['malformed'])];
    const [vxlan, ether, innerAt] = [8, 16, 16 + ETHER];
    if (datagram.length < innerAt) return kernel(...reasons, 'malformed');
    const vni = [tunnel.vni >>> 16, (tunnel.vni >>> 8) & 255, tunnel.vni & 255];
    if (!starts(datagram, vxlan, [8, 0, 0, 0, ...vni, 0])) reasons.push('other_vni');
    if (!starts(datagram, ether, macToBytes(own.vtepMac))) reasons.push('other_mac');
    // Families are never mixed, so the other family's ethertype is unknown here.
    if (familyOf(u16(datagram, ether + 12)) !== family) return kernel(...reasons, 'not_ip');
    const inner = readIp(datagram.subarray(innerAt), family);
    if (!inner) return kernel(...reasons, 'malformed');
    if (reasons.length > 0) return kernel(...reasons);

    const speaker = view.isInNetwork(inner.src) ? view.peerOf(inner.src) : undefined;
    if (!speaker || !(speaker.behindNat || addressNumber(speaker.vtepIp) === outer.src)) {
      const node = nodes.get(outer.src);
      if (!node) return drop('unknown_peer');
      // A node may send for itself: without masquerading that is how its processes answer pods.
      if (view.isIndexed(node)) return inner.src === outer.src ? kernel('outside') : drop('spoofed_source');
      reasons.push('no_peer'); // the podCIDR of a node without an entry is unknown
    } else if (view.isForKernelPath(speaker)) reasons.push('marked');

    const receiver = view.endpoints.get(inner.dst);
    reasons.push(...this.#againstDelivery(inner, receiver));
    const outerPacket = packet.subarray(ETHER);
    const mayTell = u16(datagram, 6) !== 0 && gsoSize === 0;
    if (mayTell && !(hook === 'from_wire' && isLeftOut(outerPacket, outer, datagram))) {
      if (!headersVerify(outerPacket, inner, datagram)) reasons.push('outer_checksum');
    }
    const bytes = datagram.length - innerAt;
    if (receiver && gsoSize === 0 && bytes > receiver.mtu) reasons.push('too_big');
    if (!receiver || reasons.length > 0) return kernel(...reasons);
    const ecn = ecnOut(inner.tos & 3, outer.tos & 3);
    if (ecn === undefined) return drop('ecn');
    const out = datagram.slice(innerAt);
    setEcn(out, family, ecn);
    return { receiver, inner: out };
  }

  /** A plain packet for a local pod. It is fast only from peers that we, too, reach without encapsulation. */
  #fromDirectPeer(arrival: Arrival, ip: IpPacket, view: FamilyView): Decided {
    const peer = view.isInNetwork(ip.src) ? view.peerOf(ip.src) : undefined;
    const receiver = view.endpoints.get(ip.dst);
    const frame = arrival.packet.subarray(ETHER);
    const isPadded =
      frame.length === SHORTEST_PAYLOAD && ip.length >= headerLength[view.family] + SHORTEST_TRANSPORT;
    const unpadded = isPadded ? readIp(frame.subarray(0, ip.length), view.family) : undefined;
    const reasons = this.#againstDelivery(unpadded ?? ip, receiver);
    if (!peer || !view.isDirect(peer)) return kernel(...reasons, 'not_vxlan');
    if (receiver && isTooBig(arrival, ip, receiver.mtu)) reasons.push('too_big');
    if (!receiver || reasons.length > 0) return kernel(...reasons);
    const out = frame.slice();
    decrementTtl(out, view.family);
    return { verdict: 'fast', reasons: ['direct'], out: delivered(out, receiver) };
  }

  /** Why a packet from the wire to this local pod takes the kernel path, apart from its size. */
  #againstDelivery(ip: IpPacket, receiver: Endpoint | undefined): string[] {
    return [
      ...ip.faults,
      ...(ip.fragment === 'none' ? [] : ['fragment']),
      ...(isNeighbourDiscovery(ip) ? ['neighbour'] : []),
      ...(receiver ? this.#keptOnStack(ip, receiver) : ['no_endpoint']),
      ...(ip.ttl <= 1 ? ['ttl'] : []),
    ];
  }

  /** to_pod and to_vtep let everything pass. */
  #fromStack({ hook }: Arrival, ip: IpPacket, view: FamilyView): Decided {
    if (!view.isInNetwork(ip.src) || !view.isInNetwork(ip.dst)) return kernel(...ip.faults, 'outside');
    const ours = view.endpoints.get(hook === 'to_pod' ? ip.dst : ip.src);
    if (!ours) return kernel(...ip.faults, 'no_endpoint');
    const { ports } = ip;
    const reply = { ...ip, src: ip.dst, dst: ip.src, ...(ports && { ports: swapped(ports) }) };
    return kernel(...ip.faults, this.#isRemembered(reply) ? 'translated' : 'untranslated');
  }

  #isRemembered({
    src,
    dst,
    ports,
    protocol,
  }: Pick<IpPacket, 'src' | 'dst' | 'ports' | 'protocol'>): boolean {
    return ports !== undefined && this.#flows.has(flowKey(src, dst, ports, protocol));
  }

  /**
   * Like {@link #isRemembered}, but true when it is unknown. An ICMP error belongs to the opposite of the flow it
   * quotes.
   */
  #mayBeRemembered(ip: IpPacket): boolean {
    if (!isIcmp(ip)) return ip.ports === undefined || this.#isRemembered(ip);
    if (isInformational(ip)) return false; // nobody translates pings between pods
    const quoted = readIp(ip.payload.subarray(8), ip.family);
    if (!quoted) return true;
    if (quoted.protocol === ip.protocol) return false;
    const { src, dst, ports, protocol, faults } = quoted;
    if (!ports || faults.includes('ip_options')) return true;
    return this.#isRemembered({ src: dst, dst: src, ports: swapped(ports), protocol });
  }

  /** Reasons why a packet from or to these local pods stays on the kernel path. */
  #keptOnStack(ip: IpPacket, ...pods: readonly (Endpoint | undefined)[]): string[] {
    const known = pods.filter((pod) => pod !== undefined);
    const reasons = known.some((pod) => pod.kernelPath) ? ['marked'] : [];
    if (ip.protocol === protocols.sctp) return [...reasons, 'translated']; // its flows are unknown
    const keepers = known.map((pod) => this.#keeperOf(pod.ip));
    const overflowed = keepers.some((keeper) => this.#overflowed.has(keeper));
    const mayBeTranslated =
      this.#mayBeRemembered(ip) && keepers.some((keeper) => this.#flowKeepers.has(keeper));
    return overflowed || mayBeTranslated ? [...reasons, 'translated'] : reasons;
  }

  /** Encapsulate an IP packet (RFC 7348). MAC addresses come later, from the kernel's neighbour table. */
  #encapsulated(inner: Uint8Array, ecn: number, peer: Peer, { family, own }: FamilyView): Uint8Array {
    const { port, vni } = tunnel;
    const length = encapBytes[family] + inner.length;
    const out = new Uint8Array(ETHER + length);
    const ethertype = family === 4 ? 0x0800 : 0x86dd;
    const ends = [...addressToBytes(own.vtepIp), ...addressToBytes(peer.vtepIp)];
    setU16(out, 12, ethertype);
    if (family === 4) {
      out.set([0x45, ecn, 0, 0, 0, 0, 0, 0, 64, protocols.udp, 0, 0, ...ends], ETHER);
      setU16(out, ETHER + 2, length);
      setU16(out, ETHER + 10, checksum(out.subarray(ETHER, ETHER + 20)));
    } else {
      out.set([0x60, ecn << 4, 0, 0, 0, 0, protocols.udp, 64, ...ends], ETHER);
      setU16(out, ETHER + 4, length - 40);
    }
    const udp = ETHER + headerLength[family];
    setU16(out, udp + 2, port);
    setU16(out, udp + 4, length - headerLength[family]);
    out.set([8, 0, 0, 0, vni >>> 16, (vni >>> 8) & 255, vni & 255, 0], udp + 8);
    out.set([...macToBytes(peer.vtepMac), ...macToBytes(own.vtepMac)], udp + 16);
    setU16(out, udp + 28, ethertype);
    out.set(inner, udp + 30);
    return out;
  }
}

const swapped = ([src, dst]: readonly [number, number]) => [dst, src] as const;

const flowKey = (src: bigint, dst: bigint, ports: readonly [number, number], protocol: number): string =>
  [src, dst, ...ports, protocol].join(' ');

const starts = (bytes: Uint8Array, at: number, expected: ArrayLike<number>): boolean =>
  Array.from(expected).every((byte, i) => bytes[at + i] === byte);

/** The size that must fit an MTU. For a GSO super-packet it is that of each segment, with headers. */
function isTooBig(
  { packet, gsoSize }: Arrival,
  { family, protocol, payload }: IpPacket,
  mtu: number,
): boolean {
  if (gsoSize === 0) return packet.length - ETHER > mtu;
  if (protocol === protocols.tcp && payload.length < 20) return true;
  const transportHeader = protocol === protocols.tcp ? (payload[12]! >>> 4) * 4 : 8;
  return headerLength[family] + transportHeader + gsoSize > mtu;
}

/**
 * Whether an outer UDP checksum is right if the inner one is ("local checksum offload",
 * Documentation/networking/checksum-offloads.rst): what the inner one covers adds up to the complement of its
 * pseudo header. Without an inner checksum that covers all the rest, it is unknown.
 */
function headersVerify(outerPacket: Uint8Array, inner: IpPacket, datagram: Uint8Array): boolean {
  const { family, protocol, payload } = inner;
  const isWholeUdp =
    protocol === protocols.udp &&
    payload.length >= 8 &&
    u16(payload, 6) !== 0 &&
    u16(payload, 4) === payload.length;
  if (inner.fragment !== 'none' || !(isWholeUdp || isIcmp(inner) || protocol === protocols.tcp)) return false;
  const innerHeader = datagram.subarray(30, 30 + headerLength[family]);
  // ICMP for IPv4 has no pseudo header (RFC 792).
  const covered =
    protocol === protocols.icmp ? 0 : pseudoHeaderSum(innerHeader, family, protocol, payload.length);
  const before = pseudoHeaderSum(outerPacket, family, protocols.udp, datagram.length);
  const headers = sum(datagram.subarray(0, 30 + headerLength[family]));
  return (before + headers - covered) % 0xffff === 0;
}

/**
 * Whether the outer UDP checksum was left to a NIC ("checksum offload", as above), and no NIC has seen the packet: the
 * field holds the pseudo header's sum. XDP must not take such a packet, since it cannot clear the kernel's note of
 * that.
 */
function isLeftOut(outerPacket: Uint8Array, { family }: IpPacket, datagram: Uint8Array): boolean {
  const pseudo = pseudoHeaderSum(outerPacket, family, protocols.udp, datagram.length);
  return u16(datagram, 6) === (pseudo & 0xffff) + (pseudo >>> 16);
}

function delivered(ipPacket: Uint8Array, { podMac, hostMac }: Endpoint): Uint8Array {
  const type = ipPacket[0]! >>> 4 === 4 ? [0x08, 0x00] : [0x86, 0xdd];
  return Uint8Array.from([...macToBytes(podMac), ...macToBytes(hostMac), ...type, ...ipPacket]);
}

/**
 * An encapsulated packet, with the fields that the sender may choose set to zero: the outer IPv4 id, if its checksum is
 * right, and the outer source port, if it is in its range. Otherwise they are left as they are, and so differ.
 */
export function withoutChoices(packet: Uint8Array, { settings }: World): Uint8Array {
  const out = packet.slice();
  const family = familyOf(u16(out, 12))!;
  if (family === 4 && checksum(out.subarray(14, 34)) === 0) {
    setU16(out, 18, 0);
    setU16(out, 24, 0);
    setU16(out, 24, checksum(out.subarray(14, 34)));
  }
  const { min, max } = settings.sourcePorts;
  const udp = ETHER + headerLength[family];
  const port = u16(out, udp);
  if (port >= min && port <= max) setU16(out, udp, 0);
  return out;
}
