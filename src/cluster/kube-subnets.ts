// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import type { Cidr } from '../net/ip.ts';
import { leaseAnnotations } from './annotations.ts';
import type { ApiClient } from './api-client.ts';
import { type Claim, doubtfulClaims } from './doubtful-claims.ts';
import { AlarmEvents } from './events.ts';
import type { Item } from './item-store.ts';
import {
  type LeaseSettings,
  type NodeObject,
  nodeSchema,
  type ParsedNode,
  parseNode,
  podCidrsOf,
  podCidrTexts,
  readLease,
} from './node-lease.ts';
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
import type { SourceHealth, SubnetManager } from './subnet-manager.ts';

/** Of a page of Nodes, the share without podCIDRs from which whole Nodes cost less than a request for each of those. */
const MANY = 0.1;

/**
 * Leases as annotations of the cluster's Nodes; each node's subnet is its podCIDR.
 *
 * Of other Nodes only the metadata is watched, a fraction of the whole. Their podCIDRs, which stand in the spec, are
 * there as an annotation if ripstop runs on them; the rest, plain flannel's, are read whole, once. Our own Node is
 * watched whole, by itself: for its addresses, and to restore at once what somebody changes.
 *
 * Trust: a lease is the word of whoever may patch the Node's status, and sends that node's traffic where it says. The spec's
 * podCIDRs are the control plane's word; so an annotation of them that would touch another node's traffic is not believed
 * before the spec has been read.
 */
