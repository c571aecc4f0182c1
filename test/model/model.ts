// SPDX-License-Identifier: Apache-2.0
/**
 * The verdict on a packet according to the specification: the one rule ("repeat what the kernel path was seen to do"),
 * bpf/types.h for each reason, and RFC 791 (IPv4), 8200 (IPv6), 9293 (TCP), 768 (UDP), 7348 (VXLAN), 6040 (ECN over
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
  FLOW_LIFETIME_MS,
  type Peer,
} from '../../src/dataplane/desired.ts';
import { addressToBytes, type Family, familyKey } from '../../src/net/ip.ts';
import { bytesToMac, macToBytes } from '../../src/net/mac.ts';
import {
  type Flow,
  FROM_FAST_PATH,
  type LearnedFlow,
  type NotedArrival,
  type SeenTunnel,
  TEST_RUN_IFINDEX,
  tunnel,
  type TunnelArrival,
  type TunnelKey,
  tunnelKey,
} from '../bpf/node.ts';
import { checksum, protocols } from '../../src/net/packets.ts';
import {
  addressNumber,
  decrementTtl,
  endsOf,
  familyOf,
  headerLength,
  type IpPacket,
  type FlowReading,
  isIcmp,
  membership,
  pseudoHeaderSum,
  readFlow,
  readIp,
  setEcn,
  setU16,
  sum,
  translate,
  u16,
} from './read.ts';
import type { World, WorldName } from './world.ts';

export type Hook =
  | 'from_pod'
  | 'from_vtep'
  | 'from_wire'
  | 'to_pod'
  | 'to_vtep'
  | 'to_wire'
  | 'xdp_from_wire';

/** The epoch of the nodes. */
export const EPOCH = 5;

/** An entry of the flow table, with all that a verdict depends on. */
export type Entry = LearnedFlow &
  Required<
    Pick<
      LearnedFlow,
      | 'epoch'
      | 'ifindex'
      | 'ageMs'
      | 'mtu'
      | 'mark'
      | 'priority'
      | 'is_settled'
      | 'is_ending'
      | 'hops'
      | 'ttl'
      | 'dscp'
      | 'source_port'
    >
  >;

/** What a packet meets that goes into a tunnel, or comes out of one. */
export interface MetTunnel {
  /** The tunnel that the kernel path was seen to use; maybe another one than the packet's. */
  readonly seen?: Required<SeenTunnel>;
  /** The packet that was noted last: this one or, as most are, another one. */
  readonly noted?: Omit<TunnelArrival, 'packet'> & { readonly isIt: boolean };
}

export interface Arrival {
  /** The node that it arrives at. */
  readonly node: WorldName;
  readonly hook: Hook;
  /** From the Ethernet header on. */
  readonly packet: Uint8Array;
  readonly ifindex: number;
  /** Payload bytes of each segment of a GSO super-packet; 0 for other packets. */
  readonly gsoSize: number;
  /** The flow that it was made of; what is done to other flows is not looked at. */
  readonly flow?: Flow;
  /** The flow table when it arrives. */
  readonly table: readonly Entry[];
  /** What was noted when it came in, if it leaves the kernel path now. */
  readonly noted?: NotedArrival;
  /** At from_vtep: the last four bytes of the outer source address. */
  readonly sender?: Uint8Array;
  /** At from_vtep: from_wire has taken the outer headers off. */
  readonly isHandedOver?: boolean;
  /** skb->mark and skb->priority; 0 when absent. */
  readonly mark?: number;
  readonly priority?: number;
  readonly tunnel?: MetTunnel;
  /** It comes directly behind another packet of its flow, which was left to the kernel path. */
  readonly isBehind?: boolean;
}

export interface Decision {
  readonly verdict: Verdict;
  /** Those that apply, such as `malformed`. Any one of them may be counted. If there is none, nothing is counted. */
  readonly reasons: readonly string[];
  /**
   * The packet that leaves; an encapsulated one as from {@link withoutChoices}. Unmodified unless the verdict is fast, or
   * the packet is carried.
   */
  readonly out: Uint8Array;
  /** A program puts the outer headers on or takes them off, though the kernel path decides. What the skb says then. */
  readonly carried?: { readonly mark: number; readonly priority: number; readonly note: number };
  /** The tunnel in which the packet is noted. */
  readonly notesTunnel?: TunnelKey;
  /** The tunnel that the kernel path was now seen to use. */
  readonly seesTunnel?: Required<SeenTunnel>;
  /** A flow that is no longer in the table: a connection begins, is established, or ends. */
  readonly forgets?: Flow;
  /** What is noted of a packet that is left to the kernel path. */
  readonly notes?: NotedArrival;
  /** The entry that the flow table gets. */
  readonly learns?: Entry;
  /** Whether the flow's entry has become one whose earlier packets are no longer under way on the kernel path. */
  readonly settles?: boolean;
  /** Whether its entry now knows that conntrack has seen a FIN. */
  readonly ends?: boolean;
  /** Others may overtake it, so they need not wait for it. */
  readonly isBare?: boolean;
  /** It is only larger than those before it. On its way to the wire it waits nowhere, so nothing can overtake it. */
  readonly isLarger?: boolean;
}

