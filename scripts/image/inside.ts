// SPDX-License-Identifier: Apache-2.0
/** An image that has been built, looked into: its files, and programs that run in it. */
import { closeSync, globSync, lstatSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { runInside } from './chroot.ts';
import type { Arch } from './oci.ts';

export interface Candidate {
  readonly arch: Arch;
  /** The image's files. */
  readonly rootfs: string;
  readonly env: Readonly<Record<string, string>>;
}

/** Run a program in it, with a read-only root, in a new network namespace, which it may change. */
export function inside({ arch, rootfs, env }: Candidate, argv: readonly string[]): Promise<string> {
  return runInside(arch, { layers: [rootfs] }, argv, env, { network: false });
}

/** The paths of its programs, libraries and other objects in ELF. */
export function elfFiles(rootfs: string): string[] {
  return globSync('**/*', { cwd: rootfs, exclude: ['proc', 'sys', 'dev'] })
    .filter((path) => {
      const stat = lstatSync(join(rootfs, path));
      return stat.isFile() && stat.size > 4 && isElf(join(rootfs, path));
    })
    .map((path) => `/${path}`);
}

function isElf(path: string): boolean {
  const file = openSync(path, 'r');
  try {
    const magic = Buffer.alloc(4);
    readSync(file, magic);
    return magic.toString('latin1') === '\x7fELF';
  } finally {
    closeSync(file);
  }
}
