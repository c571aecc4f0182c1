// SPDX-License-Identifier: Apache-2.0
/**
 * All metrics, once: what each is, how the dashboard shows it, and what alerts watch it. metrics.ts exports what is here,
 * and scripts/gen-metrics.ts makes README.md, the Grafana dashboard and the alert rules of it.
 */

/** The parts of the dashboard, in order. */
export const sections = [
  'Fast path',
  'Flows',
  'Peers and pods',
  'Cluster',
  'Reconciliation',
  'CNI',
  'Programs and agent',
] as const;

export interface Panel {
  readonly title: string;
  /** Grafana's name of the unit: https://grafana.com/docs/grafana/latest/panels-visualizations/configure-standard-options/#unit */
  readonly unit: string;
  readonly queries: readonly { readonly expr: string; readonly legend: string }[];
  /** `stat`: the newest value alone. Default: `timeseries`. */
  readonly kind?: 'timeseries' | 'stat';
  readonly stacked?: boolean;
}

export interface Alert {
  readonly name: string;
  readonly expr: string;
  /** How long it must be so. */
  readonly for: string;
  /** `critical` may wake somebody; `warning` can wait for the morning. */
  readonly severity: 'critical' | 'warning';
  readonly summary: string;
  readonly description: string;
  /** What to run on the node, and what to make of it. */
  readonly runbook: string;
}

export interface MetricSpec {
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly help: string;
  /** What the values of each label are. */
  readonly labels: Readonly<Record<string, string>>;
  /** Upper bounds of a histogram's buckets. */
  readonly buckets?: readonly number[];
  readonly section: (typeof sections)[number];
  readonly panels?: readonly Panel[];
  readonly alerts?: readonly Alert[];
}

/** A metric of the nodes that the dashboard shows. */
const on = (metric: string, selector = ''): string =>
  `${metric}{${['instance=~"$instance"', selector].filter(Boolean).join(',')}}`;
/** How fast it grows, a second. */
const rateOf = (metric: string, selector = ''): string => `rate(${on(metric, selector)}[$__rate_interval])`;
const increaseOf = (metric: string, selector = ''): string =>
  `increase(${on(metric, selector)}[$__rate_interval])`;

const target = 'the name of the target, as `ripstop status -o wide` has it';

/** The peer, or the pod, that stands for all which have no samples of their own. */
export const OTHER = 'other';

const peerLabels = {
  peer: `the node's name; \`${OTHER}\`: all that are not among the \`--metrics-top\` largest`,
};
const podLabels = {
  pod_namespace: "the pod's namespace, where it is known",
  pod_name: `its name, or its address on a bridge; \`${OTHER}\`: all that are not among the \`--metrics-top\` largest`,
};
const byReason = {
  hook: 'where the program is attached, such as `from_pod`',
  verdict: '`fast`, `kernel` or `drop`',
  reason: 'as `ripstop stats` names it',
};
const live =
  'in the flow table; falls when flows end. The largest by bytes (--metrics-top, 250 unless set), and the rest';

