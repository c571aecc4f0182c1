// SPDX-License-Identifier: Apache-2.0
import type { EtcdOptions } from '../cluster/etcd-options.ts';
import type { ConflistFiles } from '../cni/conflist.ts';
import type { PodDeviceFlag } from '../cni/pod-device.ts';

/** What ripstop does on a node: replace flannel, or make the pods of a running flannel fast. */
export type Mode = 'cni' | 'boost';

/** The agent's options: from flags, RIPSTOP_* variables, or flannel's variables with the same meaning. */
export interface AgentOptions {
  readonly nodeName: string;
  /** Default: the pod's service account. */
  readonly kubeconfig?: string;
  readonly netConf: string;
  /** If set, subnets and net-conf.json come from etcd, and Kubernetes is not needed. */
  readonly etcd?: EtcdOptions;
  /** `auto`: see chooseMode(). */
  readonly mode: 'auto' | Mode;
  readonly ingress: 'auto' | 'tc' | 'xdp';
  /** What new pods get. `auto`: see choosePodDevice(). */
  readonly podDevice: PodDeviceFlag;
  readonly iface?: readonly string[];
  readonly ifaceRegex?: readonly string[];
  readonly ifaceCanReach?: string;
  /** Addresses of this node to publish, for peers to reach it; annotations of the Node take precedence. */
  readonly publicIp?: { readonly v4?: string; readonly v6?: string };
  /** Default: flannel's prefix. */
  readonly annotationPrefix?: string;
  /** Whether to set the Node's condition NetworkUnavailable to false once the network works. */
  readonly setNodeNetworkUnavailable: boolean;
  /** How many flows the flow table has room for, in each address family. */
  readonly flowTableSize: number;
  readonly bpffs: string;
  readonly runDir: string;
  /** The directory for files that must survive a reboot. */
  readonly stateDir: string;
  readonly subnetFile: string;
  readonly metricsAddr: string;
  /** Where else to serve the health routes alone. */
  readonly healthzAddr?: string;
  /** How many peers, and how many pods, have metrics of their own. */
  readonly metricsTop: number;
  readonly ipMasq: boolean;
  /** Masqueraded connections keep their source ports where these are free. */
  readonly ipMasqFullyRandomDisable?: boolean;
  /** The directory of host-local's leases. */
  readonly ipamDir: string;
  /**
   * The runtime's network configuration: the file to copy, and the directory to install it in once pods can be added.
   */
  readonly cniConf?: Pick<ConflistFiles, 'source' | 'dir' | 'pluginDir'>;
}

/** The agent's sockets, by their file names in the run directory. */
export const runFiles = {
  /** The socket that the CNI shim connects to. */
  cniSocket: 'cni.sock',
  /** The HTTP routes, for readers in any network namespace. */
  agentSocket: 'agent.sock',
} as const;
