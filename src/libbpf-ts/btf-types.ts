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
 * One type. `modifier` is const, volatile, restrict or a type tag; `enum` is both widths. Names are empty where C has none.
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
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = bytes.length >= 24 && view.getUint16(0, true) === MAGIC;
  if (!little && (bytes.length < 24 || view.getUint16(0, false) !== MAGIC))
    throw new Error('this is not BTF');
  const u32 = (at: number) => view.getUint32(at, little);
  const headerSize = u32(4);
  const strings = bytes.subarray(headerSize + u32(16), headerSize + u32(16) + u32(20));
  const name = (at: number) => cString(strings, u32(at));

  const types: BtfType[] = [{ kind: 'void', id: 0 }];
  let at = headerSize + u32(8);
  const end = at + u32(12);
  /** `count` records of `size` bytes that follow the type. */
  const records = <T>(count: number, size: number, read: (at: number) => T): T[] =>
    Array.from({ length: count }, () => {
      const record = read(at);
      at += size;
      return record;
    });

  while (at < end) {
    const id = types.length;
    const typeName = name(at);
    const info = u32(at + 4);
    const sizeOrType = u32(at + 8);
    const count = info & 0xffff;
    const kindFlag = info >>> 31 === 1;
    at += 12;
    const kind = (info >>> 24) & 0x1f;
    switch (kind) {
      case 1: {
        const [word = 0] = records(1, 4, u32);
        const encoding = INT_ENCODINGS[((word >>> 24) & 0xf) as keyof typeof INT_ENCODINGS] ?? 'unsigned';
        types.push({ kind: 'int', id, name: typeName, size: sizeOrType, bits: word & 0xff, encoding });
        break;
      }
      case 2:
        types.push({ kind: 'pointer', id, typeId: sizeOrType });
        break;
      case 3: {
        const [array] = records(1, 12, (at) => ({ elementTypeId: u32(at), length: u32(at + 8) }));
        types.push({ kind: 'array', id, ...array! });
        break;
      }
      case 4:
      case 5: {
        const members = records(count, 12, (at): BtfMember => {
          const offset = u32(at + 8);
          // With the flag a member's word is its bit field's size and its offset.
          return {
            name: name(at),
            typeId: u32(at + 4),
            bitOffset: kindFlag ? offset & 0xff_ffff : offset,
            bitfieldSize: kindFlag ? offset >>> 24 : 0,
          };
        });
        types.push({ kind: kind === 4 ? 'struct' : 'union', id, name: typeName, size: sizeOrType, members });
        break;
      }
      case 6: {
        const values = records(count, 8, (at) => ({
          name: name(at),
          value: kindFlag ? view.getInt32(at + 4, little) : u32(at + 4),
        }));
        types.push({ kind: 'enum', id, name: typeName, size: sizeOrType, signed: kindFlag, values });
        break;
      }
      case 7:
        types.push({ kind: 'forward', id, name: typeName });
        break;
      case 8:
        types.push({ kind: 'typedef', id, name: typeName, typeId: sizeOrType });
        break;
      case 9:
      case 10:
      case 11:
      case 18:
        types.push({ kind: 'modifier', id, typeId: sizeOrType });
        break;
      case 12:
        types.push({ kind: 'function', id, name: typeName, typeId: sizeOrType });
        break;
      case 13: {
        const parameters = records(count, 8, (at) => ({ name: name(at), typeId: u32(at + 4) }));
        types.push({ kind: 'prototype', id, returnTypeId: sizeOrType, parameters });
        break;
      }
      case 14:
        at += 4;
        types.push({ kind: 'var', id, name: typeName, typeId: sizeOrType });
        break;
      case 15: {
        const variables = records(count, 12, (at) => ({
          typeId: u32(at),
          offset: u32(at + 4),
          size: u32(at + 8),
        }));
        types.push({ kind: 'datasec', id, name: typeName, size: sizeOrType, variables });
        break;
      }
      case 16:
        types.push({ kind: 'float', id, name: typeName, size: sizeOrType });
        break;
      case 17:
        at += 4;
        types.push({ kind: 'tag', id, name: typeName, typeId: sizeOrType });
        break;
      case 19: {
        const values = records(count, 12, (at) => {
          const bits = (BigInt(u32(at + 8)) << 32n) | BigInt(u32(at + 4));
          return { name: name(at), value: exact(kindFlag ? BigInt.asIntN(64, bits) : bits) };
        });
        types.push({ kind: 'enum', id, name: typeName, size: sizeOrType, signed: kindFlag, values });
        break;
      }
      default:
        throw new Error(`BTF type ${id} has kind ${kind}, which is newer than this reader`);
    }
  }
  return types;
}

function exact(value: bigint): number | bigint {
  return BigInt.asIntN(54, value) === value ? Number(value) : value;
}
