// SPDX-License-Identifier: Apache-2.0
/**
 * AF_PACKET sockets (packet(7)) in other network namespaces. They send frames unchanged, and receive them with the
 * kernel's metadata.
 */
import { closeSync, openSync } from 'node:fs';
import { constants } from 'node:os';
import { getSystemErrorName } from 'node:util';
import koffi from 'koffi';
import { checksum } from '../../src/net/packets.ts';

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

/** The size of a socket's receive buffer, bytes. */
const RECEIVE_BUFFER = 64 << 20;
const MAX_FRAME = 80_000;

/** linux/virtio_net.h: the header before each frame, in both directions, which describes super-packets. */
const VNET_HEADER = 10;
const NEEDS_CHECKSUM = 1;
const GSO_TYPES = { tcp4: 1, udp4: 5, tcp6: 4, udp6: 5 } as const;

/** The work that a sender's kernel leaves to its device. */
export interface Offload {
  /** The offset of the transport header, and of the checksum field in it, which holds the pseudo header's sum. */
  transport: number;
  checksumAt: number;
  /** For a super-packet: the payload bytes of each segment, and the length of the headers. */
  gso?: { type: keyof typeof GSO_TYPES; size: number; headers: number };
}

export interface Received {
  /** The frame, with checksums that were left to the device. */
  frame: Uint8Array;
  /** The TCI of the VLAN tag that the kernel has removed. */
  vlan?: number;
  /** For a super-packet: the payload bytes of each segment. */
  gsoSize?: number;
}

// Memory for the calls of all sockets. An ArrayBuffer of its own does not move, so pointers into it stay valid.
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

/** A socket on a device of a namespace. It does not receive what the namespace itself sends. */
export class RawSocket implements Disposable {
  readonly #fd: Fd;

  /**
   * @param netns path of the namespace.
   * @param protocol what the kernel takes each sent frame for, and which ones are received. Default: what the frame says, and
   * all.
   * @throws Error when there is no such namespace or device.
   */
  constructor(netns: string, device: string, protocol: number = ETH_P_ALL) {
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
      address.writeUInt16BE(protocol, 2);
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

  /** The next frame that has arrived; undefined when there is none. */
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

  /** The number of frames that the kernel has dropped since the last call, because the buffer was full. */
  lost(): number {
    const statistics = Buffer.alloc(8); // struct tpacket_stats: packets, drops
    const length = Buffer.alloc(4);
    length.writeUInt32LE(statistics.length);
    check('getsockopt', libc.getsockopt(this.#fd, SOL_PACKET, PACKET_STATISTICS, statistics, length));
    return statistics.readUInt32LE(4);
  }
}

/** Fill in a checksum that was left to the device, from `start` on; the field holds the pseudo header's sum. */
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
