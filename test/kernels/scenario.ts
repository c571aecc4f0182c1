// SPDX-License-Identifier: Apache-2.0
/**
 * The story for each kernel: two nodes with the real data plane, pods `a` and `b` on the first and `c` on the
 * second, which talk to each other. Prints a {@link Check} as JSON for each step; a failure ends the story.
 *
 * Run it in namespaces of its own (network, mount, process ids) with an empty /run, since it cleans nothing up.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pinPaths } from '../../src/dataplane/tables.ts';
import { linkKey } from '../../src/dataplane/links.ts';
import { errorText } from '../../src/errors.ts';
import { ipBatch, ipJson } from '../../src/lab/ip.ts';
import { ensureBpffs } from '../../src/host/mount.ts';
import { readForwardCounters } from '../../src/lab/rule-counters.ts';
import { commandIn, run, tryRun } from '../../src/host/run.ts';
import { BpfLink } from '#libbpf-ts';
import type { HoldReport, TcpReport } from '../cluster/talker.ts';
import { connectPod, countersOf, type NodeSpec, type PassReport, type PodSpec, vethOf } from './node.ts';
import { expectThat, type Step, tellStory } from './story.ts';
import { endTalker, startTalker, talk } from './talk.ts';

const NETWORK = '10.42.0.0/16';
const SERVICE = '10.43.0.1';
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
}));
const [one, two] = identities.map((identity): Node => ({
  ...identity,
  netns: `/run/netns/${identity.name}`,
  network: NETWORK,
  bpffs: join(BPFFS, identity.name),
  runDir: join('/run', identity.name),
  peers: identities.filter((other) => other !== identity),
})) as [Node, Node];
const [a, b, c] = (
  [
    ['a', one, '10.42.1.2'],
    ['b', one, '10.42.1.3'],
    ['c', two, '10.42.2.2'],
  ] as const
).map(([name, node, ip]): Pod => ({
  name,
  node,
  ip,
  netns: `/run/netns/${name}`,
  hostIfname: vethOf({ name }),
})) as [Pod, Pod, Pod];

// ---- Nodes and pods

/** Two nodes with a cable between them. */
async function createNodes(): Promise<void> {
  await ensureBpffs(BPFFS);
  mkdirSync('/run/netns', { recursive: true });
  for (const { bpffs } of [one, two]) mkdirSync(bpffs);
  await ipBatch([
    ...[one, two, a, b, c].map(({ name }) => `netns add ${name}`),
    'link add eth0 netns node1 type veth peer name eth0 netns node2',
  ]);
  for (const { netns, ip } of [one, two]) {
    await ipBatch(['link set lo up', `address add ${ip}/24 dev eth0`, 'link set eth0 up'], { netns });
  }
}

/** Move the nodes' addresses, and so their tunnels, to this device. `make` creates it on one node. */
async function moveUplink(device: string, kind: string, make: readonly string[]): Promise<void> {
  for (const { netns, ip } of [one, two]) {
    const moved = [`address flush dev ${uplink}`, ...make, `address add ${ip}/24 dev ${device}`];
    await ipBatch([...moved, `link set ${device} up`], { netns });
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

async function onNode({ netns, ...spec }: Node, command: 'pass' | 'strip'): Promise<PassReport> {
  const program = join(import.meta.dirname, 'node.ts');
  const { code, stdout, stderr } = await tryRun(
    process.execPath,
    [program, command, JSON.stringify({ ...spec, uplink } satisfies NodeSpec)],
    {
      netns,
      timeoutMs: 180_000,
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
  await startTalker(pod.netns, 'serving', ['serve', '0.0.0.0', String(PORT)]);
}

async function ping(from: Pod, to: Pod, count = 10): Promise<void> {
  const flags = ['-n', '-q', '-i', '0.02', '-W', '2', '-c', String(count)];
  const { stdout } = await tryRun('ping', [...flags, to.ip], { netns: from.netns });
  const all = stdout.includes(`${count} packets transmitted, ${count} received`);
  expectThat(all, `pings from ${from.name} to ${to.name}: ${errorText(stdout)}`);
}

/** Send this much over TCP and get it back. */
async function tcp(from: Pod, address: string, bytes: number): Promise<void> {
  const report = await talk<TcpReport>(from.netns, ['tcp', address, String(PORT), String(bytes)]);
  expectThat(report.bytes === bytes && report.sent === report.received, `TCP: ${JSON.stringify(report)}`);
}

/** A connection that is kept open during `work`, and must survive it. */
async function hold(from: Pod, to: Pod): Promise<() => Promise<void>> {
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

/** Check that pods of both nodes reach each other on the fast path. */
async function isFastAcross(): Promise<void> {
  const expected = [one, two].flatMap((node) => [
    [node, 'from_pod fast_encap', 15] as const,
    [node, 'from_wire fast_decap', 15] as const,
  ]);
  await counting(expected, async () => {
    await ping(a, c);
    await tcp(a, c.ip, 256 * KIB);
  });
}

async function kernelPath(node: Node): Promise<{ forwarded: number; tunnelled: number }> {
  const [device] = await ipJson<{ stats64: { tx: { packets: number } } }>(
    ['-s', 'link', 'show', 'dev', 'flannel.1'],
    { netns: node.netns },
  );
  const forwarded = (await readForwardCounters({ netns: node.netns }))?.packets ?? 0;
  return { forwarded, tunnelled: device!.stats64.tx.packets };
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
      await counting([[one, 'from_pod fast_local', 20]], async () => {
        await ping(a, b);
        await tcp(a, b.ip, 256 * KIB);
      });
    },
  ],
  ['pod to pod across nodes: fast encap, fast decap', isFastAcross],
  [
    'a restart swaps the programs and loses nothing',
    async () => {
      const before = await kernelPath(one);
      const watch = [...(await Promise.all([hold(a, b), hold(a, c)])), pingOn(a, b), pingOn(a, c)];
      const { found, attached } = await pass(one);
      await Promise.all(watch.map((unharmed) => unharmed()));
      const missed = (await kernelPath(one)).forwarded - before.forwarded;
      // The first packets of each flow, and one every few seconds, take the kernel path.
      expectThat(missed < 60, `${missed} packets missed the programs`);
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
      // All of ten pings but the first.
      const expected = [
        [one, 'from_pod fast_local', 9],
        [one, 'from_pod fast_encap', 9],
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
    'without programs the kernel path carries everything',
    async () => {
      const held = await Promise.all([hold(a, b), hold(a, c)]);
      const before = await kernelPath(one);
      const stripped = await Promise.all([onNode(one, 'strip'), onNode(two, 'strip')]);
      await ping(a, b);
      await ping(a, c);
      await Promise.all(held.map((unharmed) => unharmed()));
      const after = await kernelPath(one);
      const left = stripped.flatMap(({ attached }) => Object.keys(attached));
      expectThat(left.length === 0, `still attached: ${left.join(', ')}`);
      expectThat((await countFilters(one)) + (await countFilters(two)) === 0, 'filters are left');
      expectThat(after.forwarded - before.forwarded >= 40, 'the forward chain did not see the packets');
      expectThat(after.tunnelled - before.tunnelled >= 10, 'flannel.1 did not see the packets');
    },
  ],
];

await tellStory(steps);
