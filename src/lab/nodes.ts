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
  kubeconfigOf,
  type Lab,
  type NodeState,
  nodeDir,
  planNode,
  saveLab,
  writeAtomically,
} from './state.ts';
import { createNodeNetns } from './underlay.ts';

/** Let a node join the running lab; the flannel nodes know it when this resolves, ripstop's agents see it by themselves. */
export async function addNode(lab: Lab, datapath: Datapath, pods = 0): Promise<NodeState> {
  const node = await setUpNode(lab, datapath, pods);
  await syncFlannel(lab);
  return node;
}

/** Take a node out at once, as when its machine is scrapped: processes, pods, namespaces, files, its Node object. */
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

/** A machine, its Node object, its datapath, its pods. */
export async function setUpNode(lab: Lab, datapath: Datapath, pods: number): Promise<NodeState> {
  const node = planNode(lab, datapath);
  lab.state.nodes.push(node);
  saveLab(lab);
  mkdirSync(nodeDir(lab, node));
  await Promise.all([createNodeNetns(lab, node), createKubeNode(lab, node)]);
  const { kubeProxy, real } = lab.state.options;
  if (real?.apiServer) await giveToken(lab, node);
  if (kubeProxy !== 'none')
    await (real?.kubeProxy ? startKubeProxyDaemon : startKubeProxy)(lab, node, kubeProxy);
  if (datapath === 'host') return node;
  if (datapath === 'ripstop') await setUpRipstop(lab, node);
  else await (real?.flannel ? setUpFlanneld(lab, node) : setUpFlannel(lab, node));
  // One after another, so that pod1 has the first address.
  for (let i = 0; i < pods; i++) await addPod(lab, node);
  return node;
}

/** A kubeconfig with a token of this node's own, where the API server is a real one. */
async function giveToken(lab: Lab, node: NodeState): Promise<void> {
  const shared = readFileSync(join(lab.dir, 'node.kubeconfig'), 'utf8');
  const token = await createAgentToken(lab, node.name);
  writeAtomically(
    kubeconfigOf(lab, node),
    shared.replace(/token: .*/, () => `token: ${JSON.stringify(token)}`),
  );
}

/** Like Promise.all, but a failure waits for the others' end: what goes on behind a caller's back cannot be cleaned up. */
export async function settleAll<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  const outcomes = await Promise.allSettled(promises);
  return outcomes.map((outcome) => {
    if (outcome.status === 'rejected') throw outcome.reason;
    return outcome.value;
  });
}
