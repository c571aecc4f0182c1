// SPDX-License-Identifier: Apache-2.0
import { closeSync, openSync } from 'node:fs';
import koffi from 'koffi';
import { NetlinkError } from './error.ts';

interface Send {
  (socket: number, bytes: Uint8Array, size: number, flags: number): number;
  /** Runs on another thread; errno is not available afterwards. */
  async(
    socket: number,
    bytes: Uint8Array,
    size: number,
    flags: number,
    done: (error: Error | null, sent: number) => void,
  ): void;
}

/** The C functions that Node does not have. */
interface Calls {
  socket(domain: number, type: number, protocol: number): number;
  bind(socket: number, address: Uint8Array, size: number): number;
  connect(socket: number, address: Uint8Array, size: number): number;
  getsockname(socket: number, address: Uint8Array, size: Uint32Array): number;
  getsockopt(socket: number, level: number, option: number, value: Uint32Array, size: Uint32Array): number;
  setsockopt(socket: number, level: number, option: number, value: Uint32Array, size: number): number;
  send: Send;
  sendto(
    socket: number,
    bytes: Uint8Array,
    size: number,
    flags: number,
    address: Uint8Array,
    addressSize: number,
  ): number;
  recv(socket: number, bytes: Uint8Array, size: number, flags: number): number;
  setns(fd: number, type: number): number;
  ioctl(fd: number, request: number, argument: Uint8Array): number;
  adjtimex(timex: Uint8Array): number;
}

let bound: Calls | undefined;

export function libc(): Calls {
  if (bound === undefined) {
    const c = koffi.load(null);
    bound = {
      socket: c.func('int socket(int, int, int)'),
      bind: c.func('int bind(int, const void *, uint32_t)'),
      connect: c.func('int connect(int, const void *, uint32_t)'),
      getsockname: c.func('int getsockname(int, void *, void *)'),
      getsockopt: c.func('int getsockopt(int, int, int, void *, void *)'),
      setsockopt: c.func('int setsockopt(int, int, int, const void *, uint32_t)'),
      send: c.func('int64_t send(int, const void *, size_t, int)'),
      sendto: c.func('int64_t sendto(int, const void *, size_t, int, const void *, uint32_t)'),
      recv: c.func('int64_t recv(int, void *, size_t, int)'),
      setns: c.func('int setns(int, int)'),
      ioctl: c.func('int ioctl(int, unsigned long, void *)'),
      adjtimex: c.func('int adjtimex(void *)'),
    };
  }
  return bound;
}

/** errno of the last call on this thread. */
export function lastErrno(): number {
  return koffi.errno();
}

/** Checks the status of a call that returns −1 and sets errno on failure. @throws NetlinkError naming the call. */
export function check(call: string, status: number): number {
  if (status < 0) throw new NetlinkError(call, lastErrno());
  return status;
}

/**
 * Call `onReadable` each time the fd has something to read, from the event loop; until then it keeps the process
 * alive.
 */
export function poll(fd: number, onReadable: () => void): { close(): void } {
  return koffi.node.poll(fd, { readable: true }, onReadable);
}

/** linux/sched.h. */
const CLONE_NEWNET = 0x40000000;

/**
 * Run a synchronous function with this thread in another network namespace. Sockets that it opens stay there, and
 * `/proc/sys/net` and `/proc/thread-self/net` are that namespace's meanwhile. No promise may be awaited inside: other
 * code would run in the wrong namespace.
 * @param netns path of the namespace; undefined: stay in this one.
 * @throws Error with `code` ENOENT and the like when there is no such namespace.
 */
export function inNetns<T>(netns: string | undefined, run: () => T): T {
  if (netns === undefined) return run();
  const home = openSync('/proc/thread-self/ns/net', 'r');
  try {
    const there = openSync(netns, 'r');
    try {
      check(`setns to ${netns}`, libc().setns(there, CLONE_NEWNET));
      try {
        return run();
      } finally {
        check('setns back to the own network namespace', libc().setns(home, CLONE_NEWNET));
      }
    } finally {
      closeSync(there);
    }
  } finally {
    closeSync(home);
  }
}
