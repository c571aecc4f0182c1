// SPDX-License-Identifier: Apache-2.0
/** The sections of the demo. An expectation that fails throws a RipstopError of one line. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Arm } from '../../bench/arms.ts';
import { netbench, startNetbenchServer } from '../../bench/netbench.ts';
import { interleave, median, pairedRatio } from '../../bench/stats.ts';
import { askAgent } from '../../src/cli/ask-agent.ts';
import { peerColumns, readPeers } from '../../src/cli/rows.ts';
import type { Column } from '../../src/cli/table.ts';
import { readCounters } from '../../src/dataplane/counters.ts';
import { openTables } from '../../src/dataplane/tables.ts';
import { RipstopError } from '../../src/errors.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { readForwardCounters } from '../../src/lab/rule-counters.ts';
import { tryRun } from '../../src/host/run.ts';
import {
  addNode,
  type Lab,
  netnsPath,
  nodeDir,
  type NodeState,
  startAgent,
  stopAgent,
} from '../../src/lab/index.ts';
import { listNodes } from '../../src/lab/kube.ts';
import { milliseconds, say, step, table } from './show.ts';
import type { Stage } from './stage.ts';

interface Pod {
  readonly label: string;
  readonly short: string;
  readonly netns: string;
  readonly ip: string;
}

const labelled = (node: NodeState): Pod[] =>
  node.pods.map(({ name, netns, ip }) => ({
    label: `${node.name}-${name}`,
    short: `n${node.index}-p${name.slice('pod'.length)}`,
    netns: netnsPath(netns),
    ip,
  }));

function firstPod(lab: Lab, index: number): Pod {
  return labelled(lab.state.nodes[index]!)[0]!;
}

export function showNodes(lab: Lab): void {
  table(
    [
      { title: 'NODE', value: (node) => node.name },
      { title: 'ADDRESS', value: (node) => node.ip },
      { title: 'PODCIDR', value: (node) => node.podCIDR },
      { title: 'PODS', value: (node) => node.pods.map(({ ip }) => ip).join('  ') },
    ],
    lab.state.nodes,
  );
}

export async function showPeers(lab: Lab): Promise<void> {
  const dir = nodeDir(lab, lab.state.nodes[0]!);
  const peers = readPeers(join(dir, 'bpf'), await askAgent(join(dir, 'run')));
  expect(peers.length === lab.state.nodes.length - 1, `node1 has ${peers.length} peers in its BPF map`);
  table(peerColumns, peers);
}

/** Every pod pings every other, five times. */
export async function pingAll(lab: Lab): Promise<void> {
  const pods = lab.state.nodes.flatMap(labelled);
  const rows = await step(`${pods.length * (pods.length - 1)} pairs, five pings each`, async () => {
    const rows: { from: Pod; medians: (number | undefined)[] }[] = [];
    for (const from of pods) {
      const medians: (number | undefined)[] = [];
      for (const to of pods) medians.push(from === to ? undefined : await pingFive(from, to));
      rows.push({ from, medians });
    }
    return rows;
  });
  const columns: Column<(typeof rows)[number]>[] = pods.map(({ short }, i) => ({
    title: short,
    align: 'right',
    value: (row) => row.medians[i]?.toFixed(0),
  }));
  table([{ title: 'median, µs', value: (row) => row.from.label }, ...columns], rows);
}

/** The median round trip, µs. */
async function pingFive(from: Pod, to: Pod): Promise<number> {
  const { stdout } = await tryRun('ping', ['-n', '-c', '5', '-i', '0.002', '-W', '1', to.ip], {
    netns: from.netns,
  });
  const times = Array.from(stdout.matchAll(/time=([\d.]+) ms/g), ([, ms]) => Number(ms) * 1000);
  expect(
    times.length === 5,
    `${from.label} pinged ${to.label} five times and was answered ${times.length} times`,
  );
  return median(times);
}

