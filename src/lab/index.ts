// SPDX-License-Identifier: Apache-2.0
export { gatewayAddress, serviceNetwork } from './addresses.ts';
export { callCni, type CniCall } from './cni.ts';
export { flannelPeers, syncFlannel, type FlannelPeer } from './flannel-peers.ts';
export {
  labCommand,
  labDown,
  labExec,
  labExecEnvironment,
  labStatus,
  labSteps,
  labUp,
  type LabStep,
  type Progress,
} from './lab.ts';
export { setServices, startKubeProxy } from './kube-proxy.ts';
export { netnsPath } from './netns.ts';
export { addNode, removeNode } from './nodes.ts';
export {
  parseLabOptions,
  type Datapath,
  type KubeProxyMode,
  type LabFlags,
  type LabOptions,
  type Wire,
} from './options.ts';
export { addPod, pluginOf, removePod } from './pods.ts';
export { restartAgent, startAgent, stopAgent, removePrograms } from './ripstop.ts';
export { boost, giveBack, takeOver, unboost } from './takeover.ts';
export {
  findNode,
  isInLab,
  labDir,
  nodeDir,
  openLab,
  underlayNetns,
  type Lab,
  type LabStatus,
  type NodeState,
  type PodState,
  type ServicePort,
} from './state.ts';
export { OUTSIDE_ADDRESS, OUTSIDE_ADDRESS6 } from './underlay.ts';
