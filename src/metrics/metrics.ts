// SPDX-License-Identifier: Apache-2.0
/** The agent's Prometheus metrics: table.ts says which, this module from what. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { Invalidations } from '../dataplane/changes.ts';
import type { Counter as PacketCounter } from '../dataplane/counters.ts';
import type { FlowChanges, FlowTable } from '../dataplane/flow-table.ts';
import { packetsBetweenPods } from '../dataplane/pod-traffic.ts';
import type { ProgramRuns } from '../dataplane/programs.ts';
import type { Outcome, TargetStatus } from '../reconcile/reconciled.ts';
import { type MetricName, metricSpecs, OTHER, PROCESS_PREFIX, type table } from './table.ts';

/** What a scrape is made of: read once for all metrics. Packets and flows are counted by the BPF programs alone. */
export interface Facts {
  readonly ready: boolean;
  readonly api: {
    readonly connected: boolean;
    readonly lastEventAgeMs?: number;
    readonly activity?: {
      readonly lists: number;
      readonly watches: number;
      readonly faults: Readonly<Record<string, number>>;
    };
  };
  readonly peers: number;
  /** How many peers the kernel path alone serves, by reason. */
  readonly withoutFastPath: ReadonlyMap<string, number>;
  readonly endpoints: number;
  /** Undefined unless the agent runs on the last-known state. */
  readonly lastKnownAgeMs: number | undefined;
  /** The kind of each alarm that is raised. */
  readonly alarms: readonly { readonly kind: string }[];
  readonly targets: readonly TargetStatus[];
  /** Undefined where conntrack is not loaded. */
  readonly conntrack: { readonly entries: number; readonly maxEntries: number } | undefined;
  readonly runs: readonly ProgramRuns[];
  /** Undefined until programs are loaded. */
  readonly maps: MapFacts | undefined;
  /** Those whose flows are in the flow table, in any order. */
  readonly talkers: { readonly peers: readonly Talker[]; readonly pods: readonly Talker[] };
  /** How many of them have samples of their own. */
  readonly top: number;
}

/** A peer or a pod, and what was carried from and to it. */
export interface Talker {
  /** Of a peer the node's name; of a pod namespace and name. */
  readonly name: readonly string[];
  /** Its flows in the flow table, and what the fast path has carried of them. */
  readonly flows: number;
  readonly packets: number;
  readonly bytes: number;
  /** What the kernel path has carried. */
  readonly kernelPackets: number;
  readonly kernelBytes: number;
}

export interface MapFacts {
  readonly counters: readonly PacketCounter[];
  readonly flows: FlowTable;
  readonly invalidations: readonly Invalidations[];
  /** How many entries are in use, by map. */
  readonly entries: ReadonlyMap<string, number>;
  readonly maxEntries: ReadonlyMap<string, number>;
}

export interface Metrics {
  readonly contentType: string;
  /** All metrics, in Prometheus' text format. */
  scrape(): Promise<string>;
  /** A reconcile pass is over. */
  observePass(durationMs: number): void;
  observeOutcomes(outcomes: readonly Outcome[]): void;
  /** A call of the container runtime was answered. */
  observeCni(call: { readonly command: string; readonly code: number; readonly durationMs: number }): void;
}

type Table = typeof table;
type LabelOf<N extends MetricName> = keyof Table[N]['labels'] & string;
type Exported = {
  readonly [N in MetricName]: {
    counter: Counter<LabelOf<N>>;
    gauge: Gauge<LabelOf<N>>;
    histogram: Histogram<LabelOf<N>>;
  }[Table[N]['type']];
};

/** What happens only once is observed when it happens; everything else is read when it is asked for. */
type ObservedName =
  | 'ripstop_reconcile_duration_seconds'
  | 'ripstop_reconcile_errors_total'
  | 'ripstop_cni_call_duration_seconds';

type Sample<L extends string> = readonly [labels: Readonly<Record<L, string | number>>, value: number];
type Readings = {
  readonly [N in Exclude<MetricName, ObservedName>]: (facts: Facts) => Iterable<Sample<LabelOf<N>>>;
};

