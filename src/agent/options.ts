// SPDX-License-Identifier: Apache-2.0

/** What the agent is told, by flags or by RIPSTOP_* variables. */
export interface AgentOptions {
  readonly nodeName: string;
  /** Left out: the pod's service account. */
  readonly kubeconfig?: string;
  readonly netConf: string;
  readonly mode: 'auto' | 'cni' | 'boost';
  readonly ingress: 'auto' | 'tc' | 'xdp';
  readonly iface?: string;
  readonly ifaceRegex?: string;
  readonly ifaceCanReach?: string;
  readonly bpffs: string;
  readonly runDir: string;
  readonly subnetFile: string;
  readonly metricsAddr: string;
  readonly ipMasq: boolean;
  /** Where host-local keeps its leases. */
  readonly ipamDir: string;
}

/** Files below the run directory that other processes find the agent by. */
export const runFiles = {
  /** What the CNI shim talks to. */
  cniSocket: 'cni.sock',
  /** The HTTP endpoints of --metrics-addr and /status, for readers in any network namespace. */
  agentSocket: 'agent.sock',
} as const;
