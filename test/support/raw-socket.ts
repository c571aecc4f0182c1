// SPDX-License-Identifier: Apache-2.0
/** AF_PACKET sockets (packet(7)) in other network namespaces: frames out as they are, frames in with all that the kernel knows. */
import { closeSync, openSync } from 'node:fs';
import { constants } from 'node:os';
import { getSystemErrorName } from 'node:util';
import koffi from 'koffi';
import { checksum } from './packets.ts';

type Fd = number;

interface Libc {
  setns(fd: Fd, kind: number): number;
  socket(domain: number, type: number, protocol: number): Fd;
  bind(fd: Fd, address: Uint8Array, length: number): number;
  setsockopt(fd: Fd, level: number, name: number, value: Uint8Array, length: number): number;
  getsockopt(fd: Fd, level: number, name: number, value: Uint8Array, length: Uint8Array): number;
  write(fd: Fd, bytes: Uint8Array, length: number): number;
  recvmsg(fd: Fd, message: Uint8Array, flags: number): number;
  if_nametoindex(name: string): number;
}

const library = koffi.load('libc.so.6');
const libc: Libc = {
  setns: library.func('int setns(int, int)'),
  socket: library.func('int socket(int, int, int)'),
  bind: library.func('int bind(int, const void *, uint32_t)'),
  setsockopt: library.func('int setsockopt(int, int, int, const void *, uint32_t)'),
  getsockopt: library.func('int getsockopt(int, int, int, void *, void *)'),
  write: library.func('intptr_t write(int, const void *, size_t)'),
  recvmsg: library.func('intptr_t recvmsg(int, void *, int)'),
  if_nametoindex: library.func('unsigned int if_nametoindex(const char *)'),
};

// linux/if_packet.h, linux/if_ether.h, sched.h, sys/socket.h
const CLONE_NEWNET = 0x40000000;
const [AF_PACKET, SOCK_RAW, SOCK_NONBLOCK, SOCK_CLOEXEC] = [17, 3, 0o4000, 0o2000000];
const [SOL_SOCKET, SO_RCVBUFFORCE] = [1, 33];
const SOL_PACKET = 263;
const [PACKET_STATISTICS, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING] = [6, 8, 15, 23];
const ETH_P_ALL = 3;
const TP_STATUS_VLAN_VALID = 0x10;

/** What may wait in a socket before it is read, bytes. */
const RECEIVE_BUFFER = 64 << 20;
const MAX_FRAME = 80_000;

/** linux/virtio_net.h: what goes before a frame in both directions, so that it may be one of many segments. */
const VNET_HEADER = 10;
const NEEDS_CHECKSUM = 1;
const GSO_TYPES = { tcp4: 1, udp4: 5, tcp6: 4, udp6: 5 } as const;

/** Work that a sender's kernel leaves to its device. */
export interface Offload {
  /** Where the transport header begins, and its checksum field in it, which holds the pseudo header's sum. */
  transport: number;
  checksumAt: number;
  /** The frame is one of many segments: payload bytes of each, and what goes before the payload. */
  gso?: { type: keyof typeof GSO_TYPES; size: number; headers: number };
}

export interface Received {
  /** Checksums that were left to the device are filled in. */
  frame: Uint8Array;
  /** The VLAN tag that the kernel has taken off: its TCI. */
  vlan?: number;
  /** Of a super-packet: payload bytes of each segment. */
  gsoSize?: number;
}

// One call's memory, for all sockets. Pointers into it are kept, and what lies in an ArrayBuffer of its own stays in place.
const memory = new ArrayBuffer(MAX_FRAME + 256);
const base = koffi.address(new Uint8Array(memory));
const message = Buffer.from(memory, 0, 56); // struct msghdr
const vector = Buffer.from(memory, 64, 16); // struct iovec
const control = Buffer.from(memory, 128, 64); // struct cmsghdr and struct tpacket_auxdata
const data = Buffer.from(memory, 256, MAX_FRAME);
message.writeBigUInt64LE(base + 64n, 16);
message.writeBigUInt64LE(1n, 24);
message.writeBigUInt64LE(base + 128n, 32);
vector.writeBigUInt64LE(base + 256n, 0);
vector.writeBigUInt64LE(BigInt(data.length), 8);

