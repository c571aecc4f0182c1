// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '../../src/host/run.ts';
import { readme } from '../support/manifest.ts';
import { flannelManifest } from './flannel.ts';
import type { Cluster } from './state.ts';
import { until } from './until.ts';

/** The stories run the commands that deploy/README.md gives to operators. */

const ROOT = join(import.meta.dirname, '../..');

/**
 * The commands of a code block of deploy/README.md, in order, without comments.
 * @param after text before the block: the first block after it is used
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

/** Run a command at the repository's root, with the cluster's kubectl and kube-flannel.yml. */
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

/** Take ripstop's programs off all nodes, by the commands of "Roll back". @param edit changes them */
export async function takeOff(cluster: Cluster, edit = (command: string) => command): Promise<void> {
  const [uninstall, logs] = commandsOf('- To an older ripstop:').map(edit) as [string, string];
  await type(cluster, uninstall);
  await until('each node has said "done"', 120_000, async () => {
    const said = await type(cluster, logs);
    return said.match(/^\[pod\/\S+\] done$/gm)?.length === cluster.nodes.length;
  });
}
