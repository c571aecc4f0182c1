// SPDX-License-Identifier: Apache-2.0
/** The data planes that are compared: a lab each, so that nothing of one is on another's way. */
import { join } from 'node:path';
import { readEndpoints } from '../src/cli/rows.ts';
import { AttachmentStore } from '../src/cni/attachments.ts';
import { readCounters } from '../src/dataplane/counters.ts';
import { openTables } from '../src/dataplane/tables.ts';
import {
  addPod,
  type Datapath,
  type Lab,
  labDown,
  labUp,
  netnsPath,
  nodeDir,
  type NodeState,
  openLab,
  parseLabOptions,
  type ServicePort,
  setServices,
  stopAgent,
  unboost,
  type Wire,
} from '../src/lab/index.ts';
import { setSysctls } from '../src/lab/netns.ts';
import { growEndpoints, growPeers, nudgeAgent, untilMapped } from './grow.ts';
import {
  type ClientOptions,
  netbench,
  type NetbenchServer,
  type Results,
  startNetbenchServer,
} from './netbench.ts';
import type { Place } from './works.ts';

/** One data plane, up: a client on the first node (or in a pod there), servers beside it and on the second. */
export interface Arm extends AsyncDisposable {
  readonly name: string;
  /** Run one test, across the nodes unless told otherwise. A client with a `cpu` talks to the server that is pinned too. */
  run<Command extends keyof Results>(
    command: Command,
    options?: Omit<ClientOptions, 'host' | 'port'>,
    place?: Place,
  ): Promise<Results[Command]>;
  /** The packets that ripstop's programs have seen on all nodes so far; undefined where there are none. */
  packets(): Packets | undefined;
  /** The nodes' bpffs mounts; empty where nothing is pinned. */
  readonly bpffs: readonly string[];
  /** Take ripstop's programs off all nodes and end its agents; the kernel path stays. */
  detach(): Promise<void>;
}

export interface Packets {
  /** Carried by the fast path. */
  readonly fast: number;
  /** With those left to the kernel. */
  readonly all: number;
}

export interface ArmOptions {
  /** Default: the datapath's. */
  readonly name?: string;
  readonly wire?: Wire;
  /** Pin the server of pinned clients here. */
  readonly serverCpu?: number;
  /** Mark every pod for the kernel path, with all programs attached. */
  readonly kernelPath?: boolean;
  /** Look like a cluster of this size to ripstop; only its programs run then, not its agents. */
  readonly size?: ClusterSize;
  /** How many services' kube-proxy rules every node has, as a node of a cluster does; 0: none, and no conntrack either. */
  readonly services: number;
  /** Path of the netbench program. */
  readonly program: string;
}

export interface ClusterSize {
  /** Of each node. */
  readonly peers: number;
  /** On each node. */
  readonly endpoints: number;
}

/** What is compared, in the order of tables and legends. */
export const armSpecs: readonly (Pick<ArmOptions, 'kernelPath'> & { name: string; datapath: Datapath })[] = [
  { name: 'host', datapath: 'host' },
  { name: 'flannel', datapath: 'flannel' },
  { name: 'ripstop', datapath: 'ripstop' },
  { name: 'ripstop-kernel', datapath: 'ripstop', kernelPath: true },
];

/** Where netbench is built to. */
export const buildDir = join(import.meta.dirname, '../build');

