// SPDX-License-Identifier: Apache-2.0
import { statfs } from 'node:fs/promises';
import { errorText, RipstopError } from '../errors.ts';
import { run } from './run.ts';

/** `BPF_FS_MAGIC` of linux/magic.h, as statfs(2) reports it. */
const BPF_FS_MAGIC = 0xcafe4a11;

/** Whether the path exists and lies on a BPF file system. */
export async function isBpffs(path: string): Promise<boolean> {
  try {
    return (await statfs(path)).type === BPF_FS_MAGIC;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw new RipstopError(`cannot look at ${path}: ${errorText(error)}`, { cause: error });
  }
}

/**
 * Make sure that a BPF file system is mounted at the path, making the directory and mounting it where it is missing.
 * Without one nothing could be pinned, and traffic would stop with the agent.
 * @returns whether it was mounted now.
 * @throws RipstopError when it cannot be.
 */
export async function ensureBpffs(path: string): Promise<boolean> {
  if (await isBpffs(path)) return false;
  try {
    // Not Node's own recursive mkdir: where the kernel answers ENOENT to mkdir itself, as on procfs, that never returns.
    await run('mkdir', ['-p', path]);
    await run('mount', ['-t', 'bpf', 'bpf', path]);
  } catch (error) {
    throw new RipstopError(
      `there is no BPF file system at ${path} and none can be mounted (${errorText(error)}); mount one ("mount -t bpf bpf ${path}") or point --bpffs to one`,
      { cause: error },
    );
  }
  if (!(await isBpffs(path))) {
    throw new RipstopError(
      `mounted a BPF file system at ${path}, but something else is seen there; unmount it`,
    );
  }
  return true;
}
