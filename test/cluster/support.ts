// SPDX-License-Identifier: Apache-2.0
/** Shared by the tests of this folder: a lab for a file, pods that talk, and a node's counters of what carried it. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect } from 'vitest';
import { type MapEntry, openMap, rawEntries } from '../../src/cli/maps.ts';
import { AttachmentStore } from '../../src/cni/attachments.ts';
import { hostVethName } from '../../src/cni/pod-network.ts';
import { readCounters } from '../../src/dataplane/counters.ts';
import { linkKey, listLinkKeys } from '../../src/dataplane/links.ts';
import { type MapName, openTables, pinPaths } from '../../src/dataplane/tables.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { readForwardCounters } from '../../src/lab/rule-counters.ts';
import { type RunOptions, run, tryRun } from '../../src/host/run.ts';
import {
  callCni,
  type Lab,
  type LabFlags,
  labDown,
  labUp,
  netnsPath,
  nodeDir,
  type NodeState,
  openLab,
  parseLabOptions,
  type PodState,
  type ServicePort,
} from '../../src/lab/index.ts';
import { ripstopPlugin } from '../../src/lab/ripstop.ts';
import type { Family } from '../../src/net/ip.ts';
import { type Background, missingForLab, startIn, tracesOf } from '../../src/lab/lab.support.ts';
import type { DatagramReport } from './datagrams.ts';
import type { HoldReport, NumberReport, TcpReport, UdpReport } from './talker.ts';

const TALKER = join(import.meta.dirname, 'talker.ts');
const DATAGRAMS = join(import.meta.dirname, 'datagrams.ts');
const CLI = join(import.meta.dirname, '../../src/cli/main.ts');

/** The port where the talkers serve. */
export const PORT = 4711;

export const FAMILIES = [4, 6] as const;
export const PROXY_MODES = ['iptables', 'nftables'] as const;

/** The ports of a Service with one backend, for TCP and UDP. */
export function serviceOf(
  name: string,
  clusterIp: string,
  port: number,
  backend: string,
  nodePort?: number,
): ServicePort[] {
  return (['tcp', 'udp'] as const).map((protocol) => ({
    service: `default/${name}`,
    name: protocol,
    protocol,
    clusterIp,
    port,
    ...(nodePort !== undefined && { nodePort }),
    endpoints: [{ ip: backend, port }],
  }));
}

/** Why a file's tests cannot run here, in one line; undefined when they can. */
export function missingHere(...programs: string[]): string | undefined {
  const missing = missingForLab('nft', ...programs);
  if (missing) console.log(`skipped: ${missing}`);
  return missing;
}

/** A lab that is up while a describe block runs, and must leave nothing behind. */
export function useLab(
  suffix: string,
  flags: LabFlags,
): { readonly lab: Lab; readonly nodes: readonly NodeState[] } {
  const name = `t${process.pid}-${suffix}`;
  let lab: Lab | undefined;
  beforeAll(async () => {
    await labUp(parseLabOptions({ ...flags, name }));
    lab = openLab(name);
  });
  afterAll(async () => {
    await labDown(name);
    expect(await tracesOf(name)).toEqual([]);
  });
  const opened = (): Lab => {
    if (!lab) throw new Error('the lab is not up yet');
    return lab;
  };
  return {
    get lab() {
      return opened();
    },
    get nodes() {
      return opened().state.nodes;
    },
  };
}

export function podOf(node: NodeState | undefined, i = 0): PodState {
  const pod = node?.pods[i];
  if (!pod) throw new Error(`${node?.name} has no pod number ${i}`);
  return pod;
}

/** The addresses of a pod or a node in a lab with `ipv6`, IPv4 first. */
export const addressesOf = ({ ip, ip6 }: { ip: string; ip6?: string }): string[] => [
  ip,
  ...(ip6 ? [ip6] : []),
];

/** Its address of a family. */
export function addressOf({ ip, ip6 }: { ip: string; ip6?: string }, family: Family): string {
  const address = family === 4 ? ip : ip6;
  if (address === undefined) throw new Error(`${ip} has no IPv6 address`);
  return address;
}

/** The frame behind a tag of VLAN 0, which the kernel takes off. */
export const tagged = (frame: Uint8Array): Uint8Array =>
  Uint8Array.of(...frame.slice(0, 12), 0x81, 0, 0, 0, ...frame.slice(12));