/** By name. Labels without a bound would let a metric grow with the cluster: so only the largest peers and pods are named. */
export const table = {
  ripstop_packets_total: {
    type: 'counter',
    help: 'Packets (GSO super-packets count once) seen by the BPF programs, by hook, verdict and reason',
    labels: byReason,
    section: 'Fast path',
    panels: [
      {
        title: 'Packets dropped, by reason',
        unit: 'pps',
        queries: [
          {
            expr: `sum by (reason) (${rateOf('ripstop_packets_total', 'verdict="drop"')})`,
            legend: '{{reason}}',
          },
        ],
      },
      {
        title: 'Packets on the kernel path, by reason',
        unit: 'pps',
        queries: [
          {
            expr: `topk(10, sum by (reason) (${rateOf('ripstop_packets_total', 'verdict="kernel",hook=~"to_pod|to_vtep|to_wire"')}))`,
            legend: '{{reason}}',
          },
        ],
      },
    ],
    alerts: [
      {
        name: 'RipstopForgedPackets',
        expr: 'sum by (instance, reason) (rate(ripstop_packets_total{verdict="drop",reason=~"unknown_peer|spoofed_source|other_source|vxlan_from_pod"}[5m])) > 1',
        for: '5m',
        severity: 'critical',
        summary: 'ripstop drops forged packets on {{ $labels.instance }} ({{ $labels.reason }})',
        description:
          'For five minutes {{ $value | humanize }} packets a second were dropped as {{ $labels.reason }}: a pod sends from a ' +
          'foreign address or to a tunnel end, or packets for the tunnel come from an address that no node has.',
        runbook: '`ripstop monitor --drops` shows the packets, with their pods and peers',
      },
    ],
  },
  ripstop_bytes_total: {
    type: 'counter',
    help: 'Bytes of packets seen by the BPF programs, by hook, verdict (fast, kernel, drop) and reason',
    labels: byReason,
    section: 'Fast path',
    panels: [
      {
        title: 'Bytes on the fast path, by way',
        unit: 'Bps',
        stacked: true,
        queries: [
          {
            expr: `sum by (reason) (${rateOf('ripstop_bytes_total', 'verdict="fast",hook=~"from_pod|from_wire"')})`,
            legend: '{{reason}}',
          },
        ],
      },
    ],
  },
  ripstop_pod_packets_total: {
    type: 'counter',
    help: 'Packets between pods that this node has carried, each counted once, by verdict',
    labels: { verdict: '`fast`, `kernel` or `drop`' },
    section: 'Fast path',
    panels: [
      {
        title: 'Share of the fast path, of packets between pods',
        unit: 'percentunit',
        queries: [
          {
            expr:
              `sum by (instance) (${rateOf('ripstop_pod_packets_total', 'verdict="fast"')}) / ` +
              `sum by (instance) (${rateOf('ripstop_pod_packets_total', 'verdict=~"fast|kernel"')})`,
            legend: '{{instance}}',
          },
        ],
      },
      {
        title: 'Packets between pods, by verdict',
        unit: 'pps',
        stacked: true,
        queries: [
          {
            expr: `sum by (verdict) (${rateOf('ripstop_pod_packets_total')})`,
            legend: '{{verdict}}',
          },
        ],
      },
    ],
    alerts: [
      {
        name: 'RipstopFastShareLow',
        expr:
          'sum by (instance) (rate(ripstop_pod_packets_total{verdict="fast"}[15m])) / ' +
          'sum by (instance) (rate(ripstop_pod_packets_total{verdict=~"fast|kernel"}[15m])) < 0.5 ' +
          'and sum by (instance) (rate(ripstop_pod_packets_total[15m])) > 1000',
        for: '15m',
        severity: 'warning',
        summary: 'Most packets of {{ $labels.instance }} take the kernel path',
        description:
          'Only {{ $value | humanizePercentage }} of the packets between pods took the fast path in the last 15 minutes. Nothing ' +
          'is lost, but pods have the speed of plain flannel.',
        runbook:
          '`ripstop stats` says for which reasons, `ripstop doctor` which of them can be helped, and how',
      },
    ],
  },
  ripstop_flows_learned_total: {
    type: 'counter',
    help: 'Flows learned: new ones, and known ones that had become invalid or too narrow',
    labels: { family: '`ipv4` or `ipv6`', was: '`new` or `known`' },
    section: 'Flows',
    panels: [
      {
        title: 'Flows that come and go',
        unit: 'ops',
        queries: [
          {
            expr: `sum by (was) (${rateOf('ripstop_flows_learned_total')})`,
            legend: 'learned ({{was}})',
          },
          { expr: `sum(${rateOf('ripstop_flows_ended_total')})`, legend: 'ended' },
          { expr: `sum(${rateOf('ripstop_flows_evicted_total')})`, legend: 'evicted' },
        ],
      },
    ],
  },
  ripstop_flows_ended_total: {
    type: 'counter',
    help: 'Flows removed because their connection ended or a new one began',
    labels: { family: '`ipv4` or `ipv6`' },
    section: 'Flows',
  },
  ripstop_flows_evicted_total: {
    type: 'counter',
    help: 'Flows that the full flow table has dropped for others: new ones, less those that ended and those that are there',
    labels: { family: '`ipv4` or `ipv6`' },
    section: 'Flows',
  },
  ripstop_flow_invalidations_total: {
    type: 'counter',
    help: 'Times that all flows were invalidated, since something changed on which the kernel path may rest, by cause',
    labels: {
      by: '`event`: the agent was told; `traced`: a program at a function of the kernel saw it, then an event may tell of it, too',
      cause: 'what changed, such as `network` or `policy`',
    },
    section: 'Flows',
    panels: [
      {
        title: 'Invalidations of all flows, by cause',
        unit: 'short',
        queries: [
          {
            expr: `sum by (by, cause) (${increaseOf('ripstop_flow_invalidations_total')})`,
            legend: '{{cause}} ({{by}})',
          },
        ],
      },
    ],
    alerts: [
      {
        name: 'RipstopFlowsInvalidatedOften',
        expr: 'sum by (instance, cause) (rate(ripstop_flow_invalidations_total[10m])) > 0.2',
        for: '20m',
        severity: 'warning',
        summary: 'Flows of {{ $labels.instance }} are invalidated all the time ({{ $labels.cause }})',
        description:
          'Something changes {{ $value | humanize }} times a second on which the kernel path may rest, for half an hour: flows ' +
          'return to the kernel path each time. Often a controller writes the same rules again and again.',
        runbook: '`ripstop maps invalidations --watch` shows what changes; nft monitor, ip monitor say who',
      },
    ],
  },
  ripstop_map_entries: {
    type: 'gauge',
    help: 'Entries in use, by map; of large tables counted now and then',
    labels: { map: 'the name of the map, as `ripstop maps` has it' },
    section: 'Flows',
    panels: [
      {
        title: 'Fullness of maps',
        unit: 'percentunit',
        queries: [
          {
            expr: `max by (map) (${on('ripstop_map_entries')} / ${on('ripstop_map_max_entries')})`,
            legend: '{{map}}',
          },
        ],
      },
    ],
    alerts: [
      {
        name: 'RipstopFlowTableFull',
        expr: 'ripstop_map_entries{map=~"flows.*"} / ripstop_map_max_entries > 0.95',
        for: '15m',
        severity: 'warning',
        summary: 'The flow table of {{ $labels.instance }} is full ({{ $labels.map }})',
        description:
          '{{ $labels.map }} is {{ $value | humanizePercentage }} full: new flows evict others, which return to the kernel path. ' +
          'A larger --flow-table-size needs 160 bytes a flow, of IPv6 208.',
        runbook:
          '`ripstop maps` shows the table, `ripstop top` who has so many flows; raise --flow-table-size',
      },
      {
        name: 'RipstopMapFull',
        // The other maps have a slot for each podCIDR, or each address of one: full is no trouble there.
        expr: 'ripstop_map_entries{map=~"vteps|peers6|endpoints6"} / ripstop_map_max_entries > 0.95',
        for: '15m',
        severity: 'critical',
        summary: 'The map {{ $labels.map }} of {{ $labels.instance }} is full',
        description:
          '{{ $labels.map }} is {{ $value | humanizePercentage }} full: what has no room is served by the kernel path alone.',
        runbook: '`ripstop maps` shows the map, `ripstop status` what did not fit',
      },
    ],
  },
  ripstop_map_max_entries: {
    type: 'gauge',
    help: 'Room for entries, by map',
    labels: { map: 'the name of the map, as `ripstop maps` has it' },
    section: 'Flows',
  },
  ripstop_conntrack_entries: {
    type: 'gauge',
    help: 'Connections in the table of conntrack, on which learning rests; absent where conntrack is not loaded',
    labels: {},
    section: 'Flows',
    panels: [
      {
        title: "Fullness of conntrack's table",
        unit: 'percentunit',
        queries: [
          {
            expr: `${on('ripstop_conntrack_entries')} / ${on('ripstop_conntrack_max_entries')}`,
            legend: '{{instance}}',
          },
        ],
      },
    ],
    alerts: [
      {
        name: 'RipstopConntrackFull',
        expr: 'ripstop_conntrack_entries / ripstop_conntrack_max_entries > 0.9',
        for: '5m',
        severity: 'critical',
        summary: "Conntrack's table of {{ $labels.instance }} is nearly full",
        description:
          'It is {{ $value | humanizePercentage }} full. Once it is full the kernel drops new connections, whatever carries them.',
        runbook: '`ripstop flows` shows which pods have so many; raise net.netfilter.nf_conntrack_max',
      },
    ],
  },
  ripstop_conntrack_max_entries: {
    type: 'gauge',
    help: 'Room for connections in the table of conntrack (net.netfilter.nf_conntrack_max)',
    labels: {},
    section: 'Flows',
  },
  ripstop_peers: {
    type: 'gauge',
    help: 'Nodes that this node forwards to',
    labels: {},
    section: 'Peers and pods',
    panels: [
      {
        title: 'Peers and pods of a node',
        unit: 'short',
        queries: [
          { expr: on('ripstop_peers'), legend: '{{instance}} peers' },
          { expr: on('ripstop_endpoints'), legend: '{{instance}} pods' },
        ],
      },
    ],
  },
  ripstop_peers_without_fast_path: {
    type: 'gauge',
    help: 'Peers that the kernel path alone serves, by reason; a dual-stack node is two peers',
    labels: { reason: 'as deploy/README.md explains' },
    section: 'Peers and pods',
    panels: [
      {
        title: 'Peers that the kernel path alone serves, by reason',
        unit: 'short',
        queries: [
          {
            expr: `sum by (reason) (${on('ripstop_peers_without_fast_path')}) > 0`,
            legend: '{{reason}}',
          },
        ],
      },
    ],
  },
  ripstop_endpoints: {
    type: 'gauge',
    help: 'Pods attached on this node',
    labels: {},
    section: 'Peers and pods',
  },
  ripstop_peer_live_flows: {
    type: 'gauge',
    help: `Flows to and from a peer ${live}`,
    labels: peerLabels,
    section: 'Peers and pods',
  },
  ripstop_peer_live_flow_packets: {
    type: 'gauge',
    help: `Packets that the fast path has carried of the flows to and from a peer that are ${live}`,
    labels: peerLabels,
    section: 'Peers and pods',
  },
  ripstop_peer_live_flow_bytes: {
    type: 'gauge',
    help: `Bytes that the fast path has carried of the flows to and from a peer that are ${live}`,
    labels: peerLabels,
    section: 'Peers and pods',
    panels: [
      {
        title: 'Bytes of live flows on the fast path, by peer',
        unit: 'bytes',
        queries: [
          {
            expr: `topk(10, sum by (peer) (${on('ripstop_peer_live_flow_bytes')}))`,
            legend: '{{peer}}',
          },
        ],
      },
    ],
  },
  ripstop_peer_kernel_path_packets_total: {
    type: 'counter',
    help: 'Packets between pods that the kernel path has carried from and to a peer; only the largest (--metrics-top, 250 unless set)',
    labels: peerLabels,
    section: 'Peers and pods',
  },
  ripstop_peer_kernel_path_bytes_total: {
    type: 'counter',
    help: 'Bytes between pods that the kernel path has carried from and to a peer; only the largest (--metrics-top, 250 unless set)',
    labels: peerLabels,
    section: 'Peers and pods',
    panels: [
      {
        title: 'Bytes between pods on the kernel path, by peer',
        unit: 'Bps',
        queries: [
          {
            expr: `topk(10, sum by (peer) (${rateOf('ripstop_peer_kernel_path_bytes_total')}))`,
            legend: '{{peer}}',
          },
        ],
      },
    ],
  },
  ripstop_pod_live_flows: {
    type: 'gauge',
    help: `Flows to and from a pod of this node ${live}`,
    labels: podLabels,
    section: 'Peers and pods',
  },
  ripstop_pod_live_flow_packets: {
    type: 'gauge',
    help: `Packets that the fast path has carried of the flows to and from a pod of this node that are ${live}`,
    labels: podLabels,
    section: 'Peers and pods',
  },
  ripstop_pod_live_flow_bytes: {
    type: 'gauge',
    help: `Bytes that the fast path has carried of the flows to and from a pod of this node that are ${live}`,
    labels: podLabels,
    section: 'Peers and pods',
    panels: [
      {
        title: 'Bytes of live flows on the fast path, by pod',
        unit: 'bytes',
        queries: [
          {
            expr: `topk(10, sum by (pod_namespace, pod_name) (${on('ripstop_pod_live_flow_bytes')}))`,
            legend: '{{pod_namespace}}/{{pod_name}}',
          },
        ],
      },
    ],
  },
  ripstop_pod_kernel_path_packets_total: {
    type: 'counter',
    help: 'Packets between pods that the kernel path has carried from and to a pod of this node; only the largest (--metrics-top, 250 unless set)',
    labels: podLabels,
    section: 'Peers and pods',
  },
  ripstop_pod_kernel_path_bytes_total: {
    type: 'counter',
    help: 'Bytes between pods that the kernel path has carried from and to a pod of this node; only the largest (--metrics-top, 250 unless set)',
    labels: podLabels,
    section: 'Peers and pods',
    panels: [
      {
        title: 'Bytes between pods on the kernel path, by pod',
        unit: 'Bps',
        queries: [
          {
            expr: `topk(10, sum by (pod_namespace, pod_name) (${rateOf('ripstop_pod_kernel_path_bytes_total')}))`,
            legend: '{{pod_namespace}}/{{pod_name}}',
          },
        ],
      },
    ],
  },
  ripstop_node_alarms: {
    type: 'gauge',
    help: 'Alarms about nodes that are quarantined, refused or in conflict, by kind',
    labels: { kind: 'as `ripstop status` names it' },
    section: 'Cluster',
    panels: [
      {
        title: 'Alarms, by kind',
        unit: 'short',
        queries: [{ expr: `max by (kind) (${on('ripstop_node_alarms')})`, legend: '{{kind}}' }],
      },
    ],
    alerts: [
      {
        name: 'RipstopAlarm',
        expr: 'sum by (instance, kind) (ripstop_node_alarms) > 0',
        for: '5m',
        severity: 'warning',
        summary: 'ripstop on {{ $labels.instance }} has an alarm: {{ $labels.kind }}',
        description:
          '{{ $value }} alarms of the kind {{ $labels.kind }}: a node is quarantined, refused or in conflict with another, or a ' +
          'file is malformed. What is affected keeps its last good state.',
        runbook: '`ripstop status` has the alarms, with the nodes and what to do',
      },
    ],
  },
  ripstop_ready: {
    type: 'gauge',
    help: "Whether the node's part of the network is in place, so that pods can be added",
    labels: {},
    section: 'Cluster',
    panels: [
      {
        title: 'Agents that are ready',
        unit: 'short',
        kind: 'stat',
        queries: [{ expr: `sum(${on('ripstop_ready')})`, legend: 'ready' }],
      },
    ],
    alerts: [
      {
        name: 'RipstopAgentDown',
        expr: 'up{job="ripstop"} == 0',
        for: '5m',
        severity: 'critical',
        summary: 'The ripstop agent of {{ $labels.instance }} does not answer',
        description:
          'Pods that run go on talking, since programs and rules stay. New nodes are not reached, and in cni mode no pod can be started.',
        runbook:
          '`ripstop doctor` works without the agent, whose log (kubectl logs --previous) says why it ended',
      },
      {
        name: 'RipstopNotReady',
        expr: 'ripstop_ready == 0',
        for: '5m',
        severity: 'critical',
        summary: 'ripstop is not ready on {{ $labels.instance }}',
        description:
          "The agent runs, and a part of the node's network is not in place. In cni mode no pod can be started there.",
        runbook: '`ripstop doctor` says what is wrong, why, and what helps',
      },
    ],
  },
  ripstop_last_known_age_seconds: {
    type: 'gauge',
    help: 'Age of the last-known state, while the agent runs on it because the API server has not answered yet',
    labels: {},
    section: 'Cluster',
    alerts: [
      {
        name: 'RipstopLastKnownState',
        expr: 'ripstop_last_known_age_seconds > 0',
        for: '15m',
        severity: 'warning',
        summary: '{{ $labels.instance }} still runs on what it knew of the cluster before its start',
        description:
          'The API server has not answered the agent since it started. Its peers are those of {{ $value | humanizeDuration }} ago: ' +
          'nodes that came or moved since are not reached.',
        runbook: '`ripstop status` has the error of the watch; can this node reach the API server?',
      },
    ],
  },
  ripstop_api_watch_connected: {
    type: 'gauge',
    help: 'Whether the watch on Nodes (or the leases in etcd) is open',
    labels: {},
    section: 'Cluster',
    alerts: [
      {
        name: 'RipstopWatchStale',
        expr: 'ripstop_api_watch_connected == 0 or ripstop_api_watch_age_seconds > 300',
        for: '10m',
        severity: 'critical',
        summary: '{{ $labels.instance }} does not see changes of the cluster',
        description:
          'The watch on Nodes is closed, or has been silent for over five minutes; bookmarks come once a minute. What is known ' +
          'stays, but nodes that come or move are not reached.',
        runbook: '`ripstop status` has the age of the watch and its last error',
      },
    ],
  },
  ripstop_api_watch_age_seconds: {
    type: 'gauge',
    help: 'Time since the last event of the watch on Nodes',
    labels: {},
    section: 'Cluster',
    panels: [
      {
        title: 'Since the last event of the watch',
        unit: 's',
        queries: [
          { expr: on('ripstop_api_watch_age_seconds'), legend: '{{instance}}' },
          {
            expr: on('ripstop_last_known_age_seconds'),
            legend: '{{instance}} runs on the last-known state',
          },
        ],
      },
    ],
  },
  ripstop_api_watches_total: {
    type: 'counter',
    help: 'Watches opened: the server ends each after five to ten minutes, and a silent one is renewed after 45 s',
    labels: {},
    section: 'Cluster',
    panels: [
      {
        title: 'Lists, watches and faults',
        unit: 'short',
        queries: [
          { expr: `sum(${increaseOf('ripstop_api_watches_total')})`, legend: 'watches opened' },
          { expr: `sum(${increaseOf('ripstop_api_lists_total')})`, legend: 'complete lists' },
          { expr: `sum by (kind) (${increaseOf('ripstop_api_faults_total')})`, legend: 'fault: {{kind}}' },
        ],
      },
    ],
  },
  ripstop_api_lists_total: {
    type: 'counter',
    help: 'Complete lists, the first included; another one follows when a watch cannot go on from what was last seen',
    labels: {},
    section: 'Cluster',
  },
  ripstop_api_faults_total: {
    type: 'counter',
    help: 'Faults of lists and watches, by kind',
    labels: { kind: 'such as `unreachable`, `gone` or `auth`' },
    section: 'Cluster',
  },
  ripstop_reconcile_duration_seconds: {
    type: 'histogram',
    help: 'Duration of reconcile passes',
    labels: {},
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5],
    section: 'Reconciliation',
    panels: [
      {
        title: 'Duration of reconcile passes, 99th percentile',
        unit: 's',
        queries: [
          {
            expr: `histogram_quantile(0.99, sum by (le, instance) (${rateOf('ripstop_reconcile_duration_seconds_bucket')}))`,
            legend: '{{instance}}',
          },
        ],
      },
      {
        title: 'Reconcile passes',
        unit: 'ops',
        queries: [{ expr: rateOf('ripstop_reconcile_duration_seconds_count'), legend: '{{instance}}' }],
      },
    ],
    alerts: [
      {
        name: 'RipstopNoPasses',
        expr: 'increase(ripstop_reconcile_duration_seconds_count[15m]) == 0',
        for: '5m',
        severity: 'critical',
        summary: 'The ripstop agent of {{ $labels.instance }} hangs',
        description:
          'It has made no pass for 15 minutes, and should make one at least every two: nothing is repaired or added.',
        runbook:
          '`ripstop status`, twice: the number of passes must grow; restart the agent, which interrupts nothing',
      },
    ],
  },
  ripstop_reconcile_errors_total: {
    type: 'counter',
    help: 'Entries that could not be brought to their desired state, by target; one that is retried counts again',
    labels: { target },
    section: 'Reconciliation',
  },
  ripstop_target_entries: {
    type: 'gauge',
    help: 'Entries that there should be, by target and how they stand (ok, pending, failed)',
    labels: { target, state: '`ok`, `pending` or `failed`' },
    section: 'Reconciliation',
    panels: [
      {
        title: 'Entries that are not as they should be, by target',
        unit: 'short',
        queries: [
          {
            expr: `sum by (target, state) (${on('ripstop_target_entries', 'state!="ok"')}) > 0`,
            legend: '{{target}} {{state}}',
          },
        ],
      },
      {
        title: 'Failures a second, by target',
        unit: 'ops',
        queries: [
          {
            expr: `sum by (target) (${rateOf('ripstop_reconcile_errors_total')})`,
            legend: '{{target}}',
          },
        ],
      },
    ],
    alerts: [
      {
        name: 'RipstopTargetFailing',
        expr: 'sum by (instance, target) (ripstop_target_entries{state="failed"}) > 0',
        for: '10m',
        severity: 'critical',
        summary: 'ripstop cannot bring {{ $labels.target }} in line on {{ $labels.instance }}',
        description:
          '{{ $value }} entries of {{ $labels.target }} have failed for ten minutes, and are retried: pods or peers may lack a part ' +
          'of their network.',
        runbook: '`ripstop status` has each entry that fails, with the reason; `ripstop doctor` what helps',
      },
    ],
  },
  ripstop_cni_call_duration_seconds: {
    type: 'histogram',
    help: "Duration of the container runtime's calls, by CNI command and error code (0: it succeeded)",
    labels: {
      command: '`ADD`, `DEL`, `CHECK`, `STATUS`, `GC`, `VERSION` or `other`',
      code: "0, or the error's: https://www.cni.dev/docs/spec/#error; 50 not ready, 100 failed on the node, 102 no address free",
    },
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30],
    section: 'CNI',
    panels: [
      {
        title: 'CNI calls, by command and code',
        unit: 'ops',
        queries: [
          {
            expr: `sum by (command, code) (${rateOf('ripstop_cni_call_duration_seconds_count')})`,
            legend: '{{command}} {{code}}',
          },
        ],
      },
      {
        title: 'Duration of CNI calls, 95th percentile',
        unit: 's',
        queries: [
          {
            expr: `histogram_quantile(0.95, sum by (le, command) (${rateOf('ripstop_cni_call_duration_seconds_bucket')}))`,
            legend: '{{command}}',
          },
        ],
      },
    ],
    alerts: [
      {
        name: 'RipstopCniErrors',
        expr: 'sum by (instance, command, code) (increase(ripstop_cni_call_duration_seconds_count{command!="STATUS",code!="0"}[10m])) > 3',
        for: '5m',
        severity: 'critical',
        summary: 'CNI {{ $labels.command }} fails on {{ $labels.instance }} (code {{ $labels.code }})',
        description:
          '{{ $value | humanize }} calls failed in ten minutes: pods cannot be started, or not be cleaned up, on this node.',
        runbook:
          "`ripstop status` says what the node lacks; the agent's log has each call that failed, with the reason",
      },
    ],
  },
  ripstop_program_run_seconds_total: {
    type: 'counter',
    help: 'Time spent in a BPF program; absent unless the kernel measures it (kernel.bpf_stats_enabled), which costs some 20 ns a run',
    labels: { program: 'such as `from_pod`' },
    section: 'Programs and agent',
    panels: [
      {
        title: 'A run of a program (where kernel.bpf_stats_enabled is on)',
        unit: 's',
        queries: [
          {
            expr:
              `sum by (program) (${rateOf('ripstop_program_run_seconds_total')}) / ` +
              `sum by (program) (${rateOf('ripstop_program_runs_total')})`,
            legend: '{{program}}',
          },
        ],
      },
    ],
  },
  ripstop_program_runs_total: {
    type: 'counter',
    help: 'Runs of a BPF program while the kernel measured them',
    labels: { program: 'such as `from_pod`' },
    section: 'Programs and agent',
  },
} as const satisfies Record<string, MetricSpec>;

export type MetricName = keyof typeof table;

/** Metrics of the agent's process: those of prom-client's default metrics, which are not in the table. */
export const PROCESS_PREFIX = 'ripstop_agent_';

/** How the dashboard shows the agent's process. */
export const processPanels: readonly Panel[] = [
  {
    title: 'CPU of the agent',
    unit: 'percentunit',
    queries: [{ expr: rateOf(`${PROCESS_PREFIX}process_cpu_seconds_total`), legend: '{{instance}}' }],
  },
  {
    title: 'Memory of the agent',
    unit: 'bytes',
    queries: [{ expr: on(`${PROCESS_PREFIX}process_resident_memory_bytes`), legend: '{{instance}}' }],
  },
];

/** Each metric with its name. */
export const metricSpecs: readonly (MetricSpec & { readonly name: MetricName })[] = Object.entries(table).map(
  ([name, spec]) => ({ name: name as MetricName, ...spec }),
);
