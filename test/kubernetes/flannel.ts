// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { apply, kubectl } from './kubectl.ts';
import { inNode } from './node.ts';
import type { Cluster } from './state.ts';
import { manifestFor, rolledOut } from './workload.ts';

/** The real flannel on a cluster whose nodes have its image (`buildImages(['flannel', …])`). */

/** The path of its manifest, for `kubectl apply -f`. */
export const flannelManifest = join(import.meta.dirname, 'manifests/kube-flannel.yml');

/** Delete flannel, and on each node what it leaves on the disk and what ripstop has kept for it. */
export async function deleteFlannel(cluster: Cluster): Promise<void> {
  await kubectl(cluster, 'delete', '--ignore-not-found', '-f', flannelManifest);
  const files = [
    '/opt/cni/bin/flannel',
    '/var/lib/cni/flannel',
    '/etc/cni/net.d/10-flannel.conflist.ripstop-saved',
  ];
  for (const node of cluster.nodes) await inNode(node, 'rm', '-rf', ...files);
}

/** `kubectl apply -f kube-flannel.yml`, and wait until flanneld runs on each node. */
export async function installFlannel(cluster: Cluster): Promise<void> {
  await apply(cluster, manifestFor(cluster, readFileSync(flannelManifest, 'utf8')));
  await rolledOut(cluster, 'daemonset/kube-flannel-ds', 'kube-flannel');
}