type Decided = Omit<Decision, 'out'> & Partial<Decision>;
const kernel = (...reasons: string[]): Decided => ({ verdict: 'kernel', reasons });
const drop = (reason: string): Decided => ({ verdict: 'drop', reasons: [reason] });
const fast = (reason: string, out: Uint8Array, { settles }: Effects): Decided => ({
  verdict: 'fast',
  reasons: [reason],
  out,
  ...(settles && { settles }),
});

/** A decapsulated packet that a local pod may get, before its TTL is decremented. */
interface Detunnelled {
  readonly receiver: Endpoint;
  readonly inner: Uint8Array;
  readonly effects: Effects;
  /** The translation that is left to from_wire. */
  readonly translated: Uint8Array;
  /** What becomes of it if it takes the kernel path. */
  readonly carries: () => Carried;
}

/** What a packet does to the flow table and to the notes, unless it takes the fast path. */
type Effects = Pick<Decided, 'forgets' | 'notes' | 'settles' | 'isBare'>;

/** A packet's flow in the table: why it does not take the fast path, or the entry. */
interface Lookup {
  readonly reasons: readonly string[];
  readonly entry?: Entry;
  readonly effects: Effects;
}

const ETHER = 14;
/** What every way carries: net.ipv4.route.min_pmtu, RFC 8200. */
const LEAST_MTU = { 4: 552, 6: 1280 } as const;
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

/** One family's part of the world, by addresses as numbers. */
class FamilyView {
  readonly family: Family;
  readonly own: FamilySettings;
  readonly vtepIp: bigint;
  readonly isInNetwork: (address: bigint) => boolean;
  readonly isOurs: (address: bigint) => boolean;
  readonly endpoints: ReadonlyMap<bigint, Endpoint>;
  /** Whether flannel alone decides about VXLAN from addresses that no node has. */
  readonly admitsStrangers: boolean;
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
    this.admitsStrangers = world.settings.admitsStrangers ?? false;
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

  /** The address that packets of a flow leave for. */
  leavesFor(entry: Entry): bigint {
    return addressNumber(leaving(entry).dst);
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
  readonly #hostMac: Uint8Array;

  constructor(world: World) {
    this.#world = world;
    this.#views = { 4: new FamilyView(world, 4), 6: new FamilyView(world, 6) };
    this.#hostMac = macToBytes(world.settings.uplink.mac);
  }

  decide(arrival: Arrival): Decision {
    return { out: arrival.packet, ...this.#byHook(arrival) };
  }

  #byHook(arrival: Arrival): Decided {
    const { hook, packet } = arrival;
    if (hook === 'from_vtep') return this.#fromVtep(arrival);
    if (hook === 'to_vtep') return this.#toVtep(arrival);
    const isForUs = starts(packet, 0, this.#hostMac) || hook === 'to_pod' || hook === 'to_wire';
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
      case 'to_pod':
        return this.#toPod(arrival, ip, view);
      default:
        return this.#toWire(arrival, ip, view);
    }
  }

  /** What the flow table says of a packet that comes in, about which these reasons are known already. */
  #lookup(arrival: Arrival, ip: IpPacket, known: readonly string[]): Lookup {
    const reasons = [...known, ...ip.faults, ...(ip.fragment === 'none' ? [] : ['fragment'])];
    const reading = readFlow(ip);
    if (!reading.flow) return { reasons: [...reasons, reading.why], effects: {} };
    const { flow, isEnd, isBreak, isAnswer, isBare } = reading;
    const isCertain = reasons.length === 0;
    const entry = arrival.table.find((entry) => isSame(entry.flow, flow));
    const { ifindex } = arrival;
    const notes = { flow, epoch: EPOCH, ifindex, dscp: ip.tos >> 2, ttl: ip.ttl };
    const mayNote = isCertain && arrival.hook !== 'xdp_from_wire';
    const effects = { ...(mayNote && { notes }), isBare };
    if (isBreak) {
      const forgets = isCertain && entry?.ifindex === ifindex ? { forgets: flow } : {};
      return {
        reasons: [...reasons, 'handshake'],
        effects: { ...(mayNote && isAnswer && { notes }), isBare, ...forgets },
      };
    }
    if (!entry)
      return {
        reasons: [...reasons, isEnd ? 'handshake' : 'new_flow'],
        effects: isEnd ? { isBare } : effects,
      };
    const isItsOwn = entry.ifindex === ifindex;
    if (!isItsOwn || entry.ttl !== ip.ttl || entry.dscp !== ip.tos >> 2) reasons.push('other_way');
    if (entry.epoch !== EPOCH) reasons.push('old_epoch');
    if (entry.ageMs > FLOW_LIFETIME_MS) reasons.push('expired');
    const settles = isCertain && reasons.length === 0 && (entry.is_settled !== 0 || !arrival.isBehind);
    if (entry.is_settled === 0 && arrival.isBehind) reasons.push('unsettled');
    const isLastEnd = reasons.length === 0 && isOtherEnding(arrival.table, entry);
    if (!isEnd || isLastEnd) return { reasons, entry, effects: { ...effects, ...(settles && { settles }) } };
    return {
      reasons: [...reasons, 'handshake'],
      effects: { isBare, ...(settles && { settles }), ...(isCertain && isItsOwn && { ends: true }) },
    };
  }