export async function stream(lab: Lab, program: string): Promise<void> {
  const [from, to] = [firstPod(lab, 0), firstPod(lab, 1)];
  const result = await step('a second of TCP', async () => {
    await using server = await startNetbenchServer(program, { netns: to.netns });
    const options = { host: to.ip, port: server.port, seconds: 1, warmup: 0.2 };
    return await netbench(program, 'tcp-stream', options, { netns: from.netns });
  });
  say(`${from.label} → ${to.label}: ${result.gbitPerSecond.toFixed(1)} Gbit/s, every byte accounted for`);
  const { totalSentBytes: sent, totalReceivedBytes: received } = result;
  expect(sent === received, `of ${sent} bytes sent over TCP ${received} arrived`);
}

/** Packets on the fast path, and at two places on the kernel path, summed over the nodes. */
interface PathCounters {
  readonly fast: number;
  readonly vtepDevice: number;
  readonly forwardChain: number;
}

export async function readPathCounters(lab: Lab): Promise<PathCounters> {
  const nodes = await Promise.all(
    lab.state.nodes.map(async (node) => {
      const netns = netnsPath(node.netns);
      const [[link], forward] = await Promise.all([
        ipJson<LinkStats>(['-s', 'link', 'show', 'flannel.1'], { netns }),
        readForwardCounters({ netns }),
      ]);
      using tables = openTables(join(nodeDir(lab, node), 'bpf'));
      return {
        fast: sum(readCounters(tables).map(({ verdict, packets }) => (verdict === 'fast' ? packets : 0))),
        vtepDevice: link!.stats64.rx.packets + link!.stats64.tx.packets,
        forwardChain: forward?.packets ?? 0,
      };
    }),
  );
  return {
    fast: sum(nodes.map(({ fast }) => fast)),
    vtepDevice: sum(nodes.map(({ vtepDevice }) => vtepDevice)),
    forwardChain: sum(nodes.map(({ forwardChain }) => forwardChain)),
  };
}

interface LinkStats {
  readonly stats64: { readonly rx: { readonly packets: number }; readonly tx: { readonly packets: number } };
}

/** Of the packets of all flows, how many may be first ones. */
const MAX_KERNEL_SHARE = 0.05;

export function showPaths(before: PathCounters, after: PathCounters): void {
  const rows = [
    { what: 'BPF: fast verdicts', key: 'fast' },
    { what: 'kernel: flannel.1, in and out', key: 'vtepDevice' },
    { what: 'kernel: nft forward chain', key: 'forwardChain' },
  ] as const;
  table(
    [
      { title: 'PACKETS, ALL NODES', value: (row) => row.what },
      { title: 'BEFORE', align: 'right', value: (row) => before[row.key] },
      { title: 'AFTER', align: 'right', value: (row) => after[row.key] },
      { title: 'MOVED BY', align: 'right', value: (row) => after[row.key] - before[row.key] },
    ],
    rows,
  );
  say('The kernel path carried the first packets of each flow: so ripstop learned them.');
  const fast = after.fast - before.fast;
  expect(fast > 0, 'the pings and the stream did not move the fast counters');
  for (const { what, key } of rows.slice(1)) {
    const moved = after[key] - before[key];
    expect(
      moved < fast * MAX_KERNEL_SHARE,
      `more than first packets took the kernel path: "${what}" moved by ${moved}`,
    );
  }
}

/** Ping at 100/s while node1's agent is killed and restarted. */
export async function killAgent(lab: Lab, stage: Stage): Promise<void> {
  const count = 250;
  const node = lab.state.nodes[0]!;
  const [from, to] = [firstPod(lab, 1), firstPod(lab, 0)];
  const { received, awayMs } = await step(
    `${from.label} pings ${to.label}; SIGKILL to node1's agent`,
    async () => {
      const args = ['-n', '-q', '-i', '0.01', '-c', String(count), to.ip];
      const pinging = tryRun('ping', args, { netns: from.netns });
      await sleep(400);
      const killedAt = performance.now();
      await stopAgent(lab, node, 'SIGKILL');
      await sleep(300);
      await stage.make(() => startAgent(lab, node));
      const awayMs = milliseconds(killedAt);
      const { stdout } = await pinging;
      return { received: Number(/(\d+) received/.exec(stdout)?.[1] ?? 0), awayMs };
    },
  );
  say(
    `${count} pings at 100/s: ${received} answered, ${count - received} lost, while no agent ran for ${awayMs} ms`,
  );
  expect(received === count, `${count - received} of ${count} pings were lost while node1 had no agent`);
}

