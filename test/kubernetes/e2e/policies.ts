// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { whyNoQueue } from '../../support/kube-network-policies.ts';
import { apply } from '../kubectl.ts';
import type { Cluster } from '../state.ts';
import { rolledOut } from '../workload.ts';
import type { PolicyEngine } from './suites.ts';

/** NetworkPolicy engines. Each is a DaemonSet that adds rules to the kernel path of its node. */

/** Why an engine cannot work on this kernel, in one line; undefined when it can. */
export async function missingForEngine(engine: PolicyEngine): Promise<string | undefined> {
  return engine === 'kube-network-policies' ? whyNoQueue() : undefined;
}

/** Resolves when the engine runs on each node. */
export async function installEngine(cluster: Cluster, engine: PolicyEngine): Promise<void> {
  await apply(cluster, readFileSync(join(import.meta.dirname, `../manifests/${engine}.yml`), 'utf8'));
  await rolledOut(cluster, `daemonset/${engine}`, 'kube-system');
}
