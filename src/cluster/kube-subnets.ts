// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import type { Cidr } from '../net/ip.ts';
import type { ApiClient } from './api-client.ts';
import { type Claim, doubtfulClaims } from './doubtful-claims.ts';
import { AlarmEvents } from './events.ts';
import type { LeaseSettings, ParsedNode } from './node-lease.ts';
import { NodeRecord, recordOf } from './node-record.ts';
import {
  fetchOwnNode,
  type OwnLease,
  type OwnNode,
  parseOwnNode,
  publishLease,
  withdrawLease,
} from './own-lease.ts';
import type { PeerAlarm, PeerNode } from './peer.ts';
import { type BareNode, type FetchTiming, PodCidrFetcher } from './pod-cidr-fetcher.ts';
import { Reflector, type ReflectorTiming } from './reflector.ts';
import { type ClusterSnapshot, Snapshots } from './snapshot.ts';
import type { SourceActivity, SourceHealth, SubnetManager } from './subnet-manager.ts';

/** When a larger share of a page's Nodes lacks podCIDRs, listing whole Nodes costs less than a request for each. */
const MANY = 0.1;

/**
 * Leases as annotations of the cluster's Nodes; each node's subnet is its podCIDR.
 *
 * Only the metadata of other Nodes is watched, a fraction of the whole. The podCIDRs are in the spec, but ripstop nodes
 * publish them as an annotation too; the other Nodes, plain flannel's, are read whole, once. Our own Node is watched
 * whole, by itself: for its addresses, and to restore at once what somebody changes.
 *
 * Trust: whoever may patch a Node's status can change its lease, and so redirect that node's traffic. The podCIDRs in
 * the spec come from the control plane. So an annotation of podCIDRs that would affect another node's traffic is not
 * believed before the spec has been read.
 */
export class KubeSubnetManager implements SubnetManager {
  readonly #client: ApiClient;
  readonly #nodeName: string;
  readonly #settings: LeaseSettings;
  readonly #all: Reflector<NodeRecord | ParsedNode>;
  readonly #own: Reflector<OwnNode | undefined>;
  readonly #fetcher: PodCidrFetcher;
  readonly #events: AlarmEvents;
  readonly #snapshots: Snapshots;
  /** UIDs of nodes whose annotation is not believed; undefined after a change, until it is asked for. */
  #doubtful: ReadonlySet<string> | undefined;
  #onChange: () => void = () => {};
  #synced = false;