  #fromPod(arrival: Arrival, ip: IpPacket, view: FamilyView, otherMac: readonly string[]): Decided {
    const { packet, ifindex, gsoSize } = arrival;
    if (this.#isVxlanToNode(ip, view)) return drop('vxlan_from_pod');
    const lookup = this.#lookup(arrival, ip, otherMac);
    const reasons = [...lookup.reasons];
    const sender = view.endpoints.get(ip.src);
    const mayBeLearned = sender?.hostIfindex === ifindex && !sender.kernelPath;
    const { notes, ...others } = lookup.effects;
    const effects = { ...others, ...(notes && mayBeLearned && { notes }) };
    const goes = (reason: string, out: Uint8Array): Decided => fast(reason, out, lookup.effects);
    const stays = (...more: string[]): Decided => ({ ...kernel(...reasons, ...more), ...effects });
    if (sender?.hostIfindex !== ifindex)
      return isNobodys(ip) ? stays('link_local') : { ...drop('other_source'), ...effects };
    if (sender.kernelPath) reasons.push('marked');
    if (!lookup.entry) return stays();

    const out = packet.slice();
    const to = view.leavesFor(lookup.entry);
    if (lookup.entry.out) translate(out.subarray(ETHER), ip, leaving(lookup.entry));
    if (view.isOurs(to)) {
      const receiver = view.endpoints.get(to);
      if (!receiver || receiver.hostIfindex === ifindex) return stays('no_endpoint');
      if (receiver.kernelPath) reasons.push('marked');
      if (isTooBig(arrival, ip, receiver.mtu)) reasons.push('too_big');
      if (lookup.entry.hops > 0 && ip.ttl <= 1) reasons.push('ttl');
      if (reasons.length > 0) return stays();
      if (lookup.entry.hops > 0) decrementTtl(out.subarray(ETHER), view.family);
      return goes('local', delivered(out.subarray(ETHER), receiver));
    }

    const peer = view.peerOf(to);
    if (!peer) return stays('no_peer');
    if (view.isForKernelPath(peer)) reasons.push('marked');
    if (ip.ttl <= 1) reasons.push('ttl');
    const direct = view.isDirect(peer);
    if (isTooBig(arrival, ip, lookup.entry.mtu)) reasons.push('too_big');
    if (reasons.length > 0) return { ...stays(), ...(reasons.join() === 'too_big' && { isLarger: true }) };
    decrementTtl(out.subarray(ETHER), view.family);
    if (direct) return goes('direct', out);
    if (gsoSize > 0) return stays('no_room'); // a test run's GSO packets have no type, so none may grow
    const ecn = ip.tos & 3;
    const encapsulated = this.#encapsulated(
      out.subarray(ETHER),
      ecn === CE ? ECT0 : ecn, // as the kernel's VXLAN device does
      peer,
      lookup.entry.source_port,
      view,
    );
    return goes('encap', encapsulated);
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
    // As above: nor shrink.
    if (arrival.gsoSize > 0) return { ...kernel('no_room'), ...found.effects, ...found.carries() };
    decrementTtl(found.translated, view.family);
    return fast('decap', delivered(found.translated, found.receiver), found.effects);
  }

  /**
   * The packet becomes a plain frame with the MAC addresses of the outer frame, and a mark before it. Drops and
   * translation are left to from_wire, so here a packet that it will drop passes unchanged.
   */
  #xdpFromWire(arrival: Arrival, ip: IpPacket, view: FamilyView): Decided {
    const found = this.#detunnel(arrival, ip, view);
    if ('verdict' in found) return found.verdict === 'drop' ? { ...found, ...kernel() } : found;
    const mark = new Uint8Array(Uint32Array.of(0x72697073, tunnel.vni).buffer);
    const out = Uint8Array.from([...mark, ...arrival.packet.subarray(0, ETHER), ...found.inner]);
    return fast('decap', out, found.effects);
  }

  /** The inner packet of a VXLAN packet for a local pod, if all of it is valid. */
  #detunnel(arrival: Arrival, outer: IpPacket, view: FamilyView): Decided | Detunnelled {
    const { packet, gsoSize, hook } = arrival;
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
      return claimed(nodes.get(outer.src), speaker, inner.src, view);
    } else if (view.isForKernelPath(speaker)) reasons.push('marked');

    const { entry, effects, ...lookup } = this.#lookup(arrival, inner, reasons);
    const outerPacket = packet.subarray(ETHER);
    const mayTell = u16(datagram, 6) !== 0 && gsoSize === 0;
    const isProven =
      !mayTell ||
      (hook === 'from_wire' && isLeftOut(outerPacket, outer, datagram)) ||
      headersVerify(outerPacket, inner, datagram);
    const ecn = ecnOut(inner.tos & 3, outer.tos & 3);
    const carries = (): Carried =>
      hook === 'from_wire'
        ? carriedInward(arrival, speaker, view, {
            outer,
            inner,
            bytes: datagram.slice(innerAt),
            ecn: isProven ? ecn : undefined,
          })
        : {};
    if (!entry) return { ...kernel(...lookup.reasons), ...effects, ...carries() };
    const receiver = view.endpoints.get(view.leavesFor(entry));
    const against = againstDelivery(inner, receiver);
    const bytes = datagram.length - innerAt;
    if (receiver && gsoSize === 0 && bytes > receiver.mtu) against.push('too_big');
    // Which pod a flow leads to counts only while the flow is valid.
    const isMarked = lookup.reasons.length === 0 && against.includes('marked');
    reasons.push(...lookup.reasons, ...against);
    if (!receiver || reasons.length > 0 || !isProven) {
      const carried = isMarked ? {} : carries();
      return { ...kernel(...reasons, ...(isProven ? [] : ['outer_checksum'])), ...effects, ...carried };
    }
    if (ecn === undefined) return { ...drop('ecn'), ...(effects.settles && { settles: true }) };
    const out = datagram.slice(innerAt);
    setEcn(out, family, ecn);
    const translated = out.slice();
    if (entry.out) translate(translated, inner, leaving(entry));
    return { receiver, inner: out, translated, effects, carries };
  }

  /**
   * A packet that the kernel path has decapsulated: only its sender is judged. If it was noted at the wire, the kernel path
   * was now seen to carry it. One that from_wire has handed over was judged there; and in boost mode no rule tells a sender.
   */
  #fromVtep(arrival: Arrival): Decided {
    const { packet, isHandedOver = false, sender = new Uint8Array(4) } = arrival;
    const isUnknown = sender.every((byte) => byte === 0);
    if (isUnknown && !isHandedOver && !this.#world.settings.admitsStrangers) return kernel('not_seen');
    const ethertype = u16(packet, 12);
    if (TAGS.includes(ethertype)) return isUnknown ? kernel('not_ip') : drop('spoofed_source');
    const family = familyOf(ethertype);
    if (!family) return kernel('not_ip');
    const ip = readIp(packet.subarray(ETHER), family);
    if (!ip) return kernel('malformed');
    const view = this.#views[family];
    const isFrom = ({ vtepIp }: Peer): boolean => starts(addressToBytes(vtepIp).slice(-4), 0, sender);
    const speaker = view.isInNetwork(ip.src) ? view.peerOf(ip.src) : undefined;
    if (speaker && (isUnknown || speaker.behindNat || isFrom(speaker))) {
      const { noted } = arrival.tunnel ?? {};
      const own = tunnelKey(speaker, { ...endsOf(ip), mark: arrival.mark ?? 0, is_inward: 1 });
      if (isHandedOver || !noted?.isIt || !mayBeOf(noted.key, own)) return kernel('from_peer');
      const { epoch, key } = noted;
      const seesTunnel = { key, epoch, mtu: 0, carried: 0, ifindex: arrival.ifindex, ageMs: 0 };
      return { ...kernel('from_peer'), seesTunnel };
    }
    if (isUnknown) return kernel('from_peer');
    return claimed(view.nodes.values().find(isFrom), speaker, ip.src, view);
  }

  /** A plain packet for a local pod. It is fast only from peers that we, too, reach without encapsulation. */
  #fromDirectPeer(arrival: Arrival, ip: IpPacket, view: FamilyView): Decided {
    const peer = view.isInNetwork(ip.src) ? view.peerOf(ip.src) : undefined;
    if (!peer || !view.isDirect(peer)) return kernel(...ip.faults, 'not_vxlan');
    const frame = arrival.packet.subarray(ETHER);
    const isPadded =
      frame.length === SHORTEST_PAYLOAD && ip.length >= headerLength[view.family] + SHORTEST_TRANSPORT;
    const unpadded = (isPadded ? readIp(frame.subarray(0, ip.length), view.family) : undefined) ?? ip;
    const { entry, effects, reasons } = this.#lookup(arrival, unpadded, []);
    const stays = (...more: readonly string[]): Decided => ({ ...kernel(...reasons, ...more), ...effects });
    if (!entry) return stays();
    const receiver = view.endpoints.get(view.leavesFor(entry));
    const against = againstDelivery(unpadded, receiver);
    if (receiver && isTooBig(arrival, ip, receiver.mtu)) against.push('too_big');
    if (!receiver || reasons.length + against.length > 0) return stays(...against);
    const out = frame.slice();
    if (entry.out) translate(out, unpadded, leaving(entry));
    decrementTtl(out, view.family);
    return fast('direct', delivered(out, receiver), effects);
  }

  /**
   * A packet for a pod that the kernel path has let through. Conntrack knows none of them: they are learned if they leave as
   * they came in.
   */
  #toPod({ packet, ifindex, noted, table }: Arrival, ip: IpPacket, view: FamilyView): Decided {
    const receiver = view.endpoints.get(ip.dst);
    if (receiver?.hostIfindex !== ifindex) return kernel(...ip.faults, 'no_endpoint');
    if (receiver.kernelPath) return kernel(...ip.faults, 'marked');
    const reasons = [...ip.faults, ...(ip.fragment === 'none' ? [] : ['fragment'])];
    // The kernel has let the packet through, so the length that its header tells does not matter.
    const isReadable = reasons.every((reason) => reason === 'malformed');
    const isOfPod = view.isInNetwork(ip.src) && (!view.isOurs(ip.src) || view.endpoints.has(ip.src));

    const reading = readFlow(readIp(packet.subarray(ETHER), view.family)!);
    const learned = isReadable ? learnedEntry(reading, ip, receiver, noted) : undefined;
    if (learned) return taught(learned, table);
    if (!isOfPod) return kernel(...ip.faults, 'outside');
    if (!reading.flow) return kernel(...reasons, reading.why);
    if (reading.isEnd && !reading.isAnswer) return kernel(...reasons, 'handshake');
    return kernel(...reasons, 'not_seen');
  }

  /** A packet for the wire that the kernel path has let through. This kernel knows no way to a peer. */
  #toWire({ packet }: Arrival, ip: IpPacket, view: FamilyView): Decided {
    const { settings } = this.#world;
    if (settings.directRouting && view.isInNetwork(ip.dst)) {
      const peer = view.peerOf(ip.dst);
      return kernel(...ip.faults, ...(peer && view.isDirect(peer) ? againstLearning(ip) : ['no_peer']));
    }
    // What else is wrong with such a packet does not matter, as it is never learned.
    if (ip.faults.includes('ip_options') || ip.fragment !== 'none')
      return kernel(...ip.faults, ...REASONS_OF_TO_WIRE);
    const datagram = ip.payload;
    const isVxlan =
      ip.protocol === protocols.udp &&
      datagram.length >= 8 &&
      u16(datagram, 2) === tunnel.port &&
      ip.src === view.vtepIp;
    if (!isVxlan) return kernel(...ip.faults, 'not_vxlan');
    const [vxlan, ether, innerAt] = [8, 16, 16 + ETHER];
    const inside = packet.subarray(ETHER + ip.headerEnd + innerAt);
    if (datagram.length < innerAt) return kernel(...ip.faults, 'malformed');
    const vni = [tunnel.vni >>> 16, (tunnel.vni >>> 8) & 255, tunnel.vni & 255];
    if (!starts(datagram, vxlan, [8, 0, 0, 0, ...vni, 0])) return kernel(...ip.faults, 'other_vni');
    if (familyOf(u16(datagram, ether + 12)) !== view.family) return kernel(...ip.faults, 'not_ip');
    const inner = readIp(inside, view.family);
    if (!inner) return kernel(...ip.faults, 'malformed');
    const peer = view.isInNetwork(inner.dst) ? view.peerOf(inner.dst) : undefined;
    if (!peer) return kernel(...ip.faults, 'no_peer');
    if (view.isForKernelPath(peer)) return kernel(...ip.faults, 'marked');
    // Its outer header is looked at before it, and may be one that no fast path would make.
    return kernel(...ip.faults, ...inner.faults, ...againstLearning(inner), 'other_way');
  }

  /**
   * A packet that the kernel path sends into the tunnel to a peer. It leaves encapsulated, if the kernel path was seen to
   * carry one as large there. Its TTL is right: the kernel has taken the hop off. Nothing else is counted here.
   */
  #toVtep(arrival: Arrival): Decided {
    const { packet, gsoSize, table, noted, mark = 0, priority = 0 } = arrival;
    const family = familyOf(u16(packet, 12));
    const ip = family && readIp(packet.subarray(ETHER), family);
    if (!ip) return kernel();
    const view = this.#views[family];
    const peer = view.isInNetwork(ip.dst) ? view.peerOf(ip.dst) : undefined;
    if (!peer || view.isForKernelPath(peer) || view.isDirect(peer)) return kernel();
    if (!starts(packet, 0, macToBytes(peer.vtepMac)) || view.endpoints.get(ip.src)?.kernelPath)
      return kernel();
    const ecn = ip.tos & 3;
    const tos = ecn === CE ? ECT0 : ecn; // as the kernel's VXLAN device does
    const key = tunnelKey(peer, { ...endsOf(ip), mark, priority, tos });
    const seen = validTunnel(arrival, key);
    if (!seen || isTooBig(arrival, ip, seen.carried)) return { ...kernel(), notesTunnel: key };
    if (gsoSize > 0) return kernel(); // a test run's GSO packets have no type, so none may grow

    const out = this.#encapsulated(packet.subarray(ETHER), tos, peer, 0, view);
    const carried = { out, carried: { mark, priority, note: FROM_FAST_PATH } };
    const reasons = [...ip.faults, ...(ip.fragment === 'none' ? [] : ['fragment'])];
    const reading = readFlow(ip);
    const isReadable = reasons.every((reason) => reason === 'malformed');
    const learned = isReadable ? learnedEntry(reading, ip, seen, noted) : undefined;
    if (learned) {
      const before = table.find((entry) => isSame(entry.flow, learned.flow));
      const isValid = before?.epoch === learned.epoch && before.ageMs <= FLOW_LIFETIME_MS;
      const bytes = Math.max(LEAST_MTU[family], packet.length - ETHER, isValid ? before.mtu : 0);
      const is_settled = isValid ? before.is_settled : 0;
      const entry = { ...learned, mtu: Math.min(bytes, seen.mtu), is_settled, mark, priority };
      return { ...taught(entry, table), ...carried };
    }
    if (!reading.flow) return { ...kernel(...reasons, reading.why), ...carried };
    const isEnd = reading.isEnd && !reading.isAnswer;
    return { ...kernel(...reasons, isEnd ? 'handshake' : 'not_seen'), ...carried };
  }

  /** Encapsulate an IP packet (RFC 7348). MAC addresses come later, from the kernel's neighbour table. */
  #encapsulated(
    inner: Uint8Array,
    ecn: number,
    peer: Peer,
    sourcePort: number,
    { family, own }: FamilyView,
  ): Uint8Array {
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
    setU16(out, udp, sourcePort);
    setU16(out, udp + 2, port);
    setU16(out, udp + 4, length - headerLength[family]);
    out.set([8, 0, 0, 0, vni >>> 16, (vni >>> 8) & 255, vni & 255, 0], udp + 8);
    out.set([...macToBytes(peer.vtepMac), ...macToBytes(own.vtepMac)], udp + 16);
    setU16(out, udp + 28, ethertype);
    out.set(inner, udp + 30);
    return out;
  }
}

