// SPDX-License-Identifier: Apache-2.0
/** The keys and values of maps as a person reads them, by the BTF that the kernel keeps for each map. */
import { hrtime } from 'node:process';
import { type BpfMap, type BtfDecoder, btfDecoder, type BtfPlace, kernelBtf } from '#libbpf-ts';
import { decode } from '../dataplane/codec.ts';
import { bytesToAddress } from '../net/ip.ts';
import { durationText } from './text.ts';

/** A value that a table shows in other words than JSON does. */
export class Shown {
  readonly value: unknown;
  readonly text: string;

  constructor(value: unknown, text: string) {
    this.value = value;
    this.text = text;
  }

  toJSON(): unknown {
    return this.value;
  }

  toString(): string {
    return this.text;
  }
}

/** A value with the texts in place of what they show. */
export function asText(value: unknown): unknown {
  if (value instanceof Shown) return value.text;
  if (Array.isArray(value)) return value.map(asText);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, asText(member)]));
}

/** Whether it has members to show. */
export function hasMembers(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Shown);
}

/** Bytes as hexadecimal digits, without spaces. */
export function hexText(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

/** Decoders of one map's keys and values. */
export interface MapDecoders {
  readonly key: BtfDecoder;
  readonly value: BtfDecoder;
}

/**
 * Where a map has no BTF, its bytes are shown in hexadecimal, and four of them as a number, which an index is.
 * @param devices names of network interfaces by their index
 */
export function mapDecoders({ info }: BpfMap, devices: ReadonlyMap<number, string>): MapDecoders {
  const bare = (size: number): BtfDecoder => (size === 4 ? (bytes) => decode('u32', bytes) : hexText);
  if (info.btfId === 0) return { key: bare(info.keySize), value: bare(info.valueSize) };
  const btf = kernelBtf(info.btfId);
  const nowNs = Number(hrtime.bigint());
  const of = (typeId: number, size: number): BtfDecoder =>
    typeId === 0
      ? bare(size)
      : btfDecoder(btf, typeId, (place, plain) => meaningOf(place, plain, { devices, nowNs }));
  return { key: of(info.keyTypeId, info.keySize), value: of(info.valueTypeId, info.valueSize) };
}

/** The C types of a map's keys and values, or their sizes. */
export function mapTypes({ info }: BpfMap): { key: string; value: string } {
  const btf = info.btfId === 0 ? undefined : kernelBtf(info.btfId);
  const nameOf = (typeId: number, size: number): string => {
    if (!btf || typeId === 0) return `${size} bytes`;
    const type = btf.resolve(typeId);
    const [name = 'name' in type && type.name] = btf.typedefNames(typeId);
    if (!name) return `${size} bytes`;
    return type.kind === 'struct' || type.kind === 'union' ? `${type.kind} ${name}` : name;
  };
  return { key: nameOf(info.keyTypeId, info.keySize), value: nameOf(info.valueTypeId, info.valueSize) };
}

interface Context {
  readonly devices: ReadonlyMap<number, string>;
  readonly nowNs: number;
}

/** Decodes what BTF calls a number, and is more: by its type's name, or its member's. */
function meaningOf(place: BtfPlace, plain: BtfDecoder, context: Context): BtfDecoder | undefined | null {
  if (place.member?.endsWith('.unused')) return null;
  return byType(place) ?? byMember(place, plain, context);
}

/** Types that say what their bytes are, ours (bpf/types.h) and the kernel's. */
const types: Readonly<Record<string, BtfDecoder>> = {
  __be16: (bytes) => decode('be16', bytes),
  __be32: (bytes) => decode('be32', bytes),
  net32: (bytes) => decode('net32', bytes),
  mac: (bytes) => decode('mac', bytes),
  address: (bytes) => decode('address', bytes),
  in_addr: (bytes) => decode('be32', bytes),
  in6_addr: (bytes) => bytesToAddress(bytes.slice(0, 16)),
};

function byType({ type, typedefs, member }: BtfPlace): BtfDecoder | undefined {
  // Some members have a type of their own kind, and more to tell.
  if (member !== undefined && member in members) return undefined;
  if (type.kind === 'enum' && type.name.endsWith('_flags')) {
    const flags = Object.fromEntries(type.values.map(({ name, value }) => [name, Number(value)]));
    return (bytes) => flagNames(flags, decode('u32', bytes));
  }
  const name = [...typedefs, ...(type.kind === 'struct' ? [type.name] : [])].find((one) => one in types);
  return name === undefined ? undefined : types[name];
}

/** `{PEER_PRESENT: 1, PEER_BEHIND_NAT: 2}`, 3 → `['present', 'behind_nat']`. */
export function flagNames(flags: Readonly<Record<string, number>>, value: number): string[] {
  return Object.entries(flags)
    .filter(([, bit]) => (value & bit) !== 0)
    .map(([name]) => name.slice(name.indexOf('_') + 1).toLowerCase());
}

export const protocols: Readonly<Record<number, string>> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'icmpv6' };
const ethertypes: Readonly<Record<number, string>> = { 0x0800: 'IPv4', 0x0806: 'ARP', 0x86dd: 'IPv6' };
/** RFC 7348: the flag that says that there is a VNI. */
const VXLAN_I = 0x0800_0000;

