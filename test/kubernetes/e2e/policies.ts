// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { tryRun } from '../../../src/host/run.ts';
import { apply } from '../kubectl.ts';
import type { Cluster } from '../state.ts';
import { rolledOut } from '../workload.ts';
import type { PolicyEngine } from './suites.ts';

/** NetworkPolicy engines. Each is a DaemonSet that adds rules to the kernel path of its node. */

/** Rules that an engine needs, for `nft -f`. */
const NEEDS: Record<PolicyEngine, string> = {
  'kube-router': '',
  'kube-network-policies': 'queue num 98 bypass',
};

/** Why an engine cannot work on this kernel, in one line; undefined when it can. */
export async function missingForEngine(engine: PolicyEngine): Promise<string | undefined> {
  if (NEEDS[engine] === '') return undefined;
  const stdin = `table inet probe { chain c { type filter hook forward priority 0; ${NEEDS[engine]}; }; }`;
  const { code } = await tryRun('unshare', ['--net', 'nft', '-f', '-'], { stdin });
  return code === 0
    ? undefined
    : `${engine} needs nftables' "queue", which this kernel has not (CONFIG_NFT_QUEUE)`;
}

/** Resolves when the engine runs on each node. */
export async function installEngine(cluster: Cluster, engine: PolicyEngine): Promise<void> {
  await apply(cluster, readFileSync(join(import.meta.dirname, `../manifests/${engine}.yml`), 'utf8'));
  await rolledOut(cluster, `daemonset/${engine}`, 'kube-system');
}
