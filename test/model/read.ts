// SPDX-License-Identifier: Apache-2.0
/**
 * IP packets according to the RFCs, as far as a verdict depends on them. Addresses of both families are numbers here.
 */
import { addressToBytes, bytesToAddress, type Cidr, type Family } from '../../src/net/ip.ts';
import type { Flow } from '../bpf/node.ts';
import { checksum, protocols } from '../../src/net/packets.ts';

export const u16 = (bytes: Uint8Array, at: number): number => (bytes[at]! << 8) | bytes[at + 1]!;

export function setU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value & 255;
}

const toNumber = (bytes: Uint8Array): bigint =>
  BigInt(`0x${Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex')}`);

/** The number of an address. */
export const addressNumber = (text: string): bigint => toNumber(addressToBytes(text));

/** The address with a number. */
export function addressText(number: bigint, family: Family): string {
  return bytesToAddress(Buffer.from(number.toString(16).padStart(family === 4 ? 8 : 32, '0'), 'hex'));
}

/** The addresses of a packet, as text. */
export const endsOf = ({
  src,
  dst,
  family,
}: Pick<IpPacket, 'src' | 'dst' | 'family'>): { src: string; dst: string } => ({
  src: addressText(src, family),
  dst: addressText(dst, family),
});

/** A predicate for the addresses of a CIDR, as numbers. */
export function membership({ family, base, length }: Cidr): (address: bigint) => boolean {
  const hostBits = BigInt((family === 4 ? 32 : 128) - length);
  const prefix = addressNumber(base) >> hostBits;
  return (address) => address >> hostBits === prefix;
}

/** The length of an IP header without options and extension headers. */
export const headerLength = { 4: 20, 6: 40 } as const satisfies Record<Family, number>;

/** An ethertype's family. */
export function familyOf(ethertype: number): Family | undefined {
  return ethertype === 0x0800 ? 4 : ethertype === 0x86dd ? 6 : undefined;
}

export interface IpPacket {
  readonly family: Family;
  /** Why it may be misunderstood: `malformed`, `ip_options`. The other members may be wrong then. */
  readonly faults: readonly string[];
  readonly tos: number;
  readonly ttl: number;
  readonly protocol: number;
  readonly src: bigint;
  readonly dst: bigint;
  readonly fragment: 'none' | 'first' | 'later';
  /** Its length according to its header. */
  readonly length: number;
  /** The offset of the payload according to its header. */
  readonly headerEnd: number;
  /** The bytes after the IP header, its options, and a fragment header. */
  readonly payload: Uint8Array;
}

/** RFC 7045's list and "no next header", without ESP, which acts as a transport protocol, and without experiments. */
const extensionHeaders: ReadonlySet<number> = new Set([
  protocols.hopByHop,
  protocols.routing,
  51, // authentication
  protocols.noNext,
  protocols.destinationOptions,
  135, // mobility
  139, // host identity
  140, // shim6
]);

/** The packet of this family in these bytes; undefined when a header is truncated, or the version is another. */
export function readIp(bytes: Uint8Array, family: Family): IpPacket | undefined {
  if (bytes.length < headerLength[family] || bytes[0]! >>> 4 !== family) return undefined;
  return family === 4 ? readIpv4(bytes) : readIpv6(bytes);
}

/** RFC 791. */
function readIpv4(bytes: Uint8Array): IpPacket {
  const headerEnd = (bytes[0]! & 15) * 4;
  const length = u16(bytes, 2);
  const broken =
    headerEnd < 20 || headerEnd > length || length !== bytes.length || checksum(bytes.subarray(0, headerEnd));
  const word = u16(bytes, 6);
  const fragment = word & 0x1fff ? 'later' : word & 0x2000 ? 'first' : 'none';
  const payload = bytes.subarray(headerEnd);
  return {
    family: 4,
    faults: [...(broken ? ['malformed'] : []), ...(headerEnd === 20 ? [] : ['ip_options'])],
    tos: bytes[1]!,
    ttl: bytes[8]!,
    protocol: bytes[9]!,
    src: toNumber(bytes.subarray(12, 16)),
    dst: toNumber(bytes.subarray(16, 20)),
    fragment,
    length,
    headerEnd,
    payload,
  };
}

/** RFC 8200. One fragment header is understood. */
function readIpv6(bytes: Uint8Array): IpPacket | undefined {
  const length = 40 + u16(bytes, 4);
  const isFragment = bytes[6] === protocols.fragment;
  const headerEnd = isFragment ? 48 : 40;
  const payload = bytes.subarray(headerEnd);
  if (bytes.length < headerEnd) return undefined;
  const protocol = bytes[isFragment ? 40 : 6]!;
  const fragment = isFragment ? (u16(bytes, 42) >>> 3 ? 'later' : 'first') : 'none';
  const hidden = extensionHeaders.has(protocol) || protocol === protocols.fragment;
  return {
    family: 6,
    faults: [...(length === bytes.length ? [] : ['malformed']), ...(hidden ? ['ip_options'] : [])],
    tos: (u16(bytes, 0) >>> 4) & 255,
    ttl: bytes[7]!,
    protocol,
    src: toNumber(bytes.subarray(8, 24)),
    dst: toNumber(bytes.subarray(24, 40)),
    fragment,
    length,
    headerEnd,
    payload,
  };
}

