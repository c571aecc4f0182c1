// SPDX-License-Identifier: Apache-2.0
/** The data planes that are compared. Each has a lab of its own, so that they do not affect each other. */
import type { Mode } from '../src/agent/options.ts';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { readEndpoints } from '../src/cli/rows.ts';
import { AttachmentStore } from '../src/cni/attachments.ts';
import { readCounters } from '../src/dataplane/counters.ts';
import { openTables, pinPaths } from '../src/dataplane/tables.ts';
import { run } from '../src/host/run.ts';
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
  removePrograms,
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

/** A running data plane, with a client on the first node (or in a pod there), and servers on both nodes. */
export interface Arm extends AsyncDisposable {
  readonly name: string;
  /** Run one test, by default between the nodes. A client with a `cpu` talks to a server on the same CPU. */
  run<Command extends keyof Results>(
    command: Command,
    options?: Omit<ClientOptions, 'host' | 'port'>,
    place?: Place,
  ): Promise<Results[Command]>;
  /** The packets that ripstop's programs have counted on all nodes; undefined without programs. */
  packets(): Packets | undefined;
  /** The TCP segments that client and server between the nodes have had to send again, so far. */
  retransmitted(): Promise<number>;
  /** The nodes' bpffs mounts; empty when nothing is pinned. */
  readonly bpffs: readonly string[];
  /** Detach ripstop's programs on all nodes and stop its agents. The kernel path stays. */
  detach(): Promise<void>;
}

export interface Packets {
  /** Carried by the fast path. */
  readonly fast: number;
  /** All packets, including those left to the kernel path. */
  readonly all: number;
}

export interface ArmOptions {
  /** Default: the datapath's. */
  readonly name?: string;
  readonly wire?: Wire;
  /** The CPU of the pinned server behind the ClusterIP. Without it there is no Service for the benchmark. */
  readonly serverCpu?: number;
  /** Mark every pod for the kernel path, with all programs attached. */
  readonly kernelPath?: boolean;
  /** How ripstop runs. Default: cni. */
  readonly mode?: Mode;
  /** Imitate a cluster of this size. Then only ripstop's programs run, not its agents. */
  readonly size?: ClusterSize;
  /** The number of Services for which every node has kube-proxy's rules. With 0 there is no conntrack either. */
  readonly services: number;
  /** Path of the netbench program. */
  readonly program: string;
}

export interface ClusterSize {
  /** The number of peers of each node. */
  readonly peers: number;
  /** The number of pods on each node. */
  readonly endpoints: number;
}

/** The arms that are compared, in the order of tables and legends. */
export const armSpecs: readonly (Pick<ArmOptions, 'kernelPath'> & { name: string; datapath: Datapath })[] = [
  { name: 'host', datapath: 'host' },
  { name: 'flannel', datapath: 'flannel' },
  { name: 'ripstop', datapath: 'ripstop' },
  { name: 'ripstop-kernel', datapath: 'ripstop', kernelPath: true },
];

/** The directory of the netbench program. */
export const buildDir = join(import.meta.dirname, '../build');

/** Raise a lab of two nodes for a data plane. Its name has the process id, so that parallel runs do not collide. */
export async function raiseArm(datapath: Datapath, options: ArmOptions): Promise<Arm> {
  const { name = datapath, program, services, size, mode, wire = 'gso' } = options;
  const labName = `bench${process.pid}-${name}`;
  await using stack = new AsyncDisposableStack();
  stack.defer(async () => void (await labDown(labName)));
  const pods = datapath === 'host' || size ? 0 : 2;
  const kubeProxy = services > 0 ? 'iptables' : 'none';
  await labUp(parseLabOptions({ name: labName, nodes: 2, pods, datapath, mode, wire, kubeProxy }));
  const lab = openLab(labName);
  const [first, second] = lab.state.nodes as [NodeState, NodeState];
  for (const node of [first, second]) await prepare(lab, node, options);
  if (size) await growTo(lab, size);
  const { clients, targets } = placesOf(first, second);
  const bpffs = datapath === 'ripstop' ? [first, second].map((node) => join(nodeDir(lab, node), 'bpf')) : [];
  const servers = new Map<string, NetbenchServer>();
  const held = stack.move();
  /** Servers are started when they are first needed. */
  const serverFor = async (place: Place, cpu: number | undefined): Promise<NetbenchServer> => {
    const { netns } = targets[place];
    const key = `${netns} ${cpu}`;
    const known = servers.get(key);
    if (known) return known;
    const where = { netns: netnsPath(netns), port: portOf(cpu), ...(cpu !== undefined && { cpu }) };
    const server = held.use(await startNetbenchServer(program, where));
    servers.set(key, server);
    return server;
  };
  return {
    name,
    bpffs,
    detach: async () => {
      await Promise.all([first, second].map((node) => removePrograms(lab, node)));
    },
    run: async (command, more = {}, place = 'across nodes') => {
      const { port } = await serverFor(place, more.cpu);
      const host = place === 'through a ClusterIP' ? CLUSTER_IP : targets[place].ip;
      const where = { netns: netnsPath(clients[place].netns) };
      return netbench(program, command, { host, port, ...more }, where);
    },
    packets: () => {
      const attached = bpffs.filter((path) => existsSync(pinPaths(path).programs));
      return attached.length === 0 ? undefined : attached.map(packetsOf).reduce(add);
    },
    retransmitted: async () => {
      const ends = [clients, targets].map((places) => retransmittedIn(places['across nodes'].netns));
      return (await Promise.all(ends)).reduce((sum, segments) => sum + segments);
    },
    [Symbol.asyncDispose]: () => held.disposeAsync(),
  };
}

