// SPDX-License-Identifier: Apache-2.0
/**
 * Codecs for the structs of bpf/types.h. Types, encoding and decoding are derived from the layout that is generated
 * from the compiled objects, so no struct is declared twice.
 *
 *   __u8 … __u64   number, in the machine's byte order (a __u64 over 2^53 loses its lowest bits)
 *   __be16, net32  number, network order
 *   __be32         IPv4 text, network order
 *   struct mac     MAC text
 *   struct address IP text of either family; IPv4 is mapped into IPv6 (RFC 4291 section 2.5.5.2) in the bytes only
 *   other structs  objects; members named `unused` do not exist on this side and are written as zero
 */
import type { Codec } from '#libbpf-ts';
import { addressToBytes, bytesToAddress, intToIpv4, ipv4ToInt } from '../net/ip.ts';
import { bytesToMac, macToBytes } from '../net/mac.ts';
import { layout } from './layout.gen.ts';

/** The type of a struct's member, a map's key or a map's value, as the layout file has it. */
export type Kind =
  | 'u8'
  | 'u16'
  | 'u32'
  | 'u64'
  | 'be16'
  | 'net32'
  | 'be32'
  | 'mac'
  | 'address'
  | { readonly struct: StructName };

interface Field {
  readonly offset: number;
  readonly kind: Kind;
}

type Structs = typeof layout.structs;
export type StructName = keyof Structs;

/** The TypeScript side of a kind. */
export type ValueOf<K> = K extends 'be32' | 'mac' | 'address'
  ? string
  : K extends { readonly struct: infer S extends StructName }
    ? Struct<S>
    : number;

/** The TypeScript side of a struct of bpf/types.h. */
export type Struct<S extends StructName> = {
  -readonly [F in keyof Structs[S]['fields']]: Structs[S]['fields'][F] extends { readonly kind: infer K }
    ? ValueOf<K>
    : never;
};

const sizes = { u8: 1, u16: 2, u32: 4, u64: 8, be16: 2, net32: 4, be32: 4, mac: 6, address: 16 } as const;

/** Size in bytes of a value of this kind. */
export function kindSize(kind: Kind): number {
  return typeof kind === 'string' ? sizes[kind] : layout.structs[kind.struct].size;
}

/** Bytes and a view of them; a value is at some offset. */
interface Place {
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

function placeOf(bytes: Uint8Array): Place {
  return { bytes, view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength) };
}

/** How one kind is read and written. */
interface Access {
  write(this: void, place: Place, at: number, value: unknown): void;
  read(this: void, place: Place, at: number): unknown;
}

const mappedPrefix = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff);

function isMapped(bytes: Uint8Array, at: number): boolean {
  return mappedPrefix.every((byte, i) => bytes[at + i] === byte);
}

/** Whether the machine is, and so the integers in maps are. */
export const littleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

const plain: Record<Exclude<Kind, object>, Access> = {
  u8: {
    write: ({ bytes }, at, value) => void (bytes[at] = value as number),
    read: ({ bytes }, at) => bytes[at],
  },
  u16: {
    write: ({ view }, at, value) => view.setUint16(at, value as number, littleEndian),
    read: ({ view }, at) => view.getUint16(at, littleEndian),
  },
  u32: {
    write: ({ view }, at, value) => view.setUint32(at, value as number, littleEndian),
    read: ({ view }, at) => view.getUint32(at, littleEndian),
  },
  u64: {
    write: ({ view }, at, value) => view.setBigUint64(at, BigInt(value as number), littleEndian),
    read: ({ view }, at) => Number(view.getBigUint64(at, littleEndian)),
  },
  be16: {
    write: ({ view }, at, value) => view.setUint16(at, value as number, false),
    read: ({ view }, at) => view.getUint16(at, false),
  },
  net32: {
    write: ({ view }, at, value) => view.setUint32(at, value as number, false),
    read: ({ view }, at) => view.getUint32(at, false),
  },
  be32: {
    write: ({ view }, at, value) => view.setUint32(at, ipv4ToInt(value as string), false),
    read: ({ view }, at) => intToIpv4(view.getUint32(at, false)),
  },
  mac: {
    write: ({ bytes }, at, value) => bytes.set(macToBytes(value as string), at),
    read: ({ bytes }, at) => bytesToMac(bytes.subarray(at, at + 6)),
  },
  address: {
    write: ({ bytes }, at, value) => {
      const address = addressToBytes(value as string);
      if (address.length === 4) bytes.set(mappedPrefix, at);
      bytes.set(address, at + 16 - address.length);
    },
    read: ({ bytes }, at) => bytesToAddress(bytes.slice(isMapped(bytes, at) ? at + 12 : at, at + 16)),
  },
};

/** The access to each struct is derived once, since a map of a large cluster has a hundred thousand values. */
const structs = new Map<StructName, Access>();

function accessOf(kind: Kind): Access {
  if (typeof kind === 'string') return plain[kind];
  const known = structs.get(kind.struct);
  if (known) return known;
  const fields: { readonly [member: string]: Field } = layout.structs[kind.struct].fields;
  const members = Object.entries(fields).map(([name, field]) => ({
    name,
    ...field,
    access: accessOf(field.kind),
  }));
  const size = kindSize(kind);
  const access: Access = {
    write: (place, at, value) => {
      place.bytes.fill(0, at, at + size);
      for (const { name, offset, access } of members) {
        access.write(place, at + offset, (value as Record<string, unknown>)[name]);
      }
    },
    read: (place, at) => {
      const value: Record<string, unknown> = {};
      for (const { name, offset, access } of members) value[name] = access.read(place, at + offset);
      return value;
    },
  };
  structs.set(kind.struct, access);
  return access;
}

/** A codec for any kind of the layout. */
export function kindCodec<K extends Kind>(kind: K): Codec<ValueOf<K>> {
  const { read, write } = accessOf(kind);
  return {
    size: kindSize(kind),
    encode: (value, into) => write(placeOf(into), 0, value),
    decode: (bytes) => read(placeOf(bytes), 0) as ValueOf<K>,
  };
}

/** Encode one value into fresh bytes. */
export function encode<K extends Kind>(kind: K, value: ValueOf<K>): Uint8Array {
  const bytes = new Uint8Array(kindSize(kind));
  accessOf(kind).write(placeOf(bytes), 0, value);
  return bytes;
}

/** Decode one value. `bytes` must hold at least the kind's size. */
export function decode<K extends Kind>(kind: K, bytes: Uint8Array): ValueOf<K> {
  return accessOf(kind).read(placeOf(bytes), 0) as ValueOf<K>;
}