export class KubeSubnetManager implements SubnetManager {
  readonly #client: ApiClient;
  readonly #nodeName: string;
  readonly #settings: LeaseSettings;
  readonly #all: Reflector<NodeView>;
  readonly #own: Reflector<OwnNode | undefined>;
  readonly #fetcher: PodCidrFetcher;
  readonly #events: AlarmEvents;
  readonly #snapshots: Snapshots;
  /** What views mean. They keep their identity while nothing changes. */
  readonly #parsed = new WeakMap<NodeView, Parsed>();
  /** UIDs of nodes whose annotation is not believed; undefined when that is to be found out anew. */
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
    this.#all = new Reflector<NodeView>({
      client,
      path: '/api/v1/nodes',
      metadataOnly: true,
      listWhole: (page) => page.filter((view) => this.#lacks(view, NOBODY)).length > page.length * MANY,
      project: (object) => {
        const view = viewNode(object, settings, this.#fetcher);
        // Between the pages of the first list there is time; after the last one everybody waits.
        if (!this.#all.synced) this.#parse(view, NOBODY);
        return view;
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
    const { connected, lastEventAgeMs, lastError } = this.#all.health;
    const own = this.#own.health;
    const trouble = lastError ?? own.lastError ?? this.#fetcher.lastError;
    return {
      connected: connected && own.connected,
      ...(lastEventAgeMs !== undefined && { lastEventAgeMs }),
      ...(trouble !== undefined && { lastError: trouble }),
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
   * The first time that all Nodes were listed and none is left whose podCIDRs may yet be had: a peer from before our
   * start that is still unknown must not look like one that is gone.
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
    for (const item of this.#all.items.values())
      if (this.#lacks(item.value, doubtful)) wanted.push(bare(item));
    return wanted;
  }

  /** Whether this could be a peer, were its podCIDRs known. */
  #lacks({ node, published, spec }: NodeView, doubtful: ReadonlySet<string>): boolean {
    if (!node) return false;
    const { name, uid } = node.metadata;
    if (spec?.length === 0 || (published && !doubtful.has(uid)) || this.#fetcher.known(uid)) return false;
    return name !== this.#nodeName && isLease(node, this.#settings);
  }

  #findDoubtful(): ReadonlySet<string> {
    return (this.#doubtful ??= doubtfulClaims(
      [...this.#all.items.values()].flatMap(({ uid, value: { node, published } }): Claim[] => {
        const podCidrs = this.#fetcher.known(uid) ?? published;
        return node && podCidrs && isLease(node, this.#settings) ? [{ uid, podCidrs }] : [];
      }),
    ));
  }

  #parse(view: NodeView, doubtful: ReadonlySet<string>): ParsedNode {
    if (!view.node) return view.malformed;
    const { uid } = view.node.metadata;
    const podCidrs =
      this.#fetcher.known(uid) ??
      (this.#fetcher.isEmpty(uid) ? NONE : view.spec) ??
      (doubtful.has(uid) ? undefined : view.published);
    const failure = this.#fetcher.failure(uid);
    const done = this.#parsed.get(view);
    if (done && done.podCidrs === podCidrs && done.failure === failure) return done.node;
    const node = parseView(view.node, podCidrs, failure, this.#settings);
    this.#parsed.set(view, { podCidrs, failure, node });
    return node;
  }
}

/** What a view was found to mean, with what else was known then. */
interface Parsed {
  readonly podCidrs: readonly string[] | undefined;
  readonly failure: string | undefined;
  readonly node: ParsedNode;
}

const NONE: readonly string[] = [];
const NOBODY: ReadonlySet<string> = new Set();

/** What is kept of a Node object, be it whole or metadata alone: plain data, the same for both as far as can be. */
type NodeView =
  | {
      /** Without its spec and other annotations than a lease's. */
      readonly node: NodeObject;
      /** The podCIDRs that the annotation names, if it is valid. */
      readonly published?: readonly string[];
      /** Those in the spec, of a Node that was ever seen whole. */
      readonly spec?: readonly string[];
      readonly malformed?: never;
    }
  | {
      readonly malformed: ParsedNode;
      readonly node?: never;
      readonly published?: never;
      readonly spec?: never;
    };

function viewNode(object: unknown, settings: LeaseSettings, fetcher: PodCidrFetcher): NodeView {
  const read = nodeSchema.safeParse(object);
  if (!read.success) return { malformed: parseNode(object, settings) };
  const { name, uid, creationTimestamp, annotations: all } = read.data.metadata;
  const whole = (object as { kind?: unknown }).kind !== 'PartialObjectMetadata';
  if (whole) fetcher.learn(uid, podCidrTexts(read.data.spec));
  const annotations = leaseAnnotations(all, settings.keys);
  const published = publishedPodCidrs(annotations[settings.keys.podCidrs]);
  const spec = fetcher.known(uid) ?? (whole ? NONE : undefined);
  return {
    node: { metadata: { name, uid, creationTimestamp, annotations } },
    ...(published && { published }),
    ...(spec && { spec }),
  };
}

function publishedPodCidrs(text: string | undefined): readonly string[] | undefined {
  if (!text || text.length > 128) return undefined;
  const podCIDRs = text.split(',');
  try {
    podCidrsOf({ spec: { podCIDRs } });
    return podCIDRs;
  } catch {
    return undefined;
  }
}

/**
 * What a Node means. One whose podCIDRs are not known keeps its last good lease, if it has one.
 * @param podCidrs that are believed.
 * @param failure why they are not known.
 */
function parseView(
  node: NodeObject,
  podCidrs: readonly string[] | undefined,
  failure: string | undefined,
  settings: LeaseSettings,
): ParsedNode {
  if (podCidrs === undefined && isLease(node, settings)) {
    const { name, uid } = node.metadata;
    if (failure === undefined) return { name, uid, kind: 'pending' };
    const reason = `its podCIDRs are not known: ${failure}`;
    return { name, uid, kind: 'malformed', reason, alarm: 'podcidr_unknown' };
  }
  const parsed = readLease({ ...node, spec: { podCIDRs: [...(podCidrs ?? NONE)] } }, settings);
  const key = settings.keys.podCidrs;
  const said = node.metadata.annotations?.[key];
  const inSpec = podCidrs?.join(',');
  if (parsed.kind !== 'peer' || said === undefined || said === inSpec) return parsed;
  const text = JSON.stringify(said.slice(0, 80));
  return { ...parsed, mistaken: `${key} is ${text}, but its spec says ${inSpec}, which is believed` };
}

/** Whether this is a peer, provided that it has a podCIDR and its annotations can be read. */
function isLease({ metadata }: NodeObject, { keys, backend }: LeaseSettings): boolean {
  const { annotations } = metadata;
  return annotations?.[keys.managed] === 'true' && annotations[keys.backendType] === backend;
}

function viewOwn(object: unknown, settings: LeaseSettings): OwnNode | undefined {
  try {
    return parseOwnNode(object, settings);
  } catch {
    return undefined;
  }
}

function bare({ name, uid, resourceVersion }: Item<NodeView>): BareNode {
  return { name, uid, resourceVersion };
}
