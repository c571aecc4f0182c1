// SPDX-License-Identifier: Apache-2.0
/**
 * The few messages of etcd's v3 API that ripstop uses, as protocol buffers (etcd: rpc.proto, kv.proto, auth; the
 * encoding: protobuf.dev/programming-guides/encoding). Unknown fields are skipped, as that encoding asks, so newer
 * servers are understood.
 */

/** A message under construction; zero and empty values are left out, as proto3 has it. */
class Message {
  readonly #parts: Uint8Array[] = [];

  int(field: number, value: bigint | number | boolean | undefined): this {
    const bits = BigInt.asUintN(64, BigInt(value ?? 0));
    if (bits !== 0n) this.#parts.push(varint(BigInt(field) << 3n), varint(bits));
    return this;
  }

  bytes(field: number, value: Uint8Array | string | undefined): this {
    const data = typeof value === 'string' ? Buffer.from(value) : value;
    return data === undefined || data.length === 0 ? this : this.#sized(field, data);
  }

  /** A nested message: an empty one still says something by being there. */
  message(field: number, value: Message | undefined): this {
    return value === undefined ? this : this.#sized(field, value.encode());
  }

  encode(): Buffer {
    return Buffer.concat(this.#parts);
  }

  #sized(field: number, data: Uint8Array): this {
    this.#parts.push(varint((BigInt(field) << 3n) | 2n), varint(BigInt(data.length)), data);
    return this;
  }
}

function varint(value: bigint): Uint8Array {
  const bytes: number[] = [];
  let rest = value;
  for (; rest > 0x7fn; rest >>= 7n) bytes.push(Number(rest & 0x7fn) | 0x80);
  bytes.push(Number(rest));
  return Uint8Array.from(bytes);
}

type Field = readonly [field: number, value: bigint | Buffer];

/** @throws RangeError when the bytes are no protocol buffer. */
function* fieldsOf(data: Buffer): Generator<Field> {
  let at = 0;
  const readVarint = (): bigint => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const byte = data[at++];
      if (byte === undefined) break;
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw new RangeError('a protocol buffer ends within a number');
  };
  const take = (length: number): Buffer => {
    if (at + length > data.length) throw new RangeError('a protocol buffer ends within a field');
    at += length;
    return data.subarray(at - length, at);
  };
  while (at < data.length) {
    const tag = Number(readVarint());
    const field = tag >>> 3;
    switch (tag & 7) {
      case 0:
        yield [field, readVarint()];
        break;
      case 1:
        yield [field, take(8)];
        break;
      case 2:
        yield [field, take(Number(readVarint()))];
        break;
      case 5:
        yield [field, take(4)];
        break;
      default:
        throw new RangeError(`a protocol buffer has a field of unknown type ${tag & 7}`);
    }
  }
}

/** A decoded message's fields; a number that is not there is 0. */
class Decoded {
  readonly #fields = new Map<number, (bigint | Buffer)[]>();

  constructor(data: Buffer) {
    for (const [field, value] of fieldsOf(data)) {
      const values = this.#fields.get(field);
      if (values) values.push(value);
      else this.#fields.set(field, [value]);
    }
  }

  /** int64, as etcd's revisions and lease IDs are. */
  int64(field: number): bigint {
    const value = this.#fields.get(field)?.at(-1);
    return typeof value === 'bigint' ? BigInt.asIntN(64, value) : 0n;
  }

  uint64(field: number): bigint {
    return BigInt.asUintN(64, this.int64(field));
  }

  /** For what stays far below 2^53, such as revisions. */
  number(field: number): number {
    return Number(this.int64(field));
  }

  flag(field: number): boolean {
    return this.int64(field) !== 0n;
  }

  text(field: number): string {
    return this.all(field).at(-1)?.toString('utf8') ?? '';
  }

  all(field: number): Buffer[] {
    return (this.#fields.get(field) ?? []).filter((value) => typeof value !== 'bigint');
  }

  message(field: number): Decoded {
    return new Decoded(this.all(field).at(-1) ?? Buffer.alloc(0));
  }
}

/** A key and its value. Revisions count the changes of the whole store. */
export interface KeyValue {
  readonly key: string;
  readonly value: string;
  /** When the key was created; another number means that it was deleted and created again. */
  readonly createRevision: number;
  readonly modRevision: number;
  /** 0n: none, so the key never expires. */
  readonly lease: bigint;
}

export interface ResponseHeader {
  readonly clusterId: bigint;
  /** The store's revision when the response was made. */
  readonly revision: number;
}

function header(message: Decoded): ResponseHeader {
  const decoded = message.message(1);
  return { clusterId: decoded.uint64(1), revision: decoded.number(3) };
}

function keyValue(data: Buffer): KeyValue {
  const decoded = new Decoded(data);
  return {
    key: decoded.text(1),
    value: decoded.text(5),
    createRevision: decoded.number(2),
    modRevision: decoded.number(3),
    lease: decoded.int64(6),
  };
}

/** The end of the range of all keys that begin with `prefix`: its last byte, one higher. ASCII prefixes only. */
export function prefixEnd(prefix: string): string {
  return prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1);
}

export interface RangeRequest {
  readonly key: string;
  /** Left out: that one key. */
  readonly rangeEnd?: string;
  readonly limit?: number;
  readonly revision?: number;
}

export interface PutRequest {
  readonly key: string;
  readonly value: string;
  /** 0n or left out: the key is without a lease afterwards. */
  readonly lease?: bigint;
}

/**
 * What must hold of every key in the range for a transaction's changes to be made; a key that is not there has the
 * revision 0, and an empty range is no obstacle.
 */
