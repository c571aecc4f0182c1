// SPDX-License-Identifier: Apache-2.0
import ipaddr from 'ipaddr.js';
import { RipstopError } from '../errors.ts';

/** An address family, as its IP version. */
export type Family = 4 | 6;

/** The name of a family's part in what has one for each. */
export function half(family: Family): 'v4' | 'v6' {
  return family === 4 ? 'v4' : 'v6';
}

/** A CIDR block in canonical form: host bits zero, IPv6 compressed (RFC 5952). */
export interface Cidr {
  readonly family: Family;
  /** The base address, e.g. `10.42.1.0`. */
  readonly base: string;
  /** Prefix length in bits, 0–32 or 0–128. */
  readonly length: number;
}

/** The family of an address text, or undefined when it is no strict IPv4 (four decimal parts) or IPv6 address. */
export function addressFamily(text: string): Family | undefined {
  // ipaddr.js knows octal and two-part forms too; annotations and manifests never mean those.
  if (ipaddr.IPv4.isValidFourPartDecimal(text)) return 4;
  if (text.includes(':') && !text.includes('%') && ipaddr.IPv6.isValid(text)) return 6;
  return undefined;
}

/** IPv4 text → its value as an unsigned 32-bit number in host order (10.0.0.1 → 0x0a000001).
 * @throws RipstopError when the text is no dotted quad. */
export function ipv4ToInt(text: string): number {
  if (addressFamily(text) !== 4) throw new RipstopError(`"${text}" is not an IPv4 address`);
  return text.split('.').reduce((value, part) => value * 256 + Number(part), 0);
}

/** The inverse of {@link ipv4ToInt}. */
export function intToIpv4(value: number): string {
  return `${value >>> 24}.${(value >>> 16) & 255}.${(value >>> 8) & 255}.${value & 255}`;
}

/** Address text → its bytes in network order, 4 or 16.
 * @throws RipstopError when the text is no address. */
export function addressToBytes(text: string): Uint8Array {
  if (addressFamily(text) === undefined) throw new RipstopError(`"${text}" is not an IP address`);
  return Uint8Array.from(ipaddr.parse(text).toByteArray());
}

/** Bytes in network order (4 or 16) → canonical text. */
export function bytesToAddress(bytes: Uint8Array): string {
  if (bytes.length === 4) return bytes.join('.');
  return ipaddr.fromByteArray([...bytes]).toString();
}

/** The canonical spelling of an address. @throws RipstopError when the text is no address. */
export function canonicalAddress(text: string): string {
  return bytesToAddress(addressToBytes(text));
}

/**
 * Parse `10.42.1.0/24`. Host bits must be zero: a podCIDR with host bits set is a mistake worth naming.
 * @throws RipstopError saying what is wrong with the text.
 */
export function parseCidr(text: string): Cidr {
  const match = /^([0-9a-fA-F.:]+)\/(\d{1,3})$/.exec(text);
  const family = match ? addressFamily(match[1]!) : undefined;
  const length = Number(match?.[2]);
  if (!match || family === undefined || length > (family === 4 ? 32 : 128)) {
    throw new RipstopError(`"${text}" is not a CIDR block such as 10.42.0.0/16`);
  }
  const bytes = addressToBytes(match[1]!);
  const masked = maskBytes(bytes, length);
  const base = bytesToAddress(masked);
  if (base !== bytesToAddress(bytes)) {
    throw new RipstopError(`"${text}" has host bits set; did you mean ${base}/${length}?`);
  }
  return { family, base, length };
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
  return bytesToAddress(maskBytes(addressToBytes(address), cidr.length)) === cidr.base;
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

function maskBytes(bytes: Uint8Array, length: number): Uint8Array {
  return bytes.map((byte, i) => byte & (0xff00 >> Math.min(8, Math.max(0, length - i * 8))) & 0xff);
}
