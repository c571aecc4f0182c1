// SPDX-License-Identifier: Apache-2.0
/**
 * Which case a packet belongs to. A case's own packets carry its tag in the IPv6 flow label, of which the kernels that answer
 * make no use (labs.ts), or in the IPv4 id. The segments that a kernel cuts have
 * ids that count up from there: TCP's have the tag in the sequence number too, UDP's are told by their ports. What a kernel
 * answers has an id of its own, but the tag elsewhere: an ICMP error quotes the packet, an echo reply repeats its sequence
 * number, and a TCP reset the upper half of one. None of these does NAT change. (A case's own ICMP errors have the tag in the
 * second word too.)
 */
import {
  ARP,
  ICMP,
  ICMP_ERRORS,
  ICMPV6,
  ICMPV6_ERRORS,
  IPV4,
  IPV6,
  IPV6_HEADER,
  ipv6Chain,
  SERVICE_VLAN,
  TCP,
  u16,
  u32,
  UDP,
  VLAN,
} from './dissect.ts';

const TAGS = 50_000;
const VXLAN_PORT = 8472;
/** Where super-packets of UDP go; they come from the port of their tag. */
export const SEGMENTS_PORT = 9999;
/** As many segments as a super-packet may have. */
const MAX_SEGMENTS = 128;
/** In place of a tag where a kernel would repeat one: a case has made the reply itself. */
export const OWN = 0;
const ICMP_REPLIES: readonly number[] = [0, 14];
const ICMPV6_ECHO_REPLY = 129;
const [TCP_RST, TCP_ACK] = [0x04, 0x10];
const MLDV2_REPORT = 143;
/** The underlay's own address: the API server's, which the agents talk to. */
const SWITCH = '172.31.255.254';

/** From 1; it comes again when there is nothing left under way of the case that had it before. */
export const tagOfCase = (number: number): number => (number % TAGS) + 1;
/** A sequence number that says whose it is, also when the length of any segment is added to it. */
export const tagSequence = (tag: number, low: number): number => tag * 65536 + (low & 0x3ff);

interface Told {
  tag: number;
  /** A kernel made the packet about the case's own. */
  isAnswer: boolean;
}

export interface Tagged extends Told {
  /** Of an agent's watch of the API server. */
  isBackground: boolean;
  /** ARP, unless a case has sent something in such clothes. */
  looksLikeBackground: boolean;
}

/** What the fragments of a datagram have in common; undefined for what is none. */
function datagramKey(packet: Uint8Array): string | undefined {
  if ((u16(packet, 6) & 0x3fff) === 0) return undefined;
  return Buffer.from([...packet.subarray(4, 6), packet[9]!, ...packet.subarray(12, 20)]).toString('hex');
}

/** Tells tags; remembers those of first fragments, since the others may have nothing to tell them by. */
export class Tagger {
  readonly #firstFragments = new Map<string, Told>();

