// SPDX-License-Identifier: Apache-2.0
/**
 * The story for each kernel: two nodes with the real data plane, pods `a` and `b` on the first and `c` on the
 * second, which talk to each other. Prints a {@link Check} as JSON for each step; a failure ends the story.
 *
 * Run it in namespaces of its own (network, mount, process ids) with an empty /run, since it cleans nothing up.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { isIPv6 } from 'node:net';
import { mkdirSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { AttachmentStore } from '../../src/cni/attachments.ts';
import { whyNoNetkit } from '../../src/cni/pod-device.ts';
import { deleteVeth } from '../../src/cni/pod-network.ts';
import { FLOW_LIFETIME_MS } from '../../src/dataplane/desired.ts';
import { openTables, pinPaths } from '../../src/dataplane/tables.ts';
import { linkKey } from '../../src/dataplane/links.ts';
import { errorText } from '../../src/errors.ts';
import { ipBatch, ipJson } from '../../src/lab/ip.ts';
import { readLink } from '../../src/host/links.ts';
import { openNetlink } from '../../src/host/netlink.ts';
import { ROUTE_PROTOCOL } from '../../src/host/routes.ts';
import { ensureBpffs } from '../../src/host/mount.ts';
import { readForwardCounters } from '../../src/lab/rule-counters.ts';
import { commandIn, run, tryRun } from '../../src/host/run.ts';
import { BpfLink, ifindexOf, programsAt } from '#libbpf-ts';
import { inNetns } from '#netlink';
import { ethernet, ip, protocols, sealed, udp } from '../../src/net/packets.ts';
import { RawSocket } from '../support/raw-socket.ts';
import type { HoldReport, TcpReport, UdpReport } from '../cluster/talker.ts';
import { ipvsadm, moveEndpoint, setIpv4, startIpvs, whyNoIpvs } from './ipvs.ts';
import { connectPod, countersOf, type NodeSpec, type PassReport, type PodSpec, vethOf } from './node.ts';
import { PolicyEngine, whyNoEngine } from './policies.ts';
import { expectThat, type Step, tellStory } from './story.ts';
import { endTalker, startTalker, talk } from './talk.ts';

const NETWORK = '10.42.0.0/16';
const NETWORK6 = 'fd00:42::/56';
const SERVICE = '10.43.0.1';
const IPVS_SERVICE = { ip: '10.43.0.2', port: 4711 };
const PORT = 4711;
const BPFFS = '/run/bpf';
const [major = 0, minor = 0] = release().split('.').map(Number);
/** tcx exists since Linux 6.6. */
const hasTcx = major > 6 || (major === 6 && minor >= 6);

/** The device that connects the nodes. It changes in the story. */
let uplink = 'eth0';

interface Node extends Omit<NodeSpec, 'uplink'> {
  readonly netns: string;
}
interface Pod extends PodSpec {
  readonly node: Node;
  readonly hostIfname: string;
}

const identities = [1, 2].map((n) => ({
  name: `node${n}`,
  ip: `192.168.77.${n}`,
  podCidr: `10.42.${n}.0/24`,
  vtepMac: `02:00:00:00:00:0${n}`,
  v6: {
    ip: `fd00:77::${n}`,
    podCidr: `fd00:42:0:${n}::/64`,
    vtepMac: `02:00:00:00:06:0${n}`,
    network: NETWORK6,
  },
}));
const [one, two] = identities.map((identity): Node => ({
  ...identity,
  netns: `/run/netns/${identity.name}`,
  network: NETWORK,
  bpffs: join(BPFFS, identity.name),
  runDir: join('/run', identity.name),
  peers: identities.filter((other) => other !== identity),
})) as [Node, Node];
const podAt = (name: string, node: Node, ip: string): Pod => ({
  name,
  node,
  ip,
  ip6: `${node.v6!.podCidr.replace('/64', '')}${ip.split('.')[3]}`,
  netns: `/run/netns/${name}`,
  hostIfname: vethOf({ name }),
});
const a = podAt('a', one, '10.42.1.2');
const b = podAt('b', one, '10.42.1.3');
const c = podAt('c', two, '10.42.2.2');

// ---- Nodes and pods

function addressesOn(device: string, { ip, v6 }: Node): string[] {
  return [`address add ${ip}/24 dev ${device}`, `address add ${v6!.ip}/64 dev ${device} nodad`];
}

/** Two nodes with a cable between them. */
async function createNodes(): Promise<void> {
  await ensureBpffs(BPFFS);
  mkdirSync('/run/netns', { recursive: true });
  for (const { bpffs } of [one, two]) mkdirSync(bpffs);
  await ipBatch([
    ...[one, two, a, b, c].map(({ name }) => `netns add ${name}`),
    'link add eth0 netns node1 type veth peer name eth0 netns node2',
  ]);
  for (const node of [one, two])
    await ipBatch(['link set lo up', ...addressesOn('eth0', node), 'link set eth0 up'], node);
}

/**
 * A node that flannel runs on, and its bridge with two pods; the far end of its uplink is in the same place. Undefined
 * on kernels without bridges.
 */
