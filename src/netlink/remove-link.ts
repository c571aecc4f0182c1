// SPDX-License-Identifier: Apache-2.0
import { closeSync } from 'node:fs';
import { constants } from 'node:os';
import { lastErrno, libc, poll } from './calls.ts';
import { NetlinkError } from './error.ts';
import { deleteLink, readLink, RTM_DELLINK } from './link.ts';
import {
  BUFFER_BYTES,
  encode,
  errorIn,
  readMessages,
  NLMSG_ERROR,
  openEventSocket,
  type Request,
} from './socket.ts';
import { AF_UNSPEC } from './wire.ts';

const RTNLGRP_LINK = 1;
/** Room for what happens to others meanwhile. */
const RECEIVE_BYTES = 1 << 20;

/**
 * Delete a link, by name or index, without holding up this thread. A link is gone after a millisecond, but the kernel
 * answers some tens of milliseconds later, when it has freed it (it waits until no CPU can look at it any more). So
 * the request is sent from one of libuv's threads, and this resolves when the link is gone, with its addresses and
 * routes. One of those threads is always left for files; with more of them (UV_THREADPOOL_SIZE) more links go at
 * once.
 * @param netns path of its network namespace, in place of this process's own.
 * @returns whether there was one.
 * @throws NetlinkError with the kernel's reason.
 */
export async function removeLink(link: string | number, netns?: string): Promise<boolean> {
  await acquireThread();
  let fd: number;
  try {
    fd = openEventSocket('route', [RTNLGRP_LINK], netns, RECEIVE_BYTES);
  } catch (error) {
    releaseThread();
    throw error;
  }
  return sendRemoval(fd, link, deleteLink(link));
}

/** Gives the thread back when it is done, which is later than the link is gone. */
function sendRemoval(fd: number, link: string | number, request: Request): Promise<boolean> {
  const bytes = encode([request], SEQUENCE, { ack: true });
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const read = (): void => {
    try {
      const isGone = readOutcome(fd, link, request);
      // Out of koffi's callbacks: promises settled inside them would wait for the next event (Node 26).
      if (isGone !== undefined) setImmediate(resolve, isGone);
    } catch (error) {
      setImmediate(reject, error);
    }
  };
  const watching = poll(fd, read);
  libc().send.async(fd, bytes, bytes.length, 0, (error, sent) => {
    read();
    // Without effect once there is an outcome. Naming the bytes keeps them: koffi does not, and the thread reads them
    // late.
    const isSent = !error && sent === bytes.length;
    setImmediate(
      reject,
      new NetlinkError(request.what(), isSent ? constants.errno.ENOBUFS : constants.errno.EIO),
    );
    watching.close();
    closeSync(fd);
    releaseThread();
  });
  return promise;
}

let threads = Math.max(1, (Number(process.env['UV_THREADPOOL_SIZE']) || 4) - 1);
const waiting: (() => void)[] = [];

function acquireThread(): Promise<void> {
  if (threads === 0) return new Promise((resolve) => waiting.push(resolve));
  threads--;
  return Promise.resolve();
}

function releaseThread(): void {
  const next = waiting.shift();
  if (next) setImmediate(next);
  else threads++;
}

/** The only request's number. */
const SEQUENCE = 1;
const buffer = Buffer.alloc(BUFFER_BYTES);

/** @returns whether the link was there and is gone; undefined when nothing of it was heard yet. */
function readOutcome(fd: number, link: string | number, request: Request): boolean | undefined {
  let outcome: boolean | undefined;
  for (;;) {
    const size = libc().recv(fd, buffer, BUFFER_BYTES, 0);
    if (size < 0) {
      const errno = lastErrno();
      if (errno === constants.errno.EAGAIN) return outcome;
      // Events of others that found no room do not matter: the answer comes in any case.
      if (errno === constants.errno.ENOBUFS || errno === constants.errno.EINTR) continue;
      throw new NetlinkError(request.what(), errno);
    }
    readMessages(buffer, size, (message) => {
      if (message.type === NLMSG_ERROR && message.sequence === SEQUENCE) {
        const error = errorIn(message, request);
        if (error && error.code !== 'ENODEV') throw error;
        outcome ??= !error;
      } else if (message.type === RTM_DELLINK && message.body.u8(0) === AF_UNSPEC) {
        const { name, ifindex } = readLink(message);
        if (link === name || link === ifindex) outcome = true;
      }
    });
  }
}