/** ICMP of the packet's own family. */
export const isIcmp = ({ family, protocol }: IpPacket): boolean =>
  protocol === (family === 4 ? protocols.icmp : protocols.icmpv6);

/** RFC 9293. */
const [FIN, SYN, RST, ACK] = [1, 2, 4, 16];
/** RFC 792 and 4443: replies and requests. */
const echoTypes: Readonly<Record<Family, readonly number[]>> = { 4: [0, 8], 6: [128, 129] };

/** What a packet says of its flow: the flow, and what TCP says of its connection; or why it has none. */
export type FlowReading =
  | {
      readonly flow: Flow;
      /** It belongs to a beginning or an end. */
      readonly isEnd: boolean;
      /** After it another connection may have this flow. */
      readonly isBreak: boolean;
      /** It is the answer to a SYN, the last packet of a handshake in its direction. */
      readonly isAnswer: boolean;
      /** It has no payload, so others may overtake it. */
      readonly isBare: boolean;
    }
  | { readonly flow?: undefined; readonly why: 'protocol' | 'malformed' };

/** The flow of a packet that is whole. An echo has its identifier and its type for ports. */
export function readFlow(ip: IpPacket): FlowReading {
  const { family, protocol, payload } = ip;
  const of = (src_port: number, dst_port: number, flags = 0, isBare = false): FlowReading => ({
    flow: {
      ...endsOf(ip),
      src_port,
      dst_port,
      protocol,
    },
    isEnd: (flags & (FIN | SYN | RST)) !== 0,
    isBreak: (flags & (SYN | RST)) !== 0,
    isAnswer: (flags & (FIN | SYN | RST | ACK)) === (SYN | ACK),
    isBare,
  });
  if (isIcmp(ip)) {
    const isEcho = payload.length >= 8 && echoTypes[family].includes(payload[0]!);
    return isEcho ? of(u16(payload, 4), payload[0]!) : { why: 'protocol' };
  }
  if (protocol !== protocols.tcp && protocol !== protocols.udp) return { why: 'protocol' };
  const isTcp = protocol === protocols.tcp;
  if (payload.length < (isTcp ? 20 : 8)) return { why: 'malformed' };
  if (!isTcp) return of(u16(payload, 0), u16(payload, 2));
  const isBare = payload.length === (payload[12]! >>> 4) * 4;
  return of(u16(payload, 0), u16(payload, 2), payload[13], isBare);
}

/** The one's complement sum of the pseudo header for so many bytes of transport header and payload (RFC 768, 8200). */
export function pseudoHeaderSum(
  header: Uint8Array,
  family: Family,
  protocol: number,
  length: number,
): number {
  const addresses = family === 4 ? header.subarray(12, 20) : header.subarray(8, 40);
  return sum(addresses) + protocol + length;
}

/** One's complement sum, RFC 1071. */
export const sum = (bytes: Uint8Array): number => ~checksum(bytes) & 0xffff;

/** Change the word at `at` of an IPv4 header, and its checksum by RFC 1624, equation 3. */
function changeWord(header: Uint8Array, at: number, value: number): void {
  let sum = (~u16(header, 10) & 0xffff) + (~u16(header, at) & 0xffff) + value;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  setU16(header, 10, ~sum & 0xffff);
  setU16(header, at, value);
}

/** Offsets of the checksum in the transport header. */
const checksumAt: Readonly<Record<number, number>> = { [protocols.tcp]: 16, [protocols.udp]: 6 };

/**
 * Give a packet the addresses and ports of a flow, in place. The transport checksum covers them all, and IPv4's header
 * checksum the addresses. A datagram without a checksum stays without (RFC 768).
 */
export function translate(packet: Uint8Array, { family, protocol, headerEnd }: IpPacket, to: Flow): void {
  const addressesAt = family === 4 ? 12 : 8;
  const ends = Uint8Array.from([...addressToBytes(to.src), ...addressToBytes(to.dst)]);
  const at = headerEnd + checksumAt[protocol]!;
  const before = u16(packet, at);
  let sum = ~before & 0xffff;
  const change = (word: number, value: number): void => {
    const from = u16(packet, word);
    if (from === value) return;
    sum += (~from & 0xffff) + value;
    if (family === 4 && word < headerEnd) changeWord(packet, word, value);
    else setU16(packet, word, value);
  };
  for (let i = 0; i < ends.length; i += 2) change(addressesAt + i, u16(ends, i));
  change(headerEnd, to.src_port);
  change(headerEnd + 2, to.dst_port);
  if (protocol === protocols.udp && before === 0) return;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  const after = sum === 0 ? 0 : ~sum & 0xffff; // of the two zeros the one that updating gives
  setU16(packet, at, after === 0 && protocol === protocols.udp ? 0xffff : after);
}

/** Take one hop off, in place. */
export function decrementTtl(packet: Uint8Array, family: Family): void {
  if (family === 6) packet[7]!--;
  else changeWord(packet, 8, u16(packet, 8) - 0x0100);
}

/** Set the ECN field, in place. */
export function setEcn(packet: Uint8Array, family: Family, ecn: number): void {
  if (family === 6) packet[1] = (packet[1]! & 0xcf) | (ecn << 4);
  else changeWord(packet, 0, (u16(packet, 0) & ~3) | ecn);
}
