// SPDX-License-Identifier: Apache-2.0
/** The previous release, from which users upgrade, and to which they roll back. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { run } from '../../src/host/run.ts';

const ROOT = join(import.meta.dirname, '../..');

export const PREVIOUS = { version: '0.1.0', commit: '9f2a0bb12e3726e144768ca3d87c21130ad7564f' } as const;

/** Why its sources are not here, in one line; undefined when they are. */
export function missingRelease(): string | undefined {
  const { status } = spawnSync('git', ['-C', ROOT, 'cat-file', '-e', PREVIOUS.commit]);
  return status === 0 ? undefined : `needs the repository's history, to build ripstop ${PREVIOUS.version}`;
}

/** Write its sources into an empty directory. */
export async function extractRelease(directory: string): Promise<void> {
  await run('sh', ['-c', 'git -C "$0" archive "$1" | tar -x -C "$2"', ROOT, PREVIOUS.commit, directory]);
}
