// SPDX-License-Identifier: Apache-2.0
/**
 * Netlink sockets (RFC 3549), for listings that would cost many times as much as text of a program: the kernel gives 15,000
 * routes in ten milliseconds.
 */
import { closeSync, openSync } from 'node:fs';
import { BpfError } from './error.ts';
import { lastErrno, libbpf } from './ffi.ts';
import { closeFd } from './handle.ts';

/** linux/netlink.h. */
const PROTOCOLS = { route: 0, netfilter: 12 } as const;
const AF_NETLINK = 16;
const SOCK_RAW_CLOEXEC = 3 | 0o2000000;
const SOL_NETLINK = 270;
const NETLINK_GET_STRICT_CHK = 12;
const CLONE_NEWNET = 0x40000000;
const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const NLM_F_REQUEST = 1;
const NLM_F_DUMP = 0x300;
const NLM_F_DUMP_INTR = 0x10;
const HEADER = 16;
const EINTR = 4;
/** The kernel fills at most 32 KiB at a time. */
const BUFFER_BYTES = 64 << 10;
/** A dump during which something changed is done again so often. */
const ATTEMPTS = 4;
/** Requests in one message to the kernel; their answers have to fit the socket's buffer. */
const BATCH = 64;

/** Attributes by their number, without the flags on it; of several with one number the last. */
export type Attributes = ReadonlyMap<number, Uint8Array>;

/** What follows the header of a message: the family's own struct, of `fixed` bytes, and attributes. */
export interface Message {
  readonly type: number;
  /** Only there until the next message. */
  readonly payload: Uint8Array;
}

export class NetlinkSocket implements Disposable {
  readonly #fd: number;
  readonly #buffer = new Uint8Array(BUFFER_BYTES);
  readonly #view = new DataView(this.#buffer.buffer);
  #sequence = 0;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * @param netns path of a network namespace to ask about, in place of this process's own.
   * @throws BpfError when there is no such socket.
   */
  static open(protocol: keyof typeof PROTOCOLS, netns?: string): NetlinkSocket {
    const c = libbpf();
    const fd = inNetns(netns, () =>
      check('socket', c.socket(AF_NETLINK, SOCK_RAW_CLOEXEC, PROTOCOLS[protocol])),
    );
    // Filters in a request for a dump are heeded only so (Linux 4.20); who lacks it gets more than it asked for.
    c.setsockopt(fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, Uint32Array.of(1), 4);
    return new NetlinkSocket(fd);
  }

