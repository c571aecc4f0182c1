// SPDX-License-Identifier: Apache-2.0
import { expect } from 'vitest';
import { type RunResult, tryRun } from '../../src/host/run.ts';
import { kubectl, tryKubectl } from './kubectl.ts';
import type { Cluster, ClusterNode } from './state.ts';
import { inNode, tryInNode } from './node.ts';
import { until } from './until.ts';
import { clusterIpOf, inPod, type Pod, podsOf } from './workload.ts';

/** Numbered messages between pods, and their results. */

/** The report of `probe`; see probe/main.go. */
export interface ProbeReport {
  readonly kind: Probe;
  readonly address: string;
  readonly sent: number;
  readonly lost: number;
  readonly duplicated: number;
  readonly reordered: number;
  readonly errors: number;
  readonly firstError?: string;
  readonly worstMs: number;
  readonly lostAt?: readonly string[];
}
export type Probe = 'udp' | 'tcp' | 'connect';

/** `HOST:PORT` of either family. */
export const at = (ip: string, port: number): string =>
  ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`;

/** The report in the last line of a program's output. @throws Error with the output when there is none. */
function reportIn(output: string): ProbeReport {
  const last = output.trim().split('\n').at(-1) ?? '';
  try {
    return JSON.parse(last) as ProbeReport;
  } catch {
    throw new Error(`probe reported nothing but: ${output.slice(-500)}`);
  }
}

/** The report of a run of probe, also of one that failed. */
export async function reportOf(...command: Parameters<typeof tryRun>): Promise<ProbeReport> {
  return reportOfRun(await tryRun(...command));
}

const reportOfRun = ({ stdout, stderr }: RunResult): ProbeReport => reportIn(stdout || stderr);

/** Send `count` messages from a pod, and wait for the report. */
export async function probeFrom(
  cluster: Cluster,
  pod: Pod,
  kind: Probe,
  address: string,
  count = 10,
): Promise<ProbeReport> {
  const argv = ['-n', pod.namespace, 'exec', pod.name, '--', 'probe', kind, address, String(count), '5ms'];
  return reportOfRun(await tryKubectl(cluster, ...argv));
}

/** The same from a node itself. */
export async function probeFromNode(
  node: ClusterNode,
  kind: Probe,
  address: string,
  count = 10,
): Promise<ProbeReport> {
  return reportOfRun(await tryInNode(node, 'probe', kind, address, String(count), '5ms'));
}

/** The report of a conversation without losses, for `toMatchObject`. */
export const UNHARMED = { lost: 0, duplicated: 0, errors: 0 } as const;

/** A conversation that goes on until it is stopped. */
interface Flow {
  readonly what: string;
  readonly from: Pod;
  readonly kind: Probe;
  readonly to: string;
}

/**
 * The conversations that must survive everything: between the first and every other node, both ways, TCP and UDP, plain
 * and through a Service with backends on these nodes. With a single node they are within it.
 */
async function flowsBetween(cluster: Cluster, nodes: readonly ClusterNode[]): Promise<Flow[]> {
  const [clients, echoes] = await Promise.all([podsOf(cluster, 'client'), podsOf(cluster, 'echo')]);
  const service = await steadyService(cluster, nodes, clients, echoes);
  const [first, ...others] = nodes as [ClusterNode, ...ClusterNode[]];
  const pairs =
    others.length === 0
      ? [[first, first] as const]
      : others.flatMap((other) => [[first, other] as const, [other, first] as const]);
  const plain = pairs.map(([a, b]) => ({
    what: `from ${a.name} to ${b.name}`,
    from: clients.get(a.name)!,
    to: at(echoes.get(b.name)!.ips[0]!, 7),
  }));
  const throughService = nodes.map(({ name }) => ({
    what: `from ${name} through the service`,
    from: clients.get(name)!,
    to: service,
  }));
  return (['udp', 'tcp'] as const).flatMap((kind) =>
    [...plain, ...throughService].map((flow) => ({ ...flow, kind, what: `${kind} ${flow.what}` })),
  );
}

/** The address of a Service with backends on these nodes, once it has them. */
async function steadyService(
  cluster: Cluster,
  nodes: readonly ClusterNode[],
  clients: ReadonlyMap<string, Pod>,
  echoes: ReadonlyMap<string, Pod>,
): Promise<string> {
  await kubectl(cluster, 'label', 'pods', '-l', 'steady=yes', 'steady-');
  const chosen = nodes.map(({ name }) => `pod/${echoes.get(name)!.name}`);
  await kubectl(cluster, 'label', ...chosen, 'steady=yes');
  // Each kube-proxy must have its backends: a previous backend could be one that the story removes.
  const names = new Set(nodes.map(({ name }) => echoes.get(name)!.name));
  const ip = await clusterIpOf(cluster, 'steady');
  const ask = `for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo who | nc -w 2 ${ip} 70; done`;
  for (const { name } of nodes) {
    await until(`the service of ${name} has no other backends`, 30_000, async () => {
      const answers = (await inPod(cluster, clients.get(name)!, 'sh', '-c', ask)).split('\n');
      return answers.length === 12 && answers.every((answer) => names.has(answer));
    });
  }
  return at(ip, 70);
}

/**
 * Run conversations, 100 messages a second each, in the background of their pods, independent of kubelet and API
 * server.
 * @returns a function that ends them and returns their reports
 */
export async function startFlows(
  cluster: Cluster,
  flows: readonly Flow[],
): Promise<() => Promise<Record<string, ProbeReport>>> {
  const files = flows.map((_, i) => `/tmp/flow-${i}`);
  await Promise.all(
    flows.map(({ from, kind, to }, i) =>
      inPod(
        cluster,
        from,
        'sh',
        '-c',
        `rm -f ${files[i]}; setsid probe ${kind} ${to} 0 10ms > ${files[i]} 2>&1 < /dev/null & echo $! > ${files[i]}.pid`,
      ),
    ),
  );
  return async () => {
    const ended = await Promise.all(
      flows.map(async ({ what, from }, i) => {
        const report = await until(`${what} is reported`, 60_000, async () => {
          // Retry: an exec may fail while a runtime restarts.
          const script = `kill -INT $(cat ${files[i]}.pid) 2>/dev/null; sleep 0.2; cat ${files[i]}`;
          const output = await inPod(cluster, from, 'sh', '-c', script);
          return output !== '' && reportIn(output);
        });
        return [what, report] as const;
      }),
    );
    return Object.fromEntries(ended);
  };
}

/** Do something while conversations run. None of them may lose, duplicate or break anything. */
export async function unharmed(
  cluster: Cluster,
  nodes: readonly ClusterNode[],
  work: () => Promise<void>,
): Promise<Record<string, ProbeReport>> {
  const stop = await startFlows(cluster, await flowsBetween(cluster, nodes));
  let reports: Record<string, ProbeReport> | undefined;
  try {
    await work();
  } finally {
    reports = await stop();
  }
  // With the text of the first error, which shows the kind of failure.
  const seen = Object.entries(reports).map(([what, { lost, duplicated, errors, firstError }]) => {
    return [what, { lost, duplicated, errors, ...(firstError !== undefined && { firstError }) }] as const;
  });
  expect(Object.fromEntries(seen)).toEqual(Object.fromEntries(seen.map(([what]) => [what, UNHARMED])));
  for (const [what, { sent }] of Object.entries(reports)) expect(sent, what).toBeGreaterThan(50);
  return reports;
}

/**
 * A node's traces of pods, and its pins, without the serial number of the generation of maps. They must be as before once the
 * pods of a story are gone.
 */
export async function inventory(node: ClusterNode): Promise<Record<string, string[]>> {
  const script = `
    for f in /var/lib/cni/networks/cbr0/*.*; do [ -e "$f" ] && echo "lease \${f##*/}"; done
    ip -br link show type veth | sed 's/^/veth /; s/@.*//'
    ip route show | grep 'dev veth' | sed 's/^/route /; s/ .*veth/ veth/; s/ proto.*//; s/ scope.*//'
    find /sys/fs/bpf/ripstop -type f 2>/dev/null | sed -E 's/^/pin /; s/(maps:[0-9]+):[0-9]+/\\1/'
    ls /run/netns 2>/dev/null | sed 's/^/netns /'
    ls /run/ripstop/endpoints 2>/dev/null | sed 's/^/endpoint /'`;
  const lines = (await inNode(node, 'sh', '-c', script)).trim().split('\n');
  const kinds = ['lease', 'veth', 'route', 'pin', 'netns', 'endpoint'];
  return Object.fromEntries(
    kinds.map((kind) => [
      kind,
      lines
        .filter((line) => line.startsWith(`${kind} `))
        .map((line) => line.slice(kind.length + 1))
        .toSorted(),
    ]),
  );
}
