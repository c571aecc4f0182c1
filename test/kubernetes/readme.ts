// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '../../src/host/run.ts';
import { readme } from '../support/manifest.ts';
import { flannelManifest } from './flannel.ts';
import type { Cluster } from './state.ts';

/** What deploy/README.md tells an operator to type is what the stories run. */

const ROOT = join(import.meta.dirname, '../..');

/**
 * The commands of a code block of deploy/README.md, in their order, comments left out.
 * @param after text before the block: the first block that follows it is meant.
 */
export function commandsOf(after: string): string[] {
  const begin = readme.indexOf(after);
  const block = /^ *```sh\n(.*?)^ *```$/ms.exec(readme.slice(begin))?.[1];
  if (begin < 0 || block === undefined) throw new Error(`deploy/README.md has no commands after "${after}"`);
  return block
    .replaceAll(/\\\n/g, ' ')
    .split('\n')
    .map((line) => line.replace(/ {2,}# .*$/, '').trim())
    .filter((line) => line !== '');
}

/** Type a command at the repository's root, where kubectl is the cluster's and kube-flannel.yml is at hand. */
export async function type(cluster: Cluster, command: string): Promise<string> {
  const dir = mkdtempSync(join(tmpdir(), 'ripstop-readme-'));
  try {
    symlinkSync(join(ROOT, 'deploy'), join(dir, 'deploy'));
    symlinkSync(flannelManifest, join(dir, 'kube-flannel.yml'));
    const env = { ...process.env, PATH: `${cluster.dir}:${process.env['PATH']}` };
    return await run('bash', ['-o', 'pipefail', '-c', `cd '${dir}' && ${command}`], {
      env,
      timeoutMs: 180_000,
    });
  } finally {
    rmSync(dir, { recursive: true });
  }
}
