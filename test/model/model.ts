// SPDX-License-Identifier: Apache-2.0
/**
 * The verdict on a packet as the specification has it: the one rule ("take a packet only when sure"), what bpf/types.h
 * says of each reason, and RFC 791 (IPv4), 768 (UDP), 7348 (VXLAN), 6040 (ECN over tunnels) and 1624 (checksum updates).
 * Written apart from the programs, so that the two can be compared: neither may be made to follow the other.
 *
 * Every reason for the stack that holds of a packet is listed, since which of them is counted is the programs' free choice;
 * a sane packet has one at most. Drops are for what is well-formed: malformed packets are the kernel's to judge.
 */
import type { Verdict } from '../../src/dataplane/counters.ts';
import { ENCAP_BYTES, type Endpoint, type Peer, peerSlot, podMtu } from '../../src/dataplane/desired.ts';
import { addressToBytes, cidrContains } from '../../src/net/ip.ts';
import { macToBytes } from '../../src/net/mac.ts';
import { checksum } from '../support/packets.ts';
import type { World } from './world.ts';

export type Hook = 'from_pod' | 'from_wire' | 'to_pod' | 'to_vtep';

export interface Arrival {
  readonly hook: Hook;
  /** From the Ethernet header on. */
  readonly packet: Uint8Array;
  readonly ifindex: number;
  /** Payload of each segment of a GSO super-packet, bytes; 0 is no such packet. */
  readonly gsoSize: number;
}

export interface Decision {
  readonly verdict: Verdict;
  /** Those that hold, as the counters name them: `truncated`, say. Any of them may be counted. */
  readonly reasons: readonly string[];
  /** What leaves; of an encapsulated packet as {@link withoutChoices} shows it. The packet as it came when not fast. */
  readonly out: Uint8Array;
}

type Decided = Omit<Decision, 'out'> & Partial<Decision>;
const stack = (...reasons: string[]): Decided => ({ verdict: 'stack', reasons });
const drop = (reason: string): Decided => ({ verdict: 'drop', reasons: [reason] });

const ETHER = 14;
const [TCP, UDP, SCTP] = [6, 17, 132];
const IPV4 = 0x0800;
const [MORE_FRAGMENTS, FRAGMENT_OFFSET] = [0x2000, 0x1fff];
const [ECT1, CE] = [1, 3];

const u16 = (bytes: Uint8Array, at: number): number => (bytes[at]! << 8) | bytes[at + 1]!;
const address = (bytes: Uint8Array, at: number): string =>
  `${bytes[at]}.${bytes[at + 1]}.${bytes[at + 2]}.${bytes[at + 3]}`;

function setU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value & 255;
}

/** An IPv4 packet, as far as its first 20 bytes tell. */
interface Ip {
  /** Why it is not understood, if it is not: the rest may be nonsense then. */
  readonly faults: readonly string[];
  readonly tos: number;
  readonly totalLength: number;
  readonly fragment: number;
  readonly ttl: number;
  readonly protocol: number;
  readonly src: string;
  readonly dst: string;
  /** Absent in fragments, in other protocols than TCP and UDP, and where they are cut off. */
  readonly ports?: readonly [src: number, dst: number];
}

/** The IPv4 packet at `at`, whose room ends with the bytes. */
function readIp(bytes: Uint8Array, at: number): Ip {
  const totalLength = u16(bytes, at + 2);
  const faults = [
    ...(bytes[at] === 0x45 ? [] : ['ip_options']),
    ...(totalLength < 20 || totalLength > bytes.length - at ? ['truncated'] : []),
  ];
  const fragment = u16(bytes, at + 6);
  const protocol = bytes[at + 9]!;
  const whole = (fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET)) === 0;
  const hasPorts = whole && (protocol === TCP || protocol === UDP) && totalLength >= 24;
  return {
    faults,
    tos: bytes[at + 1]!,
    totalLength,
    fragment,
    ttl: bytes[at + 8]!,
    protocol,
    src: address(bytes, at + 12),
    dst: address(bytes, at + 16),
    ...(hasPorts && { ports: [u16(bytes, at + 20), u16(bytes, at + 22)] as const }),
  };
}