async function createBridgedNode(): Promise<{ node: Node; pods: [Pod, Pod] } | undefined> {
  if (!(await hasKind('bridge'))) return undefined;
  const [name, ip, podCidr, vtepMac] = ['node3', '192.168.77.3', '10.42.3.0/24', '02:00:00:00:00:03'];
  const at = { bpffs: join(BPFFS, name), runDir: join('/run', name), netns: `/run/netns/${name}` };
  const node: Node = {
    name,
    ip,
    podCidr,
    vtepMac,
    ...at,
    network: NETWORK,
    mode: 'boost',
    peers: identities,
  };
  const pods = ['e', 'f'].map((pod, i): Pod => {
    return {
      name: pod,
      node,
      ip: `10.42.3.${i + 2}`,
      netns: `/run/netns/${pod}`,
      hostIfname: `veth000000${i}e`,
    };
  }) as [Pod, Pod];
  mkdirSync(node.bpffs);
  await ipBatch([name, ...pods.map((pod) => pod.name)].map((netns) => `netns add ${netns}`));
  const inNode = [
    `link add ${uplink} type veth peer name wire`,
    `address add ${ip}/24 dev ${uplink}`,
    `link set ${uplink} up`,
    'link set wire up',
    `link add flannel.1 address ${vtepMac} mtu 1450 type vxlan id 1 local ${ip} dev ${uplink} dstport 8472 nolearning`,
    'link set flannel.1 up',
    'link add cni0 type bridge',
    'address add 10.42.3.1/24 dev cni0',
    'link set cni0 up',
    ...pods.flatMap(({ hostIfname, netns }) => [
      `link add ${hostIfname} type veth peer name eth0 netns ${netns}`,
      `link set ${hostIfname} master cni0 up`,
    ]),
  ];
  await ipBatch(inNode, { netns: node.netns });
  for (const pod of pods)
    await ipBatch(['link set lo up', `address add ${pod.ip}/24 dev eth0`, 'link set eth0 up'], pod);
  return { node, pods };
}

/** Move the nodes' addresses, and so their tunnels, to this device. `make` creates it on one node. */
async function moveUplink(device: string, kind: string, make: readonly string[]): Promise<void> {
  for (const node of [one, two]) {
    const moved = [`address flush dev ${uplink}`, ...make, ...addressesOn(device, node)];
    await ipBatch([...moved, `link set ${device} up`], node);
  }
  uplink = device;
  for (const { attached, ingress } of await Promise.all([pass(one), pass(two)])) {
    const why = `${device} is a ${kind}, not a NIC`;
    expectThat(ingress?.hook === 'tc' && ingress.why === why, `ingress: ${JSON.stringify(ingress)}`);
    const wires = Object.keys(attached).filter((key) => key.startsWith('from_wire'));
    expectThat(wires.join() === linkKey('from_wire', device), `from_wire hangs at ${wires.join()}`);
  }
}

/** Whether this kernel supports such devices. */
async function hasKind(kind: string): Promise<boolean> {
  const { stderr } = await tryRun('ip', ['link', 'add', 'probe', 'type', kind], { netns: one.netns });
  await tryRun('ip', ['link', 'del', 'probe'], { netns: one.netns });
  return !stderr.includes('Unknown device type');
}

/** Start (or restart) a node's data plane. Everything must succeed, and a second pass must change nothing. */
async function pass(node: Node): Promise<PassReport> {
  const report = await onNode(node, 'pass');
  expectThat(report.problems.length === 0, report.problems.join(' · '));
  const restless = report.again.filter(({ upserts, removals }) => upserts + removals > 0);
  expectThat(
    restless.length === 0,
    `a second pass changes ${restless.map(({ target }) => target).join(', ')}`,
  );
  return report;
}

async function onNode({ netns, ...spec }: Node, command: 'pass' | 'strip' | 'older'): Promise<PassReport> {
  const program = join(import.meta.dirname, 'node.ts');
  const { code, stdout, stderr } = await tryRun(
    process.execPath,
    [program, command, JSON.stringify({ ...spec, uplink } satisfies NodeSpec)],
    {
      netns,
      timeoutMs: 400_000,
    },
  );
  expectThat(code === 0, `${command} on ${spec.name} ended with ${code}: ${errorText(stderr.slice(-2000))}`);
  return JSON.parse(stdout) as PassReport;
}

/** The devices of a node with programs, and their hooks. */
function hooksOf(node: Node): { key: string; device: string; side: 'ingress' | 'egress' }[] {
  const pods = [a, b, c].filter((pod) => pod.node === node);
  return [
    ...pods.flatMap(({ hostIfname }) => [
      { key: linkKey('from_pod', hostIfname), device: hostIfname, side: 'ingress' as const },
      { key: linkKey('to_pod', hostIfname), device: hostIfname, side: 'egress' as const },
    ]),
    { key: linkKey('from_wire', uplink), device: uplink, side: 'ingress' },
    { key: linkKey('to_wire', uplink), device: uplink, side: 'egress' },
  ];
}

