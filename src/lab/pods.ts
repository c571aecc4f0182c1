// SPDX-License-Identifier: Apache-2.0
import { randomBytes } from 'node:crypto';
import { RipstopError } from '../errors.ts';
import { type CniCall, type CniPlugin, callCni, resultAddresses } from './cni.ts';
import { flannelPlugin } from './flannel.ts';
import { flanneldPlugin } from './flanneld.ts';
import { addNetns, deleteNetns, killAll, processesIn } from './netns.ts';
import { ripstopPlugin } from './ripstop.ts';
import { hasFlannel, type Lab, type NodeState, type PodState, lowestFree, saveLab } from './state.ts';

/**
 * Start a pod on the node: a namespace that the node's CNI plugin connects, as it would for kubelet and containerd.
 * @throws RipstopError on a `host` node, or with the plugin's error. No part of the pod is left then.
 */
export async function addPod(lab: Lab, node: NodeState): Promise<PodState> {
  const plugin = pluginOf(lab, node);
  const name = `pod${lowestFree(node.pods.map((pod) => Number(pod.name.slice('pod'.length))))}`;
  const containerId = randomBytes(32).toString('hex');
  const pod: PodState = { name, netns: `${node.netns}-${name}`, containerId, ip: '' };
  node.pods.push(pod);
  saveLab(lab);
  try {
    await addNetns(pod.netns);
    pod.result = await callCni(podCall(node, pod, plugin, 'ADD'));
    Object.assign(pod, resultAddresses(pod.result));
  } catch (error) {
    // Report the first failure, not one of the clean-up.
    await removePod(lab, node, pod).catch(() => forgetPod(lab, node, pod));
    throw error;
  }
  saveLab(lab);
  return pod;
}

/** Remove a pod: its processes, its CNI attachment, and its namespace. */
export async function removePod(lab: Lab, node: NodeState, pod: PodState): Promise<void> {
  await killAll(() => processesIn([pod.netns]));
  await callCni(podCall(node, pod, pluginOf(lab, node), 'DEL'));
  await forgetPod(lab, node, pod);
}

async function forgetPod(lab: Lab, node: NodeState, pod: PodState): Promise<void> {
  await deleteNetns(pod.netns);
  node.pods = node.pods.filter((one) => one !== pod);
  saveLab(lab);
}

function podCall(node: NodeState, pod: PodState, plugin: CniPlugin, command: 'ADD' | 'DEL'): CniCall {
  const config = pod.result === undefined ? plugin.config : { ...plugin.config, prevResult: pod.result };
  const container = { id: pod.containerId, netns: pod.netns, pod: pod.name };
  return { ...plugin, config, command, hostNetns: node.netns, container };
}

/** The CNI plugin of a node's datapath. @throws RipstopError on a `host` node. */
export function pluginOf(lab: Lab, node: NodeState): CniPlugin {
  const { real } = lab.state.options;
  if (hasFlannel(node)) return real?.flannel ? flanneldPlugin(lab, node) : flannelPlugin(lab, node);
  if (node.datapath === 'ripstop') return ripstopPlugin(lab, node);
  throw new RipstopError(`${node.name} has the host datapath, which has no pods; choose ripstop or flannel`);
}