/** Where clients run, and where their servers do. */
function placesOf(first: NodeState, second: NodeState): Record<'clients' | 'targets', Record<Place, End>> {
  const [client, far] = [first.pods[0] ?? first, second.pods[0] ?? second];
  return {
    clients: {
      'across nodes': client,
      'through a ClusterIP': client,
      'one node': client,
      'host network': first,
    },
    targets: {
      'across nodes': far,
      'through a ClusterIP': far,
      'one node': first.pods[1] ?? first,
      'host network': second,
    },
  };
}

type End = Pick<NodeState, 'ip' | 'netns'>;

/** Give a node what the arm is to have, and its pods. */
async function prepare(lab: Lab, node: NodeState, options: ArmOptions): Promise<void> {
  const { services, serverCpu, kernelPath, wire } = options;
  for (const { netns } of [node, ...node.pods]) {
    await setSysctls(netns, {
      ...(wire === 'mtu' && { 'ipv4.tcp_limit_output_bytes': SENT_AT_ONCE }),
      // Available in every namespace. The machine's default may be paced by timers (BBR), which streams would measure.
      'ipv4.tcp_congestion_control': 'reno',
      // Short connections come faster than ports leave TIME_WAIT.
      'ipv4.tcp_tw_reuse': 1,
    });
  }
  if (services > 0) {
    const second = lab.state.nodes[1]!;
    const own = servicePorts((second.pods[0] ?? second).ip, serverCpu);
    await setServices(lab, node, [...own, ...idleServices(services)].slice(0, services));
  }
  if (kernelPath) await markForKernelPath(lab, node);
}

/**
 * What a socket may have in queues below TCP, in bytes, where every packet is segmented before the wire. A NIC has a queue
 * that the kernel keeps from overflowing. The lab's cable has none but a CPU's backlog, of 1,000 packets, which drops: those of
 * eight streams must fit. Without a limit a pod's streams lose packets there, since a pod's packets are segmented in
 * bursts, and TCP's recovery would be measured.
 */
const SENT_AT_ONCE = 131_072;

/** The benchmark's Service, for TCP and UDP. */
const CLUSTER_IP = '10.43.0.100';

/** The port of a server that is pinned to a CPU, or of one that is not. */
function portOf(cpu: number | undefined): number {
  return 9000 + (cpu === undefined ? 0 : cpu + 1);
}

function servicePorts(ip: string, cpu: number | undefined): ServicePort[] {
  if (cpu === undefined) return [];
  const port = portOf(cpu);
  return (['tcp', 'udp'] as const).map((protocol) => ({
    service: 'default/netbench',
    name: protocol,
    protocol,
    clusterIp: CLUSTER_IP,
    port,
    endpoints: [{ ip, port }],
  }));
}

/** Services with two endpoints each, which no benchmark uses. */
function idleServices(count: number): ServicePort[] {
  return Array.from({ length: count }, (_, i) => ({
    service: `default/idle-${i}`,
    protocol: 'tcp',
    clusterIp: `10.43.${1 + (i >> 8)}.${i & 255}`,
    port: 80,
    endpoints: [200, 201].map((node) => ({ ip: `10.42.${node}.${1 + (i % 250)}`, port: 8080 })),
  }));
}

/** Segments that TCP in a network namespace has sent again: `RetransSegs` of the SNMP MIB. */
async function retransmittedIn(netns: string): Promise<number> {
  const text = await run('cat', ['/proc/net/snmp'], { netns: netnsPath(netns) });
  const [names, values] = text
    .split('\n')
    .filter((line) => line.startsWith('Tcp: '))
    .map((line) => line.split(' '));
  return Number(values![names!.indexOf('RetransSegs')]);
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

/** Mark a node's pods for the kernel path, and wait until the agent has seen it. */
async function markForKernelPath(lab: Lab, node: NodeState): Promise<void> {
  const store = new AttachmentStore(join(nodeDir(lab, node), 'run'));
  for (const attachment of await store.list()) store.put({ ...attachment, kernelPath: true });
  await nudgeAgent(node);
  await untilMapped(lab, node, 'its pods as marked for the kernel path', async (...from) => {
    return (await readEndpoints(...from)).every(({ flags }) => flags.includes('kernel_path'));
  });
}

/** Make two nodes without pods look like a large cluster, with one real pod on each. */
async function growTo(lab: Lab, { peers, endpoints }: ClusterSize): Promise<void> {
  const { nodes } = lab.state;
  await growPeers(lab, peers);
  await Promise.all(nodes.map((node) => addPod(lab, node)));
  await Promise.all(nodes.map((node) => growEndpoints(lab, node, endpoints)));
  // An agent's audits of thousands of peers would affect the comparison. One may be running
  // now, for which SIGTERM would wait.
  await Promise.all(nodes.map((node) => stopAgent(lab, node, 'SIGKILL')));
}
