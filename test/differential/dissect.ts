// SPDX-License-Identifier: Apache-2.0
/**
 * Splits frames into named fields, so that a difference has a name. Every byte belongs to a field. For a checksum the
 * field has its error, since otherwise every other difference would show twice.
 */
import { bytesToAddress } from '../../src/net/ip.ts';
import { bytesToMac } from '../../src/net/mac.ts';
import { checksum } from '../../src/net/packets.ts';
import type { Received } from '../support/raw-socket.ts';

/** Fields, in the order of the frame. */
export type Fields = Record<string, string>;

export const [ICMP, TCP, UDP, ICMPV6] = [1, 6, 17, 58];
export const [IPV4, IPV6, ARP, VLAN, SERVICE_VLAN] = [0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8];
const VXLAN_PORT = 8472;
const [MORE_FRAGMENTS, FRAGMENT_OFFSET] = [0x2000, 0x1fff];
/** ICMP types that quote the packet that they are about: unreachable, redirect, time exceeded, parameter problem. */
export const ICMP_ERRORS: readonly number[] = [3, 5, 11, 12];
/** The same for ICMPv6: unreachable, packet too big, time exceeded, parameter problem (RFC 4443). */
export const ICMPV6_ERRORS: readonly number[] = [1, 2, 3, 4];
/** Extension headers of RFC 8200 with a length field: hop-by-hop options, routing, destination options. */
const EXTENSIONS: readonly number[] = [0, 43, 60];
const FRAGMENT = 44;
export const IPV6_HEADER = 40;

/** The structure of an IPv6 packet: offsets from its start. */
export interface Ipv6Chain {
  /** The number of the upper layer, or of the truncated header. */
  readonly at: number;
  readonly protocol: number;
  /** The fragment header, if there is one. */
  readonly fragmentAt?: number;
  /** Flags and offset as in IPv4's header. */
  readonly fragment: number;
  /** Whether it is a fragment other than the first, so that no header follows. */
  readonly isLater: boolean;
}

/** @param packet with a complete IPv6 header */
export function ipv6Chain(packet: Uint8Array): Ipv6Chain {
  let chain: Ipv6Chain = { at: IPV6_HEADER, protocol: packet[6]!, fragment: 0, isLater: false };
  for (;;) {
    const { at, protocol, isLater } = chain;
    if (isLater || at + 8 > packet.length) return chain;
    if (protocol === FRAGMENT) {
      const word = u16(packet, at + 2);
      const fragment = (word >>> 3) | (word & 1 ? MORE_FRAGMENTS : 0);
      const isLater = word >>> 3 !== 0;
      chain = { at: at + 8, protocol: packet[at]!, fragmentAt: at, fragment, isLater };
    } else if (EXTENSIONS.includes(protocol)) {
      const end = at + 8 * (packet[at + 1]! + 1);
      if (end > packet.length) return chain;
      chain = { ...chain, at: end, protocol: packet[at]! };
    } else return chain;
  }
}

export const u16 = (bytes: Uint8Array, at: number): number => ((bytes[at] ?? 0) << 8) | (bytes[at + 1] ?? 0);
export const u32 = (bytes: Uint8Array, at: number): number => u16(bytes, at) * 65536 + u16(bytes, at + 2);
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** Names that are the same for the same role in both labs. */
export interface Names {
  /** The name of a MAC address. */
  of(mac: string): string;
  /** The name of a link-local address made of a MAC address. Other addresses stay. */
  address(ip: string): string;
  /** Bytes in hexadecimal, with the addresses in them replaced by names. */
  masked(hex: string): string;
}

export function dissect({ frame, vlan, gsoSize }: Received, names: Names): Fields {
  const fields: Fields = {};
  if (gsoSize !== undefined) fields['gso size'] = String(gsoSize);
  if (vlan !== undefined) fields['vlan'] = String(vlan);
  ethernet(fields, '', frame, names);
  return fields;
}

