// SPDX-License-Identifier: Apache-2.0
import type { EtcdOptions } from '../cluster/etcd-options.ts';

/** What the agent is told, by flags, by RIPSTOP_* variables or by those of flannel that mean the same. */
export interface AgentOptions {
  readonly nodeName: string;
  /** Left out: the pod's service account. */
  readonly kubeconfig?: string;
  readonly netConf: string;
  /** Given: subnets and net-conf.json come from etcd, and Kubernetes is not needed. */
  readonly etcd?: EtcdOptions;
  readonly mode: 'auto' | 'cni' | 'boost';
  readonly ingress: 'auto' | 'tc' | 'xdp';
  readonly iface?: readonly string[];
  readonly ifaceRegex?: readonly string[];
  readonly ifaceCanReach?: string;
  /** Addresses of this node, at which peers are to reach it; the Node's annotations come before them. */
  readonly publicIp?: { readonly v4?: string; readonly v6?: string };
  /** Left out: flannel's. */
  readonly annotationPrefix?: string;
  /** Whether to tell the cluster, by the Node's condition NetworkUnavailable, that the network is there. */
  readonly setNodeNetworkUnavailable: boolean;
  readonly bpffs: string;
  readonly runDir: string;
  /** What must outlive a reboot. */
  readonly stateDir: string;
  readonly subnetFile: string;
  readonly metricsAddr: string;
  readonly ipMasq: boolean;
  /** Where pods' addresses are leased: host-local's directory. */
  readonly ipamDir: string;
  /** The runtime's network configuration: a file that holds it, and the directory to put it into once pods can be wired. */
  readonly cniConf?: { readonly source: string; readonly dir: string };
}

/** Files below the run directory that other processes find the agent by. */
export const runFiles = {
  /** What the CNI shim talks to. */
  cniSocket: 'cni.sock',
  /** The HTTP endpoints of --metrics-addr and /status, for readers in any network namespace. */
  agentSocket: 'agent.sock',
} as const;