/** Ethertypes of VLAN tags: IEEE 802.1Q, 802.1ad. */
const TAGS: readonly number[] = [0x8100, 0x88a8];

/** Sources of packets that no router forwards: the unspecified address, and IPv6's link-local ones (RFC 4291). */
const isNobodys = ({ family, src }: IpPacket): boolean =>
  src === 0n || (family === 6 && src >> 118n === 0xfe80n >> 6n);

/**
 * A node sends for a source that is not in the podCIDR that it publishes. What belongs to a node, `owner` or one by its
 * own address, only that node sends; what belongs to none may come through any.
 */
function claimed(sender: Peer | undefined, owner: Peer | undefined, src: bigint, view: FamilyView): Decided {
  if (!sender) return view.admitsStrangers ? kernel('no_peer') : drop('unknown_peer');
  const isAnothers = src === view.vtepIp || (view.nodes.has(src) && view.nodes.get(src) !== sender);
  if (owner || view.isOurs(src) || isAnothers) return drop('spoofed_source');
  return kernel(view.isIndexed(sender) ? 'outside' : 'no_peer');
}

const REASONS_OF_TO_WIRE = [
  'not_vxlan',
  'malformed',
  'other_vni',
  'not_ip',
  'no_peer',
  'marked',
  'other_way',
] as const;