function ethernet(fields: Fields, prefix: string, frame: Uint8Array, names: Names): void {
  if (frame.length < 14) return rest(fields, `${prefix}frame`, frame);
  fields[`${prefix}eth dst`] = names.of(bytesToMac(frame.subarray(0, 6)));
  fields[`${prefix}eth src`] = names.of(bytesToMac(frame.subarray(6, 12)));
  let at = 12;
  for (; u16(frame, at) === VLAN; at += 4) fields[`${prefix}vlan`] = String(u16(frame, at + 2));
  const type = u16(frame, at);
  fields[`${prefix}eth type`] = `0x${type.toString(16).padStart(4, '0')}`;
  const packet = frame.subarray(at + 2);
  const isV6 = type === IPV6 && packet.length >= IPV6_HEADER;
  if (!isV6 && (type !== IPV4 || packet.length < 20)) return rest(fields, `${prefix}eth payload`, packet);
  (isV6 ? ipv6 : ipv4)(fields, prefix, packet, (vxlan) => {
    fields['vxlan flags'] = vxlan[0]!.toString(16);
    fields['vxlan vni'] = String(u32(vxlan, 4) >>> 8);
    if (hex(vxlan.subarray(1, 4)) + hex(vxlan.subarray(7, 8)) !== '00000000')
      fields['vxlan reserved'] = hex(vxlan.subarray(0, 8));
    ethernet(fields, 'inner ', vxlan.subarray(8), names);
  });
  for (const name of Object.keys(fields))
    if (/ip (src|dst)$/.test(name)) fields[name] = names.address(fields[name]!);
  for (const name of ['quoted udp payload', 'quoted payload'])
    if (name in fields) fields[name] = names.masked(fields[name]!);
}

/** @param onVxlan gets VXLAN's header and what follows. Without it a tunnelled packet is plain payload. */
function ipv4(
  fields: Fields,
  prefix: string,
  packet: Uint8Array,
  onVxlan?: (vxlan: Uint8Array) => void,
): void {
  const headerLength = Math.max(20, Math.min((packet[0]! & 15) * 4, packet.length));
  const totalLength = u16(packet, 2);
  const end = totalLength < headerLength ? packet.length : Math.min(totalLength, packet.length);
  const fragment = u16(packet, 6);
  const protocol = packet[9]!;
  const put = (name: string, value: string | number): void => {
    fields[`${prefix}ip ${name}`] = String(value);
  };
  put('version', `0x${packet[0]!.toString(16)}`);
  put('dscp', packet[1]! >>> 2);
  put('ecn', packet[1]! & 3);
  put('length', totalLength);
  put('id', u16(packet, 4));
  put('flags', fragment >>> 13);
  put('offset', (fragment & FRAGMENT_OFFSET) * 8);
  put('ttl', packet[8]!);
  put('protocol', protocol);
  put('checksum', worth(checksum(packet.subarray(0, headerLength))));
  put('src', bytesToAddress(packet.subarray(12, 16)));
  put('dst', bytesToAddress(packet.subarray(16, 20)));
  if (headerLength > 20) put('options', hex(packet.subarray(20, headerLength)));
  const payload = packet.subarray(headerLength, end);
  if (end < packet.length) rest(fields, `${prefix}padding`, packet.subarray(end));
  if ((fragment & FRAGMENT_OFFSET) !== 0) return rest(fields, `${prefix}fragment`, payload);
  const pseudo = [...packet.subarray(12, 20), 0, protocol, payload.length >>> 8, payload.length & 255];
  // The checksum of a fragment or a quotation covers bytes that are missing.
  const whole = (fragment & MORE_FRAGMENTS) === 0 && totalLength === end;
  transport(fields, prefix, protocol, payload, whole ? Uint8Array.from(pseudo) : undefined, onVxlan);
}

/** With IPv4's names for fields of the same meaning; extension headers are options. */
function ipv6(
  fields: Fields,
  prefix: string,
  packet: Uint8Array,
  onVxlan?: (vxlan: Uint8Array) => void,
): void {
  const length = u16(packet, 4);
  const end = Math.min(IPV6_HEADER + length, packet.length);
  const { at, protocol, fragmentAt, fragment, isLater } = ipv6Chain(packet.subarray(0, end));
  const put = (name: string, value: string | number): void => {
    fields[`${prefix}ip ${name}`] = String(value);
  };
  const word = u32(packet, 0);
  put('version', word >>> 28);
  put('dscp', (word >>> 22) & 63);
  put('ecn', (word >>> 20) & 3);
  put('label', word & 0xfffff);
  put('length', length);
  put('ttl', packet[7]!);
  put('protocol', protocol);
  put('src', bytesToAddress(packet.subarray(8, 24)));
  put('dst', bytesToAddress(packet.subarray(24, 40)));
  if (fragmentAt !== undefined) {
    put('id', u32(packet, fragmentAt + 4));
    put('flags', fragment >>> 13);
    put('offset', (fragment & FRAGMENT_OFFSET) * 8);
    const reserved = [packet[fragmentAt + 1]!, packet[fragmentAt + 3]! & 6];
    if (reserved.some((byte) => byte !== 0)) put('reserved', hex(Uint8Array.from(reserved)));
  }
  const extensions =
    fragmentAt === undefined
      ? [packet.subarray(IPV6_HEADER, at)]
      : [
          [IPV6_HEADER, fragmentAt],
          [fragmentAt, fragmentAt + 1],
          [fragmentAt + 8, at],
        ].map((range) => packet.subarray(...(range as [number, number])));
  if (at - IPV6_HEADER > (fragmentAt === undefined ? 0 : 8))
    put('options', ['next', packet[6]!, ...extensions.map(hex)].join(' '));
  const payload = packet.subarray(at, end);
  if (end < packet.length) rest(fields, `${prefix}padding`, packet.subarray(end));
  if (isLater) return rest(fields, `${prefix}fragment`, payload);
  const lengthAndProtocol = [0, 0, payload.length >>> 8, payload.length & 255, 0, 0, 0, protocol];
  const whole = (fragment & MORE_FRAGMENTS) === 0 && IPV6_HEADER + length === end;
  const pseudo = whole ? Uint8Array.from([...packet.subarray(8, 40), ...lengthAndProtocol]) : undefined;
  transport(fields, prefix, protocol, payload, pseudo, onVxlan);
}