export const inNetns = ({ netns }: { netns: string }): RunOptions => ({ netns: netnsPath(netns) });

/** The entries of a map of ripstop's as bytes, in the order of their keys. */
export function bytesOf(bpffs: string, name: MapName): MapEntry[] {
  using open = openMap(bpffs, name);
  return rawEntries(open).sort((a, b) => String(a.key).localeCompare(String(b.key)));
}

export const bpffsOf = (lab: Lab, node: NodeState): string => join(nodeDir(lab, node), 'bpf');
export const runDirOf = (lab: Lab, node: NodeState): string => join(nodeDir(lab, node), 'run');

/**
 * Start an echo server (TCP and UDP) in a namespace, on one of its addresses or on all. It runs until it is stopped, or
 * the lab goes down.
 */
export async function serveIn(
  { netns }: { netns: string },
  address = '::',
  port = PORT,
): Promise<Background> {
  const server = startIn(netns, process.execPath, TALKER, 'serve', address, String(port));
  await server.prints(/serving/);
  return server;
}

/** Keep a TCP connection open until {@link released}, with so many bytes there and back every 10 ms. */
export async function holdFrom(
  { netns }: { netns: string },
  address: string,
  bytes = 13,
): Promise<Background> {
  const held = startIn(netns, process.execPath, TALKER, 'hold', address, String(PORT), String(bytes));
  await held.prints(/holding/);
  return held;
}

/** End a held connection. Returns its client's report, which has `error` when it broke. */
export async function released(held: Background): Promise<HoldReport> {
  return JSON.parse((await held.stop()).trim().split('\n').at(-1)!) as HoldReport;
}

/** Run the talker to its end, and return its report. */
export async function talk<Report>(
  { netns }: { netns: string },
  ...args: (string | number)[]
): Promise<Report> {
  const { stdout, stderr } = await tryRun(process.execPath, [TALKER, ...args.map(String)], {
    netns: netnsPath(netns),
  });
  // A failure is a result too: the test shows it beside what it expects.
  return JSON.parse(stdout || JSON.stringify({ error: stderr.trim() })) as Report;
}

/** Send this much over TCP and back again. Expects all of it back unchanged. */
export async function talkTcp(
  from: { netns: string },
  address: string,
  bytes = 10_000,
  port = PORT,
): Promise<TcpReport> {
  const report = await talk<TcpReport>(from, 'tcp', address, port, bytes);
  expect(report).toMatchObject({ bytes, received: report.sent });
  return report;
}

/** Send datagrams and get them back. Expects an answer to each, from the address that it was sent to. */
export async function talkUdp(
  from: { netns: string },
  address: string,
  count = 20,
  bytes = 1000,
  port = PORT,
): Promise<UdpReport> {
  const report = await talk<UdpReport>(from, 'udp', address, port, count, bytes);
  expect(report).toMatchObject({ answers: count, from: [address] });
  return report;
}

/** Send TCP and UDP, there and back. Expects all of it back. Returns the client's address that the server sees. */
export async function talkBoth(
  from: { netns: string },
  address: string,
  port = PORT,
  bytes = 1 << 20,
): Promise<string> {
  const report = await talk<{ tcp: TcpReport; udp: UdpReport }>(from, 'both', address, port, bytes);
  const tcp = { bytes, received: report.tcp?.sent };
  expect(report).toMatchObject({ tcp, udp: { answers: 20, from: [address], seenAs: report.tcp?.seenAs } });
  return report.tcp.seenAs;
}

export interface Datagrams {
  from: { netns: string };
  to: { netns: string };
  address: string;
  /** The address to send to, if it is translated to the receiver's. */
  via?: { address: string; port: number };
  /** The sizes of the buffers that the kernel gets. */
  sizes: readonly number[];
  /** The kernel cuts each buffer into datagrams of this size (UDP_SEGMENT). */
  segment?: number;
  /** The receiver asks for super-packets (UDP_GRO). */
  asSuper?: boolean;
}

