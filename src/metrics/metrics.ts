// SPDX-License-Identifier: Apache-2.0
import { Counter, collectDefaultMetrics, Gauge, Histogram, type Metric, Registry } from 'prom-client';
import { readCounters } from '../dataplane/counters.ts';
import { mapNames, type Tables } from '../dataplane/tables.ts';
import type { Outcome, TargetStatus } from '../reconcile/reconciled.ts';

/** What the metrics are read from when they are scraped. Tables are undefined until the programs are loaded. */
export interface MetricsSource {
  readonly tables: () => Tables | undefined;
  readonly api: () => { connected: boolean; lastEventAgeMs?: number | undefined };
  readonly peers: () => number;
  /** How many peers the kernel path alone serves, by reason. */
  readonly withoutFastPath: () => ReadonlyMap<string, number>;
  readonly endpoints: () => number;
  /** Undefined unless the agent runs on the last-known state. */
  readonly lastKnownAgeMs: () => number | undefined;
  /** The kind of each alarm that is raised. */
  readonly alarms: () => readonly { readonly kind: string }[];
  readonly targets: () => readonly TargetStatus[];
}

export interface Metrics {
  readonly registry: Registry;
  /** A reconcile pass is over. */
  observePass(durationMs: number): void;
  observeOutcomes(outcomes: readonly Outcome[]): void;
}

/**
 * The agent's Prometheus metrics. Packets are counted by the BPF programs alone: a scrape reads their maps, as the CLI
 * does.
 */
export function createMetrics(source: MetricsSource): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({
    register: registry,
    prefix: 'ripstop_agent_',
    // The event loop's delay is measured by waking so often. The default of 10 ms costs an agent at rest 0.4 % of a core.
    eventLoopMonitoringPrecision: 250,
  });
  const { duration, errors, entries } = reconcileMetrics(source);
  const all = [
    ...trafficMetrics(source),
    ...clusterMetrics(source),
    ...mapMetrics(source),
    duration,
    errors,
    entries,
  ];
  for (const metric of all) registry.registerMetric(metric);
  return {
    registry,
    observePass(durationMs) {
      duration.observe(durationMs / 1000);
    },
    observeOutcomes(outcomes) {
      for (const { target, failures } of outcomes) if (failures > 0) errors.inc({ target }, failures);
    },
  };
}

/** Metrics are made without a registry, so that {@link createMetrics} lists all of them. */
const registers: Registry[] = [];

function trafficMetrics(source: MetricsSource): Metric[] {
  const counterLabels = ['hook', 'verdict', 'reason'] as const;
  const bytes = new Counter({
    name: 'ripstop_bytes_total',
    help: 'Bytes of packets seen by the BPF programs, by hook, verdict (fast, kernel, drop) and reason',
    labelNames: counterLabels,
    registers,
  });
  const packets = new Counter({
    name: 'ripstop_packets_total',
    help: 'Packets (GSO super-packets count once) seen by the BPF programs, by hook, verdict and reason',
    labelNames: counterLabels,
    registers,
    collect() {
      this.reset();
      bytes.reset();
      const tables = source.tables();
      for (const counter of tables ? readCounters(tables) : []) {
        if (counter.packets === 0) continue;
        const { hook, verdict, reason } = counter;
        this.inc({ hook, verdict, reason }, counter.packets);
        bytes.inc({ hook, verdict, reason }, counter.bytes);
      }
    },
  });
  return [packets, bytes];
}

function clusterMetrics(source: MetricsSource): Metric[] {
  const alarms = new Gauge({
    name: 'ripstop_node_alarms',
    help: 'Alarms about nodes that are quarantined, refused or in conflict, by kind',
    labelNames: ['kind'] as const,
    registers,
    collect() {
      this.reset();
      for (const { kind } of source.alarms()) this.inc({ kind });
    },
  });
  const withoutFastPath = new Gauge({
    name: 'ripstop_peers_without_fast_path',
    help: 'Peers that the kernel path alone serves, by reason; a dual-stack node is two peers',
    labelNames: ['reason'] as const,
    registers,
    collect() {
      for (const [reason, peers] of source.withoutFastPath()) this.set({ reason }, peers);
    },
  });
  return [
    gauge('ripstop_peers', 'Nodes that this node forwards to', source.peers),
    withoutFastPath,
    gauge('ripstop_endpoints', 'Pods attached on this node', source.endpoints),
    alarms,
    gauge(
      'ripstop_last_known_age_seconds',
      'Age of the last-known state, while the agent runs on it because the API server has not answered yet',
      () => inSeconds(source.lastKnownAgeMs()),
    ),
    gauge('ripstop_api_watch_connected', 'Whether the watch on Nodes is open', () =>
      Number(source.api().connected),
    ),
    gauge('ripstop_api_watch_age_seconds', 'Time since the last event of the watch on Nodes', () =>
      inSeconds(source.api().lastEventAgeMs),
    ),
  ];
}

function gauge(name: string, help: string, read: () => number | undefined): Gauge {
  return new Gauge({
    name,
    help,
    registers,
    collect() {
      const value = read();
      if (value === undefined) this.remove();
      else this.set(value);
    },
  });
}

function mapMetrics(source: MetricsSource): Metric[] {
  const entries = new Gauge({
    name: 'ripstop_map_entries',
    help: 'Entries in use, by map',
    labelNames: ['map'] as const,
    registers,
    collect() {
      const tables = source.tables();
      if (!tables) return;
      this.set({ map: 'peers' }, source.peers());
      this.set({ map: 'endpoints' }, source.endpoints());
      this.set({ map: 'vteps' }, [...tables.vteps.keys()].length);
      for (const map of ['flows4', 'flows6'] as const) this.set({ map }, [...tables[map].keys()].length);
    },
  });
  const maxEntries = new Gauge({
    name: 'ripstop_map_max_entries',
    help: 'Room for entries, by map',
    labelNames: ['map'] as const,
    registers,
    collect() {
      const tables = source.tables();
      for (const map of tables ? mapNames : []) this.set({ map }, tables![map].map.info.maxEntries);
    },
  });
  return [entries, maxEntries];
}

function reconcileMetrics(source: MetricsSource) {
  const duration = new Histogram({
    name: 'ripstop_reconcile_duration_seconds',
    help: 'Duration of reconcile passes',
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
    registers,
  });
  const errors = new Counter({
    name: 'ripstop_reconcile_errors_total',
    help: 'Entries that could not be brought to their desired state, by target; one that is retried counts again',
    labelNames: ['target'] as const,
    registers,
  });
  const entries = new Gauge({
    name: 'ripstop_target_entries',
    help: 'Entries that there should be, by target and how they stand (ok, pending, failed)',
    labelNames: ['target', 'state'] as const,
    registers,
    collect() {
      for (const { name, desired, pending, failures } of source.targets()) {
        const failed = failures.length;
        this.set({ target: name, state: 'ok' }, Math.max(0, desired - pending - failed));
        this.set({ target: name, state: 'pending' }, pending);
        this.set({ target: name, state: 'failed' }, failed);
      }
    },
  });
  return { duration, errors, entries };
}

function inSeconds(ms: number | undefined): number | undefined {
  return ms === undefined ? undefined : ms / 1000;
}