const isSame = (a: Flow, b: Flow): boolean =>
  a.src_port === b.src_port &&
  a.dst_port === b.dst_port &&
  a.protocol === b.protocol &&
  a.src === b.src &&
  a.dst === b.dst;

/** The flow of the echo requests that these replies answer; undefined when they are none. */
function questionOf({ src, dst, src_port, dst_port, protocol }: Flow): Flow | undefined {
  const request = protocol === protocols.icmp ? { 0: 8 }[dst_port] : { 129: 128 }[dst_port];
  const isEcho = protocol === protocols.icmp || protocol === protocols.icmpv6;
  return isEcho && request !== undefined
    ? { src: dst, dst: src, src_port, dst_port: request, protocol }
    : undefined;
}

/** Why a packet that the kernel path has let through to the wire teaches nothing. */
function againstLearning(ip: IpPacket): string[] {
  const reading = readFlow(ip);
  const fragment = ip.fragment === 'none' ? [] : ['fragment'];
  if (!reading.flow) return [...fragment, reading.why];
  return [...fragment, reading.isEnd && !reading.isAnswer ? 'handshake' : 'other_way'];
}

/** Whether the other direction's FIN has been left to the kernel path. */
const isOtherEnding = (table: readonly Entry[], entry: Entry): boolean => {
  const { src, dst, src_port, dst_port, protocol } = leaving(entry);
  const other = { src: dst, dst: src, src_port: dst_port, dst_port: src_port, protocol };
  return table.some(({ flow, is_ending }) => isSame(flow, other) && is_ending !== 0);
};

