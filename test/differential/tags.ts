// SPDX-License-Identifier: Apache-2.0
/**
 * Finds the case that a packet belongs to. A case's own packets carry its tag in the IPv4 id, or in the IPv6 flow label, which
 * the answering kernels leave at zero (labs.ts). The segments that a kernel makes of a super-packet have ids that count up
 * from the tag; TCP segments also have it in the sequence number, UDP segments in the source port. A kernel's answer has an
 * id of its own, but the tag elsewhere: an ICMP error quotes the packet, an echo reply repeats its sequence number, and a TCP
 * reset the upper half of one. NAT changes none of these. (A case's own ICMP errors have the tag in the second word too.)
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
/** The destination port of UDP super-packets; their source port is their tag. */
export const SEGMENTS_PORT = 9999;
/** The most segments that a super-packet may have. */
const MAX_SEGMENTS = 128;
/** Stands where a kernel would repeat the tag: the case itself sent this reply. */
export const OWN = 0;
const ICMP_REPLIES: readonly number[] = [0, 14];
const ICMPV6_ECHO_REPLY = 129;
const [TCP_RST, TCP_ACK] = [0x04, 0x10];
const MLDV2_REPORT = 143;
/** The underlay's own address, where the agents reach the API server. */
const SWITCH = '172.31.255.254';

/** Tags begin at 1. One is used again only when nothing of the case that had it before is still under way. */
export const tagOfCase = (number: number): number => (number % TAGS) + 1;
/** A TCP sequence number that holds the tag, even after the length of any segment is added. */
export const tagSequence = (tag: number, low: number): number => tag * 65536 + (low & 0x3ff);

interface Told {
  tag: number;
  /** Whether a kernel made the packet, in answer to one of the case. */
  isAnswer: boolean;
}

export interface Tagged extends Told {
  /** Whether it belongs to an agent's connection to the API server, or to the kernels' own talk. */
  isBackground: boolean;
  /** Whether it looks like ARP; a case may have sent it all the same. */
  looksLikeBackground: boolean;
}

/** What the fragments of one datagram have in common; undefined for a packet that is no fragment. */
function datagramKey(packet: Uint8Array): string | undefined {
  if ((u16(packet, 6) & 0x3fff) === 0) return undefined;
  return Buffer.from([...packet.subarray(4, 6), packet[9]!, ...packet.subarray(12, 20)]).toString('hex');
}

/** Finds the tag of a packet. Remembers those of first fragments, since later fragments may hold none. */
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
      return { tag: this.#tagOfDatagram6(payload.subarray(8)).tag, isAnswer: true };
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

/** The tag of a packet that a case sent, or of a segment of one. */
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
 * Whether an IPv6 packet is the kernels' own talk: neighbour discovery and multicast group membership. Redirects (RFC 4861)
 * belong to it too; kernels limit them to one a second, and no setting changes that.
 */
function isChatter(packet: Uint8Array): boolean {
  const { at, protocol, isLater } = ipv6Chain(packet);
  // In a later fragment, any byte may stand where the type would be.
  if (flowLabel(packet) !== 0 || protocol !== ICMPV6 || isLater) return false;
  const type = packet[at] ?? 0;
  return (type >= 130 && type <= 137) || type === MLDV2_REPORT;
}

function isVxlan6(packet: Uint8Array): boolean {
  const { at, protocol } = ipv6Chain(packet);
  return protocol === UDP && isVxlanDatagram(packet.subarray(at));
}

/** Whether a packet is VXLAN as nodes write it. A pod's own datagram to that port begins differently. */
export function isVxlan(packet: Uint8Array): boolean {
  if (packet[0]! >>> 4 === 6) return packet.length >= IPV6_HEADER && isVxlan6(packet);
  return packet[9] === UDP && isVxlanDatagram(packet.subarray((packet[0]! & 15) * 4));
}

function isVxlanDatagram(datagram: Uint8Array): boolean {
  const toPort = u16(datagram, 2) === VXLAN_PORT && datagram.length > 16 + 14 + 6;
  return toPort && u16(datagram, 8) === 0x0800 && u16(datagram, 10) === 0;
}

/** Whether a frame is VXLAN that carries a fragment. */
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
