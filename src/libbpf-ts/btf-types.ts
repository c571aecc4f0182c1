// SPDX-License-Identifier: Apache-2.0
import { cString } from './elf.ts';

export interface BtfMember {
  /** Empty for an anonymous struct or union, whose members are used as the outer one's. */
  name: string;
  typeId: number;
  /** From the start of the struct. */
  bitOffset: number;
  /** Bits of a bit field; 0 for an ordinary member. */
  bitfieldSize: number;
}

/**
 * One type. `modifier` is const, volatile, restrict or a type tag; `enum` is both widths. Names are empty where C has
 * none.
 */
export type BtfType =
  | { kind: 'void'; id: 0 }
  | {
      kind: 'int';
      id: number;
      name: string;
      size: number;
      bits: number;
      encoding: 'unsigned' | 'signed' | 'char' | 'bool';
    }
  | { kind: 'float'; id: number; name: string; size: number }
  | { kind: 'pointer'; id: number; typeId: number }
  | { kind: 'array'; id: number; elementTypeId: number; length: number }
  | { kind: 'struct' | 'union'; id: number; name: string; size: number; members: BtfMember[] }
  | {
      kind: 'enum';
      id: number;
      name: string;
      size: number;
      signed: boolean;
      /** A bigint only where a number would not be exact. */
      values: { name: string; value: number | bigint }[];
    }
  | { kind: 'forward'; id: number; name: string }
  | { kind: 'typedef'; id: number; name: string; typeId: number }
  | { kind: 'modifier'; id: number; typeId: number }
  | { kind: 'function'; id: number; name: string; typeId: number }
  | { kind: 'prototype'; id: number; returnTypeId: number; parameters: { name: string; typeId: number }[] }
  | { kind: 'var'; id: number; name: string; typeId: number }
  | {
      kind: 'datasec';
      id: number;
      name: string;
      size: number;
      variables: { typeId: number; offset: number; size: number }[];
    }
  | { kind: 'tag'; id: number; name: string; typeId: number };

const MAGIC = 0xeb9f;
const INT_ENCODINGS = { 0: 'unsigned', 1: 'signed', 2: 'char', 4: 'bool' } as const;

/**
 * The types of a `.BTF` section in either byte order.
 * @throws Error when it is not BTF, or has a kind that is unknown: its length would be too.
 */
export function parseTypes(bytes: Uint8Array): BtfType[] {
  const reader = new TypeReader(bytes);
  const types: BtfType[] = [{ kind: 'void', id: 0 }];
  while (!reader.atEnd) types.push(reader.next(types.length));
  return types;
}

/** Reads the types of a section, one after another. */
class TypeReader {
  readonly #view: DataView;
  readonly #little: boolean;
  readonly #strings: Uint8Array;
  readonly #end: number;
  #at: number;

  constructor(bytes: Uint8Array) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#little = bytes.length >= 24 && this.#view.getUint16(0, true) === MAGIC;
    if (!this.#little && (bytes.length < 24 || this.#view.getUint16(0, false) !== MAGIC))
      throw new Error('this is not BTF');
    const headerSize = this.#u32(4);
    const stringsAt = headerSize + this.#u32(16);
    this.#strings = bytes.subarray(stringsAt, stringsAt + this.#u32(20));
    this.#at = headerSize + this.#u32(8);
    this.#end = this.#at + this.#u32(12);
  }

  get atEnd(): boolean {
    return this.#at >= this.#end;
  }

