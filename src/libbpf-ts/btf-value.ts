// SPDX-License-Identifier: Apache-2.0
import { endianness } from 'node:os';
import type { Btf, BtfMember, BtfType } from './btf.ts';

/** Bytes, of which it reads as many as its type has, to a value. */
export type BtfDecoder = (bytes: Uint8Array) => unknown;

/** The type for which {@link btfDecoder} makes a decoder. */
export interface BtfPlace {
  /** Behind typedefs. */
  readonly type: BtfType;
  /** Outermost first: `['__be32', '__u32']`. */
  readonly typedefs: readonly string[];
  /** The struct and its member, as `ipv4.src`; undefined for a whole key or value. */
  readonly member: string | undefined;
}

/**
 * A decoder that knows more of a type than BTF does; undefined leaves the type to `plain`, null leaves the member out.
 */
export type BtfOverride = (place: BtfPlace, plain: BtfDecoder) => BtfDecoder | undefined | null;

const LITTLE = endianness() === 'LE';

/**
 * A decoder of one type, to data for JSON: structs and unions become objects, arrays of `char` text, and an enumerator
 * its name; so does a number that JavaScript has not exactly. Arrays without elements are left out.
 */
export function btfDecoder(btf: Btf, typeId: number, override: BtfOverride = () => undefined): BtfDecoder {
  return new Maker(btf, override).make(typeId);
}

class Maker {
  readonly #btf: Btf;
  readonly #override: BtfOverride;

  constructor(btf: Btf, override: BtfOverride) {
    this.#btf = btf;
    this.#override = override;
  }

  make(id: number, member?: string): BtfDecoder {
    return this.#make(id, member) ?? this.#plain(this.#btf.resolve(id));
  }

  /** Null for a member to leave out. */
  #make(id: number, member?: string): BtfDecoder | null {
    const type = this.#btf.resolve(id);
    const plain = this.#plain(type);
    const own = this.#override({ type, typedefs: this.#btf.typedefNames(id), member }, plain);
    return own === undefined ? plain : own;
  }

  #plain(type: BtfType): BtfDecoder {
    switch (type.kind) {
      case 'int':
        return type.encoding === 'bool'
          ? (bytes) => bytes[0] !== 0
          : (bytes) => integer(bytes, type.size, type.encoding === 'signed');
      case 'enum': {
        const names = new Map(type.values.map(({ name, value }) => [String(value), name]));
        return (bytes) => {
          const value = integer(bytes, type.size, type.signed);
          return names.get(String(value)) ?? value;
        };
      }
      case 'float':
        return (bytes) => float(bytes, type.size);
      case 'pointer':
        return (bytes) => `0x${BigInt(integer(bytes, 8, false)).toString(16)}`;
      case 'array':
        return this.#array(type);
      case 'struct':
      case 'union':
        return joined(type.members.map((member) => this.#member(type.name, member)));
      case 'datasec':
        return joined(type.variables.map((variable) => this.#variable(variable)));
      default:
        return (bytes) => Buffer.from(bytes).toString('hex');
    }
  }

  #array({ elementTypeId, length }: BtfType & { kind: 'array' }): BtfDecoder {
    const element = this.#btf.resolve(elementTypeId);
    const size = this.#btf.sizeOf(elementTypeId);
    const one = this.make(elementTypeId);
    const all: BtfDecoder = (bytes) =>
      Array.from({ length }, (_, i) => one(bytes.subarray(i * size, (i + 1) * size)));
    // The compilers for BPF do not mark char as such.
    const isText = element.kind === 'int' && (element.encoding === 'char' || element.name === 'char');
    return isText ? (bytes) => cText(bytes.subarray(0, length)) ?? all(bytes) : all;
  }

  #member(struct: string, { name, typeId, bitOffset, bitfieldSize }: BtfMember): MemberDecoder {
    if (bitfieldSize > 0) return (bytes, into) => (into[name] = bitField(bytes, bitOffset, bitfieldSize));
    if (this.#btf.elements(typeId).lengths.includes(0)) return () => {};
    const from = bitOffset / 8;
    const to = from + this.#btf.sizeOf(typeId);
    const decode = this.#make(typeId, `${struct}.${name}`);
    if (decode === null) return () => {};
    // The members of an anonymous struct or union count as the outer one's.
    if (name === '') return (bytes, into) => Object.assign(into, decode(bytes.subarray(from, to)));
    return (bytes, into) => (into[name] = decode(bytes.subarray(from, to)));
  }

  #variable({ typeId, offset, size }: { typeId: number; offset: number; size: number }): MemberDecoder {
    const variable = this.#btf.type(typeId);
    if (variable.kind !== 'var') throw new TypeError(`a section of variables holds a ${variable.kind}`);
    const decode = this.make(variable.typeId);
    return (bytes, into) => (into[variable.name] = decode(bytes.subarray(offset, offset + size)));
  }
}

type MemberDecoder = (bytes: Uint8Array, into: Record<string, unknown>) => void;

function joined(members: readonly MemberDecoder[]): BtfDecoder {
  return (bytes) => {
    const value: Record<string, unknown> = {};
    for (const member of members) member(bytes, value);
    return value;
  };
}

/** A number if it is exact, else text. */
function integer(bytes: Uint8Array, size: number, signed: boolean): number | string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, size);
  switch (size) {
    case 1:
      return signed ? view.getInt8(0) : view.getUint8(0);
    case 2:
      return signed ? view.getInt16(0, LITTLE) : view.getUint16(0, LITTLE);
    case 4:
      return signed ? view.getInt32(0, LITTLE) : view.getUint32(0, LITTLE);
    default: {
      const unsigned = bitsOf(bytes.subarray(0, size));
      return exact(signed ? BigInt.asIntN(size * 8, unsigned) : unsigned);
    }
  }
}

function exact(value: bigint): number | string {
  return BigInt.asIntN(54, value) === value ? Number(value) : String(value);
}

function bitsOf(bytes: Uint8Array): bigint {
  return BigInt(`0x${Buffer.from(LITTLE ? bytes.toReversed() : bytes).toString('hex')}`);
}

/** Bits count from the lowest one of the first byte on a little-endian machine, from the highest one on others. */
function bitField(bytes: Uint8Array, bitOffset: number, size: number): number | string {
  const shift = LITTLE ? bitOffset : bytes.length * 8 - bitOffset - size;
  return exact(BigInt.asUintN(size, bitsOf(bytes) >> BigInt(shift)));
}

function float(bytes: Uint8Array, size: number): number | string {
  const view = new DataView(bytes.buffer, bytes.byteOffset, size);
  if (size === 4) return view.getFloat32(0, LITTLE);
  return size === 8 ? view.getFloat64(0, LITTLE) : Buffer.from(bytes).toString('hex');
}

/** C text that ends with zeros; undefined when it is something else. */
function cText(bytes: Uint8Array): string | undefined {
  const end = bytes.indexOf(0);
  const text = end < 0 ? bytes : bytes.subarray(0, end);
  const isText = text.every((byte) => byte >= 0x20 && byte < 0x7f);
  const isPadded = end < 0 || bytes.subarray(end).every((byte) => byte === 0);
  return isText && isPadded ? Buffer.from(text).toString('latin1') : undefined;
}