function transport(
  fields: Fields,
  prefix: string,
  protocol: number,
  bytes: Uint8Array,
  pseudo: Uint8Array | undefined,
  onVxlan?: (vxlan: Uint8Array) => void,
): void {
  const put = (name: string, value: string | number): void => {
    fields[`${prefix}${name}`] = String(value);
  };
  /** ICMP for IPv4 has no pseudo header. */
  const judge = (field: number, over: Uint8Array): string =>
    pseudo
      ? worth(checksum(Uint8Array.from([...over, ...bytes])))
      : `0x${u16(bytes, field).toString(16).padStart(4, '0')}`;
  if (protocol === TCP && bytes.length >= 20) {
    put('tcp src', u16(bytes, 0));
    put('tcp dst', u16(bytes, 2));
    put('tcp seq', u32(bytes, 4));
    put('tcp ack', u32(bytes, 8));
    put('tcp header', bytes[12]!.toString(16));
    put('tcp flags', bytes[13]!.toString(16));
    put('tcp window', u16(bytes, 14));
    put('tcp checksum', judge(16, pseudo ?? bytes));
    put('tcp urgent', u16(bytes, 18));
    return rest(fields, `${prefix}tcp payload`, bytes.subarray(20));
  }
  if (protocol === UDP && bytes.length >= 8) {
    put('udp src', u16(bytes, 0));
    put('udp dst', u16(bytes, 2));
    put('udp length', u16(bytes, 4));
    put('udp checksum', u16(bytes, 6) === 0 ? 'none' : judge(6, pseudo ?? bytes));
    if (onVxlan && u16(bytes, 2) === VXLAN_PORT && bytes.length >= 16) return onVxlan(bytes.subarray(8));
    return rest(fields, `${prefix}udp payload`, bytes.subarray(8));
  }
  if (protocol === ICMP && bytes.length >= 8) {
    put('icmp type', bytes[0]!);
    put('icmp code', bytes[1]!);
    put('icmp checksum', judge(2, new Uint8Array(0)));
    put('icmp rest', hex(bytes.subarray(4, 8)));
    const quoted = bytes.subarray(8);
    if (ICMP_ERRORS.includes(bytes[0]!) && quoted.length >= 20)
      return ipv4(fields, `${prefix}quoted `, quoted);
    return rest(fields, `${prefix}icmp payload`, quoted);
  }
  if (protocol === ICMPV6 && bytes.length >= 8) {
    put('icmp type', bytes[0]!);
    put('icmp code', bytes[1]!);
    put('icmp checksum', judge(2, pseudo ?? bytes));
    put('icmp rest', hex(bytes.subarray(4, 8)));
    const quoted = bytes.subarray(8);
    if (ICMPV6_ERRORS.includes(bytes[0]!) && quoted.length >= IPV6_HEADER)
      return ipv6(fields, `${prefix}quoted `, quoted);
    return rest(fields, `${prefix}icmp payload`, quoted);
  }
  return rest(fields, `${prefix}payload`, bytes);
}

/** The checksum of everything, its own field included: its error stays the same when NAT adjusts it. */
function worth(sum: number): string {
  return sum === 0 ? 'right' : `wrong by 0x${(~sum & 0xffff).toString(16).padStart(4, '0')}`;
}

function rest(fields: Fields, name: string, bytes: Uint8Array): void {
  if (bytes.length === 0) return;
  fields[`${name} length`] = String(bytes.length);
  fields[name] = hex(bytes);
}
