// SPDX-License-Identifier: Apache-2.0
/** Packets for tests, built layer by layer from the outside in, with right lengths and checksums unless told otherwise. */
import { addressToBytes } from '../../src/net/ip.ts';
import { macToBytes } from '../../src/net/mac.ts';

/** RFC 1071 over network-order words. */
export function checksum(bytes: Uint8Array, start = 0): number {
  let sum = start;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i]! << 8) | (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

const u16 = (value: number): number[] => [(value >>> 8) & 255, value & 255];
const u32 = (value: number): number[] => [...u16(value >>> 16), ...u16(value)];

export interface EthernetFields {
  dst: string;
  src: string;
  type?: number;
}

export function ethernet(fields: EthernetFields, payload: Uint8Array): Uint8Array {
  return Uint8Array.from([
    ...macToBytes(fields.dst),
    ...macToBytes(fields.src),
    ...u16(fields.type ?? 0x0800),
    ...payload,
  ]);
}

export interface Ipv4Fields {
  src: string;
  dst: string;
  protocol?: number;
  ttl?: number;
  tos?: number;
  id?: number;
  /** Flags and offset, as in the header. */
  fragment?: number;
  /** Header options, a multiple of four bytes. */
  options?: number[];
  totalLength?: number;
  versionIhl?: number;
}

export function ipv4(fields: Ipv4Fields, payload: Uint8Array): Uint8Array {
  const options = fields.options ?? [];
  const header = Uint8Array.from([
    fields.versionIhl ?? 0x45 + options.length / 4,
    fields.tos ?? 0,
    ...u16(fields.totalLength ?? 20 + options.length + payload.length),
    ...u16(fields.id ?? 0),
    ...u16(fields.fragment ?? 0),
    fields.ttl ?? 64,
    fields.protocol ?? 17,
    0,
    0,
    ...addressToBytes(fields.src),
    ...addressToBytes(fields.dst),
    ...options,
  ]);
  header.set(u16(checksum(header)), 10);
  return Uint8Array.from([...header, ...payload]);
}

export interface UdpFields {
  src: number;
  dst: number;
  /** Zero when left out: none (RFC 768). */
  checksum?: number;
  length?: number;
}

export function udp(fields: UdpFields, payload: Uint8Array = new Uint8Array(8)): Uint8Array {
  return Uint8Array.from([
    ...u16(fields.src),
    ...u16(fields.dst),
    ...u16(fields.length ?? 8 + payload.length),
    ...u16(fields.checksum ?? 0),
    ...payload,
  ]);
}

export function tcp(
  fields: { src: number; dst: number; flags?: number },
  payload = new Uint8Array(0),
): Uint8Array {
  const header = [...u16(fields.src), ...u16(fields.dst), ...u32(1), ...u32(1), 0x50, fields.flags ?? 0x10];
  return Uint8Array.from([...header, ...u16(64240), ...u16(0), ...u16(0), ...payload]);
}

export interface VxlanFields {
  vni?: number;
  flags?: number;
}

export function vxlan(fields: VxlanFields, payload: Uint8Array): Uint8Array {
  return Uint8Array.from([fields.flags ?? 8, 0, 0, 0, ...u32(((fields.vni ?? 1) << 8) >>> 0), ...payload]);
}

/** The fields of an IPv4 packet's header, read back; `valid` says whether its checksum is right. */
export function readIpv4(bytes: Uint8Array, at = 14) {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at);
  return {
    tos: bytes[at + 1]!,
    totalLength: view.getUint16(2),
    ttl: bytes[at + 8]!,
    protocol: bytes[at + 9]!,
    src: bytes.subarray(at + 12, at + 16).join('.'),
    dst: bytes.subarray(at + 16, at + 20).join('.'),
    valid: checksum(bytes.subarray(at, at + 20)) === 0,
  };
}