/** Send datagrams one way. Expects all of them, whole and in order. Returns the sizes in which they arrived. */
export async function sendDatagrams({
  from,
  to,
  address,
  via = { address, port: PORT + 1 },
  sizes,
  segment = 0,
  asSuper = false,
}: Datagrams): Promise<number[]> {
  const bytes = sizes.reduce((sum, size) => sum + size, 0);
  const how = [String(PORT + 1), String(bytes), asSuper ? 'super' : 'single'];
  const receiver = startIn(to.netns, process.execPath, DATAGRAMS, 'receive', address, ...how);
  await receiver.prints(/serving/);
  const where = [via.address, String(via.port), String(segment)];
  const sent = await run(
    process.execPath,
    [DATAGRAMS, 'send', ...where, ...sizes.map(String)],
    inNetns(from),
  );
  const lastLine = (text: string) => JSON.parse(text.trim().split('\n').at(-1)!) as DatagramReport;
  await receiver.prints(/\{.*\}\s*$/);
  const received = lastLine(await receiver.stop());
  // With all bytes and another hash, datagrams have overtaken others or were changed.
  const arrived = received.sizes.reduce((sum, size) => sum + size, 0);
  expect({ bytes: arrived, hash: received.hash }).toEqual({ bytes, hash: lastLine(sent).hash });
  return received.sizes;
}

/** Ping several times, 10 ms apart. Expects all answers. */
export async function ping(from: { netns: string }, address: string, count = 5): Promise<void> {
  const { stdout } = await tryRun(
    'ping',
    ['-n', '-q', '-i', '0.01', '-W', '1', '-c', String(count), address],
    inNetns(from),
  );
  expect(stdout).toContain(`${count} packets transmitted, ${count} received`);
}

/**
 * Ping 100 times a second until stopped. Then returns the sequence numbers without an answer, up to the last answer.
 */
export async function pingOn(
  from: { netns: string },
  address: string,
): Promise<{ lost: () => Promise<number[]> }> {
  const program = startIn(from.netns, 'ping', '-n', '-i', '0.01', address);
  await program.prints(/icmp_seq=5 /);
  return {
    lost: async () => {
      const output = await program.stop();
      const answered = new Set(
        Array.from(output.matchAll(/icmp_seq=(\d+) ttl/g), (match) => Number(match[1])),
      );
      return Array.from({ length: Math.max(...answered) }, (_, i) => i + 1).filter((n) => !answered.has(n));
    },
  };
}

/** A pod, and the address that it talks to. */
export type Talk = readonly [from: { netns: string }, address: string];

/**
 * Do something, and wait a little, while some ping 100 times a second and others keep TCP connections open.
 * @returns for each ping, in order, the sequence numbers without an answer; and each connection's report
 */
export async function whileTalking(
  { pings, connections, bytes }: { pings: readonly Talk[]; connections: readonly Talk[]; bytes?: number },
  restMs: number,
  work: () => Promise<unknown>,
): Promise<{ lost: number[][]; reports: HoldReport[] }> {
  const [pinging, holding] = await Promise.all([
    Promise.all(pings.map(([from, address]) => pingOn(from, address))),
    Promise.all(connections.map(([from, address]) => holdFrom(from, address, bytes))),
  ]);
  const end = async () => ({
    lost: await Promise.all(pinging.map((one) => one.lost())),
    reports: await Promise.all(holding.map(released)),
  });
  try {
    await work();
    await sleep(restMs);
  } catch (error) {
    await end();
    throw error;
  }
  return end();
}

/** How many datagrams the sockets of these namespaces have dropped, since their readers did not keep up. */
async function dropsOfSockets(pods: readonly { netns: string }[]): Promise<number> {
  const drops = pods.map(async (pod) => {
    const [names, values] = (await run('grep', ['^Udp6*:', '/proc/net/snmp'], inNetns(pod))).split('\n');
    return Number(values!.split(' ')[names!.split(' ').indexOf('RcvbufErrors')]);
  });
  return (await Promise.all(drops)).reduce((sum, count) => sum + count);
}

/**
 * Send numbered messages over TCP and UDP, a thousand a second each, while something happens, and 300 ms longer. Expects
 * that each is echoed, once, and that no connection breaks.
 * @param pods all that talk
 * @param switches how often packets change between the kernel path and the fast path meanwhile, for the whole node; one
 *   message may overtake another each time, on its way or as an echo
 */
