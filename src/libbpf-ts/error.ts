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

/** The kernel's own ENOTSUPP, which is no POSIX number but reaches user space from bpf(2). */
export const ENOTSUPP = 524;

const CODES = new Map<number, string>();
for (const [code, errno] of Object.entries(constants.errno)) if (!CODES.has(errno)) CODES.set(errno, code);
// Linux's name of a number that has two in libc.
CODES.set(constants.errno.EOPNOTSUPP, 'EOPNOTSUPP');
CODES.set(ENOTSUPP, 'ENOTSUPP');
for (const [index, [code]] of LIBBPF_ERRNO.entries()) CODES.set(LIBBPF_ERRNO_START + index, code);

/** Where errno's usual text would mislead: what it means when bpf(2) says it. */
function meaning(call: string, code: string, errno: number): string {
  if (code === 'E2BIG' && call.startsWith('bpf_map_update')) return 'the map is full';
  if (code === 'EPERM') return 'operation not permitted; this needs CAP_BPF and CAP_NET_ADMIN, or root';
  if (code === 'ENOTSUPP' || code === 'EOPNOTSUPP') return 'operation not supported';
  if (errno >= LIBBPF_ERRNO_START)
    return LIBBPF_ERRNO[errno - LIBBPF_ERRNO_START]?.[1] ?? 'unknown error of libbpf';
  return getSystemErrorMap().get(-errno)?.[1] ?? `errno ${errno}`;
}

/** A C call that failed. The message is one line: the call, what it was about, errno's name and what that means here. */
export class BpfError extends Error {
  override readonly name: string = 'BpfError';
  /** Positive, as in errno.h; from 4000 on libbpf's own. */
  readonly errno: number;
  /** errno's name, such as `ENOENT`. */
  readonly code: string;
  /** The C function, such as `bpf_map_update_elem`. */
  readonly call: string;
  /** What libbpf printed meanwhile, one line each; empty when it said nothing. */
  readonly details: string;

  constructor(call: string, errno: number, options: { subject?: string; message?: string } = {}) {
    const code = CODES.get(errno) ?? `E${errno}`;
    const lines = takeLines();
    const subject = options.subject === undefined ? '' : ` (${options.subject})`;
    // libbpf's first warning names the cause; the later ones only tell how it unwound.
    const cause = lines[0] === undefined ? '' : `: ${lines[0].replace(/^libbpf: /, '')}`;
    super(options.message ?? `${call}${subject} failed: ${code}, ${meaning(call, code, errno)}${cause}`);
    this.errno = errno;
    this.code = code;
    this.call = call;
    this.details = lines.join('\n');
  }
}

/** A batch that stopped in the middle: the first `done` entries are in the kernel, the entry after them was refused. */
export class BatchError extends BpfError {
  override readonly name = 'BatchError';
  readonly done: number;

  constructor(call: string, errno: number, subject: string, done: number) {
    super(call, errno, { subject: `${subject}, after ${done} entries` });
    this.done = done;
  }
}

/** The verifier refused a program. The message has its last useful words, `log` every one of them. */
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
 * The last words of the verifier, up to three lines: what follows the last instruction that it looked at, without its
 * statistics. A log that breaks off, or ends in an instruction, gives its last line.
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
 * The one door of every C call that returns a count, an fd or 0 on success and a negative errno on failure.
 * @throws BpfError naming the call.
 */
export function checkStatus(call: string, status: number, subject?: string): number {
  if (status < 0) throw new BpfError(call, -status, subject === undefined ? {} : { subject });
  return status;
}