const hex = (value: number, digits: number): string => `0x${value.toString(16).padStart(digits, '0')}`;
const isIn = (digits: number): BtfDecoder => {
  const kind = digits === 2 ? 'u8' : digits === 4 ? 'be16' : 'net32';
  return (bytes) => {
    const value = decode(kind, bytes);
    return new Shown(value, hex(value, digits));
  };
};
/** Of a number in the machine's byte order. */
const hex32: BtfDecoder = (bytes) => {
  const value = decode('u32', bytes);
  return new Shown(value, hex(value, 8));
};
const protocol: BtfDecoder = (bytes) => new Shown(bytes[0], protocols[bytes[0]!] ?? String(bytes[0]));

/** Members whose types say less than their names. Hexadecimal is what is read so elsewhere, in tcpdump for example. */
const members: Readonly<Record<string, BtfDecoder>> = {
  'ether.type': (bytes) => {
    const value = decode('be16', bytes);
    return new Shown(value, `${ethertypes[value] ?? 'type'} (${hex(value, 4)})`);
  },
  'ipv4.version_ihl': isIn(2),
  'ipv4.tos': isIn(2),
  'ipv4.id': isIn(4),
  'ipv4.fragment': isIn(4),
  'ipv4.checksum': isIn(4),
  'ipv4.protocol': protocol,
  'ipv6.version_class_flow': isIn(8),
  'ipv6.next_header': protocol,
  'udp.checksum': isIn(4),
  'vxlan.flags': (bytes) => {
    const value = decode('net32', bytes);
    return new Shown(value, `${value & VXLAN_I ? 'VNI valid' : 'no VNI'} (${hex(value, 8)})`);
  },
  // The lowest eight bits are reserved.
  'vxlan.vni': (bytes) => decode('net32', bytes) >>> 8,
  'peer_head.checksum_base': hex32,
  'flow4.protocol': protocol,
  'flow6.protocol': protocol,
  'learned.mark': hex32,
  'config.lifetime_ns': (bytes) => {
    const ns = decode('u64', bytes);
    return new Shown(ns, durationText(ns / 1e6));
  },
};

/** Of our own structs, by their names. */
const OWN = /^(?:learned|arrival|endpoint|config)\.(?<name>\w+)$/;

function byMember({ member = '' }: BtfPlace, plain: BtfDecoder, context: Context): BtfDecoder | undefined {
  if (member in members) return members[member];
  const name = OWN.exec(member)?.groups?.['name'];
  if (name === undefined) return undefined;
  if (name.startsWith('is_')) return (bytes) => bytes[0] !== 0;
  if (name.endsWith('ifindex')) return (bytes) => deviceOf(plain(bytes) as number, context);
  if (name.endsWith('_ns')) return (bytes) => ageOf(decode('u64', bytes), context);
  return undefined;
}

function deviceOf(ifindex: number, { devices }: Context): unknown {
  const name = devices.get(ifindex);
  return name === undefined ? ifindex : new Shown(ifindex, `${name} (${ifindex})`);
}

/** A moment on CLOCK_MONOTONIC. */
function ageOf(ns: number, { nowNs }: Context): Shown {
  return new Shown(ns, ns === 0 ? 'never' : `${durationText(Math.max(0, nowNs - ns) / 1e6)} ago`);
}
