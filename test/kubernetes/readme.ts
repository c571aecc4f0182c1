// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '../../src/host/run.ts';
import { commandsOf } from '../support/commands.ts';
import { flannelManifest } from './flannel.ts';
import type { Cluster } from './state.ts';
import { until } from './until.ts';

/** The stories run the commands that the documents in deploy/ give to operators. */

const ROOT = join(import.meta.dirname, '../..');

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