  /** @param frame from its Ethernet header on; undefined when it is too short to belong to any case. */
  tagOf(frame: Uint8Array): Tagged | undefined {
    let at = 12;
    while ([VLAN, SERVICE_VLAN].includes(u16(frame, at))) at += 4;
    const type = u16(frame, at);
    const packet = frame.subarray(at + 2);
    if (packet.length < 6) return undefined;
    const isV6 = packet[0]! >>> 4 === 6;
    if (type === IPV6 && packet.length >= IPV6_HEADER && isV6)
      return { ...this.#tagOfDatagram6(packet), isBackground: isChatter(packet), looksLikeBackground: false };
    const isBackground =
      (type === IPV4 && packet.subarray(16, 20).join('.') === SWITCH) ||
      (type === ARP && u16(packet, 0) === 1);
    const kind = { isBackground, looksLikeBackground: type === ARP };
    if (type !== IPV4 || packet.length < 20) {
      const isLabelled = packet[0]! >>> 4 >= 6;
      return { tag: isLabelled ? flowLabel(packet) : u16(packet, 4), isAnswer: false, ...kind };
    }
    return { ...this.#tagOfDatagram(packet), ...kind };
  }

  #tagOfDatagram(packet: Uint8Array): Told {
    const key = datagramKey(packet);
    const isLater = (u16(packet, 6) & 0x1fff) !== 0;
    const told = (isLater && this.#firstFragments.get(key!)) || this.#tagOfPacket(packet, isLater);
    if (key !== undefined && !isLater) this.#firstFragments.set(key, told);
    return told;
  }

  #tagOfDatagram6(packet: Uint8Array): Told {
    const { fragmentAt, isLater } = ipv6Chain(packet);
    if (fragmentAt === undefined) return this.#tagOfPacket6(packet);
    const key = Buffer.from([...packet.subarray(8, 40), ...packet.subarray(fragmentAt + 4, fragmentAt + 8)]);
    const told = (isLater && this.#firstFragments.get(key.toString('hex'))) || this.#tagOfPacket6(packet);
    if (!isLater) this.#firstFragments.set(key.toString('hex'), told);
    return told;
  }

  #tagOfPacket6(packet: Uint8Array): Told {
    const { at, protocol, isLater } = ipv6Chain(packet);
    const payload = packet.subarray(at);
    const own = { tag: flowLabel(packet), isAnswer: false };
    if (!isLater && isVxlan6(packet)) return this.tagOf(payload.subarray(16)) ?? own;
    if (own.tag !== 0 || isLater || payload.length < 8) return own;
    if (protocol === ICMPV6 && ICMPV6_ERRORS.includes(payload[0]!) && payload.length >= 8 + IPV6_HEADER)
      return { tag: this.#tagOfPacket6(payload.subarray(8)).tag, isAnswer: true };
    if (protocol === ICMPV6 && payload[0] === ICMPV6_ECHO_REPLY)
      return { tag: u16(payload, 6), isAnswer: true };
    if (protocol === TCP && payload.length >= 14 && payload[13]! & TCP_RST)
      return { tag: u16(payload, payload[13]! & TCP_ACK ? 8 : 4), isAnswer: true };
    return own;
  }

  #tagOfPacket(packet: Uint8Array, isLater: boolean): Told {
    const payload = packet.subarray((packet[0]! & 15) * 4);
    const own = { tag: ownTag(packet), isAnswer: false };
    if (isLater || payload.length < 8) return own;
    switch (packet[9]) {
      case ICMP: {
        const marked = u16(payload, 4) === own.tag && own.tag !== 0;
        if (ICMP_ERRORS.includes(payload[0]!) && payload.length >= 28 && !marked)
          return {
            tag: this.#tagOfPacket(payload.subarray(8), (u16(payload, 14) & 0x1fff) !== 0).tag,
            isAnswer: true,
          };
        if (ICMP_REPLIES.includes(payload[0]!) && u16(payload, 6) !== OWN)
          return { tag: u16(payload, 6), isAnswer: true };
        return own;
      }
      case TCP: {
        // A kernel's reset has no id.
        if (u16(packet, 4) !== 0 || payload.length < 14 || !(payload[13]! & TCP_RST)) return own;
        return { tag: u16(payload, payload[13]! & TCP_ACK ? 8 : 4), isAnswer: true };
      }
      case UDP:
        return (isVxlan(packet) && this.tagOf(payload.subarray(16))) || own;
      default:
        return own;
    }
  }
}

/** The tag of a packet that a case has sent, or of a segment of it, of which at least 8 bytes of payload are there. */
function ownTag(packet: Uint8Array): number {
  const id = u16(packet, 4);
  const payload = packet.subarray((packet[0]! & 15) * 4);
  if ((u16(packet, 6) & 0x1fff) !== 0 || payload.length < 8) return id;
  if (packet[9] === UDP && u16(payload, 2) === SEGMENTS_PORT) return u16(payload, 0);
  const tag = u16(payload, 4);
  return packet[9] === TCP && id > tag && id < tag + MAX_SEGMENTS ? tag : id;
}

const flowLabel = (packet: Uint8Array): number => u32(packet, 0) & 0xfffff;

/**
 * Whether an IPv6 packet is what kernels tell each other: neighbour discovery, and who listens to which group. So are
 * redirects (RFC 4861), which they limit to one a second, whatever one sets.
 */
function isChatter(packet: Uint8Array): boolean {
  const { at, protocol, isLater } = ipv6Chain(packet);
  // A later fragment has any byte in the type's place.
  if (flowLabel(packet) !== 0 || protocol !== ICMPV6 || isLater) return false;
  const type = packet[at] ?? 0;
  return (type >= 130 && type <= 137) || type === MLDV2_REPORT;
}

function isVxlan6(packet: Uint8Array): boolean {
  const { at, protocol } = ipv6Chain(packet);
  return protocol === UDP && isVxlanDatagram(packet.subarray(at));
}

/** Whether a packet is VXLAN as nodes write it; a pod's own datagram to that port begins with anything else. */
export function isVxlan(packet: Uint8Array): boolean {
  if (packet[0]! >>> 4 === 6) return packet.length >= IPV6_HEADER && isVxlan6(packet);
  return packet[9] === UDP && isVxlanDatagram(packet.subarray((packet[0]! & 15) * 4));
}

function isVxlanDatagram(datagram: Uint8Array): boolean {
  const toPort = u16(datagram, 2) === VXLAN_PORT && datagram.length > 16 + 14 + 6;
  return toPort && u16(datagram, 8) === 0x0800 && u16(datagram, 10) === 0;
}

/** Whether a frame is VXLAN around a fragment of a datagram. */
export function isTunnelledFragment(frame: Uint8Array): boolean {
  const packet = frame.subarray(14);
  const type = u16(frame, 12);
  if (type === IPV6) {
    if (packet.length < IPV6_HEADER || !isVxlan6(packet)) return false;
    const inner = packet.subarray(ipv6Chain(packet).at + 16 + 14);
    return inner.length >= IPV6_HEADER && ipv6Chain(inner).fragmentAt !== undefined;
  }
  if (type !== IPV4 || packet.length < 20 || !isVxlan(packet)) return false;
  return (u16(packet, (packet[0]! & 15) * 4 + 16 + 14 + 6) & 0x3fff) !== 0;
}
