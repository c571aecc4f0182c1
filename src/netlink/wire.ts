// SPDX-License-Identifier: Apache-2.0
/**
 * The encoding of netlink messages (RFC 3549, linux/netlink.h): a fixed struct of the message's family, then
 * attributes, each a length, a type and a value, in units of 4 bytes. Numbers are in host order, which is
 * little-endian on every machine that Node and koffi run on; nftables has big-endian ones.
 */
import { addressToBytes, bytesToAddress, type Family } from '../net/ip.ts';
import { bytesToMac, macToBytes } from '../net/mac.ts';

/** linux/socket.h. */
export const AF_UNSPEC = 0;
export const AF_BRIDGE = 7;
export const AF: Readonly<Record<Family, number>> = { 4: 2, 6: 10 };

/** The family of an `AF_` number; undefined for one that is neither. */
export function familyOf(af: number): Family | undefined {
  return af === AF[4] ? 4 : af === AF[6] ? 6 : undefined;
}

/** `10.42.1.0/24` → its address in network order and its length. @throws Error when it is no such text. */
export function readBlock(text: string): { family: Family; bytes: Uint8Array; length: number } {
  const slash = text.indexOf('/');
  const digits = text.slice(slash + 1);
  if (slash < 0 || !/^\d{1,3}$/.test(digits))
    throw new Error(`"${text}" is not a CIDR block such as 10.42.0.0/16`);
  const bytes = addressToBytes(text.slice(0, slash));
  const length = Number(digits);
  if (length > bytes.length * 8) throw new Error(`"${text}" is not a CIDR block such as 10.42.0.0/16`);
  return { family: bytes.length === 4 ? 4 : 6, bytes, length };
}

/** The upper bits of an attribute's type (NLA_F_NESTED, NLA_F_NET_BYTEORDER) say how it is encoded. */
const NLA_TYPE_MASK = 0x3fff;
const NLA_F_NESTED = 0x8000;
const ATTRIBUTE_HEADER = 4;
const MAC_BYTES = 6;

/** Lengths are rounded up to whole units of 4 bytes. */
export function align(length: number): number {
  return (length + 3) & ~3;
}

/* A listing may have tens of thousands of messages, so what reads them makes few objects. */

function u16At(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8);
}

