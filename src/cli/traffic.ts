// SPDX-License-Identifier: Apache-2.0
/** What `ripstop top` reads, and the rates between two readings. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { BpfProgram } from '#libbpf-ts';
import { AttachmentStore } from '../cni/attachments.ts';
import { readCounters } from '../dataplane/counters.ts';
import {
  type Carried,
  type Counted,
  countedBetween,
  readCounted,
  serviceKey,
} from '../dataplane/flow-sums.ts';
import { type PacketsByVerdict, packetsBetweenPods } from '../dataplane/pod-traffic.ts';
import { readPinnedConfig } from '../dataplane/rehearsal.ts';
import { openTables, pinPaths } from '../dataplane/tables.ts';
import { RipstopError } from '../errors.ts';
import type { ClusterIp } from '../host/services.ts';
import { intToIpv4, ipv4ToInt } from '../net/ip.ts';
import { askAgent } from './ask-agent.ts';
import { podOf } from './rows.ts';

/** The kernel counts runs and their time only while /proc/sys/kernel/bpf_stats_enabled is 1. */
export interface ProgramRuns {
  readonly runs: number;
  readonly ns: number;
}

/** Everything at one moment. */
export interface TrafficReading extends Counted {
  /** Monotonic. */
  readonly atMs: number;
  /** Between pods, since the maps were made. */
  readonly packets: PacketsByVerdict;
  readonly programs: ReadonlyMap<string, ProgramRuns>;
}

/** Names by the keys of `flow-sums.ts`. Several keys may have one name: a pod's and a peer's families, a Service's ports. */
export interface TrafficNames {
  readonly node: string | undefined;
  readonly peers: ReadonlyMap<string, string>;
  readonly pods: ReadonlyMap<number, string>;
  readonly services: ReadonlyMap<string, string>;
}

/** @throws RipstopError when nothing is pinned, or no program is loaded. */
export function readTraffic(bpffs: string): TrafficReading {
  using tables = openTables(bpffs);
  const networks = readPinnedConfig(bpffs);
  if (!networks)
    throw new RipstopError(`no programs of ripstop are pinned below ${bpffs}; does its agent run?`);
  const counted = readCounted(tables, networks);
  return {
    ...counted,
    atMs: performance.now(),
    packets: packetsBetweenPods(readCounters(tables)),
    programs: readPrograms(bpffs),
  };
}

function readPrograms(bpffs: string): Map<string, ProgramRuns> {
  const { programs } = pinPaths(bpffs);
  const read = (name: string): ProgramRuns => {
    using program = BpfProgram.openPinned(join(programs, name));
    const { runCount, runTimeNs } = program.info;
    return { runs: Number(runCount), ns: Number(runTimeNs) };
  };
  return new Map(readdirSync(programs).map((name) => [name, read(name)]));
}

/** The peers and pods that the maps have, and the Services, by the names that this node knows. */
export async function readNames(
  bpffs: string,
  runDir: string,
  clusterIps: readonly ClusterIp[],
): Promise<TrafficNames> {
  const [agent, attachments] = await Promise.all([askAgent(runDir), new AttachmentStore(runDir).list()]);
  using tables = openTables(bpffs);
  const nodes = new Map(agent?.peers.map(({ vtepIp, name }) => [vtepIp, name]));
  const peers = [...tables.peers.entries({ skipZero: true }), ...tables.peers6.entries()].map(
    ([key, { head }]) => [String(key), nodes.get(head.vtep_ip) ?? head.vtep_ip] as const,
  );
  const known = new Map(attachments.map((one) => [one.hostIfindex, podOf(one)]));
  const podCidr = readPinnedConfig(bpffs)?.pod_cidr;
  const pods = new Map<number, string>();
  const add = (ifindex: number, address: string): void => {
    if (ifindex !== 0) pods.set(ifindex, known.get(ifindex) ?? pods.get(ifindex) ?? address);
  };
  for (const [slot, { ifindex }] of tables.endpoints.entries({ skipZero: true }))
    add(ifindex, podCidr === undefined ? `slot ${slot}` : intToIpv4(ipv4ToInt(podCidr) + slot));
  for (const [address, { ifindex }] of tables.endpoints6.entries()) add(ifindex, address);
  const services = clusterIps.map(
    ({ service, protocol, address, port }) => [serviceKey(protocol, address, port), service] as const,
  );
  return { node: agent?.node, peers: new Map(peers), pods, services: new Map(services) };
}