/** The number of clsact filters on a node's devices: `tc` shows those, but not tcx links. */
async function countFilters(node: Node): Promise<number> {
  const listings = await Promise.all(
    hooksOf(node).map(({ device, side }) =>
      run('tc', ['-j', 'filter', 'show', 'dev', device, side], { netns: node.netns }),
    ),
  );
  return listings
    .flatMap((text) => JSON.parse(text || '[]') as { kind: string; options?: { prog?: object } }[])
    .filter(({ kind, options }) => kind === 'bpf' && options?.prog).length;
}

function countTcxLinks(node: Node): number {
  const { links } = pinPaths(node.bpffs);
  return hooksOf(node).filter(({ key }) => {
    using link = BpfLink.openPinned(join(links, key));
    const { type, ifindex } = link.info();
    return type === 'tcx' && ifindex !== 0;
  }).length;
}

// ---- Traffic

async function serve(pod: Pod): Promise<void> {
  await startTalker(pod.netns, 'serving', ['serve', '::', String(PORT)]);
}

async function ping(from: Pod, to: Pod, count = 10, address = to.ip): Promise<void> {
  const flags = ['-n', '-q', '-i', '0.02', '-W', '2', '-c', String(count)];
  const { stdout } = await tryRun('ping', [...flags, address], { netns: from.netns });
  const all = stdout.includes(`${count} packets transmitted, ${count} received`);
  expectThat(all, `pings from ${from.name} to ${to.name} at ${address}: ${errorText(stdout)}`);
}

/** Send this much over TCP and get it back. The other end must see the pod's own address. */
async function tcp(from: Pod, address: string, bytes: number): Promise<void> {
  const report = await talk<TcpReport>(from.netns, ['tcp', address, String(PORT), String(bytes)]);
  const isWhole = report.bytes === bytes && report.sent === report.received;
  const ip = isIPv6(address) ? from.ip6 : from.ip;
  expectThat(isWhole && report.seenAs === ip, `TCP: ${JSON.stringify(report)}`);
}

/** A connection that is kept open during `work`, and must survive it. */
async function hold(from: Pod, to: Pick<Pod, 'ip'>): Promise<() => Promise<void>> {
  const talker = await startTalker(from.netns, 'holding', ['hold', to.ip, String(PORT)]);
  return async () => {
    const report = await endTalker<HoldReport>(talker);
    // A lost packet costs at least TCP's shortest retransmission timeout, 200 ms; a slow machine may take longer yet.
    expectThat(report.error === undefined && report.rounds > 10, `connection: ${JSON.stringify(report)}`);
  };
}

/** Ping until stopped. No ping may be lost. */
function pingOn(from: Pod, to: Pod): () => Promise<void> {
  const [file, ...argv] = commandIn(from.netns, 'ping', ['-n', '-q', '-i', '0.02', to.ip]);
  const child = spawn(file, argv, { stdio: ['ignore', 'pipe', 'inherit'] });
  return async () => {
    let text = '';
    child.stdout.on('data', (piece: Buffer) => (text += piece.toString()));
    const closed = once(child, 'close');
    child.kill('SIGINT');
    await closed;
    const [, sent, answered] = /(\d+) packets transmitted, (\d+) received/.exec(text) ?? [];
    // The last answer may not have arrived yet.
    const lost = Number(sent) - Number(answered);
    expectThat(lost <= 1 && Number(sent) > 5, `pings ${from.name} to ${to.name}: ${errorText(text)}`);
  };
}

/** During `work` each of these counters must rise by at least so much. */
async function counting(
  expected: readonly (readonly [node: Node, counter: string, atLeast: number])[],
  work: () => Promise<unknown>,
): Promise<void> {
  const nodes = [one, two];
  const before = nodes.map(countersOf);
  await work();
  const moved = nodes.map((node, i) => {
    const now = Object.entries(countersOf(node)).map(
      ([name, n]) => [name, n - (before[i]![name] ?? 0)] as const,
    );
    return new Map(now.filter(([, n]) => n > 0));
  });
  for (const [node, counter, atLeast] of expected) {
    const i = nodes.indexOf(node);
    const rose = moved[i]!.get(counter) ?? 0;
    const all = JSON.stringify(Object.fromEntries(moved[i]!));
    expectThat(rose >= atLeast, `${counter} on ${node.name} rose by ${rose}, not ${atLeast}: ${all}`);
  }
}

/** How many packets the fast path has carried on this node. */
function fastOn(node: Node): number {
  const counters = Object.entries(countersOf(node)).filter(([name]) => name.includes(' fast_'));
  return counters.reduce((sum, [, packets]) => sum + packets, 0);
}

/** Pods with netkits: `g` and `h` on the first node, `i` on the second. */
const g = podAt('g', one, '10.42.1.7');
const h = podAt('h', one, '10.42.1.8');
const i = podAt('i', two, '10.42.2.7');
/** Set once they are there. */
let hasNetkits = false;
const NO_NETKITS = 'there is no netkit here';

async function createNetkits(): Promise<string | undefined> {
  const why = inNetns(one.netns, () => {
    using socket = openNetlink({});
    return whyNoNetkit(release(), socket);
  });
  if (why !== undefined) return why;
  await ipBatch([g, h, i].map(({ name }) => `netns add ${name}`));
  await Promise.all([g, h, i].map((pod) => connectPod(pod, pod.node, 'netkit')));
  hasNetkits = true;
  return undefined;
}

