// SPDX-License-Identifier: Apache-2.0
/**
 * Codecs for the structs of bpf/types.h, derived from the generated layout: TypeScript types and byte work follow the
 * compiled objects, and no struct is ever mirrored by hand.
 *
 *   __u8 … __u64   number, in the machine's byte order (a __u64 over 2^53 loses its lowest bits: 9 PB of a byte counter)
 *   __be16, net32  number, network order
 *   __be32         IPv4 text, network order
 *   struct mac     MAC text
 *   struct address IP text of either family; IPv4 is mapped into IPv6 (RFC 4291 section 2.5.5.2) in the bytes only
 *   other structs  objects; members named `unused` do not exist on this side and are written as zero
 */
import type { Codec } from '#libbpf-ts';
import { addressToBytes, bytesToAddress } from '../net/ip.ts';
import { bytesToMac, macToBytes } from '../net/mac.ts';
import { layout } from './layout.gen.ts';

/** One member's or map key's shape, as the layout file gives it. */
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

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

const mappedPrefix = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff);

function isMapped(bytes: Uint8Array): boolean {
  return mappedPrefix.every((byte, i) => bytes[i] === byte);
}

function encodeAddress(text: string, into: Uint8Array): void {
  const bytes = addressToBytes(text);
  if (bytes.length === 4) into.set(mappedPrefix);
  into.set(bytes, 16 - bytes.length);
}

const littleEndian = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

function encodeKind(kind: Kind, value: unknown, into: Uint8Array): void {
  switch (kind) {
    case 'u8':
      into[0] = value as number;
      return;
    case 'u16':
      return view(into).setUint16(0, value as number, littleEndian);
    case 'u32':
      return view(into).setUint32(0, value as number, littleEndian);
    case 'u64':
      return view(into).setBigUint64(0, BigInt(value as number), littleEndian);
    case 'be16':
      return view(into).setUint16(0, value as number, false);
    case 'net32':
      return view(into).setUint32(0, value as number, false);
    case 'be32':
      return into.set(addressToBytes(value as string));
    case 'mac':
      return into.set(macToBytes(value as string));
    case 'address':
      return encodeAddress(value as string, into);
    default:
      return encodeStruct(kind.struct, value as Record<string, unknown>, into);
  }
}

function decodeKind(kind: Kind, bytes: Uint8Array): unknown {
  switch (kind) {
    case 'u8':
      return bytes[0];
    case 'u16':
      return view(bytes).getUint16(0, littleEndian);
    case 'u32':
      return view(bytes).getUint32(0, littleEndian);
    case 'u64':
      return Number(view(bytes).getBigUint64(0, littleEndian));
    case 'be16':
      return view(bytes).getUint16(0, false);
    case 'net32':
      return view(bytes).getUint32(0, false);
    case 'be32':
      return bytesToAddress(bytes.subarray(0, 4));
    case 'mac':
      return bytesToMac(bytes.subarray(0, 6));
    case 'address':
      return bytesToAddress(isMapped(bytes) ? bytes.subarray(12, 16) : bytes.subarray(0, 16));
    default:
      return decodeStruct(kind.struct, bytes);
  }
}

function fieldsOf(name: StructName): [string, Field][] {
  return Object.entries(layout.structs[name].fields);
}

function encodeStruct(name: StructName, value: Record<string, unknown>, into: Uint8Array): void {
  into.fill(0);
  for (const [field, { offset, kind }] of fieldsOf(name)) {
    encodeKind(kind, value[field], into.subarray(offset, offset + kindSize(kind)));
  }
}

function decodeStruct(name: StructName, bytes: Uint8Array): Record<string, unknown> {
  const value: Record<string, unknown> = {};
  for (const [field, { offset, kind }] of fieldsOf(name)) {
    value[field] = decodeKind(kind, bytes.subarray(offset, offset + kindSize(kind)));
  }
  return value;
}

/** A codec for any kind of the layout. */
export function kindCodec<K extends Kind>(kind: K): Codec<ValueOf<K>> {
  return {
    size: kindSize(kind),
    encode: (value, into) => encodeKind(kind, value, into),
    decode: (bytes) => decodeKind(kind, bytes) as ValueOf<K>,
  };
}

/** Encode one value into fresh bytes. */
export function encode<K extends Kind>(kind: K, value: ValueOf<K>): Uint8Array {
  const bytes = new Uint8Array(kindSize(kind));
  encodeKind(kind, value, bytes);
  return bytes;
}

/** Decode one value. `bytes` must hold at least the kind's size. */
export function decode<K extends Kind>(kind: K, bytes: Uint8Array): ValueOf<K> {
  return decodeKind(kind, bytes) as ValueOf<K>;
}