/**
 * Which way packets went: `fast` when at least 95 of 100 took the fast path, `kernel` when at most 5 did, else `mixed`;
 * `idle` without packets.
 */
export type LatencyClass = 'fast' | 'mixed' | 'kernel' | 'idle';

/** A peer, a pod or a Service. Both directions count. */
export interface TrafficRow {
  readonly name: string;
  /** In the flow table. */
  readonly flows: number;
  readonly packetsPerSecond: number;
  readonly bitsPerSecond: number;
  /** Of the packets, those of the fast path; absent without packets. */
  readonly fastPercent?: number;
  readonly class: LatencyClass;
}

export interface Traffic {
  /** The time between the readings. */
  readonly seconds: number;
  readonly peers: readonly TrafficRow[];
  readonly pods: readonly TrafficRow[];
  readonly services: readonly TrafficRow[];
  /** Packets a second between pods: see `packetsBetweenPods()`. */
  readonly packetsPerSecond: Readonly<Record<'fast' | 'kernel' | 'drop', number>>;
  /** Mean time of a run in the meantime; only of programs that ran while the kernel counted. */
  readonly nsPerRun: Readonly<Record<string, number>>;
}

/** What happened between two readings. */
export function trafficBetween(before: TrafficReading, after: TrafficReading, names: TrafficNames): Traffic {
  const seconds = Math.max(0.001, (after.atMs - before.atMs) / 1000);
  const { fast, kernel } = countedBetween(before, after);
  // What hides addresses is among the Services that the kernel path has translated to; those that are known are real.
  const known = kernel.services
    .entries()
    .filter(([key]) => names.services.has(key) || fast.services.has(key));
  const perSecond = (verdict: keyof PacketsByVerdict): number =>
    round(Math.max(0, after.packets[verdict] - before.packets[verdict]) / seconds);
  const runs = Array.from(after.programs, ([name, now]) => {
    const then = before.programs.get(name) ?? { runs: 0, ns: 0 };
    return [name, (now.ns - then.ns) / (now.runs - then.runs)] as const;
  });
  return {
    seconds: Math.round(seconds * 1000) / 1000,
    peers: rowsOf(names.peers, fast.peers, kernel.peers, seconds),
    pods: rowsOf(names.pods, fast.endpoints, kernel.endpoints, seconds),
    services: rowsOf(names.services, fast.services, new Map(known), seconds),
    packetsPerSecond: { fast: perSecond('fast'), kernel: perSecond('kernel'), drop: perSecond('drop') },
    nsPerRun: Object.fromEntries(runs.filter(([, ns]) => ns > 0 && Number.isFinite(ns))),
  };
}

function rowsOf<K extends string | number>(
  names: ReadonlyMap<K, string>,
  fast: ReadonlyMap<K, Carried & { readonly flows: number }>,
  kernel: ReadonlyMap<K, Carried>,
  seconds: number,
): TrafficRow[] {
  const keys = new Set([...names.keys(), ...fast.keys(), ...kernel.keys()]);
  const byName = Map.groupBy(keys, (key) => names.get(key) ?? String(key));
  const sum = (keys: readonly K[], of: (key: K) => number | undefined): number =>
    keys.reduce((total, key) => total + (of(key) ?? 0), 0);
  return Array.from(byName, ([name, keys]) => {
    const fastPackets = sum(keys, (key) => fast.get(key)?.packets);
    const packets = fastPackets + sum(keys, (key) => kernel.get(key)?.packets);
    const bytes = sum(keys, (key) => (fast.get(key)?.bytes ?? 0) + (kernel.get(key)?.bytes ?? 0));
    const percent = packets === 0 ? undefined : Math.round((fastPackets / packets) * 1000) / 10;
    return {
      name,
      flows: sum(keys, (key) => fast.get(key)?.flows),
      packetsPerSecond: round(packets / seconds),
      bitsPerSecond: Math.round((8 * bytes) / seconds),
      ...(percent !== undefined && { fastPercent: percent }),
      class: classOf(percent),
    };
  });
}

const round = (rate: number): number => Math.round(rate * 10) / 10;

function classOf(fastPercent: number | undefined): LatencyClass {
  if (fastPercent === undefined) return 'idle';
  if (fastPercent >= 95) return 'fast';
  return fastPercent <= 5 ? 'kernel' : 'mixed';
}