export async function whileNumbering(
  talks: Readonly<Record<string, Talk>>,
  pods: readonly { netns: string }[],
  work: () => Promise<unknown>,
  switches = Infinity,
): Promise<void> {
  const dropped = await dropsOfSockets(pods);
  const started = Object.entries(talks).map(([name, [{ netns }, address]]) => {
    const argv = [process.execPath, TALKER, 'number', address, String(PORT)] as const;
    return [name, startIn(netns, ...argv)] as const;
  });
  const end = async (): Promise<[string, NumberReport][]> =>
    Promise.all(
      started.map(async ([name, one]) => [
        name,
        JSON.parse((await one.stop()).trim().split('\n').at(-1)!) as NumberReport,
      ]),
    );
  try {
    for (const [, one] of started) await one.prints(/numbering/);
    await work();
    await sleep(300);
  } catch (error) {
    await end();
    throw error;
  }
  const reports = await end();
  const flows = reports.flatMap(([name, { tcp, udp }]) => [
    { flow: `TCP ${name}`, ...tcp },
    { flow: `UDP ${name}`, ...udp },
  ]);
  const anyNumber = expect.any(Number) as number;
  expect(flows).toEqual(
    flows.map(({ flow, sent }) => {
      const lost = flow.startsWith('TCP') ? 0 : anyNumber;
      return { flow, sent, lost, duplicated: 0, overtaken: anyNumber };
    }),
  );
  const overtaken = flows.filter((one) => one.overtaken > 2 * switches);
  expect(overtaken).toEqual([]);
  // A machine that is too busy to run the readers loses datagrams, but not on their way.
  const lost = Object.fromEntries(flows.map((one) => [one.flow, one.lost]));
  const sum = flows.reduce((total, one) => total + one.lost, 0);
  expect({ lost, sum }).toEqual({ lost, sum: (await dropsOfSockets(pods)) - dropped });
  expect(Math.min(...flows.map(({ sent }) => sent))).toBeGreaterThan(100);
}

/** Packet counters of everything that can carry a pod's packets on a node. */
export interface Carried {
  /** By `hook verdict_reason`, e.g. `from_pod fast_encap`. */
  readonly by: Readonly<Record<string, number>>;
  readonly fast: number;
  /** Packets that flannel.1 and flannel-v6.1 have sent and received. */
  readonly vtep: number;
  /** Packets that the forward chain of the kernel path has accepted. */
  readonly forwarded: number;
}

async function readCarried(lab: Lab, node: NodeState): Promise<Carried> {
  using tables = openTables(bpffsOf(lab, node));
  const counters = readCounters(tables);
  const devices = await ipJson<{ stats64: { rx: { packets: number }; tx: { packets: number } } }>(
    ['-s', 'link', 'show', 'type', 'vxlan'],
    inNetns(node),
  );
  return {
    by: Object.fromEntries(
      counters.map(({ hook, verdict, reason, packets }) => [`${hook} ${verdict}_${reason}`, packets]),
    ),
    fast: counters.reduce((sum, { verdict, packets }) => sum + (verdict === 'fast' ? packets : 0), 0),
    vtep: devices.reduce((sum, { stats64: { rx, tx } }) => sum + rx.packets + tx.packets, 0),
    forwarded: (await readForwardCounters(inNetns(node)))?.packets ?? 0,
  };
}

/** An ADD returns a moment before its pod's programs are attached. Some pods lack one or both, so the wait is short. */
async function programsOfPods(lab: Lab, nodes: readonly NodeState[]): Promise<void> {
  const lacksPrograms = (node: NodeState): boolean => {
    if (node.datapath !== 'ripstop') return false;
    const keys = listLinkKeys(pinPaths(bpffsOf(lab, node)).links);
    const hostVeths = node.pods.map(({ containerId }) => hostVethName({ containerId, ifname: 'eth0' }));
    return (['from_pod', 'to_pod'] as const).some((hook) =>
      hostVeths.some((name) => !keys.has(linkKey(hook, name))),
    );
  };
  for (const deadline = performance.now() + 500; performance.now() < deadline; await sleep(10))
    if (!nodes.some(lacksPrograms)) return;
}