const leaving = ({ flow, out }: Entry): Flow => ({ ...flow, ...out });

/** Why a packet from the wire does not go to this pod, apart from its size. */
const againstDelivery = (ip: IpPacket, receiver: Endpoint | undefined): string[] => [
  ...(receiver ? (receiver.kernelPath ? ['marked'] : []) : ['no_endpoint']),
  ...(ip.ttl <= 1 ? ['ttl'] : []),
];

/** The entry for a packet that leaves as it came in, at most one hop further. */
function learnedEntry(
  reading: FlowReading,
  ip: IpPacket,
  { mtu }: { readonly mtu: number },
  noted: NotedArrival | undefined,
): Entry | undefined {
  if (!reading.flow || !noted || !isSame(reading.flow, noted.flow)) return undefined;
  if (reading.isEnd && !reading.isAnswer) return undefined;
  const hops = (noted.ttl! - ip.ttl) & 255;
  if (noted.dscp !== ip.tos >> 2 || hops > 1) return undefined;
  const { flow, epoch, ifindex } = noted;
  return {
    flow,
    epoch: epoch!,
    ifindex: ifindex!,
    ageMs: 0,
    mtu,
    mark: 0,
    priority: 0,
    is_settled: 0,
    is_ending: 0,
    hops,
    ttl: noted.ttl!,
    dscp: noted.dscp,
    source_port: 0,
  };
}

