// SPDX-License-Identifier: Apache-2.0
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { writeAtomically } from '../../src/lab/state.ts';
import { cacheDir } from '../support/go-programs.ts';

export const PROXY_MODES = ['iptables', 'nftables'] as const;
export type ProxyMode = (typeof PROXY_MODES)[number];

/** The cluster network: ripstop by deploy/ripstop.yml, or the real flannel. */
export type Network = 'ripstop' | 'flannel';

export interface ClusterOptions {
  /** Part of the names of namespaces and control groups: up to 20 lower-case letters, digits and dashes. */
  readonly name: string;
  readonly nodes: number;
  readonly proxyMode: ProxyMode;
  readonly network: Network;
  readonly dualStack: boolean;
}

export interface ClusterNode {
  /** `node1`, also the name of its Node object and of its end of the cable. */
  readonly name: string;
  readonly index: number;
  readonly netns: string;
  /** Its disk: a folder that survives power cuts. */
  readonly disk: string;
  /** Its addresses on the underlay, IPv4 first. */
  readonly ips: readonly string[];
  proxyMode: ProxyMode;
  /** Debian's containerd 1.6, or the current one. */
  readonly containerd: 'debian' | 'current';
  /** Its PID 1, while it runs. */
  initPid?: number;
}

/** An image for every node: its archive, and its names there. */
export interface NodeImage {
  readonly archive: string;
  readonly names: readonly string[];
}

/** A cluster on this machine, as far as `kubectl` and the tests need to know it. */
export interface Cluster {
  readonly options: ClusterOptions;
  /** The folder of all its files: certificates, etcd's data, the nodes' disks, logs. */
  readonly dir: string;
  /** The process id of its owner. Once the owner has ended, another process may sweep the cluster. */
  readonly owner: number;
  /** Whether it stays when its owner has ended. */
  readonly kept?: boolean;
  nodes: ClusterNode[];
  /** The images of its nodes. */
  readonly images: readonly NodeImage[];
}

/** Addresses of the cluster. They are in its own namespaces, so clusters may have the same. */
export const POD_NETWORKS = ['10.244.0.0/16', 'fd00:10:244::/56'] as const;
export const SERVICE_NETWORKS = ['10.96.0.0/16', 'fd00:10:96::/112'] as const;
export const DNS_SERVICE = '10.96.0.10';
export const API_SERVICE = '10.96.0.1';
const UNDERLAY = ['172.30.0.', 'fd00:30::'] as const;
export const UNDERLAY_LENGTHS = [24, 64] as const;
/** The last part of the addresses of the underlay's switch and of the control plane; node n has 10 + n. */
const HOST_PARTS = { underlay: 1, cp: 10 } as const;

export function underlayAddresses(
  who: keyof typeof HOST_PARTS | number,
  { dualStack }: Pick<ClusterOptions, 'dualStack'>,
): string[] {
  const part = typeof who === 'number' ? 10 + who : HOST_PARTS[who];
  return UNDERLAY.slice(0, dualStack ? 2 : 1).map((prefix) => `${prefix}${part}`);
}

const clustersDir = (): string => cacheDir('kubernetes/clusters');
export const clusterDir = (name: string): string => join(clustersDir(), name);
export const clusterNames = (): string[] => (existsSync(clustersDir()) ? readdirSync(clustersDir()) : []);

/** The network namespace of the control plane, the underlay or a node. */
export const netnsOf = ({ options }: Pick<Cluster, 'options'>, who: string): string =>
  `rk8s-${options.name}-${who}`;
/** The control group of a part of the cluster; without a part, the parent of all. */
export const groupOf = (name: string, part?: string): string =>
  part === undefined ? `ripstop-${name}` : `ripstop-${name}/${part}`;

/** A file of the cluster's keys, certificates and credentials. */
export const pki = (cluster: Cluster, name: string): string => join(cluster.dir, 'pki', name);
/** The CA that signed the API server's certificate and its clients'. */
export const caFile = (cluster: Cluster): string => pki(cluster, 'ca.pem');
/** The kubeconfig of `admin`, of a part of the control plane, of kube-proxy or of a node's kubelet. */
export const kubeconfigOf = (cluster: Cluster, user: string): string => pki(cluster, `${user}.kubeconfig`);

export function saveCluster(cluster: Cluster): void {
  writeAtomically(join(cluster.dir, 'cluster.json'), JSON.stringify(cluster, undefined, 2));
}

/** @throws Error when there is no such cluster. */
export function openCluster(name: string): Cluster {
  return JSON.parse(readFileSync(join(clusterDir(name), 'cluster.json'), 'utf8')) as Cluster;
}
