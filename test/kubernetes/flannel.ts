// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { apply } from './kubectl.ts';
import type { Cluster } from './state.ts';
import { manifestFor, rolledOut } from './workload.ts';

/** The real flannel on a cluster whose nodes have its image (`buildImages(['flannel', …])`). */

/** The path of its manifest, for `kubectl apply -f`. */
export const flannelManifest = join(import.meta.dirname, 'manifests/kube-flannel.yml');

/** `kubectl apply -f kube-flannel.yml`, and wait until flanneld runs on each node. */
export async function installFlannel(cluster: Cluster): Promise<void> {
  await apply(cluster, manifestFor(cluster, readFileSync(flannelManifest, 'utf8')));
  await rolledOut(cluster, 'daemonset/kube-flannel-ds', 'kube-flannel');
}