/** What follows when a packet has taught this entry. The first answer makes the question's flow another one. */
function taught(entry: Entry, table: readonly Entry[]): Decided {
  const isFirst = !table.some(({ flow }) => isSame(flow, entry.flow));
  const question = isFirst ? questionOf(entry.flow) : undefined;
  return { ...kernel('learned'), learns: entry, ...(question && { forgets: question }) };
}

type Carried = Pick<Partial<Decision>, 'out' | 'carried' | 'notesTunnel'>;

/** What rules may see of an outer packet that comes in. */
const inwardKey = (
  { mark = 0, packet }: Arrival,
  peer: Peer,
  { ttl, tos }: IpPacket,
  inner: IpPacket,
): TunnelKey =>
  tunnelKey(peer, {
    ...endsOf(inner),
    mark,
    is_inward: 1,
    sender: bytesToMac(packet.subarray(6, 12)),
    ttl,
    tos,
  });

/** Whether a key may be of this tunnel, as far as the inner packet tells. */
const mayBeOf = (a: TunnelKey, b: TunnelKey): boolean =>
  a.vtep_ip === b.vtep_ip &&
  a.src === b.src &&
  a.dst === b.dst &&
  a.mark === b.mark &&
  a.priority === b.priority &&
  a.is_inward === b.is_inward;

