// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import type { ClusterSnapshot, Peer, SourceHealth } from '../cluster/index.ts';
import type { PodDeviceChoice } from '../cni/pod-device.ts';
import type { RecentTraffic } from '../dataplane/pod-traffic.ts';
import { vtepDeviceName } from '../host/vtep-device.ts';
import { LogOnce } from '../log-once.ts';
import { formatCidr, partsOf } from '../net/ip.ts';
import type { Outcome, TargetStatus } from '../reconcile/reconciled.ts';
import type { Mode } from './options.ts';
import type { KeptPlan, PeerService } from './plan/index.ts';
import type { AgentStatus } from './status.ts';

/** Before the first pass. */
const NO_CLUSTER: ClusterSnapshot = {
  revision: 0,
  peersRevision: 0,
  synced: false,
  peers: [],
  nodes: [],
  alarms: [],
  own: undefined,
};

/** What `/status` needs beside the outcomes. */
export interface StatusFacts {
  readonly notReady: string | undefined;
  readonly health: SourceHealth;
  readonly podDevice?: PodDeviceChoice | undefined;
  readonly standing: { readonly plan: KeptPlan } | undefined;
  readonly serviceOf: ((peer: Peer) => PeerService) | undefined;
  readonly statuses: readonly TargetStatus[];
  readonly recent?: RecentTraffic | undefined;
}

/** Reports what the agent does: in the log as it happens, and in `/status` on request. */
export class Report {
  readonly #node: { readonly nodeName: string; readonly mode: Mode };
  /** How net-conf.json contradicts the kernel. */
  readonly #contradictions: readonly string[];
  /** What of the pods on bridges contradicts what the bridges know, as of the last pass. */
  #doubtfulPods: readonly string[] = [];
  readonly #log: Logger;
  readonly #failures = new Map<string, LogOnce>();
  /** The cluster as of the last pass. */
  cluster = NO_CLUSTER;
  /** When the last-known state was current (ms since 1970); undefined while the agent does not use it. */
  lastKnownAt: number | undefined;
  /** What is wrong with files of ours, as of the last pass. */
  #malformed: readonly string[] = [];
  #lastDurationMs = 0;
  #passes = 0;
  #errors = 0;

  constructor(
    node: { readonly nodeName: string; readonly mode: Mode },
    contradictions: readonly string[],
    log: Logger,
  ) {
    this.#node = node;
    this.#contradictions = contradictions;
    this.#log = log;
  }

