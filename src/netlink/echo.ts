// SPDX-License-Identifier: Apache-2.0
/** ICMP echo (RFC 792, 4443): many addresses and sizes at once, without another program. */
import { randomBytes } from 'node:crypto';
import { closeSync } from 'node:fs';
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { addressFamily, type Family } from '../net/ip.ts';
import { checksum } from '../net/packets.ts';
import { check, lastErrno, libc, poll } from './calls.ts';
import { IP_SOCKETS, SOCK_DGRAM, SOCK_FLAGS, socketAddress } from './datagram.ts';
import { NetlinkError } from './error.ts';

/* sys/socket.h, linux/in.h */
const SOCK_RAW = 3;
const SO_RCVBUF = 8;
const PMTUDISC_PROBE = 3;
const ICMP = {
  4: {
    protocol: 1,
    request: 8,
    reply: 0,
    header: 20,
  },
  6: {
    protocol: 58,
    request: 128,
    reply: 129,
    header: 40,
  },
} as const;
const ICMP_HEADER = 8;
const COOKIE_BYTES = 8;
/** Enough for the answers of some hundred probes of the largest size. */
const RECEIVE_BYTES = 4 << 20;

/** A packet that is to be answered. It may not be fragmented (DF), whatever is known of its path's MTU. */
export interface Echo {
  readonly to: string;
  /** Of the whole IP packet; at least 46 (IPv6: 66). */
  readonly bytes: number;
}

/** `too-big`: this node's own route or device takes no packet of that size. `unreachable`: it has no route. */
export type EchoResult = 'answered' | 'silent' | 'too-big' | 'unreachable';

/**
 * Send all of these, and wait for their answers. What is not answered is sent again, as often as told.
 * @param tries how often to send each.
 * @param timeoutMs how long it takes at most; it ends with the last answer.
 * @throws NetlinkError with code EPERM or EACCES where this process may open no ICMP socket: it takes CAP_NET_RAW, or
 * the setting net.ipv4.ping_group_range.
 */
export async function echo(
  requests: readonly Echo[],
  { tries, timeoutMs }: { readonly tries: number; readonly timeoutMs: number },
): Promise<EchoResult[]> {
  const results = requests.map((): EchoResult => 'silent');
  const cookie = randomBytes(COOKIE_BYTES);
  const { promise: all, resolve: done } = Promise.withResolvers<void>();
  using sockets = new DisposableStack();
  const open = new Map<Family, number>();
  const answered = (index: number): void => {
    if (index < results.length) results[index] = 'answered';
    // Out of koffi's callback, where promises that are settled would wait for the next event (Node 26).
    if (!results.includes('silent')) setImmediate(done);
  };
  for (const family of new Set(requests.map(({ to }) => addressFamily(to) ?? 4))) {
    const fd = openIcmp(family);
    sockets.defer(() => closeSync(fd));
    open.set(family, fd);
    const watch = poll(fd, () => receive(fd, family, cookie, answered));
    sockets.defer(() => watch.close());
  }
  for (let sent = 0; sent < tries; sent++) {
    for (const [index, request] of requests.entries()) {
      if (results[index] !== 'silent') continue;
      const family = addressFamily(request.to) ?? 4;
      results[index] = send(open.get(family)!, family, request, cookie, index);
    }
    if (!results.includes('silent')) break;
    await Promise.race([all, sleep(timeoutMs / tries)]);
    // This process may have been too busy to read what has come in time.
    for (const [family, fd] of open) receive(fd, family, cookie, answered);
    if (!results.includes('silent')) break;
  }
  return results;
}

function openIcmp(family: Family): number {
  const { number, level, discover } = IP_SOCKETS[family];
  const { protocol } = ICMP[family];
  let fd = libc().socket(number, SOCK_RAW | SOCK_FLAGS, protocol);
  const { EPERM, EACCES } = constants.errno;
  if (fd < 0 && [EPERM, EACCES].includes(lastErrno()))
    fd = libc().socket(number, SOCK_DGRAM | SOCK_FLAGS, protocol);
  check('open an ICMP socket', fd);
  const set = (level: number, option: number, value: number): void => {
    check('setsockopt', libc().setsockopt(fd, level, option, Uint32Array.of(value), 4));
  };
  try {
    set(level, discover, PMTUDISC_PROBE);
    set(1, SO_RCVBUF, RECEIVE_BYTES); // SOL_SOCKET
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function send(fd: number, family: Family, { to, bytes }: Echo, cookie: Buffer, index: number): EchoResult {
  const { request, header } = ICMP[family];
  const message = Buffer.alloc(Math.max(bytes - header, ICMP_HEADER + COOKIE_BYTES + 2));
  message.writeUInt8(request, 0);
  message.writeUInt16BE(cookie.readUInt16BE(), 4);
  message.writeUInt16BE(index & 0xffff, 6);
  message.set(cookie, ICMP_HEADER);
  message.writeUInt16BE(index, ICMP_HEADER + COOKIE_BYTES);
  // The kernel writes the checksum of ICMPv6, which covers addresses.
  if (family === 4) message.writeUInt16BE(checksum(message), 2);
  const address = socketAddress(family, to, 0);
  if (libc().sendto(fd, message, message.length, 0, address, address.length) >= 0) return 'silent';
  const { code } = new NetlinkError('send an ICMP echo', lastErrno());
  if (code === 'EMSGSIZE') return 'too-big';
  if (code === 'ENETUNREACH' || code === 'EHOSTUNREACH' || code === 'EINVAL') return 'unreachable';
  return 'silent'; // A full buffer, or a rule that drops it.
}

const buffer = Buffer.alloc(64 << 10);

/** Read all that has come. A raw socket gets every ICMP packet of the node: the cookie tells which are ours. */
function receive(fd: number, family: Family, cookie: Buffer, answered: (index: number) => void): void {
  for (;;) {
    const length = libc().recv(fd, buffer, buffer.length, 0);
    if (length < 0) return;
    // Only raw sockets of IPv4 show the IP header. Echo replies begin with 0 or 129, IPv4 headers with 0x45 to 0x4f.
    const at = family === 4 && buffer[0]! >> 4 === 4 ? (buffer[0]! & 15) * 4 : 0;
    const found = buffer.subarray(at + ICMP_HEADER, at + ICMP_HEADER + COOKIE_BYTES);
    if (buffer[at] !== ICMP[family].reply || length < at + ICMP_HEADER + COOKIE_BYTES + 2) continue;
    if (cookie.equals(found)) answered(buffer.readUInt16BE(at + ICMP_HEADER + COOKIE_BYTES));
  }
}