/** The packets that each node has carried during `work`. `by` has only counters that moved. */
export async function carriedDuring(
  lab: Lab,
  nodes: readonly NodeState[],
  work: () => Promise<unknown>,
): Promise<Carried[]> {
  const read = () => Promise.all(nodes.map((node) => readCarried(lab, node)));
  await programsOfPods(lab, nodes);
  const before = await read();
  await work();
  const after = await read();
  return after.map((now, i) => {
    const then = before[i]!;
    const moved = Object.entries(now.by)
      .map(([name, packets]) => [name, packets - (then.by[name] ?? 0)] as const)
      .filter(([, packets]) => packets > 0);
    return {
      by: Object.fromEntries(moved),
      fast: now.fast - then.fast,
      vtep: now.vtep - then.vtep,
      forwarded: now.forwarded - then.forwarded,
    };
  });
}

/** Run `ripstop COMMAND` on a node. */
export function ripstop(
  lab: Lab,
  node: NodeState,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  return tryRun(process.execPath, [CLI, ...args, ...ofNode(lab, node)], inNetns(node));
}

/** Start `ripstop COMMAND` on a node, for commands that run until they are interrupted. */
export function startRipstop(lab: Lab, node: NodeState, ...args: string[]): Background {
  return startIn(node.netns, process.execPath, CLI, ...args, ...ofNode(lab, node));
}

const ofNode = (lab: Lab, node: NodeState): string[] => [
  '--bpffs',
  bpffsOf(lab, node),
  '--run-dir',
  runDirOf(lab, node),
];

/** The JSON output of a reader such as `ripstop peers`. */
export async function ripstopJson<T>(lab: Lab, node: NodeState, ...args: string[]): Promise<T> {
  const { code, stdout, stderr } = await ripstop(lab, node, ...args, '-o', 'json');
  // 3: it answers, and has found something that a person must look at.
  expect([0, 3], stderr).toContain(code);
  expect(stderr).toBe('');
  return JSON.parse(stdout) as T;
}

export interface HttpAnswer {
  readonly status: number;
  readonly type: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}

/** What the agent of a node answers on the node's loopback. */
export async function askOverHttp(node: NodeState, path: string, at = '127.0.0.1:9480'): Promise<HttpAnswer> {
  const script = `const r = await fetch(${JSON.stringify(`http://${at}${path}`)});
    const headers = Object.fromEntries(r.headers);
    console.log(JSON.stringify({ status: r.status, type: headers['content-type'], headers, body: await r.text() }))`;
  const answer = await run(process.execPath, ['--input-type=module', '-e', script], inNetns(node));
  return JSON.parse(answer) as HttpAnswer;
}

/** Mark a pod for the kernel path, or remove the mark, and wait until the node's agent has seen it. */
export async function markForKernelPath(
  lab: Lab,
  node: NodeState,
  pod: PodState,
  marked: boolean,
): Promise<void> {
  const store = new AttachmentStore(runDirOf(lab, node));
  const attachment = await store.get({ containerId: pod.containerId, ifname: 'eth0' });
  store.put({ ...attachment!, kernelPath: marked });
  await nudge(node);
  const slot = Number(pod.ip.split('.')[3]);
  await expect
    .poll(() => {
      using tables = openTables(bpffsOf(lab, node));
      return tables.endpoints.get(slot)?.flags;
    })
    .toBe(marked ? 1 : 0);
}

/** Make the kernel report a change, so that the agent starts a pass. */
export async function nudge(node: NodeState): Promise<void> {
  for (const verb of ['add', 'del'])
    await tryRun('ip', ['address', verb, '192.0.2.1/32', 'dev', 'lo'], inNetns(node));
}

/** The time in ms until `seen` is true. Fails after 10 s. */
export async function timeUntil(seen: () => Promise<boolean>): Promise<number> {
  const begun = performance.now();
  while (performance.now() - begun < 10_000) {
    // The check itself takes time. What it finds was true at the latest when it returned.
    if (await seen()) return Math.round(performance.now() - begun);
    await sleep(5);
  }
  throw new Error('not seen within 10 s');
}

/** The CNI plugin's answer to STATUS: undefined when it is ready, else the error. */
export async function cniStatus(lab: Lab, node: NodeState): Promise<string | undefined> {
  const { config, ...plugin } = ripstopPlugin(lab, node);
  const call = { ...plugin, config: { ...config, cniVersion: '1.1.0' }, hostNetns: node.netns };
  return callCni({ ...call, command: 'STATUS' }).then(
    () => undefined,
    (error: unknown) => String(error),
  );
}

export function agentLog(lab: Lab, node: NodeState): string {
  return readFileSync(join(nodeDir(lab, node), 'agent.log'), 'utf8');
}
