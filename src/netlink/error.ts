// SPDX-License-Identifier: Apache-2.0
import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';
import koffi from 'koffi';

/** errno's name, such as `EEXIST`. */
function codeOf(errno: number): string {
  // libuv calls it ENOTSUP.
  if (errno === constants.errno.EOPNOTSUPP) return 'EOPNOTSUPP';
  const known = getSystemErrorMap().get(-errno)?.[0];
  return (
    known ?? Object.entries(constants.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`
  );
}

let strerror: ((errno: number) => string) | undefined;

/** What the C library says of it: libuv's words for EEXIST and the like are about files. */
function textOf(errno: number): string {
  strerror ??= koffi.load(null).func('const char *strerror(int)') as (errno: number) => string;
  return strerror(errno);
}

/**
 * A request that the kernel refused, or a system call that failed. Its message is one line with the kernel's own
 * reason.
 */
export class NetlinkError extends Error {
  override readonly name = 'NetlinkError';
  /** Positive, as in errno.h. */
  readonly errno: number;
  /** errno's name, such as `EEXIST`. */
  readonly code: string;
  /** What was asked, in words: `add route 10.42.1.0/24`. */
  readonly request: string;
  /** The kernel's words (its extended acknowledgement), where it has some for this. */
  readonly reason: string | undefined;

  constructor(request: string, errno: number, reason?: string) {
    const code = codeOf(errno);
    super(`${request} failed: ${reason?.replace(/\.$/, '') ?? textOf(errno)} (${code})`);
    this.errno = errno;
    this.code = code;
    this.request = request;
    this.reason = reason;
  }
}