  constructor(
    client: ApiClient,
    nodeName: string,
    settings: LeaseSettings,
    log: Logger,
    timing: Partial<ReflectorTiming & FetchTiming> = {},
  ) {
    this.#client = client;
    this.#nodeName = nodeName;
    this.#settings = settings;
    this.#events = new AlarmEvents(client, nodeName, log);
    this.#fetcher = new PodCidrFetcher({
      client,
      wanted: () => this.#wanted(),
      onChange: () => this.#changed(),
      log,
      timing,
    });
    this.#all = new Reflector<NodeRecord | ParsedNode>({
      client,
      path: '/api/v1/nodes',
      metadataOnly: true,
      listWhole: (page) => page.filter((record) => this.#lacks(record, NOBODY)).length > page.length * MANY,
      project: (object) => {
        const record = recordOf(object, settings, (...known) => this.#fetcher.learn(...known));
        // Parse between the pages of the first list: after the last page everybody waits.
        if (!this.#all.synced) this.#parse(record, NOBODY);
        return record;
      },
      onChange: () => {
        this.#fetcher.forget(this.#all.items);
        this.#fetcher.wake();
        this.#changed();
      },
      log,
      timing,
    });
    this.#own = new Reflector<OwnNode | undefined>({
      client,
      path: '/api/v1/nodes',
      query: { fieldSelector: `metadata.name=${nodeName}` },
      project: (object) => viewOwn(object, settings),
      onChange: () => this.#changed(),
      log,
      timing,
    });
    this.#snapshots = new Snapshots(nodeName, () => ({
      synced: this.#synced,
      own: this.#own.items.values().find(({ value }) => value)?.value,
      nodes: this.#nodes(),
    }));
  }

  snapshot(podCidrs: readonly Cidr[]): ClusterSnapshot {
    return this.#snapshots.get(podCidrs);
  }

  get health(): SourceHealth {
    const { connected, lastEventAgeMs, lastError, activity } = this.#all.health;
    const own = this.#own.health;
    const error = lastError ?? own.lastError ?? this.#fetcher.lastError;
    return {
      connected: connected && own.connected,
      ...(lastEventAgeMs !== undefined && { lastEventAgeMs }),
      ...(error !== undefined && { lastError: error }),
      activity: sumOf(activity, own.activity),
    };
  }

  fetchOwn(): Promise<OwnNode> {
    return fetchOwnNode(this.#client, this.#nodeName, this.#settings);
  }

  start(onChange: () => void, lastKnown?: readonly PeerNode[]): void {
    this.#onChange = onChange;
    if (lastKnown) this.#snapshots.useLastKnown(lastKnown);
    this.#all.start();
    this.#own.start();
    this.#fetcher.start();
  }

  publish(own: OwnNode, lease: OwnLease): Promise<boolean> {
    return publishLease(this.#client, own, lease, this.#settings);
  }

  report(alarms: readonly PeerAlarm[]): void {
    this.#events.update(alarms, () =>
      [...this.#nodes()].filter(({ ripstop }) => ripstop).map(({ name }) => name),
    );
  }

  reconnect(): void {
    this.#client.close();
  }

  async withdraw(): Promise<void> {
    await withdrawLease(this.#client, await this.fetchOwn(), this.#settings);
  }

  async stop(): Promise<void> {
    await Promise.all([this.#all.stop(), this.#own.stop(), this.#fetcher.stop(), this.#events.stop()]);
    this.#client.close();
  }

  /**
   * In sync from the first time that all Nodes are listed and no podCIDRs are outstanding: a peer from before our start
   * that is still unknown must not look like one that is gone.
   */
  #changed(): void {
    this.#doubtful = undefined;
    this.#synced ||= this.#all.synced && this.#fetcher.settled;
    this.#snapshots.invalidate();
    this.#onChange();
  }

  #nodes(): Iterable<ParsedNode> {
    const doubtful = this.#findDoubtful();
    return this.#all.items.values().map(({ value }) => this.#parse(value, doubtful));
  }

  #wanted(): BareNode[] {
    const wanted: BareNode[] = [];
    const doubtful = this.#findDoubtful();
    for (const { name, uid, resourceVersion, value } of this.#all.items.values())
      if (this.#lacks(value, doubtful)) wanted.push({ name, uid, resourceVersion });
    return wanted;
  }

  /** Whether this could be a peer, were its podCIDRs known. */
  #lacks(record: NodeRecord | ParsedNode, doubtful: ReadonlySet<string>): boolean {
    if (!(record instanceof NodeRecord) || !record.isLease || record.name === this.#nodeName) return false;
    const { uid, published } = record;
    if (published !== undefined && !doubtful.has(uid)) return false;
    return !record.hasNone && this.#fetcher.known(uid) === undefined;
  }

  #findDoubtful(): ReadonlySet<string> {
    if (this.#doubtful) return this.#doubtful;
    const claims: Claim[] = [];
    for (const { uid, value } of this.#all.items.values()) {
      if (!(value instanceof NodeRecord) || !value.isLease) continue;
      const podCidrs = this.#fetcher.known(uid) ?? value.published;
      if (podCidrs !== undefined) claims.push({ uid, podCidrs });
    }
    return (this.#doubtful = doubtfulClaims(claims));
  }

  #parse(record: NodeRecord | ParsedNode, doubtful: ReadonlySet<string>): ParsedNode {
    if (!(record instanceof NodeRecord)) return record;
    const { uid, published, hasNone } = record;
    const podCidrs =
      this.#fetcher.known(uid) ??
      (hasNone || this.#fetcher.isEmpty(uid) ? '' : undefined) ??
      (doubtful.has(uid) ? undefined : published);
    const known = { podCidrs, addresses: this.#fetcher.addresses(uid) };
    return record.parse(known, this.#fetcher.failure(uid), this.#settings);
  }
}

const NOBODY: ReadonlySet<string> = new Set();

function sumOf(one: SourceActivity, other: SourceActivity): SourceActivity {
  const faults = { ...one.faults };
  for (const [kind, times] of Object.entries(other.faults)) faults[kind] = (faults[kind] ?? 0) + times;
  return { lists: one.lists + other.lists, watches: one.watches + other.watches, faults };
}

function viewOwn(object: unknown, settings: LeaseSettings): OwnNode | undefined {
  try {
    return parseOwnNode(object, settings);
  } catch {
    return undefined;
  }
}