/** @param observe is called for each scrape. */
export function createMetrics(observe: () => Facts): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({
    register: registry,
    prefix: PROCESS_PREFIX,
    // The event loop's delay is measured by waking so often. The default of 10 ms costs an agent at rest 0.4 % of a core.
    eventLoopMonitoringPrecision: 250,
  });
  // Gauges with the suffix of counters, which promtool refuses; those of the same name without it say the same, by type.
  for (const what of ['handles', 'requests', 'resources'])
    registry.removeSingleMetric(`${PROCESS_PREFIX}nodejs_active_${what}_total`);
  const exported = createAll(registry);
  return {
    contentType: registry.contentType,
    async scrape() {
      const facts = ranked(observe());
      for (const [name, read] of Object.entries(readings))
        replace(exported[name as keyof Readings], read(facts));
      return registry.metrics();
    },
    observePass: (durationMs) => exported.ripstop_reconcile_duration_seconds.observe(durationMs / 1000),
    observeOutcomes(outcomes) {
      for (const { target, failures } of outcomes)
        if (failures > 0) exported.ripstop_reconcile_errors_total.inc({ target }, failures);
    },
    observeCni: ({ command, code, durationMs }) =>
      exported.ripstop_cni_call_duration_seconds.observe({ command, code }, durationMs / 1000),
  };
}

function createAll(registry: Registry): Exported {
  const create = { counter: Counter, gauge: Gauge, histogram: Histogram };
  const made = metricSpecs.map(({ name, type, help, labels, buckets }) => {
    const options = { name, help, labelNames: Object.keys(labels), registers: [registry] };
    return [name, new create[type]({ ...options, ...(buckets && { buckets: [...buckets] }) })];
  });
  return Object.fromEntries(made) as Exported;
}

/** The same, with the largest talkers first. */
function ranked(facts: Facts): Facts {
  const bytesOf = ({ bytes, kernelBytes }: Talker): number => bytes + kernelBytes;
  const rank = (talkers: readonly Talker[]) => talkers.toSorted((a, b) => bytesOf(b) - bytesOf(a));
  const { peers, pods } = facts.talkers;
  return { ...facts, talkers: { peers: rank(peers), pods: rank(pods) } };
}

/** Make these the only samples of a metric. */
function replace(metric: Counter | Gauge, samples: Iterable<Sample<string>>): void {
  metric.reset();
  // One without labels is zero now.
  metric.remove({});
  for (const [labels, value] of samples) {
    if (metric instanceof Gauge) metric.set(labels, value);
    else metric.inc(labels, value);
  }
}

/**
 * A sample for each of the first talkers, which are the largest.
 * @param labels for the parts of the name.
 * @param others whether there is one for all others together.
 */
function largest<L extends string>(
  talkers: readonly Talker[],
  top: number,
  labels: readonly L[],
  read: (talker: Talker) => number,
  others: boolean,
): Sample<L>[] {
  const sample = (name: readonly string[], value: number): Sample<L> => [
    Object.fromEntries(labels.map((label, i) => [label, name[i] ?? ''])) as Record<L, string>,
    value,
  ];
  const samples = talkers.slice(0, top).map((talker) => sample(talker.name, read(talker)));
  const rest = talkers.slice(top);
  if (!others || rest.length === 0) return samples;
  const sum = rest.reduce((total, talker) => total + read(talker), 0);
  return [...samples, sample([...labels.slice(1).map(() => ''), OTHER], sum)];
}

/** The sum of the others falls when one of them becomes one of the largest: of a counter there is none. */
const peersBy =
  (read: (talker: Talker) => number, others = true) =>
  ({ talkers, top }: Facts) =>
    largest(talkers.peers, top, ['peer'], read, others);

const podsBy =
  (read: (talker: Talker) => number, others = true) =>
  ({ talkers, top }: Facts) =>
    largest(talkers.pods, top, ['pod_namespace', 'pod_name'], read, others);

/** The sample of a metric without labels; undefined: it is not there. */
function one(value: number | undefined): Iterable<Sample<never>> {
  return value === undefined ? [] : [[{}, value]];
}

const inSeconds = (ms: number | undefined): number | undefined => (ms === undefined ? undefined : ms / 1000);

const seen = ({ maps }: Facts): readonly PacketCounter[] =>
  (maps?.counters ?? []).filter(({ packets }) => packets > 0);

const flows = ({ maps }: Facts): readonly FlowChanges[] => maps?.flows.families ?? [];