  /** The next type, which gets this id. */
  next(id: number): BtfType {
    const name = this.#name(this.#at);
    const info = this.#u32(this.#at + 4);
    const sizeOrType = this.#u32(this.#at + 8);
    this.#at += 12;
    const [kind, count, flag] = [(info >>> 24) & 0x1f, info & 0xffff, info >>> 31 === 1];
    const ofType = { id, name, typeId: sizeOrType };
    const ofSize = { id, name, size: sizeOrType };
    switch (kind) {
      case 1:
        return { kind: 'int', ...ofSize, ...this.#encoding() };
      case 2:
        return { kind: 'pointer', id, typeId: sizeOrType };
      case 3:
        return { kind: 'array', id, ...this.#array() };
      case 4:
      case 5:
        return { kind: kind === 4 ? 'struct' : 'union', ...ofSize, members: this.#members(count, flag) };
      case 6:
        return { kind: 'enum', ...ofSize, signed: flag, values: this.#values(count, flag) };
      case 7:
        return { kind: 'forward', id, name };
      case 8:
        return { kind: 'typedef', ...ofType };
      case 9:
      case 10:
      case 11:
      case 18:
        return { kind: 'modifier', id, typeId: sizeOrType };
      case 12:
        return { kind: 'function', ...ofType };
      case 13:
        return { kind: 'prototype', id, returnTypeId: sizeOrType, parameters: this.#parameters(count) };
      case 14:
        this.#at += 4;
        return { kind: 'var', ...ofType };
      case 15:
        return { kind: 'datasec', ...ofSize, variables: this.#variables(count) };
      case 16:
        return { kind: 'float', ...ofSize };
      case 17:
        this.#at += 4;
        return { kind: 'tag', ...ofType };
      case 19:
        return { kind: 'enum', ...ofSize, signed: flag, values: this.#values64(count, flag) };
      default:
        throw new Error(`BTF type ${id} has kind ${kind}, which is newer than this reader`);
    }
  }

  #u32(at: number): number {
    return this.#view.getUint32(at, this.#little);
  }

  #name(at: number): string {
    return cString(this.#strings, this.#u32(at));
  }

  /** `count` records of `size` bytes that follow the type's head. */
  #records<T>(count: number, size: number, read: (at: number) => T): T[] {
    return Array.from({ length: count }, () => {
      const record = read(this.#at);
      this.#at += size;
      return record;
    });
  }

  #encoding(): Pick<BtfType & { kind: 'int' }, 'bits' | 'encoding'> {
    const [word = 0] = this.#records(1, 4, (at) => this.#u32(at));
    const encoding = INT_ENCODINGS[((word >>> 24) & 0xf) as keyof typeof INT_ENCODINGS] ?? 'unsigned';
    return { bits: word & 0xff, encoding };
  }

  #array(): Pick<BtfType & { kind: 'array' }, 'elementTypeId' | 'length'> {
    const read = (at: number) => ({ elementTypeId: this.#u32(at), length: this.#u32(at + 8) });
    return this.#records(1, 12, read)[0]!;
  }

  /** With bit fields a member's last word is its bit field's size and its offset. */
  #members(count: number, hasBitFields: boolean): BtfMember[] {
    return this.#records(count, 12, (at) => {
      const offset = this.#u32(at + 8);
      return {
        name: this.#name(at),
        typeId: this.#u32(at + 4),
        bitOffset: hasBitFields ? offset & 0xff_ffff : offset,
        bitfieldSize: hasBitFields ? offset >>> 24 : 0,
      };
    });
  }

  #values(count: number, signed: boolean): { name: string; value: number }[] {
    return this.#records(count, 8, (at) => ({
      name: this.#name(at),
      value: signed ? this.#view.getInt32(at + 4, this.#little) : this.#u32(at + 4),
    }));
  }

  #values64(count: number, signed: boolean): { name: string; value: number | bigint }[] {
    return this.#records(count, 12, (at) => {
      const bits = (BigInt(this.#u32(at + 8)) << 32n) | BigInt(this.#u32(at + 4));
      return { name: this.#name(at), value: exact(signed ? BigInt.asIntN(64, bits) : bits) };
    });
  }

  #parameters(count: number): { name: string; typeId: number }[] {
    return this.#records(count, 8, (at) => ({ name: this.#name(at), typeId: this.#u32(at + 4) }));
  }

  #variables(count: number): { typeId: number; offset: number; size: number }[] {
    return this.#records(count, 12, (at) => ({
      typeId: this.#u32(at),
      offset: this.#u32(at + 4),
      size: this.#u32(at + 8),
    }));
  }
}

function exact(value: bigint): number | bigint {
  return BigInt.asIntN(54, value) === value ? Number(value) : value;
}