  [Symbol.dispose](): void {
    closeFd(this.#fd);
  }

  /**
   * Everything that the kernel answers to a request for a dump, by way of `read`, which gives what to keep of a message.
   * @throws BpfError with the kernel's errno.
   */
  dump<T>(type: number, payload: Uint8Array, read: (message: Message) => T | undefined): T[] {
    for (let attempt = 1; ; attempt++) {
      this.#send([{ type, flags: NLM_F_REQUEST | NLM_F_DUMP, payload }]);
      const kept: T[] = [];
      let interrupted = false;
      this.#receive((type, flags, _sequence, payload) => {
        interrupted ||= (flags & NLM_F_DUMP_INTR) !== 0;
        if (type === NLMSG_DONE) return true;
        if (type === NLMSG_ERROR) throw errorIn(payload, 'netlink dump');
        const value = read({ type, payload });
        if (value !== undefined) kept.push(value);
        return false;
      });
      if (!interrupted || attempt === ATTEMPTS) return kept;
    }
  }

  /** The answer to each of many requests that have one each: what `read` makes of it, or undefined where it is an error. */
  ask<T>(type: number, payloads: readonly Uint8Array[], read: (message: Message) => T): (T | undefined)[] {
    const answers: (T | undefined)[] = [];
    for (let from = 0; from < payloads.length; from += BATCH) {
      const batch = payloads.slice(from, from + BATCH);
      const first = this.#send(batch.map((payload) => ({ type, flags: NLM_F_REQUEST, payload })));
      let left = batch.length;
      this.#receive((type, _flags, sequence, payload) => {
        answers[from + sequence - first] = type === NLMSG_ERROR ? undefined : read({ type, payload });
        return --left === 0;
      });
    }
    return answers;
  }

  /** @returns the first one's sequence number. */
  #send(requests: readonly { type: number; flags: number; payload: Uint8Array }[]): number {
    const first = this.#sequence + 1;
    const size = requests.reduce((sum, { payload }) => sum + HEADER + align(payload.length), 0);
    const bytes = new Uint8Array(size);
    const view = new DataView(bytes.buffer);
    let at = 0;
    for (const { type, flags, payload } of requests) {
      this.#sequence = (this.#sequence + 1) >>> 0;
      view.setUint32(at, HEADER + payload.length, true);
      view.setUint16(at + 4, type, true);
      view.setUint16(at + 6, flags, true);
      view.setUint32(at + 8, this.#sequence, true);
      bytes.set(payload, at + HEADER);
      at += HEADER + align(payload.length);
    }
    check('send', libbpf().send(this.#fd, bytes, bytes.length, 0));
    return first;
  }

  /** Read until `take` says that this was the last message. */
  #receive(take: (type: number, flags: number, sequence: number, payload: Uint8Array) => boolean): void {
    for (let done = false; !done;) {
      const size = libbpf().recv(this.#fd, this.#buffer, BUFFER_BYTES, 0);
      if (size < 0 && lastErrno() === EINTR) continue;
      check('recv', size);
      for (let at = 0; at + HEADER <= size && !done;) {
        const length = this.#view.getUint32(at, true);
        done = take(
          this.#view.getUint16(at + 4, true),
          this.#view.getUint16(at + 6, true),
          this.#view.getUint32(at + 8, true),
          this.#buffer.subarray(at + HEADER, at + length),
        );
        at += align(length);
      }
    }
  }
}

/** Whole words of 4 bytes. */
function align(length: number): number {
  return (length + 3) & ~3;
}

/** Attributes behind a struct of so many bytes. */
export function attributesOf(payload: Uint8Array, fixed: number): Attributes {
  const attributes = new Map<number, Uint8Array>();
  eachAttribute(payload, fixed, (type, value) => attributes.set(type, value));
  return attributes;
}

/** The values of a list, whose attributes all have one number. */
export function attributeList(payload: Uint8Array): Uint8Array[] {
  const values: Uint8Array[] = [];
  eachAttribute(payload, 0, (_type, value) => values.push(value));
  return values;
}

function eachAttribute(
  payload: Uint8Array,
  from: number,
  give: (type: number, value: Uint8Array) => void,
): void {
  for (let at = from; at + 4 <= payload.length;) {
    const length = payload[at]! | (payload[at + 1]! << 8);
    if (length < 4) return;
    // The upper two bits say "nested" and "network byte order".
    give((payload[at + 2]! | (payload[at + 3]! << 8)) & 0x3fff, payload.subarray(at + 4, at + length));
    at += align(length);
  }
}

/** A payload: a struct, and attributes behind it. */
export function payloadOf(
  struct: Uint8Array,
  attributes: readonly (readonly [type: number, value: Uint8Array])[],
): Uint8Array {
  const size = attributes.reduce((sum, [, value]) => sum + 4 + align(value.length), align(struct.length));
  const bytes = new Uint8Array(size);
  const view = new DataView(bytes.buffer);
  bytes.set(struct);
  let at = align(struct.length);
  for (const [type, value] of attributes) {
    view.setUint16(at, 4 + value.length, true);
    view.setUint16(at + 2, type, true);
    bytes.set(value, at + 4);
    at += 4 + align(value.length);
  }
  return bytes;
}

/** Run with this thread in another network namespace; what it makes there stays there. */
function inNetns<T>(path: string | undefined, make: () => T): T {
  if (path === undefined) return make();
  const home = openSync('/proc/thread-self/ns/net', 'r');
  try {
    const there = openSync(path, 'r');
    try {
      check('setns', libbpf().setns(there, CLONE_NEWNET));
      try {
        return make();
      } finally {
        check('setns', libbpf().setns(home, CLONE_NEWNET));
      }
    } finally {
      closeSync(there);
    }
  } finally {
    closeSync(home);
  }
}

function check(call: string, status: number): number {
  if (status < 0) throw new BpfError(call, lastErrno());
  return status;
}

function errorIn(payload: Uint8Array, call: string): BpfError {
  return new BpfError(call, -new DataView(payload.buffer, payload.byteOffset).getInt32(0, true));
}
