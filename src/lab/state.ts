// SPDX-License-Identifier: Apache-2.0
import { existsSync, mkdirSync, readFileSync, realpathSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Mode } from '../agent/options.ts';
import { RipstopError } from '../errors.ts';
import { type NodeAddresses, nodeAddresses } from './addresses.ts';
import { type Datapath, type KubeProxyMode, type LabOptions, labName } from './options.ts';

/** One port of a Service in one address family, that of its ClusterIP. */
export interface ServicePort {
  /** `namespace/name` of the Service. */
  readonly service: string;
  /** The port's name. The only port of a Service may have none. */
  readonly name?: string;
  readonly protocol: 'tcp' | 'udp';
  readonly clusterIp: string;
  readonly port: number;
  readonly nodePort?: number;
  readonly endpoints: readonly { readonly ip: string; readonly port: number }[];
}

export interface PodState {
  /** Unique on its node: `pod1`. */
  readonly name: string;
  /** The namespace's name under /run/netns: `lab-node1-pod1`. */
  readonly netns: string;
  readonly containerId: string;
  /** Empty until the CNI plugin has given it one. */
  ip: string;
  /** Its IPv6 address, where the plugin gives one. */
  ip6?: string;
  /** The CNI plugin's answer to ADD, which CHECK and DEL need. */
  result?: unknown;
}

export interface NodeState extends NodeAddresses {
  /** `node1`, also the name of its Node object. */
  readonly name: string;
  /** From 1; decides the node's addresses. */
  readonly index: number;
  readonly netns: string;
  /** It changes with {@link takeOver} and {@link giveBack}. */
  datapath: Datapath;
  /** Of a `ripstop` node: whether flannel is its network, and ripstop beside it. */
  boosted?: boolean;
  /** The process id of the ripstop agent, while there is one. */
  agentPid?: number;
  /** The kube-proxy that the lab imitates, where there is one. */
  kubeProxy?: {
    readonly mode: Exclude<KubeProxyMode, 'none'>;
    readonly dropInvalid: boolean;
    /** The Services that it knows. */
    services?: readonly ServicePort[];
  };
  pods: PodState[];
}

export interface LabState {
  readonly options: LabOptions;
  /** The process id of the API server, once it has been started. */
  apiServerPid?: number;
  nodes: NodeState[];
}

/** A lab that is up. Only one process at a time may change it. */
export interface Lab {
  readonly name: string;
  readonly dir: string;
  readonly state: LabState;
}

/** What `ripstop lab status -o json` prints. */
export interface LabStatus {
  name: string;
  /** Path of an admin kubeconfig for the embedded API server. */
  kubeconfig: string;
  nodes: (NodeAddresses & {
    name: string;
    netns: string;
    datapath: Datapath;
    /** Of a `ripstop` node. */
    mode?: Mode;
    pods: { name: string; netns: string; ip: string; ip6?: string }[];
  })[];
}

const LABS = '/run/ripstop-lab';

export function labDir(name: string): string {
  return join(LABS, labName(name));
}

/** Whether a path is inside a lab's directory, wherever symbolic links lead. */
export function isInLab(path: string): boolean {
  return existsSync(path) && realpathSync(path).startsWith(`${LABS}/`);
}

/** The directory of a node's files: the agent's sockets and log, its bpffs, host-local's leases. */
export function nodeDir(lab: Lab, node: { name: string }): string {
  return join(lab.dir, node.name);
}

/** The kubeconfig of a node's agent. Each node has its own token if the API server is a real one. */
export function kubeconfigOf(lab: Lab, node: { name: string }): string {
  return join(lab.state.options.real?.apiServer ? nodeDir(lab, node) : lab.dir, 'node.kubeconfig');
}

/** Whether flannel attaches the node's pods and follows its peers. */
export function hasFlannel({ datapath, boosted }: NodeState): boolean {
  return datapath === 'flannel' || boosted === true;
}

export function underlayNetns(name: string): string {
  return `${name}-underlay`;
}

function nodeNetns(name: string, node: string): string {
  return `${name}-${node}`;
}

/** Whether a namespace belongs to the lab of this name, and not to one whose name only begins with it. */
export function isLabNetns(name: string, netns: string): boolean {
  return netns.startsWith(`${name}-`) && /^(underlay|node\d+(-pod\d+)?)$/.test(netns.slice(name.length + 1));
}

/** Make the directory of a new lab. @throws RipstopError when a lab of that name exists. */
export function createLab(options: LabOptions): Lab {
  const { name } = options;
  const dir = labDir(name);
  mkdirSync(dirname(dir), { recursive: true });
  try {
    mkdirSync(dir, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    throw new RipstopError(
      `a lab named "${name}" exists already; take it down first (lab down --name ${name}) or choose another --name`,
      { cause: error },
    );
  }
  const lab: Lab = { name, dir, state: { options, nodes: [] } };
  saveLab(lab);
  return lab;
}

/** The lab of that name, as last saved. @throws RipstopError when there is none. */
export function openLab(name: string): Lab {
  const dir = labDir(name);
  const file = join(dir, 'state.json');
  if (!existsSync(file))
    throw new RipstopError(`no lab named "${name}" is up; start one with: lab up --name ${name}`);
  return { name, dir, state: JSON.parse(readFileSync(file, 'utf8')) as LabState };
}

/** Write the state so that a reader, or `lab down` after a crash, sees the old or the new one, never a part. */
export function saveLab(lab: Lab): void {
  writeAtomically(join(lab.dir, 'state.json'), `${JSON.stringify(lab.state, null, 2)}\n`);
}

export function writeAtomically(path: string, text: string, mode = 0o600): void {
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, text, { mode });
  renameSync(temporary, path);
}

/** The node of that name. @throws RipstopError that lists the nodes there are. */
export function findNode(lab: Lab, name: string): NodeState {
  const node = lab.state.nodes.find((one) => one.name === name);
  if (node) return node;
  const names = lab.state.nodes.map((one) => one.name).join(', ') || 'none';
  throw new RipstopError(`lab "${lab.name}" has no node "${name}"; it has: ${names}`, { exitCode: 2 });
}

/** The state of a new node: the lowest free index gives its name and addresses. */
export function planNode(lab: Lab, datapath: Datapath): NodeState {
  const index = lowestFree(lab.state.nodes.map((node) => node.index));
  const name = `node${index}`;
  return {
    name,
    index,
    netns: nodeNetns(lab.name, name),
    ...nodeAddresses(lab.state.options, index),
    datapath,
    pods: [],
  };
}

/** The smallest positive number that is not taken. */
export function lowestFree(taken: readonly number[]): number {
  let candidate = 1;
  while (taken.includes(candidate)) candidate++;
  return candidate;
}

export function statusOf(lab: Lab): LabStatus {
  return {
    name: lab.name,
    kubeconfig: join(lab.dir, 'kubeconfig'),
    nodes: lab.state.nodes.map(({ name, netns, ip, podCIDR, ip6, podCIDR6, datapath, boosted, pods }) => ({
      name,
      netns,
      ip,
      podCIDR,
      ...(ip6 && podCIDR6 && { ip6, podCIDR6 }),
      datapath,
      ...(datapath === 'ripstop' && { mode: boosted ? 'boost' : 'cni' }),
      pods: pods
        .filter((pod) => pod.ip !== '')
        .map(({ name, netns, ip, ip6 }) => ({ name, netns, ip, ...(ip6 && { ip6 }) })),
    })),
  };
}