/** Which programs judge what the pod sends: those at tc ingress of the node's end, and at the hook of the pod's. */
function judgesOf({ node, hostIfname }: Pod): { ingress: number; netkit: number } {
  return inNetns(node.netns, () => {
    const ifindex = ifindexOf(hostIfname);
    return {
      ingress: programsAt(ifindex, 'tcx_ingress').length,
      netkit: programsAt(ifindex, 'netkit_peer').length,
    };
  });
}

function expectJudges(expected: { ingress: number; netkit: number }): void {
  for (const pod of [g, h]) {
    const judges = judgesOf(pod);
    expectThat(isDeepStrictEqual(judges, expected), `${pod.name} has ${JSON.stringify(judges)}`);
  }
}

type FamilyKey = 'ip' | 'ip6';

/** Pods with netkits reach each other and pods with veths on the fast path. */
async function isFastWithNetkits(family: FamilyKey = 'ip'): Promise<void> {
  const expected = [
    [one, 'from_pod fast_local', 60],
    [one, 'from_pod fast_encap', 15],
    [one, 'from_wire fast_decap', 15],
  ] as const;
  await counting(expected, async () => {
    for (const [from, to] of [
      [g, h],
      [a, h],
      [g, b],
      [g, i],
    ] as const) {
      await ping(from, to, 20, to[family]);
      await tcp(from, to[family]!, 256 * KIB);
    }
  });
}

/** Check that pods of one node reach each other on the fast path. */
async function isFastOnNode(family: FamilyKey): Promise<void> {
  await counting([[one, 'from_pod fast_local', 20]], async () => {
    await ping(a, b, 10, b[family]);
    await tcp(a, b[family]!, 256 * KIB);
  });
}

/** Check that pods of both nodes reach each other on the fast path. */
async function isFastAcross(family: FamilyKey = 'ip'): Promise<void> {
  const expected = [one, two].flatMap((node) => [
    [node, 'from_pod fast_encap', 15] as const,
    [node, 'from_wire fast_decap', 15] as const,
  ]);
  await counting(expected, async () => {
    await ping(a, c, 10, c[family]);
    await tcp(a, c[family]!, 256 * KIB);
  });
}

type Dress = 'plain' | 'tagged' | 'tagged twice' | 'with another type';

/**
 * Send a datagram out of a raw socket of the pod: in its frame, behind tags of VLAN 0, or in a frame of another type. The
 * kernel goes by the protocol of the socket, not by the frame's type.
 * @returns the name of the error when it is refused.
 */
async function sendDressed(
  from: Pod,
  ends: { src: string; dst: string },
  dress: Dress,
  text: string,
): Promise<string | undefined> {
  const { pod, host } = await macsOf(from);
  const datagram = udp({ src: 4000, dst: 4001 }, Buffer.from(text));
  const packet = sealed(ip({ ...ends, protocol: protocols.udp }, datagram));
  const tag = (frame: Uint8Array) => Uint8Array.of(...frame.slice(0, 12), 0x81, 0, 0, 0, ...frame.slice(12));
  const plain = ethernet({ dst: host, src: pod }, packet);
  const frame = {
    plain,
    tagged: tag(plain),
    'tagged twice': tag(tag(plain)),
    'with another type': ethernet({ dst: host, src: pod, type: 0x1234 }, packet),
  }[dress];
  using socket = new RawSocket(from.netns, 'eth0', dress === 'with another type' ? 0x0800 : undefined);
  return socket.send(frame);
}

/** Wait until a frame with this text arrives. No frame with the other one may have come before. */
async function arrives(victim: RawSocket, text: string, never: string): Promise<void> {
  for (const deadline = performance.now() + 30_000; ; await sleep(20)) {
    for (let got = victim.receive(); got; got = victim.receive()) {
      const received = Buffer.from(got.frame).toString('latin1');
      expectThat(!received.includes(never), `${never} has arrived before ${text}`);
      if (received.includes(text)) return;
    }
    expectThat(performance.now() < deadline, `${text} has not arrived`);
  }
}

/** The MACs of both ends of its device. */
async function macsOf({ node, netns, hostIfname }: Pod): Promise<{ pod: string; host: string }> {
  const [ofPod, ofHost] = await Promise.all([
    readLink('eth0', { netns }),
    readLink(hostIfname, { netns: node.netns }),
  ]);
  return { pod: ofPod.mac!, host: ofHost.mac! };
}

async function kernelPath(node: Node): Promise<{ forwarded: number; tunnelled: number }> {
  const [device] = await ipJson<{ stats64: { tx: { packets: number } } }>(
    ['-s', 'link', 'show', 'dev', 'flannel.1'],
    { netns: node.netns },
  );
  const forwarded = (await readForwardCounters({ netns: node.netns }))?.packets ?? 0;
  return { forwarded, tunnelled: device!.stats64.tx.packets };
}

/** Wait until the counter has risen by so much. */
async function rises(node: Node, counter: string, by: number): Promise<void> {
  const read = (): number => countersOf(node)[counter] ?? 0;
  const start = read();
  const deadline = performance.now() + 30_000;
  while (read() < start + by) {
    const all = JSON.stringify(countersOf(node));
    expectThat(performance.now() < deadline, `${counter} rose by ${read() - start}, not ${by}: ${all}`);
    await sleep(20);
  }
}