/** On one device of one namespace. What the namespace itself sends is not received. */
export class RawSocket implements Disposable {
  readonly #fd: Fd;

  /** @param netns path of the namespace. @throws Error when there is no such namespace or device. */
  constructor(netns: string, device: string) {
    const home = openSync('/proc/thread-self/ns/net', 'r');
    const there = openSync(netns, 'r');
    try {
      check('setns', libc.setns(there, CLONE_NEWNET));
      const index = libc.if_nametoindex(device);
      if (index === 0) throw new Error(`no device ${device} in ${netns}`);
      this.#fd = check('socket', libc.socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
      this.#set(SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER);
      for (const option of [PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING])
        this.#set(SOL_PACKET, option, 1);
      const address = Buffer.alloc(20); // struct sockaddr_ll
      address.writeUInt16LE(AF_PACKET, 0);
      address.writeUInt16BE(ETH_P_ALL, 2);
      address.writeInt32LE(index, 4);
      check('bind', libc.bind(this.#fd, address, address.length));
    } finally {
      check('setns', libc.setns(home, CLONE_NEWNET));
      closeSync(there);
      closeSync(home);
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #set(level: number, name: number, value: number): void {
    const bytes = Buffer.alloc(4);
    bytes.writeInt32LE(value);
    check('setsockopt', libc.setsockopt(this.#fd, level, name, bytes, 4));
  }

  /** @returns the name of the error when the kernel refuses the frame: `EMSGSIZE` for one over the device's MTU. */
  send(frame: Uint8Array, offload?: Offload): string | undefined {
    const bytes = Buffer.alloc(VNET_HEADER + frame.length);
    if (offload) {
      const { transport, checksumAt, gso } = offload;
      bytes.writeUInt8(NEEDS_CHECKSUM, 0);
      if (gso) bytes.writeUInt8(GSO_TYPES[gso.type], 1);
      [gso?.headers ?? 0, gso?.size ?? 0, transport, checksumAt].forEach((value, i) =>
        bytes.writeUInt16LE(value, 2 + 2 * i),
      );
    }
    bytes.set(frame, VNET_HEADER);
    return libc.write(this.#fd, bytes, bytes.length) < 0 ? lastError() : undefined;
  }

  /** The next frame that has arrived; undefined: none yet. */
  receive(): Received | undefined {
    message.writeBigUInt64LE(BigInt(control.length), 40);
    control.fill(0);
    const length = libc.recvmsg(this.#fd, message, 0);
    if (length < 0) {
      const error = lastError();
      if (error === 'EAGAIN') return undefined;
      throw new Error(`recvmsg: ${error}`);
    }
    const frame = Uint8Array.from(data.subarray(VNET_HEADER, length));
    if (data[0]! & NEEDS_CHECKSUM) completeChecksum(frame, data.readUInt16LE(6), data.readUInt16LE(8));
    const gsoSize = data[1] === 0 ? 0 : data.readUInt16LE(4);
    const vlan = control.readUInt32LE(16) & TP_STATUS_VLAN_VALID ? control.readUInt16LE(32) : undefined;
    return { frame, ...(vlan !== undefined && { vlan }), ...(gsoSize && { gsoSize }) };
  }

  /** How many frames the kernel has thrown away, since it was last asked, because nobody read. */
  lost(): number {
    const statistics = Buffer.alloc(8); // struct tpacket_stats: packets, drops
    const length = Buffer.alloc(4);
    length.writeUInt32LE(statistics.length);
    check('getsockopt', libc.getsockopt(this.#fd, SOL_PACKET, PACKET_STATISTICS, statistics, length));
    return statistics.readUInt32LE(4);
  }
}

/** As a device does it that was left the checksum from `start` on: the field holds the pseudo header's sum by now. */
function completeChecksum(frame: Uint8Array, start: number, field: number): void {
  const sum = checksum(frame.subarray(start)) || 0xffff;
  frame[start + field] = sum >>> 8;
  frame[start + field + 1] = sum & 255;
}

function lastError(): string {
  return getSystemErrorName(-koffi.errno());
}

function check(call: string, result: number): number {
  if (result >= 0) return result;
  throw new Error(
    `${call}: ${lastError()}${koffi.errno() === constants.errno.EPERM ? ' (root is needed)' : ''}`,
  );
}
