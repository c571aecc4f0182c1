// SPDX-License-Identifier: Apache-2.0
import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';
import { takeLines } from './log.ts';

/** `enum libbpf_errno` (bpf/libbpf.h), from 4000 on. */
const LIBBPF_ERRNO: readonly (readonly [code: string, text: string])[] = [
  ['LIBELF', 'libelf failed'],
  ['FORMAT', 'not a BPF object file'],
  ['KVERSION', 'incorrect or no kernel version section'],
  ['ENDIAN', 'byte order of the object is not the host’s'],
  ['INTERNAL', 'internal error of libbpf'],
  ['RELOC', 'relocation failed'],
  ['LOAD', 'the kernel refused the program'],
  ['VERIFY', 'the verifier refused the program'],
  ['PROG2BIG', 'program is too big'],
  ['KVER', 'program was built for another kernel version'],
  ['PROGTYPE', 'kernel does not support this program type'],
  ['WRNGPID', 'wrong netlink pid'],
  ['INVSEQ', 'invalid netlink sequence'],
  ['NLPARSE', 'netlink message does not parse'],
];
const LIBBPF_ERRNO_START = 4000;

/** The kernel's own ENOTSUPP, which POSIX does not know, but bpf(2) returns. */
export const ENOTSUPP = 524;

const CODES = new Map<number, string>();
for (const [code, errno] of Object.entries(constants.errno)) if (!CODES.has(errno)) CODES.set(errno, code);
// libc has two names for this number; Linux uses this one.
CODES.set(constants.errno.EOPNOTSUPP, 'EOPNOTSUPP');
CODES.set(ENOTSUPP, 'ENOTSUPP');
for (const [index, [code]] of LIBBPF_ERRNO.entries()) CODES.set(LIBBPF_ERRNO_START + index, code);

/** The meaning of an errno from bpf(2), where the usual text would mislead. */
function meaning(call: string, code: string, errno: number): string {
  if (code === 'E2BIG' && call.startsWith('bpf_map_update')) return 'the map is full';
  if (code === 'EPERM') return 'operation not permitted; this needs CAP_BPF and CAP_NET_ADMIN, or root';
  if (code === 'ENOTSUPP' || code === 'EOPNOTSUPP') return 'operation not supported';
  if (errno >= LIBBPF_ERRNO_START)
    return LIBBPF_ERRNO[errno - LIBBPF_ERRNO_START]?.[1] ?? 'unknown error of libbpf';
  return getSystemErrorMap().get(-errno)?.[1] ?? `errno ${errno}`;
}

/** A C call that failed. The message is one line: the call, its subject, errno's name, and what that means here. */
export class BpfError extends Error {
  override readonly name: string = 'BpfError';
  /** Positive, as in errno.h; from 4000 on libbpf's own. */
  readonly errno: number;
  /** errno's name, such as `ENOENT`. */
  readonly code: string;
  /** The C function, such as `bpf_map_update_elem`. */
  readonly call: string;
  /** The lines that libbpf printed meanwhile. */
  readonly details: string;

  constructor(call: string, errno: number, options: { subject?: string; message?: string } = {}) {
    const code = CODES.get(errno) ?? `E${errno}`;
    const lines = takeLines();
    const subject = options.subject === undefined ? '' : ` (${options.subject})`;
    // libbpf's first warning names the cause; the later ones come from its clean-up.
    const cause = lines[0] === undefined ? '' : `: ${lines[0].replace(/^libbpf: /, '')}`;
    super(options.message ?? `${call}${subject} failed: ${code}, ${meaning(call, code, errno)}${cause}`);
    this.errno = errno;
    this.code = code;
    this.call = call;
    this.details = lines.join('\n');
  }
}

/** A batch that stopped in the middle: the kernel took the first `done` entries, and refused the next one. */
export class BatchError extends BpfError {
  override readonly name = 'BatchError';
  readonly done: number;

  constructor(call: string, errno: number, subject: string, done: number) {
    super(call, errno, { subject: `${subject}, after ${done} entries` });
    this.done = done;
  }
}

/** The verifier refused a program. The message has the last useful lines of its log, `log` has all of it. */
export class VerifierError extends BpfError {
  override readonly name = 'VerifierError';
  readonly program: string;
  readonly summary: string;
  readonly log: string;

  constructor(program: string, errno: number, log: string) {
    const summary = verifierSummary(log);
    super('bpf_object__load', errno, { message: `the verifier refused program ${program}: ${summary}` });
    this.program = program;
    this.summary = summary;
    this.log = log;
  }
}

/** A pinned map is not the map that the object wants; `differences` has one line for each field of each map. */
export class MapMismatchError extends Error {
  override readonly name = 'MapMismatchError';
  readonly differences: readonly string[];

  constructor(differences: readonly string[]) {
    super(`pinned maps have another layout: ${differences.join('; ')}`);
    this.differences = differences;
  }
}

/**
 * The last useful lines of the verifier's log, up to three: those after the last instruction that it examined, without
 * its statistics. If there are none, the last line.
 */
export function verifierSummary(log: string): string {
  const statistics = /^(processed \d+ insns|verification time|stack depth|max_states|\s*$)/;
  const trace = /^(\d+: |from \d+ to |; |mark_precise|last_idx|regs=|parent |-- |func#|Live regs|R\d+=)/;
  const lines = log.split('\n').filter((line) => !statistics.test(line));
  const words: string[] = [];
  for (const line of lines.toReversed()) {
    if (trace.test(line) || words.length === 3) break;
    words.unshift(line.trim());
  }
  return words.join(' · ') || (lines.at(-1)?.trim() ?? '') || 'it left no log';
}

/**
 * Check the result of a C call that returns a count, an fd or 0 on success, and a negative errno on failure.
 * @throws BpfError naming the call.
 */
export function checkStatus(call: string, status: number, subject?: string): number {
  if (status < 0) throw new BpfError(call, -status, subject === undefined ? {} : { subject });
  return status;
}