/** Set once IPVS has been found here. */
let hasIpvs = false;
const NO_IPVS = 'there is no IPVS here';

/** Set while the engine of NetworkPolicies runs. `a` is a client, `b` and `c` are servers. */
let policies: PolicyEngine | undefined;
const NO_ENGINE = 'there is no engine of NetworkPolicies here';

/** Wait until a new flow is let through, or not. */
async function untilLetThrough(from: Pod, to: Pod, wanted: boolean): Promise<void> {
  const flags = ['-n', '-q', '-c', '1', '-W', '1', to.ip];
  const isLet = async (): Promise<boolean> => (await tryRun('ping', flags, { netns: from.netns })).code === 0;
  for (const deadline = performance.now() + 60_000; (await isLet()) !== wanted; await sleep(100))
    expectThat(
      performance.now() < deadline,
      `${from.name} is ${wanted ? 'not' : 'still'} let through to ${to.name}`,
    );
}

/** New flows to it get no answer, whatever the protocol. */
async function isDenied(from: Pod, to: Pod): Promise<void> {
  await untilLetThrough(from, to, false);
  const attempts = {
    ping: ping(from, to, 3),
    tcp: tcp(from, to.ip, KIB),
    udp: talk<UdpReport>(from.netns, ['udp', to.ip, String(PORT), '1', '100']).then(({ answers }) =>
      expectThat(answers > 0, 'no answer'),
    ),
  };
  const results = await Promise.allSettled(Object.values(attempts));
  const gotThrough = Object.keys(attempts).filter((_, i) => results[i]!.status === 'fulfilled');
  expectThat(gotThrough.length === 0, `from ${from.name} to ${to.name} came through: ${gotThrough.join()}`);
}

const addressOf = ({ ip, port }: { ip: string; port: number }): string => `${ip}:${port}`;

// ---- Changes

/** Debian's kernels let programs trace them; others may not. */
const mayTrace = release().includes('cloud');
const NO_TRACING = 'this kernel lets no program trace it';

/** Start the data plane again. Where programs may trace, it watches this function then, whose module has come since. */
async function expectWatched(name: string): Promise<void> {
  const { watched } = await pass(one);
  expectThat(watched.includes(name) === mayTrace, `watched: ${watched.join(', ')}`);
}

/** The counter moves no more: from now on where the kernel's functions are watched, else once flows have expired. */
async function expectStill(counter: string): Promise<void> {
  const read = (): number => countersOf(one)[counter] ?? 0;
  if (!mayTrace) await sleep(FLOW_LIFETIME_MS);
  const now = read();
  await sleep(500);
  expectThat(read() === now, `${counter} has moved by ${read() - now} since the change`);
}

/** What `add` does stops an established flow, and `remove` lets it go on. */
async function isStoppedBy(add: () => Promise<unknown>, remove: () => Promise<unknown>): Promise<void> {
  const counter = 'from_pod fast_encap';
  const held = await hold(a, c);
  await rises(one, counter, 20);
  await add();
  await expectStill(counter);
  await remove();
  await held();
}

function epochOf({ bpffs }: Node): number {
  using tables = openTables(bpffs);
  return tables.epoch.get(0) ?? 0;
}

// ---- The story

const KIB = 1024;

