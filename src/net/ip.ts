// SPDX-License-Identifier: Apache-2.0
import ipaddr from 'ipaddr.js';
import { RipstopError } from '../errors.ts';

/** An address family, as its IP version. */
export type Family = 4 | 6;

/** The IPv4 part and the IPv6 part of something that has one for each address family in use. */
export interface PerFamily<T> {
  readonly v4?: T;
  readonly v6?: T;
}

/** The key of a family's part in a {@link PerFamily}. */
export function familyKey(family: Family): 'v4' | 'v6' {
  return family === 4 ? 'v4' : 'v6';
}

/** Make each family's part. @param make returns undefined for a family that has none. */
export function perFamily<T>(make: (family: Family) => T | undefined): PerFamily<T> {
  const [v4, v6] = [make(4), make(6)];
  return { ...(v4 !== undefined && { v4 }), ...(v6 !== undefined && { v6 }) };
}

/** The parts that exist, IPv4 first. */
export function partsOf<T>({ v4, v6 }: PerFamily<T>): T[] {
  if (v4 === undefined) return v6 === undefined ? [] : [v6];
  return v6 === undefined ? [v4] : [v4, v6];
}

/** A CIDR block in canonical form: host bits zero, IPv6 compressed (RFC 5952). */
export interface Cidr {
  readonly family: Family;
  /** The base address, e.g. `10.42.1.0`. */
  readonly base: string;
  /** Prefix length in bits, 0–32 or 0–128. */
  readonly length: number;
}

/**
 * A strict dotted quad (four decimal parts without leading zeros) → its value as an unsigned 32-bit number, or
 * undefined. Parsed by hand, since the agent of a large cluster parses hundreds of thousands of them in one pass.
 */
function readIpv4(text: string): number | undefined {
  let value = 0;
  let parts = 0;
  let part = -1;
  for (let i = 0; i <= text.length; i++) {
    const digit = i < text.length ? text.charCodeAt(i) - 0x30 : DOT;
    if (digit === DOT) {
      if (part < 0) return undefined;
      value = value * 256 + part;
      parts++;
      part = -1;
    } else {
      if (digit < 0 || digit > 9 || part === 0) return undefined;
      part = part < 0 ? digit : part * 10 + digit;
      if (part > 255) return undefined;
    }
  }
  return parts === 4 ? value : undefined;
}

/** The code of '.', relative to that of '0'. */
const DOT = -2;

/** The family of an address text, or undefined when it is no strict IPv4 (four decimal parts) or IPv6 address. */
export function addressFamily(text: string): Family | undefined {
  // ipaddr.js also accepts octal and two-part forms; nobody means those in an annotation or a manifest.
  if (readIpv4(text) !== undefined) return 4;
  if (text.includes(':') && !text.includes('%') && ipaddr.IPv6.isValid(text)) return 6;
  return undefined;
}

/** An address and a port as one word: `10.42.0.2:80`, `[fd00::2]:80`. */
export function withPort(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}

/**
 * IPv4 text → its value as an unsigned 32-bit number in host order (10.0.0.1 → 0x0a000001).
 * @throws RipstopError when the text is no dotted quad.
 */
export function ipv4ToInt(text: string): number {
  const value = readIpv4(text);
  if (value === undefined) throw new RipstopError(`"${text}" is not an IPv4 address`);
  return value;
}

/** The inverse of {@link ipv4ToInt}. */
export function intToIpv4(value: number): string {
  return `${value >>> 24}.${(value >>> 16) & 255}.${(value >>> 8) & 255}.${value & 255}`;
}

/** Address text → its bytes in network order, 4 or 16. @throws RipstopError when the text is no address. */
export function addressToBytes(text: string): Uint8Array {
  const value = readIpv4(text);
  if (value !== undefined) return Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value);
  if (text.includes(':') && !text.includes('%')) {
    try {
      return Uint8Array.from(ipaddr.IPv6.parse(text).toByteArray());
    } catch {
      // Fall through to the error below.
    }
  }
  throw new RipstopError(`"${text}" is not an IP address`);
}

/** Bytes in network order (4 or 16) → canonical text. */
export function bytesToAddress(bytes: Uint8Array): string {
  if (bytes.length === 4) return `${bytes[0]}.${bytes[1]}.${bytes[2]}.${bytes[3]}`;
  return ipaddr.fromByteArray([...bytes]).toString();
}

