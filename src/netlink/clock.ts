// SPDX-License-Identifier: Apache-2.0
import { check, libc } from './calls.ts';

/** linux/timex.h: `struct timex` has 208 bytes on 64-bit machines, with `status` behind modes and four longs. */
const TIMEX_BYTES = 208;
const STATUS = 40;
const STA_UNSYNC = 0x40;

/** Whether the kernel takes its clock for synchronized: an NTP client has disciplined it lately. */
export function isClockSynchronized(): boolean {
  const timex = Buffer.alloc(TIMEX_BYTES); // modes 0: only read
  check('adjtimex', libc().adjtimex(timex));
  return (timex.readInt32LE(STATUS) & STA_UNSYNC) === 0;
}