const readings: Readings = {
  ripstop_packets_total: (facts) =>
    seen(facts).map(({ hook, verdict, reason, packets }) => [{ hook, verdict, reason }, packets]),
  ripstop_bytes_total: (facts) =>
    seen(facts).map(({ hook, verdict, reason, bytes }) => [{ hook, verdict, reason }, bytes]),
  ripstop_pod_packets_total: ({ maps }) =>
    Object.entries(maps ? packetsBetweenPods(maps.counters) : {}).map(([verdict, packets]) => [
      { verdict },
      packets,
    ]),
  ripstop_flows_learned_total: (facts) =>
    flows(facts).flatMap(({ family, added, renewed }) => [
      [{ family, was: 'new' }, added],
      [{ family, was: 'known' }, renewed],
    ]),
  ripstop_flows_ended_total: (facts) => flows(facts).map(({ family, removed }) => [{ family }, removed]),
  ripstop_flows_evicted_total: (facts) => flows(facts).map(({ family, evicted }) => [{ family }, evicted]),
  ripstop_flow_invalidations_total: ({ maps }) =>
    (maps?.invalidations ?? []).map(({ by, cause, times }) => [{ by, cause }, times]),
  ripstop_map_entries: ({ maps }) => [...(maps?.entries ?? [])].map(([map, entries]) => [{ map }, entries]),
  ripstop_map_max_entries: ({ maps }) => [...(maps?.maxEntries ?? [])].map(([map, room]) => [{ map }, room]),
  ripstop_conntrack_entries: ({ conntrack }) => one(conntrack?.entries),
  ripstop_conntrack_max_entries: ({ conntrack }) => one(conntrack?.maxEntries),
  ripstop_peers: ({ peers }) => one(peers),
  ripstop_peers_without_fast_path: ({ withoutFastPath }) =>
    [...withoutFastPath].map(([reason, peers]) => [{ reason }, peers]),
  ripstop_endpoints: ({ endpoints }) => one(endpoints),
  ripstop_peer_live_flows: peersBy(({ flows }) => flows),
  ripstop_peer_live_flow_packets: peersBy(({ packets }) => packets),
  ripstop_peer_live_flow_bytes: peersBy(({ bytes }) => bytes),
  ripstop_peer_kernel_path_packets_total: peersBy(({ kernelPackets }) => kernelPackets, false),
  ripstop_peer_kernel_path_bytes_total: peersBy(({ kernelBytes }) => kernelBytes, false),
  ripstop_pod_kernel_path_packets_total: podsBy(({ kernelPackets }) => kernelPackets, false),
  ripstop_pod_kernel_path_bytes_total: podsBy(({ kernelBytes }) => kernelBytes, false),
  ripstop_pod_live_flows: podsBy(({ flows }) => flows),
  ripstop_pod_live_flow_packets: podsBy(({ packets }) => packets),
  ripstop_pod_live_flow_bytes: podsBy(({ bytes }) => bytes),
  ripstop_node_alarms: ({ alarms }) =>
    [...Map.groupBy(alarms, ({ kind }) => kind)].map(([kind, raised]) => [{ kind }, raised.length]),
  ripstop_ready: ({ ready }) => one(Number(ready)),
  ripstop_last_known_age_seconds: ({ lastKnownAgeMs }) => one(inSeconds(lastKnownAgeMs)),
  ripstop_api_watch_connected: ({ api }) => one(Number(api.connected)),
  ripstop_api_watch_age_seconds: ({ api }) => one(inSeconds(api.lastEventAgeMs)),
  ripstop_api_watches_total: ({ api }) => one(api.activity?.watches),
  ripstop_api_lists_total: ({ api }) => one(api.activity?.lists),
  ripstop_api_faults_total: ({ api }) =>
    Object.entries(api.activity?.faults ?? {}).map(([kind, times]) => [{ kind }, times]),
  ripstop_target_entries: ({ targets }) =>
    targets.flatMap(({ name: target, desired, pending, failures: { length: failed } }) => [
      [{ target, state: 'ok' }, Math.max(0, desired - pending - failed)],
      [{ target, state: 'pending' }, pending],
      [{ target, state: 'failed' }, failed],
    ]),
  ripstop_program_run_seconds_total: ({ runs }) => runs.map(({ program, seconds }) => [{ program }, seconds]),
  ripstop_program_runs_total: ({ runs }) => runs.map(({ program, runs: times }) => [{ program }, times]),
};