const steps: readonly Step[] = [
  [
    'two nodes and three pods',
    async () => {
      await createNodes();
      await Promise.all([a, b, c].map((pod) => connectPod(pod, pod.node)));
    },
  ],
  [
    'programs load and attach',
    async () => {
      await Promise.all([pass(one), pass(two)]);
    },
  ],
  [
    `they hang in ${hasTcx ? 'tcx links' : 'clsact filters'}`,
    async () => {
      for (const node of [one, two]) {
        const hooks = hooksOf(node).length;
        const filters = await countFilters(node);
        const found = hasTcx ? countTcxLinks(node) : filters;
        expectThat(found === hooks, `${found} of ${hooks} on ${node.name}`);
        expectThat(!hasTcx || filters === 0, `${filters} clsact filters on ${node.name}`);
      }
    },
  ],
  [
    'pod to pod on one node: fast local',
    async () => {
      await Promise.all([serve(b), serve(c)]);
      await isFastOnNode('ip');
    },
  ],
  ['pod to pod across nodes: fast encap, fast decap', () => isFastAcross()],
  [
    'the same over IPv6',
    async () => {
      await isFastOnNode('ip6');
      await isFastAcross('ip6');
    },
  ],
  [
    'a restart swaps the programs and loses nothing',
    async () => {
      const before = { ...(await kernelPath(one)), fast: fastOn(one) };
      const watch = [...(await Promise.all([hold(a, b), hold(a, c)])), pingOn(a, b), pingOn(a, c)];
      const { found, attached } = await pass(one);
      await Promise.all(watch.map((unharmed) => unharmed()));
      const missed = (await kernelPath(one)).forwarded - before.forwarded;
      const fast = fastOn(one) - before.fast;
      // The first packets of each flow, and one every few seconds, take the kernel path.
      expectThat(missed * 10 < fast, `${missed} packets missed the programs, which carried ${fast}`);
      expectThat(Object.keys(found).join() === Object.keys(attached).join(), 'other hooks than before');
      for (const [key, { ifindex, programId }] of Object.entries(attached)) {
        expectThat(found[key]?.ifindex === ifindex, `${key} has left its device`);
        expectThat(found[key]?.programId !== programId, `${key} kept its program`);
      }
    },
  ],
  [
    'a re-created device gets its programs again',
    async () => {
      await ipBatch([`link del ${a.hostIfname}`], { netns: one.netns });
      await connectPod(a, one);
      const { found, attached } = await pass(one);
      for (const key of [linkKey('from_pod', a.hostIfname), linkKey('to_pod', a.hostIfname)]) {
        expectThat(found[key]?.ifindex === 0, `${key} is still said to be attached`);
        expectThat((attached[key]?.ifindex ?? 0) > 0, `${key} is not attached`);
      }
      // All of ten pings but the first two.
      const expected = [
        [one, 'from_pod fast_local', 8],
        [one, 'from_pod fast_encap', 8],
      ] as const;
      await counting(expected, async () => {
        await ping(a, b);
        await ping(a, c);
      });
    },
  ],
  [
    'over a VLAN',
    async () => {
      if (!(await hasKind('vlan'))) return 'this kernel has no VLANs';
      await moveUplink('eth0.5', 'vlan', ['link add link eth0 name eth0.5 type vlan id 5']);
      await isFastAcross();
      return undefined;
    },
  ],
  [
    'over a bond, whose second device takes over',
    async () => {
      if (!(await hasKind('bond'))) return 'this kernel has no bonds';
      await ipBatch(['link add eth1 netns node1 type veth peer name eth1 netns node2']);
      await moveUplink('bond0', 'bond', [
        'link add bond0 type bond mode active-backup miimon 20',
        ...['eth0', 'eth1'].flatMap((name) => [`link set ${name} down`, `link set ${name} master bond0`]),
      ]);
      await isFastAcross();
      const held = await hold(a, c);
      await ipBatch(['link set eth0 down'], { netns: two.netns });
      await sleep(500); // the bond checks its link every 20 ms of this slow machine's time
      await isFastAcross();
      await held();
      return undefined;
    },
  ],
  [
    'a connection to a service is fast, both ways',
    async () => {
      const rules = [
        'add table ip story',
        'add chain ip story services { type nat hook prerouting priority -100; }',
        `add rule ip story services ip daddr ${SERVICE} dnat to ${c.ip}`,
      ].join('\n');
      await run('nft', ['-f', '-'], { netns: one.netns, stdin: rules });
      const expected = [
        [one, 'from_pod fast_encap', 5],
        [one, 'from_wire fast_decap', 5],
      ] as const;
      await counting(expected, () => tcp(a, SERVICE, 1024 * KIB));
    },
  ],
  [
    'netkit: pods talk fast, on their node and across, to pods with veths too',
    async () => {
      const why = await createNetkits();
      if (why !== undefined) return why;
      const { attached } = await pass(one);
      await pass(two);
      const ofPod = attached[linkKey('from_pod', g.hostIfname)];
      expectThat(ofPod?.netkit === true && ofPod.ifindex > 0, `from_pod of g: ${JSON.stringify(ofPod)}`);
      expectJudges({ ingress: 0, netkit: 1 });
      await Promise.all([serve(h), serve(i)]);
      await isFastWithNetkits();
      return undefined;
    },
  ],
  [
    'netkit: the same over IPv6',
    async () => {
      if (!hasNetkits) return NO_NETKITS;
      await isFastWithNetkits('ip6');
      return undefined;
    },
  ],
  [
    'netkit: a connection to a service is fast, both ways',
    async () => {
      if (!hasNetkits) return NO_NETKITS;
      const expected = [
        [one, 'from_pod fast_encap', 5],
        [one, 'from_wire fast_decap', 5],
      ] as const;
      await counting(expected, () => tcp(g, SERVICE, 1024 * KIB));
      return undefined;
    },
  ],
  [
    'netkit: no frame hides that its source is not the pod’s own',
    async () => {
      if (!hasNetkits) return NO_NETKITS;
      using victim = new RawSocket(c.netns, 'eth0');
      for (const dress of ['plain', 'tagged', 'tagged twice', 'with another type'] as const) {
        // Who sends a packet that a netkit's program drops is told so (ENOBUFS).
        await sendDressed(g, { src: b.ip, dst: c.ip }, dress, 'a lie');
        const refused = await sendDressed(g, { src: g.ip, dst: c.ip }, dress, `the truth, ${dress}`);
        expectThat(refused === undefined, `the kernel refuses the frame ${dress}: ${refused}`);
        await arrives(victim, `the truth, ${dress}`, 'a lie');
      }
      return undefined;
    },
  ],
  [
    'netkit: after a downgrade and an upgrade one program judges a packet, and nothing is lost',
    async () => {
      if (!hasNetkits) return NO_NETKITS;
      const watch = await Promise.all([hold(g, h), hold(g, i)]);
      const older = await onNode(one, 'older');
      expectThat(older.problems.length === 0, older.problems.join(' · '));
      expectJudges({ ingress: 1, netkit: 0 });
      await isFastWithNetkits();
      await pass(one);
      expectJudges({ ingress: 0, netkit: 1 });
      await isFastWithNetkits();
      await Promise.all(watch.map((unharmed) => unharmed()));
      return undefined;
    },
  ],
  [
    'netkit: a pod that goes leaves nothing behind',
    async () => {
      if (!hasNetkits) return NO_NETKITS;
      await new AttachmentStore(one.runDir).remove({ containerId: 'h', ifname: 'eth0' });
      expectThat(await deleteVeth(h.hostIfname, one.netns), 'there was no device');
      const { attached } = await pass(one);
      const left = Object.keys(attached).filter((key) => key.endsWith(h.hostIfname));
      expectThat(left.length === 0, `still there: ${left.join(', ')}`);
      return undefined;
    },
  ],
  [
    'NetworkPolicies by NFQUEUE: flows under way go on fast, new ones are denied',
    async () => {
      const why = await whyNoEngine();
      if (why !== undefined) return why;
      const pods = [a, b, c].map((pod) => ({ ...pod, role: pod === a ? 'client' : 'server' }));
      policies = await PolicyEngine.start([one, two], pods);
      await isFastAcross();
      const held = await Promise.all([hold(a, b), hold(a, c)]);
      policies.deny('deny', 'server');
      for (const server of [b, c]) await isDenied(a, server);
      await rises(one, 'from_pod fast_local', 20);
      await rises(one, 'from_pod fast_encap', 20);
      await Promise.all(held.map((unharmed) => unharmed()));
      for (const server of [b, c]) await isDenied(a, server);
      return undefined;
    },
  ],
  [
    'NetworkPolicies by NFQUEUE: an allowed client is fast, and nobody else is let through',
    async () => {
      if (!policies) return NO_ENGINE;
      policies.allow('allow', 'client', 'server');
      for (const server of [b, c]) await untilLetThrough(a, server, true);
      await isFastAcross();
      await counting([[one, 'from_pod fast_local', 20]], async () => {
        await ping(a, b);
        await tcp(a, b.ip, 256 * KIB);
      });
      await isDenied(b, c);
      await isDenied(c, b);
      return undefined;
    },
  ],
  [
    'NetworkPolicies by NFQUEUE: a flow that is never answered ends as soon as it is denied',
    async () => {
      if (!policies) return NO_ENGINE;
      using victim = new RawSocket(c.netns, 'eth0');
      const send = async (text: string): Promise<void> => {
        for (let n = 0; n < 20; n++) await sendDressed(a, { src: a.ip, dst: c.ip }, 'plain', text);
      };
      await send('allowed');
      await arrives(victim, 'allowed', 'denied');
      policies.remove('allow');
      await untilLetThrough(a, c, false);
      await send('denied');
      for (const server of [b, c]) await isDenied(a, server);
      policies.remove('deny');
      await untilLetThrough(a, c, true);
      await send('once more');
      await arrives(victim, 'once more', 'denied');
      await policies.stop();
      policies = undefined;
      await isFastAcross();
      return undefined;
    },
  ],
  [
    'IPVS: a ClusterIP with its endpoint on the other node is fast, both ways',
    async () => {
      const { netns } = one;
      const why = await whyNoIpvs(netns);
      if (why !== undefined) return why;
      hasIpvs = true;
      await startIpvs({ netns, network: NETWORK }, IPVS_SERVICE);
      await expectWatched('ip_vs_genl_set_cmd');
      for (const protocol of ['-t', '-u'])
        await ipvsadm(netns, [
          '-a',
          protocol,
          addressOf(IPVS_SERVICE),
          '-r',
          addressOf({ ...c, port: PORT }),
          '-m',
        ]);
      const expected = [
        [one, 'from_pod fast_encap', 5],
        [one, 'from_wire fast_decap', 5],
      ] as const;
      await counting(expected, () => tcp(a, IPVS_SERVICE.ip, 1024 * KIB));
      return undefined;
    },
  ],
  [
    'IPVS: its endpoint is replaced by one on this node, and UDP moves there',
    async () => {
      if (!hasIpvs) return NO_IPVS;
      const count = 1000;
      const args = ['udp', IPVS_SERVICE.ip, String(PORT), String(count), '100'];
      const datagrams = talk<UdpReport>(a.netns, args);
      await rises(one, 'from_pod fast_encap', 100);
      await moveEndpoint(one.netns, IPVS_SERVICE, c.ip, b.ip);
      await expectStill('from_pod fast_encap');
      await rises(one, 'from_pod fast_local', 100);
      const { answers, from } = await datagrams;
      // IPVS itself loses a datagram that comes between the end of the endpoint and that of the connection, or leaves
      // its answer untranslated.
      const strange = from.filter((address) => address !== IPVS_SERVICE.ip && address !== c.ip);
      const all = answers >= count - 1 && from[0] === IPVS_SERVICE.ip && strange.length === 0;
      expectThat(all, `${answers} answers from ${from.join()}`);
      return undefined;
    },
  ],
  [
    'IPVS: its endpoint is replaced again, and connections stay until they end',
    async () => {
      if (!hasIpvs) return NO_IPVS;
      const held = await hold(a, IPVS_SERVICE);
      await rises(one, 'from_pod fast_local', 20);
      await moveEndpoint(one.netns, IPVS_SERVICE, b.ip, c.ip);
      await rises(one, 'from_pod fast_local', 20);
      await counting([[one, 'from_pod fast_encap', 5]], () => tcp(a, IPVS_SERVICE.ip, 1024 * KIB));
      await held();
      return undefined;
    },
  ],
  [
    'IPVS without conntrack: the kernel path',
    async () => {
      if (!hasIpvs) return NO_IPVS;
      setIpv4(one.netns, { 'vs/conntrack': 0 });
      const before = fastOn(one);
      await tcp(a, IPVS_SERVICE.ip, 256 * KIB);
      await moveEndpoint(one.netns, IPVS_SERVICE, c.ip, b.ip);
      await tcp(a, IPVS_SERVICE.ip, 256 * KIB);
      expectThat(fastOn(one) === before, `${fastOn(one) - before} packets were fast`);
      setIpv4(one.netns, { 'vs/conntrack': 1 });
      return undefined;
    },
  ],
  [
    'without an agent: a new rule of iptables-legacy stops an established flow',
    async () => {
      const rule = ['FORWARD', '-s', a.ip, '-d', c.ip, '-j', 'DROP'];
      const iptables = (command: string) =>
        tryRun('iptables-legacy', [command, ...rule], { netns: one.netns });
      const { code, stderr } = await iptables('-I');
      if (code !== 0) return errorText(stderr);
      await iptables('-D');
      // By now the kernel has loaded its module.
      await expectWatched('xt_replace_table');
      await isStoppedBy(
        () => iptables('-I'),
        () => iptables('-D'),
      );
      return undefined;
    },
  ],
  [
    'without an agent: a new rule of nftables stops an established flow',
    async () => {
      const nft = (text: string) => run('nft', ['-f', '-'], { netns: one.netns, stdin: text });
      const rule = `ip saddr ${a.ip} ip daddr ${c.ip} drop`;
      const table = `table ip stop { chain forward { type filter hook forward priority 0; ${rule}; }; }`;
      await expectWatched('nf_tables_commit');
      await isStoppedBy(
        () => nft(table),
        () => nft('delete table ip stop'),
      );
    },
  ],
  [
    'a pod that comes moves no epoch, and a route does',
    async () => {
      if (!mayTrace) return NO_TRACING;
      const before = epochOf(one);
      const d = { name: 'd', netns: '/run/netns/d', ip: '10.42.1.4' };
      await ipBatch(['netns add d']);
      await connectPod(d, one);
      // As the agent does then.
      await ipBatch([`route add ${d.ip} dev ${vethOf(d)} proto ${ROUTE_PROTOCOL}`], { netns: one.netns });
      const moved = epochOf(one) - before;
      await ipBatch(['route add 203.0.113.0/24 via 192.168.77.2'], { netns: one.netns });
      const movedByRoute = epochOf(one) - before - moved;
      expectThat(moved === 0 && movedByRoute > 0, `${moved} moves by the pod, ${movedByRoute} by the route`);
      return undefined;
    },
  ],
  [
    'boost: pods on a bridge talk fast, and as across the bridge',
    async () => {
      const bridged = await createBridgedNode();
      if (!bridged) return 'there are no bridges here';
      const [e, f] = bridged.pods;
      await serve(f);
      for (const { netns } of bridged.pods) await run('ping', ['-c', '1', '10.42.3.1'], { netns });
      await pass(bridged.node);
      const fast = (): number => countersOf(bridged.node)['from_pod fast_local'] ?? 0;
      await ping(e, f);
      await tcp(e, f.ip, 1024 * KIB);
      expectThat(
        fast() >= 20,
        `only ${fast()} packets were fast: ${JSON.stringify(countersOf(bridged.node))}`,
      );
      const { stdout } = await tryRun('ping', ['-c', '3', '-i', '0.1', f.ip], { netns: e.netns });
      expectThat(stdout.includes('ttl=64'), `the TTL has changed: ${errorText(stdout)}`);
      await onNode(bridged.node, 'strip');
      await ping(e, f);
      return undefined;
    },
  ],
  [
    'without programs the kernel path carries everything',
    async () => {
      const held = await Promise.all([hold(a, b), hold(a, c)]);
      const before = await kernelPath(one);
      const stripped = await Promise.all([onNode(one, 'strip'), onNode(two, 'strip')]);
      await ping(a, b);
      await ping(a, c);
      await Promise.all(held.map((unharmed) => unharmed()));
      const after = await kernelPath(one);
      const left = stripped.flatMap(({ attached, watched }) => [...Object.keys(attached), ...watched]);
      expectThat(left.length === 0, `still attached: ${left.join(', ')}`);
      expectThat((await countFilters(one)) + (await countFilters(two)) === 0, 'filters are left');
      expectThat(after.forwarded - before.forwarded >= 40, 'the forward chain did not see the packets');
      expectThat(after.tunnelled - before.tunnelled >= 10, 'flannel.1 did not see the packets');
    },
  ],
];

await tellStory(steps);