/** Raise a lab of two nodes for a data plane. The name carries the process's id, so runs side by side do not collide. */
export async function raiseArm(datapath: Datapath, options: ArmOptions): Promise<Arm> {
  const { name = datapath, program, services, serverCpu, size, wire = 'gso' } = options;
  const labName = `bench${process.pid}-${name}`;
  await using stack = new AsyncDisposableStack();
  stack.defer(async () => void (await labDown(labName)));
  const pods = datapath === 'host' || size ? 0 : 2;
  const kubeProxy = services > 0 ? 'iptables' : 'none';
  await labUp(parseLabOptions({ name: labName, nodes: 2, pods, datapath, wire, kubeProxy }));
  const lab = openLab(labName);
  const [first, second] = lab.state.nodes as [NodeState, NodeState];
  for (const node of [first, second]) {
    // The one that every namespace may choose. A machine's own may pace by timers (BBR), and streams would measure those.
    for (const { netns } of [node, ...node.pods])
      await setSysctls(netns, { 'ipv4.tcp_congestion_control': 'reno' });
    if (services > 0) await setServices(lab, node, idleServices(services));
    if (options.kernelPath) await markForKernelPath(lab, node);
  }
  if (size) await growTo(lab, size);
  const clients = {
    'across nodes': first.pods[0] ?? first,
    'one node': first.pods[0] ?? first,
    'host network': first,
  };
  const targets = {
    'across nodes': second.pods[0] ?? second,
    'one node': first.pods[1] ?? first,
    'host network': second,
  };
  const bpffs = datapath === 'ripstop' ? [first, second].map((node) => join(nodeDir(lab, node), 'bpf')) : [];
  const servers = new Map<string, NetbenchServer>();
  const held = stack.move();
  /** Servers are started when first needed. */
  const serverFor = async (place: Place, cpu: number | undefined): Promise<NetbenchServer> => {
    const key = `${place} ${cpu}`;
    const known = servers.get(key);
    if (known) return known;
    const where = { netns: netnsPath(targets[place].netns), ...(cpu !== undefined && { cpu }) };
    const server = held.use(await startNetbenchServer(program, where));
    servers.set(key, server);
    return server;
  };
  return {
    name,
    bpffs,
    detach: async () => {
      await Promise.all([first, second].map((node) => unboost(lab, node)));
    },
    run: async (command, more = {}, place = 'across nodes') => {
      const { port } = await serverFor(place, more.cpu === undefined ? undefined : serverCpu);
      const where = { netns: netnsPath(clients[place].netns) };
      return netbench(program, command, { host: targets[place].ip, port, ...more }, where);
    },
    packets: () => (bpffs.length === 0 ? undefined : bpffs.map(packetsOf).reduce(add)),
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  };
}

/** Services with two endpoints each, for none of which is any traffic of a benchmark. */
function idleServices(count: number): ServicePort[] {
  return Array.from({ length: count }, (_, i) => ({
    service: `default/idle-${i}`,
    protocol: 'tcp',
    clusterIp: `10.43.${1 + (i >> 8)}.${i & 255}`,
    port: 80,
    endpoints: [200, 201].map((node) => ({ ip: `10.42.${node}.${1 + (i % 250)}`, port: 8080 })),
  }));
}

function packetsOf(bpffs: string): Packets {
  using tables = openTables(bpffs);
  const packets = { fast: 0, all: 0 };
  for (const counter of readCounters(tables)) {
    packets.all += counter.packets;
    if (counter.verdict === 'fast') packets.fast += counter.packets;
  }
  return packets;
}

function add(a: Packets, b: Packets): Packets {
  return { fast: a.fast + b.fast, all: a.all + b.all };
}

/** Mark a node's pods for the kernel path, as a NetworkPolicy would, and wait until the agent has seen it. */
async function markForKernelPath(lab: Lab, node: NodeState): Promise<void> {
  const store = new AttachmentStore(join(nodeDir(lab, node), 'run'));
  for (const attachment of await store.list()) await store.put({ ...attachment, slow: true });
  await nudgeAgent(node);
  await untilMapped(lab, node, 'its pods as marked for the kernel path', async (...from) => {
    return (await readEndpoints(...from)).every(({ flags }) => flags.includes('kernel_path'));
  });
}

/** From two nodes without pods to what looks like a node's view of a large cluster, with one pod on each that answers. */
async function growTo(lab: Lab, { peers, endpoints }: ClusterSize): Promise<void> {
  const { nodes } = lab.state;
  await growPeers(lab, peers);
  await Promise.all(nodes.map((node) => addPod(lab, node)));
  await Promise.all(nodes.map((node) => growEndpoints(lab, node, endpoints)));
  // An agent's audit of thousands of peers now and then would be compared along with the path of the packets. It may be at
  // one just now, which SIGTERM would wait for.
  await Promise.all(nodes.map((node) => stopAgent(lab, node, 'SIGKILL')));
}