/** The canonical spelling of an address. @throws RipstopError when the text is no address. */
export function canonicalAddress(text: string): string {
  // A dotted quad has only one spelling.
  return readIpv4(text) === undefined ? bytesToAddress(addressToBytes(text)) : text;
}

/**
 * The canonical spelling of an address as Go's net.ParseIP reads it: `::ffff:10.42.1.7` is the IPv4 address.
 * @returns undefined when the text is no address.
 */
export function parseAddress(text: string): string | undefined {
  if (addressFamily(text) === undefined) return undefined;
  const bytes = addressToBytes(text);
  const isMapped = bytes.length === 16 && bytes.every((byte, i) => i >= 12 || byte === (i < 10 ? 0 : 0xff));
  return bytesToAddress(isMapped ? bytes.subarray(12) : bytes);
}

/**
 * Parse `10.42.1.0/24`. Host bits must be zero: a podCIDR with host bits set is a mistake worth naming.
 * @throws RipstopError saying what is wrong with the text.
 */
export function parseCidr(text: string): Cidr {
  const cidr = parseMaskedCidr(text);
  const address = canonicalAddress(text.slice(0, text.indexOf('/')));
  if (cidr.base === address) return cidr;
  throw new RipstopError(`"${text}" has host bits set; did you mean ${formatCidr(cidr)}?`);
}

/**
 * Parse `10.42.1.7/24` as the block that the address lies in, as Go's net.ParseCIDR does: in what flannel reads too.
 * @throws RipstopError when the text is no block.
 */
export function parseMaskedCidr(text: string): Cidr {
  const match = /^([0-9a-fA-F.:]+)\/(\d{1,3})$/.exec(text);
  const family = match ? addressFamily(match[1]!) : undefined;
  const length = Number(match?.[2]);
  if (!match || family === undefined || length > (family === 4 ? 32 : 128)) {
    throw new RipstopError(`"${text}" is not a CIDR block such as 10.42.0.0/16`);
  }
  return { family, base: maskAddress(canonicalAddress(match[1]!), length), length };
}

export function formatCidr(cidr: Cidr): string {
  return `${cidr.base}/${cidr.length}`;
}

/** The block of one address: `10.42.1.5` → `10.42.1.5/32`, `fd00::5` → `fd00::5/128`. */
export function hostCidr(address: string): string {
  return `${address}/${addressFamily(address) === 6 ? 128 : 32}`;
}

/** Whether an address (text, either family) lies in the block. */
export function cidrContains(cidr: Cidr, address: string): boolean {
  if (addressFamily(address) !== cidr.family) return false;
  return maskAddress(address, cidr.length) === cidr.base;
}

/** Whether `inner` lies wholly in `outer`. */
export function cidrCovers(outer: Cidr, inner: Cidr): boolean {
  return outer.length <= inner.length && cidrContains(outer, inner.base);
}

/** Whether the two blocks share an address. */
export function cidrsOverlap(a: Cidr, b: Cidr): boolean {
  return cidrCovers(a, b) || cidrCovers(b, a);
}

/** The block's n-th address (0 is the base): `addressAt(10.42.1.0/24, 1)` → `10.42.1.1`. */
export function addressAt(cidr: Cidr, n: number): string {
  const bytes = addressToBytes(cidr.base);
  for (let i = bytes.length - 1, carry = n; carry > 0 && i >= 0; i--) {
    const sum = bytes[i]! + carry;
    bytes[i] = sum & 255;
    carry = Math.floor(sum / 256);
  }
  return bytesToAddress(bytes);
}

/** The address with its host bits cleared, in canonical form: the base of the block of this length that contains it. */
export function maskAddress(address: string, length: number): string {
  const value = readIpv4(address);
  // JavaScript would treat a shift by 32 as a shift by 0.
  if (value !== undefined) return intToIpv4(length === 0 ? 0 : value & (-1 << (32 - length)));
  return bytesToAddress(
    addressToBytes(address).map((byte, i) => byte & (0xff00 >> Math.min(8, Math.max(0, length - i * 8)))),
  );
}
