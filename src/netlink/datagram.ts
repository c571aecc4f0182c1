// SPDX-License-Identifier: Apache-2.0
import { closeSync } from 'node:fs';
import { constants, endianness } from 'node:os';
import { addressFamily, addressToBytes, type Family } from '../net/ip.ts';
import { check, lastErrno, libc } from './calls.ts';
import { NetlinkError } from './error.ts';

export const SOCK_DGRAM = 2;
export const SOCK_FLAGS = 0o2004000; // CLOEXEC, NONBLOCK
const PMTUDISC_DO = 2;
/** Numbers of sys/socket.h, linux/in.h and linux/in6.h. */
export const IP_SOCKETS = {
  4: {
    number: 2,
    addressAt: 4,
    addressBytes: 16,
    /** SOL_IP: IP_MTU_DISCOVER, IP_MTU. */
    level: 0,
    discover: 10,
    mtu: 14,
  },
  6: {
    number: 10,
    addressAt: 8,
    addressBytes: 28,
    /** SOL_IPV6: IPV6_MTU_DISCOVER, IPV6_MTU. */
    level: 41,
    discover: 23,
    mtu: 24,
  },
} as const;

const buffer = Buffer.alloc(64 << 10);

/**
 * A UDP socket that talks to one address, and can do what Node's `dgram` cannot: forbid fragments, and tell
 * the path's MTU. Every call is synchronous; none blocks.
 */
export class DatagramSocket implements Disposable {
  readonly family: Family;
  readonly #fd: number;

  private constructor(fd: number, family: Family) {
    this.#fd = fd;
    this.family = family;
  }

  /** @throws NetlinkError such as ENETUNREACH where there is no route. */
  static connect(address: string, port: number): DatagramSocket {
    const family = addressFamily(address) ?? 4;
    const { number } = IP_SOCKETS[family];
    const fd = check('open a UDP socket', libc().socket(number, SOCK_DGRAM | SOCK_FLAGS, 0));
    const socket = new DatagramSocket(fd, family);
    try {
      const to = socketAddress(family, address, port);
      check(`connect to ${address}`, libc().connect(fd, to, to.length));
      return socket;
    } catch (error) {
      socket[Symbol.dispose]();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  /** Send no packet that a router, or this node, would have to fragment: {@link send} fails with EMSGSIZE. */
  forbidFragments(): void {
    const { level, discover } = IP_SOCKETS[this.family];
    const set = libc().setsockopt(this.#fd, level, discover, Uint32Array.of(PMTUDISC_DO), 4);
    check('forbid fragments', set);
  }

  /** The largest IP packet that is known to reach the other side, bytes. */
  get pathMtu(): number {
    const { level, mtu } = IP_SOCKETS[this.family];
    const value = new Uint32Array(1);
    check('ask for the MTU', libc().getsockopt(this.#fd, level, mtu, value, Uint32Array.of(4)));
    return value[0]!;
  }

  /** The own port. */
  get port(): number {
    const address = Buffer.alloc(IP_SOCKETS[6].addressBytes);
    check('getsockname', libc().getsockname(this.#fd, address, Uint32Array.of(address.length)));
    return address.readUInt16BE(2);
  }

  /** @throws NetlinkError, also for an ICMP error that has come for an earlier packet: ECONNREFUSED, EHOSTUNREACH, … */
  send(bytes: Uint8Array): void {
    if (libc().send(this.#fd, bytes, bytes.length, 0) < 0) throw new NetlinkError('send', lastErrno());
  }

  /** What has come; undefined: nothing has. @throws NetlinkError as {@link send} does. */
  receive(): Buffer | undefined {
    const length = libc().recv(this.#fd, buffer, buffer.length, 0);
    if (length >= 0) return Buffer.from(buffer.subarray(0, length));
    const errno = lastErrno();
    if (errno === constants.errno.EAGAIN || errno === constants.errno.EINTR) return undefined;
    throw new NetlinkError('receive', errno);
  }
}

/** `struct sockaddr_in` or `sockaddr_in6`. */
export function socketAddress(family: Family, address: string, port: number): Buffer {
  const { number, addressAt, addressBytes } = IP_SOCKETS[family];
  const bytes = Buffer.alloc(addressBytes);
  if (endianness() === 'LE') bytes.writeUInt16LE(number, 0);
  else bytes.writeUInt16BE(number, 0);
  bytes.writeUInt16BE(port, 2);
  bytes.set(addressToBytes(address), addressAt);
  return bytes;
}