/** RFC 1624, equation 3, for the header word at `word` of the IPv4 header at `at`. */
function changeWord(bytes: Uint8Array, at: number, word: number, value: number): void {
  let sum = (~u16(bytes, at + 10) & 0xffff) + (~u16(bytes, at + word) & 0xffff) + value;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  setU16(bytes, at + 10, ~sum & 0xffff);
  setU16(bytes, at + word, value);
}

/** One hop. */
function decrementTtl(bytes: Uint8Array, at: number): void {
  changeWord(bytes, at, 8, u16(bytes, at + 8) - 0x0100);
}

/** RFC 6040, figure 4: the ECN field that leaves the tunnel, or undefined: drop. */
function ecnOut(inner: number, outer: number): number | undefined {
  if (outer === CE) return inner === 0 ? undefined : CE;
  if (outer === ECT1 && inner === 2) return ECT1;
  return inner;
}

/** All addresses that the world can be asked about, found by their text. */
export class Model {
  readonly #world: World;
  readonly #indexedPeers: readonly Peer[];
  readonly #endpoints: ReadonlyMap<string, Endpoint>;
  readonly #flows: ReadonlySet<string>;
  readonly #flowPods: ReadonlySet<string>;

  constructor(world: World) {
    this.#world = world;
    this.#indexedPeers = world.peers.filter(({ podCidr }) => peerSlot(world.settings, podCidr) !== undefined);
    this.#endpoints = new Map(world.endpoints.map((endpoint) => [endpoint.ip, endpoint]));
    this.#flows = new Set(
      world.flows.map(({ flow: { src, dst, src_port, dst_port, protocol } }) =>
        [src, src_port, dst, dst_port, protocol].join(' '),
      ),
    );
    this.#flowPods = new Set(world.flows.map(({ pod }) => pod));
  }

  /** @throws RangeError when the packet is shorter than an Ethernet and an IPv4 header: no test run takes that. */
  decide(arrival: Arrival): Decision {
    if (arrival.packet.length < ETHER + 20) throw new RangeError('no test run takes so short a packet');
    return { out: arrival.packet, ...this.#byHook(arrival) };
  }

  #byHook(arrival: Arrival): Decided {
    if (u16(arrival.packet, 12) !== IPV4) return stack('not_ipv4');
    switch (arrival.hook) {
      case 'from_pod':
        return this.#fromPod(arrival);
      case 'from_wire':
        return this.#fromWire(arrival);
      default:
        return this.#fromStack(arrival);
    }
  }

  #fromPod(arrival: Arrival): Decided {
    const { packet, ifindex, gsoSize } = arrival;
    const { settings } = this.#world;
    if (this.#isVxlanToNode(packet)) return drop('vxlan_from_pod');

    const ip = readIp(packet, ETHER);
    const reasons = [...ip.faults];
    const sender = this.#endpoints.get(ip.src);
    if (sender?.hostIfindex !== ifindex) reasons.push('other_source');
    if (!cidrContains(settings.network, ip.dst)) return stack(...reasons, 'outside');

    if (cidrContains(settings.podCidr, ip.dst)) {
      const receiver = this.#endpoints.get(ip.dst);
      reasons.push(...this.#keptOnStack(ip, sender, receiver));
      if (!receiver || receiver.hostIfindex === ifindex) return stack(...reasons, 'no_endpoint');
      if (tooBig(arrival, ETHER, receiver.mtu)) reasons.push('too_big');
      if (reasons.length > 0) return stack(...reasons);
      return { verdict: 'fast', reasons: ['local'], out: delivered(packet.subarray(ETHER), receiver) };
    }

    const peer = this.#indexedPeers.find(({ podCidr }) => cidrContains(podCidr, ip.dst));
    reasons.push(...this.#keptOnStack(ip, sender));
    if (!peer) return stack(...reasons, 'no_peer');
    if (ip.ttl <= 1) reasons.push('ttl');
    if (tooBig(arrival, ETHER, podMtu(settings))) reasons.push('too_big');
    if (reasons.length > 0) return stack(...reasons);
    if (gsoSize > 0) return stack('no_room'); // a test run's GSO packets have no type, so none may grow
    const inner = packet.slice(ETHER);
    decrementTtl(inner, 0);
    return { verdict: 'fast', reasons: ['encap'], out: this.#encapsulated(inner, ip.tos & 3, peer) };
  }

  /** UDP to the VXLAN port of a node, IP options or not; later fragments have no port to tell it by. */
  #isVxlanToNode(packet: Uint8Array): boolean {
    const headerLength = (packet[ETHER]! & 15) * 4;
    const port = ETHER + headerLength + 2;
    const { settings, peers } = this.#world;
    const totalLength = u16(packet, ETHER + 2);
    return (
      packet[ETHER]! >>> 4 === 4 &&
      headerLength >= 20 &&
      totalLength >= headerLength + 4 &&
      totalLength <= packet.length - ETHER &&
      packet[ETHER + 9] === UDP &&
      (u16(packet, ETHER + 6) & FRAGMENT_OFFSET) === 0 &&
      u16(packet, port) === settings.port &&
      [settings.uplink.ip, ...peers.map((peer) => peer.vtepIp)].includes(address(packet, ETHER + 16))
    );
  }

  #fromWire(arrival: Arrival): Decided {
    const { packet } = arrival;
    const { settings, peers } = this.#world;

    const outer = readIp(packet, ETHER);
    const reasons = [...outer.faults];
    if ((outer.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET)) !== 0) reasons.push('outer_fragment');
    if (outer.protocol !== UDP || outer.dst !== settings.uplink.ip) return stack(...reasons, 'not_vxlan');
    const udp = ETHER + 20;
    const vxlan = udp + 8;
    const innerEther = vxlan + 8;
    const inner = innerEther + ETHER;
    if (packet.length < vxlan) return stack(...reasons, 'truncated', 'not_vxlan'); // whose port, nobody knows
    if (u16(packet, udp + 2) !== settings.port) return stack(...reasons, 'not_vxlan');
    if (outer.totalLength !== packet.length - ETHER || u16(packet, udp + 4) !== packet.length - udp)
      reasons.push('truncated');
    const unverified = u16(packet, udp + 6) === 0 ? [] : ['outer_checksum'];

    if (packet.length < innerEther) return stack(...reasons, ...unverified, 'truncated');
    const vni = [settings.vni >>> 16, (settings.vni >>> 8) & 255, settings.vni & 255];
    if (!starts(packet, vxlan, [8, 0, 0, 0, ...vni, 0])) reasons.push('other_vni');
    if (packet.length < inner) return stack(...reasons, ...unverified, 'truncated');
    if (!starts(packet, innerEther, macToBytes(settings.vtepMac))) reasons.push('other_mac');
    if (u16(packet, innerEther + 12) !== IPV4) return stack(...reasons, ...unverified, 'not_ipv4');
    if (packet.length < inner + 20) return stack(...reasons, ...unverified, 'truncated');
    const ip = readIp(packet, inner);
    reasons.push(...ip.faults);
    if (reasons.length > 0) return stack(...reasons, ...unverified);

    const speaker = this.#indexedPeers.find(({ podCidr }) => cidrContains(podCidr, ip.src));
    if (!speaker?.behindNat && speaker?.vtepIp !== outer.src) {
      const node = peers.find((peer) => peer.vtepIp === outer.src);
      if (!node) return drop('unknown_peer');
      if (this.#indexedPeers.includes(node)) return drop('spoofed_source');
      reasons.push('no_peer'); // of a node without a slot the peers map cannot tell what is its own
    }

    const receiver = this.#endpoints.get(ip.dst);
    reasons.push(...unverified, ...this.#keptOnStack(ip, receiver));
    if (!receiver) return stack(...reasons, 'no_endpoint');
    if (ip.ttl <= 1) reasons.push('ttl');
    if (arrival.gsoSize === 0 && ip.totalLength > receiver.mtu) reasons.push('too_big');
    if (reasons.length > 0) return stack(...reasons);
    const ecn = ecnOut(ip.tos & 3, outer.tos & 3);
    if (ecn === undefined) return drop('ecn');
    const out = packet.slice(inner);
    decrementTtl(out, 0);
    changeWord(out, 0, 0, (u16(out, 0) & ~3) | ecn);
    return { verdict: 'fast', reasons: ['decap'], out: delivered(out, receiver) };
  }

  /** to_pod and to_vtep let everything go on. */
  #fromStack({ hook, packet }: Arrival): Decided {
    const { network } = this.#world.settings;
    const ip = readIp(packet, ETHER);
    if (!cidrContains(network, ip.src) || !cidrContains(network, ip.dst))
      return stack(...ip.faults, 'outside');
    if (!this.#endpoints.has(hook === 'to_pod' ? ip.dst : ip.src)) return stack(...ip.faults, 'no_endpoint');
    const reply = { ...ip, src: ip.dst, dst: ip.src, ...(ip.ports && { ports: swapped(ip.ports) }) };
    return stack(...ip.faults, this.#isRemembered(reply) ? 'translated' : 'untranslated');
  }

  #isRemembered({ src, dst, ports, protocol }: Ip): boolean {
    return ports !== undefined && this.#flows.has([src, ports[0], dst, ports[1], protocol].join(' '));
  }

  /** Why a packet from or to these pods of ours stays on the kernel path, if it does. */
  #keptOnStack(ip: Ip, ...pods: readonly (Endpoint | undefined)[]): string[] {
    const known = pods.filter((pod) => pod !== undefined);
    const reasons = known.some((pod) => pod.slow) ? ['slow'] : [];
    if (ip.protocol === SCTP) return [...reasons, 'translated']; // its flows are not known
    const overflowed = known.some((pod) => this.#world.overflowed.includes(pod.ip));
    const unknowable = ip.ports === undefined || this.#isRemembered(ip);
    const mayBeTranslated = unknowable && known.some((pod) => this.#flowPods.has(pod.ip));
    return overflowed || mayBeTranslated ? [...reasons, 'translated'] : reasons;
  }

  /** RFC 7348 around an IP packet; MAC addresses are left to the kernel's neighbour table. */
  #encapsulated(inner: Uint8Array, ecn: number, peer: Peer): Uint8Array {
    const { uplink, port, vni, vtepMac } = this.#world.settings;
    const out = new Uint8Array(ETHER + ENCAP_BYTES + inner.length);
    setU16(out, 12, IPV4);
    const ip = [0x45, ecn, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0];
    out.set([...ip, ...addressToBytes(uplink.ip), ...addressToBytes(peer.vtepIp)], 14);
    setU16(out, 16, ENCAP_BYTES + inner.length);
    setU16(out, 24, checksum(out.subarray(14, 34)));
    setU16(out, 36, port);
    setU16(out, 38, ENCAP_BYTES - 20 + inner.length);
    out.set([8, 0, 0, 0, vni >>> 16, (vni >>> 8) & 255, vni & 255, 0], 42);
    out.set([...macToBytes(peer.vtepMac), ...macToBytes(vtepMac), 8, 0], 50);
    out.set(inner, 64);
    return out;
  }
}

const swapped = ([src, dst]: readonly [number, number]) => [dst, src] as const;

const starts = (bytes: Uint8Array, at: number, wanted: ArrayLike<number>): boolean =>
  Array.from(wanted).every((byte, i) => bytes[at + i] === byte);

/**
 * Whether what stands from `at` on does not fit, padding included: it is carried along. Of a GSO super-packet each segment
 * counts: the headers once, and its share of the payload.
 */
function tooBig({ packet, gsoSize }: Arrival, at: number, mtu: number): boolean {
  if (gsoSize === 0) return packet.length - at > mtu;
  const tcpHeader = (packet[at + 32]! >>> 4) * 4;
  return 20 + tcpHeader + gsoSize > mtu;
}

function delivered(ipPacket: Uint8Array, { podMac, hostMac }: Endpoint): Uint8Array {
  return Uint8Array.from([...macToBytes(podMac), ...macToBytes(hostMac), 8, 0, ...ipPacket]);
}

/**
 * An encapsulated packet with what the sender may choose set to zero: the outer IP id, under a right checksum, and the
 * outer source port, inside its range. A wrong checksum or port is left as it is, and so differs.
 */
export function withoutChoices(packet: Uint8Array, { settings }: World): Uint8Array {
  const out = packet.slice();
  if (checksum(out.subarray(14, 34)) === 0) {
    setU16(out, 18, 0);
    setU16(out, 24, 0);
    setU16(out, 24, checksum(out.subarray(14, 34)));
  }
  const { min, max } = settings.sourcePorts;
  const port = u16(out, 34);
  if (port >= min && port <= max) setU16(out, 34, 0);
  return out;
}