function u32At(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

function addressAt(bytes: Uint8Array, at: number, size: number): string {
  if (size === 4) return `${bytes[at]}.${bytes[at + 1]}.${bytes[at + 2]}.${bytes[at + 3]}`;
  return bytesToAddress(bytes.subarray(at, at + size));
}

/**
 * Bytes that were received, from one place to another. They are not copied: all this is valid only until the next
 * message is read, so take from it what is to be kept.
 */
export class Reader {
  readonly #bytes: Buffer;
  #from: number;
  #to: number;

  constructor(bytes: Buffer, from = 0, to = bytes.length) {
    this.#bytes = bytes;
    this.#from = from;
    this.#to = to;
  }

  /** Read another part of the same bytes from now on. */
  move(from: number, to: number): void {
    this.#from = from;
    this.#to = to;
  }

  get length(): number {
    return this.#to - this.#from;
  }

  u8(at: number): number {
    return this.#bytes[this.#from + at]!;
  }

  u16(at: number): number {
    return u16At(this.#bytes, this.#from + at);
  }

  be16(at: number): number {
    return this.#bytes.readUInt16BE(this.#from + at);
  }

  u32(at: number): number {
    return u32At(this.#bytes, this.#from + at);
  }

  i32(at: number): number {
    return u32At(this.#bytes, this.#from + at) | 0;
  }

  be32(at: number): number {
    return this.#bytes.readUInt32BE(this.#from + at);
  }

  /** A part of this. */
  part(at: number, length: number): Reader {
    return new Reader(this.#bytes, this.#from + at, Math.min(this.#from + at + length, this.#to));
  }

  /** Text up to its terminating zero or the end. */
  text(at = 0): string {
    const end = this.#bytes.indexOf(0, this.#from + at);
    return this.#bytes.toString('utf8', this.#from + at, end < 0 || end > this.#to ? this.#to : end);
  }

  /** An address in canonical text; `size` bytes, or all there are. */
  address(at = 0, size = this.length - at): string {
    return addressAt(this.#bytes, this.#from + at, size);
  }

  /** The attributes behind a struct of so many bytes. */
  attributes(struct = 0): Attributes {
    return new Attributes(this.#bytes, this.#from + align(struct), this.#to);
  }
}

/** A row of attributes. Looking one up is a walk: messages have few, and most are asked for few of these. */
export class Attributes {
  readonly #bytes: Buffer;
  readonly #from: number;
  readonly #to: number;

  constructor(bytes: Buffer, from: number, to: number) {
    this.#bytes = bytes;
    this.#from = from;
    this.#to = to;
  }

  /** Where the first attribute of this type begins; −1 when there is none. */
  #find(type: number): number {
    const bytes = this.#bytes;
    for (let at = this.#from; at + ATTRIBUTE_HEADER <= this.#to;) {
      const length = u16At(bytes, at);
      if (length < ATTRIBUTE_HEADER) return -1;
      if ((u16At(bytes, at + 2) & NLA_TYPE_MASK) === type) return at;
      at += align(length);
    }
    return -1;
  }

  /** How many bytes the value of the attribute there has. */
  #size(at: number): number {
    return Math.min(u16At(this.#bytes, at), this.#to - at) - ATTRIBUTE_HEADER;
  }

  /** The value of the first attribute of this type. */
  get(type: number): Reader | undefined {
    const at = this.#find(type);
    if (at < 0) return undefined;
    return new Reader(this.#bytes, at + ATTRIBUTE_HEADER, at + ATTRIBUTE_HEADER + this.#size(at));
  }

  has(type: number): boolean {
    return this.#find(type) >= 0;
  }

  u8(type: number): number | undefined {
    const at = this.#find(type);
    return at < 0 ? undefined : this.#bytes[at + ATTRIBUTE_HEADER]!;
  }

  u16(type: number): number | undefined {
    const at = this.#find(type);
    return at < 0 ? undefined : u16At(this.#bytes, at + ATTRIBUTE_HEADER);
  }

  u32(type: number): number | undefined {
    const at = this.#find(type);
    return at < 0 ? undefined : u32At(this.#bytes, at + ATTRIBUTE_HEADER);
  }

  text(type: number): string | undefined {
    return this.get(type)?.text();
  }

  address(type: number): string | undefined {
    const at = this.#find(type);
    return at < 0 ? undefined : addressAt(this.#bytes, at + ATTRIBUTE_HEADER, this.#size(at));
  }

  /** In lower-case text; undefined also for one that has not six bytes. */
  mac(type: number): string | undefined {
    const at = this.#find(type);
    if (at < 0 || this.#size(at) !== MAC_BYTES) return undefined;
    return bytesToMac(this.#bytes.subarray(at + ATTRIBUTE_HEADER, at + ATTRIBUTE_HEADER + MAC_BYTES));
  }

  nested(type: number): Attributes | undefined {
    return this.get(type)?.attributes();
  }

  /** Every attribute in turn. */
  *[Symbol.iterator](): Generator<readonly [type: number, value: Reader]> {
    for (let at = this.#from; at + ATTRIBUTE_HEADER <= this.#to;) {
      const length = u16At(this.#bytes, at);
      if (length < ATTRIBUTE_HEADER) return;
      const type = u16At(this.#bytes, at + 2) & NLA_TYPE_MASK;
      yield [type, new Reader(this.#bytes, at + ATTRIBUTE_HEADER, at + ATTRIBUTE_HEADER + this.#size(at))];
      at += align(length);
    }
  }
}

/** Writes a payload into memory that grows as needed. Attributes whose value is undefined are left out. */
export class Writer {
  #bytes = Buffer.alloc(256);
  #length = 0;

  /** A fixed struct; the numbers are members with their sizes in bytes. */
  struct(...members: readonly (readonly [size: 1 | 2 | 4, value: number])[]): this {
    for (const [size, value] of members) {
      this.#reserve(size);
      if (size === 1) this.#bytes[this.#length] = value;
      else if (size === 2) this.#bytes.writeUInt16LE(value & 0xffff, this.#length);
      else this.#bytes.writeUInt32LE(value >>> 0, this.#length);
      this.#length += size;
    }
    return this;
  }

  /** Bytes as they are, such as a struct that was made elsewhere. */
  raw(bytes: Uint8Array): this {
    this.#reserve(align(bytes.length));
    this.#bytes.set(bytes, this.#length);
    this.#length += align(bytes.length);
    return this;
  }

  bytes(type: number, value: Uint8Array | undefined): this {
    if (value === undefined) return this;
    this.#header(type, value.length);
    this.#bytes.set(value, this.#length);
    this.#length += align(value.length);
    return this;
  }

  u8(type: number, value: number | boolean | undefined): this {
    if (value === undefined) return this;
    this.#header(type, 1);
    this.#bytes[this.#length] = Number(value);
    this.#length += 4;
    return this;
  }

  be16(type: number, value: number | undefined): this {
    if (value === undefined) return this;
    this.#header(type, 2);
    this.#bytes.writeUInt16BE(value, this.#length);
    this.#length += 4;
    return this;
  }

  u32(type: number, value: number | undefined): this {
    if (value === undefined) return this;
    this.#header(type, 4);
    this.#bytes.writeUInt32LE(value >>> 0, this.#length);
    this.#length += 4;
    return this;
  }

  /** With its terminating zero. */
  text(type: number, value: string | undefined): this {
    return value === undefined ? this : this.bytes(type, Buffer.from(`${value}\0`));
  }

  /** @throws Error when it is no address. */
  address(type: number, value: string | undefined): this {
    return value === undefined ? this : this.bytes(type, addressToBytes(value));
  }

  /** @throws Error when it is no MAC address. */
  mac(type: number, value: string | undefined): this {
    return value === undefined ? this : this.bytes(type, macToBytes(value));
  }

  /** An attribute that is there or not. */
  flag(type: number, there: boolean | undefined): this {
    return there ? this.bytes(type, new Uint8Array(0)) : this;
  }

  /** An attribute that holds attributes. */
  nest(type: number, write: (writer: Writer) => void): this {
    const start = this.#length;
    this.#header(type | NLA_F_NESTED, 0);
    write(this);
    this.#bytes.writeUInt16LE(this.#length - start, start);
    return this;
  }

  /** A copy of what was written. */
  done(): Uint8Array {
    return new Uint8Array(this.#bytes.subarray(0, this.#length));
  }

  #header(type: number, length: number): void {
    this.#reserve(ATTRIBUTE_HEADER + align(length));
    // Padding must be zero, whatever was there.
    this.#bytes.fill(0, this.#length, this.#length + ATTRIBUTE_HEADER + align(length));
    this.#bytes.writeUInt16LE(ATTRIBUTE_HEADER + length, this.#length);
    this.#bytes.writeUInt16LE(type, this.#length + 2);
    this.#length += ATTRIBUTE_HEADER;
  }

  #reserve(size: number): void {
    if (this.#length + size <= this.#bytes.length) return;
    const larger = Buffer.alloc(Math.max(this.#bytes.length * 2, this.#length + size));
    larger.set(this.#bytes.subarray(0, this.#length));
    this.#bytes = larger;
  }
}