  /** Those about nodes of the cluster, and those about files of this one. */
  get alarms(): AgentStatus['alarms'] {
    const of = (kind: string) => (reason: string) => ({ node: this.#node.nodeName, kind, reason });
    return [
      ...this.cluster.alarms,
      ...this.#malformed.map(of('malformed_file')),
      ...this.#contradictions.map(of('net_conf')),
      ...this.#doubtfulPods.map(of('doubtful_pod')),
    ];
  }

  get lastKnownAgeMs(): number | undefined {
    return this.lastKnownAt === undefined ? undefined : Math.max(0, Date.now() - this.lastKnownAt);
  }

  reconciled(outcomes: readonly Outcome[], statuses: readonly TargetStatus[]): void {
    for (const { failures } of outcomes) this.#errors += failures;
    const changed = outcomes.filter(({ upserts, removals }) => upserts + removals > 0);
    if (changed.length > 0) {
      const summary = changed.map(({ target, upserts, removals }) => `${target} +${upserts} -${removals}`);
      this.#log.info({ changed: summary.join(', ') }, 'applied');
    }
    for (const { name, failures } of statuses) {
      const known = this.#failures.get(name);
      const [first] = failures;
      if (!first) known?.over('in its desired state again');
      else {
        const failure = known ?? new LogOnce(this.#log, 'not in its desired state; retrying', 'error');
        this.#failures.set(name, failure);
        failure.met(first.why, { target: name, key: first.key, failures: failures.length });
      }
    }
  }

  passed(cluster: ClusterSnapshot, durationMs: number): void {
    this.#passes++;
    this.#lastDurationMs = durationMs;
    if (cluster.synced && this.lastKnownAt !== undefined) {
      this.#log.info('all nodes are known: the last-known state is no longer used');
      this.lastKnownAt = undefined;
    }
    const known = new Set(this.cluster.alarms.map(({ node, reason }) => `${node} ${reason}`));
    if (cluster.revision !== this.cluster.revision)
      for (const alarm of cluster.alarms)
        if (!known.has(`${alarm.node} ${alarm.reason}`)) this.#log.warn(alarm, 'alarm about a node');
    this.cluster = cluster;
  }

  /** @param whys what is wrong with each malformed file of ours, and what to do. */
  noteMalformed(whys: readonly string[]): void {
    for (const why of whys)
      if (!this.#malformed.includes(why)) this.#log.warn({ why }, 'a file is malformed');
    this.#malformed = whys;
  }

  /** @param whys what contradicts what the bridges of pods know. */
  noteDoubtfulPods(whys: readonly string[]): void {
    for (const why of whys)
      if (!this.#doubtfulPods.includes(why)) this.#log.warn({ why }, 'a pod on a bridge is not believed');
    this.#doubtfulPods = whys;
  }

  toStatus(facts: StatusFacts): AgentStatus {
    return { ...this.summary(facts), peers: this.peers(facts.serviceOf) };
  }

  /** The peers, which may be many. */
  peers(serviceOf: StatusFacts['serviceOf']): AgentStatus['peers'] {
    return this.cluster.peers.map((peer) => {
      const { name, podCidr, vtepIp } = peer;
      const { kernelPathOnly } = serviceOf?.(peer) ?? {};
      return { name, podCidr: formatCidr(podCidr), vtepIp, ...(kernelPathOnly && { kernelPathOnly }) };
    });
  }

  /** All else. */
  summary(facts: StatusFacts): Omit<AgentStatus, 'peers'> {
    const { notReady, health, podDevice, standing, statuses, recent } = facts;
    const { lastKnownAgeMs, cluster } = this;
    return {
      node: this.#node.nodeName,
      mode: this.#node.mode,
      ready: notReady === undefined,
      ...(notReady !== undefined && { notReady }),
      ...(podDevice && { podDevice }),
      ...(standing ? nodeStatus(standing.plan) : { families: [] }),
      api: {
        connected: health.connected,
        synced: cluster.synced,
        ...(health.lastEventAgeMs !== undefined && { lastEventAgeMs: Math.round(health.lastEventAgeMs) }),
        ...(health.lastError !== undefined && { lastError: health.lastError }),
        ...(lastKnownAgeMs !== undefined && { lastKnownAgeMs }),
      },
      ...(recent && { recent }),
      alarms: this.alarms,
      targets: statuses,
      passes: {
        count: this.#passes,
        errors: this.#errors,
        lastDurationMs: Math.round(this.#lastDurationMs),
        lastErrors: statuses.flatMap(({ name, failures }) =>
          failures.map(({ key, why }) => `${name} ${key}: ${why}`),
        ),
      },
    };
  }
}

function nodeStatus({ outline, links }: KeptPlan): Pick<AgentStatus, 'ingress' | 'families' | 'uplink'> {
  const { settings, uplink } = outline;
  const { v4, v6, tunnel } = settings;
  return {
    ingress: links.ingress,
    families: partsOf({ ...(v4 && { v4 }), ...(v6 && { v6 }) }).map(
      ({ network, podCidr, vtepIp, vtepMac }) => ({
        network: formatCidr(network),
        podCidr: formatCidr(podCidr),
        vtep: {
          ip: vtepIp,
          ...(tunnel && { device: vtepDeviceName(podCidr.family, tunnel.vni), mac: vtepMac }),
        },
      }),
    ),
    uplink: { name: uplink.name, mtu: uplink.mtu, explanation: uplink.explanation },
  };
}
