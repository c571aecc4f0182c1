// SPDX-License-Identifier: Apache-2.0
/**
 * Sends or receives datagrams of given sizes, with socket options that Node does not support.
 *
 *   datagrams.ts receive ADDRESS PORT BYTES single|super   receive so many bytes, or until a second of silence
 *   datagrams.ts send ADDRESS PORT SEGMENT SIZE…           send buffers of these sizes, cut by the kernel into datagrams of
 *                                                          SEGMENT bytes (UDP_SEGMENT); 0: each is one datagram
 *
 * Both print a DatagramReport. `super` asks for super-packets as GRO puts them together (UDP_GRO).
 */
import { createHash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import koffi from 'koffi';
import { addressFamily, addressToBytes } from '../../src/net/ip.ts';

export interface DatagramReport {
  /** SHA-256 over the payloads, in order. */
  hash: string;
  /** The size of each read or write, in order. */
  sizes: number[];
}

const libc = koffi.load('libc.so.6');
const socket = libc.func('int socket(int family, int type, int protocol)');
const setsockopt = libc.func('int setsockopt(int fd, int level, int name, void *value, uint32_t length)');
const bind = libc.func('int bind(int fd, void *address, uint32_t length)');
const connect = libc.func('int connect(int fd, void *address, uint32_t length)');
const send = libc.func('long send(int fd, void *data, size_t length, int flags)');
const recv = libc.func('long recv(int fd, void *data, size_t length, int flags)');

const AF = { 4: 2, 6: 10 };
const SOCK_DGRAM = 2;
const SOL_SOCKET = 1;
const SO_RCVTIMEO = 20;
const SO_RCVBUFFORCE = 33;
const SOL_UDP = 17;
const UDP_SEGMENT = 103;
const UDP_GRO = 104;

function must(what: string, result: number): number {
  if (result >= 0) return result;
  throw new Error(`${what} failed with errno ${koffi.errno()}`);
}

/** A sockaddr_in or sockaddr_in6. */
function socketAddress(address: string, port: number): Buffer {
  const family = addressFamily(address) ?? 4;
  const bytes = Buffer.alloc(family === 4 ? 16 : 28);
  bytes.writeUInt16LE(AF[family]);
  bytes.writeUInt16BE(port, 2);
  bytes.set(addressToBytes(address), family === 4 ? 4 : 8);
  return bytes;
}

function setOption(fd: number, level: number, name: number, ...words: number[]): void {
  const value = Buffer.from(Int32Array.from(words).buffer);
  must(`socket option ${name}`, setsockopt(fd, level, name, value, value.length) as number);
}

class Tally {
  readonly #hash = createHash('sha256');
  readonly #sizes: number[] = [];
  bytes = 0;

  add(payload: Buffer): void {
    this.#hash.update(payload);
    this.#sizes.push(payload.length);
    this.bytes += payload.length;
  }
  report(): DatagramReport {
    return { hash: this.#hash.digest('hex'), sizes: this.#sizes };
  }
}

function receive(fd: number, bytes: number, asSuper: boolean): DatagramReport {
  setOption(fd, SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20);
  setOption(fd, SOL_SOCKET, SO_RCVTIMEO, 1, 0, 0, 0);
  if (asSuper) setOption(fd, SOL_UDP, UDP_GRO, 1);
  must('bind', bind(fd, at, at.length) as number);
  console.log('serving');
  const tally = new Tally();
  const buffer = Buffer.alloc(1 << 16);
  // The sender takes a while to start. After its first datagram, silence means the end.
  for (let patience = 8; tally.bytes < bytes && patience > 0;) {
    const length = recv(fd, buffer, buffer.length, 0) as number;
    if (length < 0) patience--;
    else {
      tally.add(buffer.subarray(0, length));
      patience = 1;
    }
  }
  return tally.report();
}

async function transmit(fd: number, segment: number, sizes: readonly number[]): Promise<DatagramReport> {
  must('connect', connect(fd, at, at.length) as number);
  if (segment > 0) setOption(fd, SOL_UDP, UDP_SEGMENT, segment);
  const tally = new Tally();
  for (const size of sizes) {
    const payload = randomBytes(size);
    must(`sending ${size} bytes`, send(fd, payload, size, 0) as number);
    tally.add(payload);
    await sleep(1); // Queues, such as those of the lab's veths, are finite.
  }
  return tally.report();
}

const [command, address = '', ...rest] = process.argv.slice(2);
const [port = 0, number = 0, ...sizes] = rest.map(Number);
const at = socketAddress(address, port);
const fd = must('socket', socket(AF[addressFamily(address) ?? 4], SOCK_DGRAM, 0) as number);
const report =
  command === 'receive' ? receive(fd, number, rest[2] === 'super') : await transmit(fd, number, sizes);
console.log(JSON.stringify(report));
