// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { syncFlannel } from './flannel-peers.ts';
import { setUpFlannel } from './flannel.ts';
import { setUpFlanneld } from './flanneld.ts';
import { createAgentToken, createKubeNode, deleteKubeNode } from './kube.ts';
import { startKubeProxyDaemon } from './kube-proxy-daemon.ts';
import { startKubeProxy } from './kube-proxy.ts';
import { deleteNetns, killAll, processesIn } from './netns.ts';
import type { Datapath } from './options.ts';
import { addPod } from './pods.ts';
import { removeBpffs, setUpRipstop } from './ripstop.ts';
import {
  hasFlannel,
  kubeconfigOf,
  type Lab,
  type NodeState,
  nodeDir,
  planNode,
  saveLab,
  writeAtomically,
} from './state.ts';
import { createNodeNetns } from './underlay.ts';

/**
 * Add a node to the running lab. The flannel nodes know it when this resolves; ripstop's agents find it by themselves.
 */
export async function addNode(lab: Lab, datapath: Datapath, pods = 0): Promise<NodeState> {
  const node = await setUpNode(lab, datapath, pods);
  await syncFlannel(lab);
  return node;
}

/** Remove a node, as when its machine is scrapped: processes, pods, namespaces, files, and its Node object. */
export async function removeNode(lab: Lab, node: NodeState): Promise<void> {
  const namespaces = [...node.pods.map((pod) => pod.netns), node.netns];
  await killAll(() => processesIn(namespaces));
  await deleteNetns(...namespaces);
  await deleteKubeNode(lab, node.name);
  await removeBpffs(lab, node);
  rmSync(nodeDir(lab, node), { recursive: true });
  lab.state.nodes = lab.state.nodes.filter((one) => one !== node);
  saveLab(lab);
  await syncFlannel(lab);
}

/** Set up a node: its namespace, its Node object, its datapath, and its pods. */
export async function setUpNode(lab: Lab, datapath: Datapath, pods: number): Promise<NodeState> {
  const node = planNode(lab, datapath);
  lab.state.nodes.push(node);
  saveLab(lab);
  mkdirSync(nodeDir(lab, node));
  await Promise.all([createNodeNetns(lab, node), createKubeNode(lab, node)]);
  const { mode, kubeProxy, real } = lab.state.options;
  if (real?.apiServer) await giveToken(lab, node);
  if (kubeProxy !== 'none')
    await (real?.kubeProxy ? startKubeProxyDaemon : startKubeProxy)(lab, node, kubeProxy);
  if (datapath === 'host') return node;
  node.boosted = datapath === 'ripstop' && mode === 'boost';
  if (hasFlannel(node)) await (real?.flannel ? setUpFlanneld(lab, node) : setUpFlannel(lab, node));
  if (datapath === 'ripstop') await setUpRipstop(lab, node);
  // One after another, so that pod1 gets the first address.
  for (let i = 0; i < pods; i++) await addPod(lab, node);
  return node;
}

/** Write the node's kubeconfig with its own token. Only a real API server has such tokens. */
async function giveToken(lab: Lab, node: NodeState): Promise<void> {
  const shared = readFileSync(join(lab.dir, 'node.kubeconfig'), 'utf8');
  const token = await createAgentToken(lab, node.name);
  writeAtomically(
    kubeconfigOf(lab, node),
    shared.replace(/token: .*/, () => `token: ${JSON.stringify(token)}`),
  );
}

/**
 * Like Promise.all, but it waits for all promises before it fails, so that the caller can clean up after all of them.
 */
export async function settleAll<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  const outcomes = await Promise.allSettled(promises);
  return outcomes.map((outcome) => {
    if (outcome.status === 'rejected') throw outcome.reason;
    return outcome.value;
  });
}