export interface Condition {
  readonly key: string;
  readonly rangeEnd?: string;
  readonly createRevision: number;
  readonly is: 'equal' | 'less';
}

/** Changes that are made together or not at all. */
export interface TxnRequest {
  readonly conditions: readonly Condition[];
  readonly put?: PutRequest;
  readonly remove?: string;
}

export interface WatchRequest {
  readonly key: string;
  readonly rangeEnd: string;
  readonly startRevision: number;
}

export interface WatchEvent {
  readonly type: 'put' | 'delete';
  /** Of a deletion only the key and `modRevision` mean something. */
  readonly kv: KeyValue;
}

export interface WatchResponse {
  readonly header: ResponseHeader;
  /** -1 when the response answers a request for progress. */
  readonly watchId: number;
  readonly created: boolean;
  readonly canceled: boolean;
  /** Not 0: the revision asked for is gone, compacted up to this one. */
  readonly compactRevision: number;
  readonly cancelReason: string;
  readonly events: readonly WatchEvent[];
}

/** One remote procedure: its path, and both directions' encoding. */
export interface Method<Request, Response> {
  readonly path: string;
  readonly encode: (request: Request) => Buffer;
  readonly decode: (data: Buffer) => Response;
}

const rangeRequest = (request: RangeRequest): Message =>
  new Message()
    .bytes(1, request.key)
    .bytes(2, request.rangeEnd)
    .int(3, request.limit)
    .int(4, request.revision);

const putRequest = (request: PutRequest): Message =>
  new Message().bytes(1, request.key).bytes(2, request.value).int(3, request.lease);

export const range: Method<RangeRequest, { header: ResponseHeader; kvs: KeyValue[]; more: boolean }> = {
  path: '/etcdserverpb.KV/Range',
  encode: (request) => rangeRequest(request).encode(),
  decode: (data) => {
    const decoded = new Decoded(data);
    return {
      header: header(decoded),
      kvs: decoded.all(2).map(keyValue),
      more: decoded.flag(3),
    };
  },
};

const CREATE_REVISION = 1;
const EQUAL = 0;
const LESS = 2;

const condition = ({ key, rangeEnd, createRevision, is }: Condition): Message =>
  new Message()
    .int(1, is === 'equal' ? EQUAL : LESS)
    .int(2, CREATE_REVISION)
    .bytes(3, key)
    .int(5, createRevision)
    .bytes(64, rangeEnd);

export const txn: Method<TxnRequest, { header: ResponseHeader; succeeded: boolean }> = {
  path: '/etcdserverpb.KV/Txn',
  encode: ({ conditions, put: change, remove }) => {
    const message = new Message();
    for (const one of conditions) message.message(1, condition(one));
    if (change) message.message(2, new Message().message(2, putRequest(change)));
    if (remove !== undefined) message.message(2, new Message().message(3, new Message().bytes(1, remove)));
    return message.encode();
  },
  decode: (data) => {
    const decoded = new Decoded(data);
    return { header: header(decoded), succeeded: decoded.flag(2) };
  },
};

interface LeaseTtl {
  readonly id: bigint;
  /** Seconds from now; 0 or less: there is no such lease. */
  readonly ttl: number;
}

const leaseTtl = (data: Buffer): LeaseTtl => {
  const decoded = new Decoded(data);
  return { id: decoded.int64(2), ttl: decoded.number(3) };
};

/** @param ttl in seconds; the server may give more. */
export const leaseGrant: Method<{ ttl: number }, LeaseTtl> = {
  path: '/etcdserverpb.Lease/LeaseGrant',
  encode: ({ ttl }) => new Message().int(1, ttl).encode(),
  decode: leaseTtl,
};

/** Takes the lease's keys with it. */
export const leaseRevoke: Method<{ id: bigint }, ResponseHeader> = {
  path: '/etcdserverpb.Lease/LeaseRevoke',
  encode: ({ id }) => new Message().int(1, id).encode(),
  decode: (data) => header(new Decoded(data)),
};

/** A stream in etcd's definition, of which ripstop uses one request and one answer. */
export const leaseKeepAlive: Method<{ id: bigint }, LeaseTtl> = {
  path: '/etcdserverpb.Lease/LeaseKeepAlive',
  encode: ({ id }) => new Message().int(1, id).encode(),
  decode: leaseTtl,
};

export const authenticate: Method<{ name: string; password: string }, { token: string }> = {
  path: '/etcdserverpb.Auth/Authenticate',
  encode: ({ name, password }) => new Message().bytes(1, name).bytes(2, password).encode(),
  decode: (data) => ({ token: new Decoded(data).text(2) }),
};

/** A stream in both directions; `'progress'` asks for a sign of life. */
export const watch: Method<WatchRequest | 'progress', WatchResponse> = {
  path: '/etcdserverpb.Watch/Watch',
  encode: (request) => {
    if (request === 'progress') return new Message().message(3, new Message()).encode();
    const create = new Message()
      .bytes(1, request.key)
      .bytes(2, request.rangeEnd)
      .int(3, request.startRevision)
      .int(4, true);
    return new Message().message(1, create).encode();
  },
  decode: (data) => {
    const decoded = new Decoded(data);
    return {
      header: header(decoded),
      watchId: decoded.number(2),
      created: decoded.flag(3),
      canceled: decoded.flag(4),
      compactRevision: decoded.number(5),
      cancelReason: decoded.text(6),
      events: decoded.all(11).map((event) => {
        const { 0: kv } = new Decoded(event).all(2);
        return {
          type: new Decoded(event).flag(1) ? 'delete' : 'put',
          kv: keyValue(kv ?? Buffer.alloc(0)),
        };
      }),
    };
  },
};