/** A node joins; how long from its annotations until another node's pod reaches its pod? */
export async function joinNode(lab: Lab, stage: Stage): Promise<void> {
  const limitMs = 1000;
  const from = firstPod(lab, 0);
  const [to, ms] = await step('node4 joins, with one pod', async () => {
    const joining = stage.make(() => addNode(lab, 'ripstop', 1));
    const annotated = until(() => isAnnotated(lab, 'node4')).then(() => performance.now());
    // If the node cannot join, stop waiting for the annotations.
    const [node, annotatedAt] = await Promise.all([joining, annotated]);
    const to = labelled(node)[0]!;
    const reached = await until(async () => {
      const { code } = await tryRun('ping', ['-n', '-c', '1', '-W', '0.1', to.ip], { netns: from.netns });
      return code === 0;
    });
    expect(reached, `${from.label} does not reach ${to.label} on the new node`);
    return [to, milliseconds(annotatedAt)];
  });
  say(`node4 published its VTEP; ${ms} ms later ${from.label} reached ${to.label}, its CNI ADD included`);
  expect(ms <= limitMs, `the new node's pod was reached after ${ms} ms, not within ${limitMs} ms`);
}

async function isAnnotated(lab: Lab, name: string): Promise<boolean> {
  const node = (await listNodes(lab)).find(({ metadata }) => metadata.name === name);
  return node?.metadata.annotations?.['flannel.alpha.coreos.com/backend-data'] !== undefined;
}

/** Check every 5 ms until it holds. Returns false after 10 s. */
async function until(holds: () => Promise<boolean>): Promise<boolean> {
  for (const deadline = performance.now() + 10_000; performance.now() < deadline; await sleep(5)) {
    if (await holds()) return true;
  }
  return false;
}

/** Interleaved rounds of TCP round trips and UDP on one core, where the work for each packet determines the result. */
export async function compare(arms: readonly Arm[], cpu: number): Promise<void> {
  const rounds = 3;
  const timing = { seconds: 0.4, warmup: 0.1, size: 64, cpu };
  const works = [
    {
      name: 'TCP request and answer of 64 B, median, µs',
      measure: async (arm: Arm) => (await arm.run('tcp-rr', timing)).latencyUs.p50,
    },
    {
      name: 'UDP of 64 B received, thousand packets/s',
      measure: async (arm: Arm) => (await arm.run('udp-rate', timing)).receivedPps / 1000,
    },
  ];
  const rows: { work: string; figures: Record<string, number[]> }[] = [];
  for (const { name, measure } of works) {
    const figures: Record<string, number[]> = Object.fromEntries(arms.map((arm) => [arm.name, []]));
    await step(`${name}: ${rounds} rounds`, async () => {
      for (const order of interleave(arms, rounds, process.pid)) {
        for (const arm of order) figures[arm.name]!.push(await measure(arm));
      }
    });
    rows.push({ work: name, figures });
  }
  const ratio = (row: (typeof rows)[number], base: string): string =>
    pairedRatio(row.figures[base]!, row.figures['ripstop']!, { seed: 1 }).median.toFixed(2);
  table(
    [
      { title: 'ONE CORE', value: (row) => row.work },
      ...arms.map(({ name }): Column<(typeof rows)[number]> => ({
        title: name.toUpperCase(),
        align: 'right',
        value: (row) => median(row.figures[name]!).toFixed(1),
      })),
      { title: '÷ FLANNEL', align: 'right', value: (row) => ratio(row, 'flannel') },
      { title: '÷ HOST', align: 'right', value: (row) => ratio(row, 'host') },
    ],
    rows,
  );
}

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}

function expect(holds: boolean, otherwise: string): void {
  if (!holds) throw new RipstopError(otherwise);
}
