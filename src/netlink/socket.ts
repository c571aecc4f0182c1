// SPDX-License-Identifier: Apache-2.0
import { closeSync } from 'node:fs';
import { constants } from 'node:os';
import { check, inNetns, lastErrno, libc } from './calls.ts';
import { NetlinkError } from './error.ts';
import { align, Reader } from './wire.ts';

/* linux/netlink.h, linux/socket.h */
const PROTOCOLS = { route: 0, xfrm: 6, netfilter: 12 } as const;
export type Protocol = keyof typeof PROTOCOLS;
const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;
/** `struct sockaddr_nl`: family, padding, port, groups. */
const SOCKADDR_NL = Uint8Array.of(AF_NETLINK, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
const SOL_SOCKET = 1;
const SO_RCVBUFFORCE = 33;
const SO_ATTACH_BPF = 50;
const SOL_NETLINK = 270;
const NETLINK_ADD_MEMBERSHIP = 1;
const NETLINK_CAP_ACK = 10;
const NETLINK_EXT_ACK = 11;
const NETLINK_GET_STRICT_CHK = 12;
const NLMSG_NOOP = 1;
export const NLMSG_ERROR = 2;
const NLMSG_DONE = 3;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLM_F_DUMP = 0x300;
const NLM_F_DUMP_INTR = 0x10;
const NLM_F_ACK_TLVS = 0x200;
const NLMSGERR_ATTR_MSG = 1;
const HEADER = 16;

/** Flags of a request that makes something. */
export const CREATE = { add: 0x600, replace: 0x500 } as const;

/** The kernel fills at most 32 KiB at a time. */
export const BUFFER_BYTES = 64 << 10;
/** A dump during which something changed is done again so often. */
const ATTEMPTS = 4;
/** Requests in one system call. If all fail, their answers have to fit the socket's buffer: about 1 KiB of it each. */
const BATCH = 512;
const BATCH_BYTES = 128 << 10;
const BATCH_RECEIVE_BYTES = 1 << 20;

/** Something to ask of the kernel. Making one does nothing; a socket sends it. */
export interface Request {
  readonly type: number;
  /** Besides those that the way of sending sets. */
  readonly flags?: number;
  readonly payload: Uint8Array;
  /** In words, for errors: `add route 10.42.1.0/24`. */
  readonly what: () => string;
}

/** One message of the kernel; `body` is what follows its header. Both are only there until the next one. */
export interface Message {
  readonly type: number;
  readonly body: Reader;
}

/** A received message with the parts of its header. */
export interface Received extends Message {
  readonly flags: number;
  readonly sequence: number;
}

/* linux/sockios.h, linux/if.h */
const SIOCGIFINDEX = 0x8933;
const SIOCGIFFLAGS = 0x8913;
const IFNAMSIZ = 16;
const IFREQ = 40;
const IFF_RUNNING = 0x40;

/**
 * A netlink socket for requests and their answers. Every call is synchronous: the kernel does the work inside the
 * system call. Not for subscriptions, see {@link subscribe}.
 */
export class NetlinkSocket implements Disposable {
  readonly #fd: number;
  readonly #buffer = Buffer.alloc(BUFFER_BYTES);
  #sequence = 0;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /**
   * @param netns path of the network namespace to speak to, in place of this process's own.
   * @throws Error with `code` when there is no such namespace or protocol.
   */
  static open(protocol: Protocol, netns?: string): NetlinkSocket {
    const fd = openSocket(protocol, netns);
    receiveBuffer(fd, BATCH_RECEIVE_BYTES);
    return new NetlinkSocket(fd);
  }

  close(): void {
    closeSync(this.#fd);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /**
   * The index of a link; undefined when there is none of this name. Not by netlink: this takes no RTNL lock, so it
   * never waits for somebody who changes devices. For a name that does not exist the kernel first tries to load a module
   * of that name, so do not probe with it.
   */
  indexOf(name: string): number | undefined {
    return this.#interface(SIOCGIFINDEX, name)?.getInt32(IFNAMSIZ, true);
  }

  /**
   * Whether a link is up and the kernel sends from it; false when there is none of this name. Takes no RTNL lock
   * either.
   */
  isRunning(name: string): boolean {
    return ((this.#interface(SIOCGIFFLAGS, name)?.getInt16(IFNAMSIZ, true) ?? 0) & IFF_RUNNING) !== 0;
  }

  /** Ask about a link by ioctl(2). @returns the kernel's `struct ifreq`: a name of 16 bytes, and the answer. */
  #interface(request: number, name: string): DataView | undefined {
    const ifreq = new Uint8Array(IFREQ);
    new TextEncoder().encodeInto(name, ifreq.subarray(0, IFNAMSIZ - 1));
    if (libc().ioctl(this.#fd, request, ifreq) === 0) return new DataView(ifreq.buffer);
    if (lastErrno() === constants.errno.ENODEV) return undefined;
    throw new NetlinkError(`look for the link ${name}`, lastErrno());
  }

  /**
   * Everything that the kernel answers to a request for a listing, by way of `read`, which gives what to keep of a
   * message. A listing during which something changed is made again, a few times; after that its last version stands.
   * @throws NetlinkError with the kernel's reason.
   */
  dump<T>(request: Request, read: (message: Message) => T | undefined): T[] {
    for (let attempt = 1; ; attempt++) {
      const { values, interrupted } = this.#dumpOnce(request, read);
      if (!interrupted || attempt === ATTEMPTS) return values;
    }
  }

  #dumpOnce<T>(
    request: Request,
    read: (message: Message) => T | undefined,
  ): { values: T[]; interrupted: boolean } {
    const sequence = this.#send([request], { dump: true });
    const values: T[] = [];
    let interrupted = false;
    let failure: unknown;
    this.#receive((message) => {
      if (message.sequence !== sequence) return false;
      interrupted ||= (message.flags & NLM_F_DUMP_INTR) !== 0;
      if (message.type === NLMSG_DONE || message.type === NLMSG_ERROR) {
        failure ??= errorIn(message, request);
        return true;
      }
      if (message.type === NLMSG_NOOP || failure !== undefined) return false;
      try {
        const value = read(message);
        if (value !== undefined) values.push(value);
      } catch (error) {
        // The rest of the listing has to be fetched all the same, or it would be taken for the next one's.
        failure = error;
      }
      return false;
    });
    if (failure !== undefined) throw failure;
    return { values, interrupted };
  }

  /** The answer to each of many requests that have one each: what `read` makes of it, or the kernel's error. */
  ask<T>(requests: readonly Request[], read: (message: Message) => T): (T | NetlinkError)[] {
    const answers: (T | NetlinkError)[] = [];
    for (const batch of batches(requests, BATCH / 8)) {
      const from = answers.length;
      const first = this.#send(batch, {});
      let left = batch.length;
      this.#receive((message) => {
        const at = (message.sequence - first) >>> 0;
        if (at >= batch.length) return false;
        const error = message.type === NLMSG_ERROR ? errorIn(message, batch[at]!) : undefined;
        answers[from + at] = error ?? read(message);
        return --left === 0;
      });
    }
    return answers;
  }

  /**
   * Send these one after the other, each when the one before it has succeeded.
   * @throws NetlinkError of the first that failed; those behind it were not sent.
   */
  write(...requests: readonly Request[]): void {
    for (const request of requests) {
      const [error] = this.writeAll([request]);
      if (error) throw error;
    }
  }

  /**
   * Send all of these, as many as possible in one system call. One that fails keeps no other from its turn.
   * @returns for each request its error, or undefined.
   */
  writeAll(requests: readonly Request[]): (NetlinkError | undefined)[] {
    const errors: (NetlinkError | undefined)[] = [];
    for (const batch of batches(requests, BATCH)) {
      const from = errors.length;
      errors.length += batch.length;
      // Errors are answered in any case. Success need only be told of the last one: the kernel goes through them in
      // order.
      const first = this.#send(batch, { ack: true });
      this.#receive((message) => {
        const at = (message.sequence - first) >>> 0;
        if (at >= batch.length || message.type !== NLMSG_ERROR) return false;
        errors[from + at] = errorIn(message, batch[at]!);
        return at === batch.length - 1;
      });
    }
    return errors;
  }

  /** @returns the first one's sequence number; those of the others follow. */
  #send(requests: readonly Request[], how: { readonly dump?: boolean; readonly ack?: boolean }): number {
    const first = (this.#sequence + 1) >>> 0;
    this.#sequence = (this.#sequence + requests.length) >>> 0;
    const bytes = encode(requests, first, how);
    check('send to netlink', libc().send(this.#fd, bytes, bytes.length, 0));
    return first;
  }

  /** Read until `take` says that this was the last message. */
  #receive(take: (message: Received) => boolean): void {
    for (let done = false; !done;) {
      const size = libc().recv(this.#fd, this.#buffer, BUFFER_BYTES, 0);
      if (size < 0 && lastErrno() === constants.errno.EINTR) continue;
      check('receive from netlink', size);
      done = readMessages(this.#buffer, size, take);
    }
  }
}

/**
 * Requests as one datagram, with sequence numbers from `first` on.
 * @param how `ack`: the last one is acknowledged, also when it succeeds.
 */
export function encode(
  requests: readonly Request[],
  first: number,
  { dump = false, ack = false }: { readonly dump?: boolean; readonly ack?: boolean },
): Buffer {
  const bytes = Buffer.alloc(requests.reduce((sum, request) => sum + sizeOf(request), 0));
  let at = 0;
  for (const [i, request] of requests.entries()) {
    const flags = (dump ? NLM_F_DUMP : 0) | (ack && i === requests.length - 1 ? NLM_F_ACK : 0);
    bytes.writeUInt32LE(HEADER + request.payload.length, at);
    bytes.writeUInt16LE(request.type, at + 4);
    bytes.writeUInt16LE(NLM_F_REQUEST | flags | (request.flags ?? 0), at + 6);
    bytes.writeUInt32LE((first + i) >>> 0, at + 8);
    bytes.set(request.payload, at + HEADER);
    at += sizeOf(request);
  }
  return bytes;
}

function sizeOf({ payload }: Request): number {
  return HEADER + align(payload.length);
}

/** The requests in groups that one system call may take. */
function* batches(requests: readonly Request[], most: number): Generator<readonly Request[]> {
  let from = 0;
  let bytes = 0;
  for (const [i, request] of requests.entries()) {
    if (i > from && (i - from === most || bytes + sizeOf(request) > BATCH_BYTES)) {
      yield requests.slice(from, i);
      from = i;
      bytes = 0;
    }
    bytes += sizeOf(request);
  }
  if (from < requests.length) yield requests.slice(from);
}

/**
 * Give `take` the messages of one datagram, until it says that this was the last one.
 * @returns whether it has said so.
 */
export function readMessages(
  buffer: Buffer,
  size: number,
  take: (message: Received) => boolean | void,
): boolean {
  const body = new Reader(buffer);
  for (let at = 0; at + HEADER <= size;) {
    const length = buffer.readUInt32LE(at);
    if (length < HEADER) return false;
    body.move(at + HEADER, Math.min(at + length, size));
    const isLast = take({
      type: buffer.readUInt16LE(at + 4),
      flags: buffer.readUInt16LE(at + 6),
      sequence: buffer.readUInt32LE(at + 8),
      body,
    });
    if (isLast === true) return true;
    at += align(length);
  }
  return false;
}

/** What an acknowledgement, or the end of a listing, says went wrong; undefined when nothing did. */
export function errorIn({ type, flags, body }: Received, request: Request): NetlinkError | undefined {
  const status = body.length >= 4 ? body.i32(0) : 0;
  if (status >= 0) return undefined;
  // An acknowledgement repeats the header of its request. Of a request for a listing it may repeat the rest, too.
  const repeated = type === NLMSG_DONE ? 4 : 4 + HEADER;
  const reason =
    (flags & NLM_F_ACK_TLVS) === 0 ? undefined : body.attributes(repeated).text(NLMSGERR_ATTR_MSG);
  return new NetlinkError(request.what(), -status, reason);
}

/** @throws Error with `code`. */
function openSocket(protocol: Protocol, netns: string | undefined, flags = 0): number {
  const c = libc();
  const fd = inNetns(netns, () =>
    check(
      `socket of netlink ${protocol}`,
      c.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, PROTOCOLS[protocol]),
    ),
  );
  // Short acknowledgements, with reasons in words; and the kernel applies the filters of listings (Linux 4.20; older
  // kernels list more than was asked for).
  for (const option of [NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK]) {
    c.setsockopt(fd, SOL_NETLINK, option, Uint32Array.of(1), 4);
  }
  return fd;
}

/** A socket that never waits, and hears of what its multicast groups do. @throws Error with `code`. */
export function openEventSocket(
  protocol: Protocol,
  groups: readonly number[],
  netns: string | undefined,
  receiveBytes?: number,
): number {
  const fd = openSocket(protocol, netns, SOCK_NONBLOCK);
  try {
    if (receiveBytes !== undefined) receiveBuffer(fd, receiveBytes);
    // The kernel tells nothing to a socket without an address; with this it gets one of the kernel's choice.
    check('bind of a netlink socket', libc().bind(fd, SOCKADDR_NL, SOCKADDR_NL.length));
    for (const group of groups) joinGroup(fd, group);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** Hear what the kernel tells this multicast group. @throws NetlinkError */
export function joinGroup(fd: number, group: number): void {
  const status = libc().setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, Uint32Array.of(group), 4);
  check(`join netlink group ${group}`, status);
}

/** Have a BPF program look at each message before the socket gets it. @throws NetlinkError */
export function attachFilter(fd: number, programFd: number): void {
  const status = libc().setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, Uint32Array.of(programFd), 4);
  check('attach a BPF program to a netlink socket', status);
}

/** Beyond net.core.rmem_max, which takes CAP_NET_ADMIN; without it the socket keeps the usual size. */
function receiveBuffer(fd: number, bytes: number): void {
  libc().setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, Uint32Array.of(bytes), 4);
}