export const isSameTunnel = (a: TunnelKey, b: TunnelKey): boolean =>
  mayBeOf(a, b) && a.sender === b.sender && a.ttl === b.ttl && a.tos === b.tos;

/** The tunnel, if the kernel path was seen to use it a short time ago, in this epoch. */
function validTunnel({ tunnel }: Arrival, key: TunnelKey): Required<SeenTunnel> | undefined {
  const { seen } = tunnel ?? {};
  if (!seen || !isSameTunnel(seen.key, key)) return undefined;
  return seen.epoch === EPOCH && seen.ageMs <= FLOW_LIFETIME_MS ? seen : undefined;
}

interface Unpacked {
  readonly outer: IpPacket;
  readonly inner: IpPacket;
  /** The inner packet. */
  readonly bytes: Uint8Array;
  readonly ecn: number | undefined;
}

/**
 * A packet of the kernel path from the wire, without its outer headers for the VTEP device, if the kernel path was seen to
 * carry such; else it is noted. Its sender is proven, unless that is behind NAT. `ecn`: from {@link ecnOut}; undefined when
 * only the kernel may take the headers off.
 */
function carriedInward(
  arrival: Arrival,
  speaker: Peer,
  view: FamilyView,
  { outer, inner, bytes, ecn }: Unpacked,
): Carried {
  if (speaker.behindNat || view.isForKernelPath(speaker) || view.endpoints.get(inner.dst)?.kernelPath)
    return {};
  const key = inwardKey(arrival, speaker, outer, inner);
  // A VTEP device that is gone gets nothing.
  if (validTunnel(arrival, key)?.ifindex !== TEST_RUN_IFINDEX) return { notesTunnel: key };
  if (ecn === undefined || arrival.gsoSize > 0) return {}; // a test run's GSO packets may not shrink
  if (ecn !== (inner.tos & 3)) setEcn(bytes, view.family, ecn);
  const ends = [...macToBytes(view.own.vtepMac), ...macToBytes(speaker.vtepMac)];
  const type = view.family === 4 ? [0x08, 0x00] : [0x86, 0xdd];
  return {
    out: Uint8Array.from([...ends, ...type, ...bytes]),
    carried: { mark: arrival.mark ?? 0, priority: 0, note: FROM_FAST_PATH },
  };
}

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
  // Nothing that the headers tell covers options and padding.
  const isPadded = inner.length !== inner.headerEnd + payload.length;
  if (inner.faults.includes('ip_options') || isPadded) return false;
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
 * An encapsulated packet, with the field that the sender may choose set to zero: the outer IPv4 id, if its checksum is
 * right. Otherwise it is left as it is, and so differs.
 */
export function withoutChoices(packet: Uint8Array): Uint8Array {
  const out = packet.slice();
  if (familyOf(u16(out, 12)) === 4 && checksum(out.subarray(14, 34)) === 0) {
    setU16(out, 18, 0);
    setU16(out, 24, 0);
    setU16(out, 24, checksum(out.subarray(14, 34)));
  }
  return out;
}
