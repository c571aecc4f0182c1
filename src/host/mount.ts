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
    throw new RipstopError(`cannot examine ${path}: ${errorText(error)}`, { cause: error });
  }
}

/**
 * Mount a BPF file system at the path unless one is mounted there; a missing directory is created. Without a BPF file
 * system nothing could be pinned, and the programs would be detached when the agent stops.
 * @returns whether this call mounted it.
 * @throws RipstopError when it cannot be mounted.
 */
export async function ensureBpffs(path: string): Promise<boolean> {
  if (await isBpffs(path)) return false;
  try {
    // Node's own recursive mkdir never returns where the kernel answers mkdir(2) with ENOENT, as on procfs.
    await run('mkdir', ['-p', path]);
    await run('mount', ['-t', 'bpf', 'bpf', path]);
  } catch (error) {
    throw new RipstopError(
      `there is no BPF file system at ${path} and none can be mounted (${errorText(error)}); ` +
        `mount one ("mount -t bpf bpf ${path}") or set --bpffs to one`,
      { cause: error },
    );
  }
  if (!(await isBpffs(path))) {
    throw new RipstopError(
      `mounted a BPF file system at ${path}, but another mount covers it; unmount that one`,
    );
  }
  return true;
}
