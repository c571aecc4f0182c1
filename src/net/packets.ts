// SPDX-License-Identifier: Apache-2.0
/**
 * Packets, built layer by layer from the inside out. Lengths and IP checksums are right by default.
 * Both families have the same fields, with IPv4's names; the addresses determine the family of {@link ip}.
 */
import { addressFamily, addressToBytes, bytesToAddress } from './ip.ts';
import { macToBytes } from './mac.ts';

/** IANA's numbers of protocols and extension headers. */
export const protocols = {
  hopByHop: 0,
  icmp: 1,
  tcp: 6,
  udp: 17,
  routing: 43,
  fragment: 44,
  gre: 47,
  icmpv6: 58,
  noNext: 59,
  destinationOptions: 60,
  sctp: 132,
} as const;

/** The checksum of RFC 1071. */
export function checksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i]! << 8) | (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

const u16 = (value: number): number[] => [(value >>> 8) & 255, value & 255];
const u32 = (value: number): number[] => [...u16(value >>> 16), ...u16(value)];

function joined(...parts: readonly ArrayLike<number>[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

export interface EthernetFields {
  dst: string;
  src: string;
  /** Default: that of the payload's IP version. */
  type?: number;
}

export function ethernet(fields: EthernetFields, payload: Uint8Array): Uint8Array {
  const type = fields.type ?? (payload[0]! >>> 4 === 6 ? 0x86dd : 0x0800);
  return joined(macToBytes(fields.dst), macToBytes(fields.src), u16(type), payload);
}

export interface IpFields {
  src: string;
  dst: string;
  /** In IPv6 the next header. Default: UDP. */
  protocol?: number;
  /** Or hop limit. Default: 64. */
  ttl?: number;
  /** Or traffic class. */
  tos?: number;
  id?: number;
  /** Flags and offset, as in IPv4's header. For IPv6 it makes a fragment header, unless it is 0. */
  fragment?: number;
  /** The header's length field: of the whole packet in IPv4, of what follows the header in IPv6. */
  length?: number;
  version?: number;
}

export interface Ipv4Fields extends IpFields {
  /** Header options, a multiple of four bytes. */
  options?: number[];
  /** The header's length in words. */
  ihl?: number;
  checksum?: number;
}

export function ipv4(fields: Ipv4Fields, payload: Uint8Array): Uint8Array {
  const options = fields.options ?? [];
  const header = joined(
    [((fields.version ?? 4) << 4) | (fields.ihl ?? 5 + options.length / 4), fields.tos ?? 0],
    u16(fields.length ?? 20 + options.length + payload.length),
    u16(fields.id ?? 0),
    u16(fields.fragment ?? 0),
    [fields.ttl ?? 64, fields.protocol ?? protocols.udp, 0, 0],
    addressToBytes(fields.src),
    addressToBytes(fields.dst),
    options,
  );
  header.set(u16(fields.checksum ?? checksum(header)), 10);
  return joined(header, payload);
}

export interface Ipv6Fields extends IpFields {
  flowLabel?: number;
}

export function ipv6(fields: Ipv6Fields, payload: Uint8Array): Uint8Array {
  const { protocol = protocols.udp, fragment = 0 } = fields;
  const body = fragment === 0 ? payload : ipv6Fragment({ ...fields, protocol, fragment }, payload);
  const word =
    ((fields.version ?? 6) << 28) | ((fields.tos ?? 0) << 20) | ((fields.flowLabel ?? 0) & 0xfffff);
  return joined(
    u32(word >>> 0),
    u16(fields.length ?? body.length),
    [fragment === 0 ? protocol : protocols.fragment, fields.ttl ?? 64],
    addressToBytes(fields.src),
    addressToBytes(fields.dst),
    body,
  );
}

/** An IPv6 fragment header (RFC 8200 section 4.5) with its payload; flags and offset are as in IPv4's header. */
export function ipv6Fragment(
  fields: { protocol: number; fragment: number; id?: number },
  payload: Uint8Array,
): Uint8Array {
  const { fragment } = fields;
  const offset = ((fragment & 0x1fff) << 3) | (fragment & 0x2000 ? 1 : 0);
  return joined([fields.protocol, 0], u16(offset), u32(fields.id ?? 0), payload);
}

/** An IPv6 extension header of the usual form, with only padding (RFC 8200 section 4.2). */
export function ipv6Extension(next: number, payload: Uint8Array): Uint8Array {
  return joined([next, 0, 1, 4, 0, 0, 0, 0], payload);
}

/** An IP packet of the addresses' family. */
export function ip(fields: Ipv4Fields & Ipv6Fields, payload: Uint8Array): Uint8Array {
  return addressFamily(fields.src) === 6 ? ipv6(fields, payload) : ipv4(fields, payload);
}

/** The same packet in fragments. Each but the last has so many bytes of payload, a multiple of 8. */
export function fragments(fields: Ipv4Fields & Ipv6Fields, payload: Uint8Array, bytes: number): Uint8Array[] {
  const starts = Array.from({ length: Math.ceil(payload.length / bytes) }, (_, i) => i * bytes);
  return starts.map((at) => {
    const more = at + bytes < payload.length ? 0x2000 : 0;
    return ip({ ...fields, fragment: more | (at / 8) }, payload.subarray(at, at + bytes));
  });
}

export interface UdpFields {
  src: number;
  dst: number;
  /** Default: zero, which means none (RFC 768). */
  checksum?: number;
  length?: number;
}

export function udp(fields: UdpFields, payload: Uint8Array = new Uint8Array(8)): Uint8Array {
  const { src, dst, length = 8 + payload.length, checksum = 0 } = fields;
  return joined(u16(src), u16(dst), u16(length), u16(checksum), payload);
}

/** A segment with a checksum of zero, which is almost always wrong: see {@link sealed}. */
export function tcp(
  fields: { src: number; dst: number; flags?: number },
  payload: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const header = [...u16(fields.src), ...u16(fields.dst), ...u32(1), ...u32(1), 0x50, fields.flags ?? 0x10];
  return joined(header, u16(64240), [0, 0, 0, 0], payload);
}

/** ICMP of either family, with a checksum of zero: see {@link sealed}. */
export function icmp(type: number, payload: Uint8Array = new Uint8Array(4)): Uint8Array {
  return joined([type, 0, 0, 0], payload);
}

export interface VxlanFields {
  vni?: number;
  flags?: number;
}

export function vxlan(fields: VxlanFields, payload: Uint8Array): Uint8Array {
  return joined([fields.flags ?? 8, 0, 0, 0], u32(((fields.vni ?? 1) << 8) >>> 0), payload);
}

/** The offset of the checksum in the transport header. */
const checksumOffsets: Readonly<Record<number, number>> = {
  [protocols.icmp]: 2,
  [protocols.tcp]: 16,
  [protocols.udp]: 6,
  [protocols.icmpv6]: 2,
};

/**
 * The same IP packet with a correct TCP, UDP, ICMP or ICMPv6 checksum (RFC 9293, 768, 792, 4443). Not for fragments,
 * options or extension headers. A packet without a known checksum, or without room for it, is returned unchanged.
 */
export function sealed(packet: Uint8Array): Uint8Array {
  const header = headerBytes(packet);
  const at = checksumOffsets[protocolOf(packet)];
  const transport = packet.slice(header);
  if (at === undefined || transport.length < at + 2) return packet;
  transport.set([0, 0], at);
  // RFC 792's checksum has no pseudo header.
  const before = protocolOf(packet) === protocols.icmp ? [] : pseudoHeader(packet, transport.length);
  return withWord(packet, header + at, checksum(joined(before, transport)));
}

const isIpv6 = (packet: Uint8Array): boolean => packet[0]! >>> 4 === 6;
const headerBytes = (packet: Uint8Array): number => (isIpv6(packet) ? 40 : 20);
const protocolOf = (packet: Uint8Array): number => packet[isIpv6(packet) ? 6 : 9]!;

/** The pseudo header for so many bytes of transport header and payload (RFC 768, 8200). */
function pseudoHeader(packet: Uint8Array, length: number): Uint8Array {
  const addresses = isIpv6(packet) ? packet.subarray(8, 40) : packet.subarray(12, 20);
  return joined(addresses, u32(length), [0, 0, 0, protocolOf(packet)]);
}

function withWord(bytes: Uint8Array, at: number, value: number): Uint8Array {
  const changed = bytes.slice();
  // For UDP a checksum of zero means none, so the other zero of one's complement is used.
  changed.set(u16(value === 0 ? 0xffff : value), at);
  return changed;
}

/**
 * The same VXLAN packet with the outer checksum that is right if the inner one is: so does a sender that leaves the
 * inner one to its NIC ("local checksum offload"). It is wrong if the inner packet has none, or one that covers
 * something else.
 */
export function sealedAround(packet: Uint8Array): Uint8Array {
  const header = headerBytes(packet);
  const innerAt = header + 8 + 8 + 14;
  const inner = packet.subarray(innerAt);
  if (inner.length < header) return packet;
  const headers = packet.slice(header, innerAt + header);
  headers.set([0, 0], 6);
  // What the inner checksum covers adds up to this.
  const covered =
    protocolOf(inner) === protocols.icmp ? 0xffff : checksum(pseudoHeader(inner, inner.length - header));
  const before = pseudoHeader(packet, packet.length - header);
  return withWord(packet, header + 6, checksum(joined(before, headers, u16(covered))));
}

/** The outer UDP checksum left to a NIC: the field has the sum of the pseudo header, as the kernel writes it. */
export function unsummed(packet: Uint8Array): Uint8Array {
  const header = headerBytes(packet);
  const left = ~checksum(pseudoHeader(packet, packet.length - header)) & 0xffff;
  return withWord(packet, header + 6, left);
}

/** The fields of an IP packet's header. `valid` tells whether lengths and IPv4's checksum are right. */
export function readIp(bytes: Uint8Array, at = 14) {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, bytes.length - at);
  if (bytes[at]! >>> 4 === 6)
    return {
      tos: (view.getUint16(0) >>> 4) & 255,
      ttl: bytes[at + 7]!,
      protocol: bytes[at + 6]!,
      src: bytesToAddress(bytes.subarray(at + 8, at + 24)),
      dst: bytesToAddress(bytes.subarray(at + 24, at + 40)),
      valid: view.getUint16(4) === view.byteLength - 40,
    };
  return {
    tos: bytes[at + 1]!,
    ttl: bytes[at + 8]!,
    protocol: bytes[at + 9]!,
    src: bytesToAddress(bytes.subarray(at + 12, at + 16)),
    dst: bytesToAddress(bytes.subarray(at + 16, at + 20)),
    valid: view.getUint16(2) === view.byteLength && checksum(bytes.subarray(at, at + 20)) === 0,
  };
}
