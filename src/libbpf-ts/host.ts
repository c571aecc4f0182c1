// SPDX-License-Identifier: Apache-2.0
import { BpfError, checkStatus } from './error.ts';
import { lastErrno, libbpf } from './ffi.ts';

/**
 * The index of a network interface in the network namespace of this process.
 * @throws BpfError with ENODEV when there is none of that name.
 */
export function ifindexOf(name: string): number {
  const index = libbpf().if_nametoindex(name);
  if (index === 0) throw new BpfError('if_nametoindex', lastErrno(), { subject: name });
  return index;
}

let cpus: number | undefined;

/** The number of possible CPUs, plugged in or not: so many values has an entry of a per-CPU map. */
export function possibleCpus(): number {
  cpus ??= checkStatus('libbpf_num_possible_cpus', libbpf().libbpf_num_possible_cpus());
  return cpus;
}
