// SPDX-License-Identifier: Apache-2.0
/**
 * One podCIDR's life on this node: observe, plan, apply, again and again. Nothing here decides what should be (plan/
 * does) or how it is written (targets do). When it ends, everything that it made stays and forwards.
 */
import type { Logger } from 'pino';
import type { ClusterSnapshot, NetConf, OwnNode, Peer, SubnetManager } from '../cluster/index.ts';
import { type Attachment, AttachmentStore } from '../cni/attachments.ts';
import { desiredConfig } from '../dataplane/desired.ts';
import type { Networks } from '../dataplane/flow-sums.ts';
import { XdpAnswers } from '../dataplane/links.ts';
import { type LoadedPrograms, ProgramSet } from '../dataplane/programs.ts';
import { pinPaths, type Tables } from '../dataplane/tables.ts';
import { RipstopError } from '../errors.ts';
import { BridgedPods } from '../host/bridged-pods.ts';
import { monitorNode, type NodeEvent } from '../host/monitor.ts';
import { vtepDeviceName } from '../host/vtep-device.ts';
import { LogOnce } from '../log-once.ts';
import type { Cidr } from '../net/ip.ts';
import { randomMac } from '../net/mac.ts';
import { type Job, reconcile } from '../reconcile/reconcile.ts';
import type { Outcome, TargetStatus } from '../reconcile/reconciled.ts';
import { type DesiredMaps, desiredMapsOf } from './desired-maps.ts';
import { linkJobs, nodeJobs, peerJobs, podJobs, podLinkJobs, programJobs } from './jobs.ts';
import { Loop } from './loop.ts';
import { audit, causeOf, noteEvent } from './node-events.ts';
import { NodeObserver, type ObserverOptions } from './observer.ts';
import type { AgentOptions } from './options.ts';
import {
  type NodeFamily,
  type Peers,
  type KeptPlan,
  peerService,
  type PeerService,
  keptOf,
  type Plan,
  plan,
  type PlanOptions,
  podKeys,
  type PodPlan,
  renamedPods,
  replanLinks,
  replanPods,
} from './plan/index.ts';
import type { NodeSnapshot } from './snapshot.ts';
import { createTargets, type Targets } from './targets.ts';
import { Turn } from './turn.ts';

const SETTLE_MS = 20;
/** How often every target is compared with the actual state, whether or not an event has told of a change. */
const AUDIT_MS = 25_000;
/**
 * In a large cluster an audit takes its time; it is done so rarely that it takes no larger share of a core than this.
 */
const AUDIT_SHARE = 0.01;
const AUDIT_MS_MAX = 120_000;
/** Every so many audits look at nftables, too, of whose changes events tell. */
const THOROUGH_EVERY = 8;
/** How long no pod may come or go before the programs of those that came are attached; and how long at most. */
const ATTACH_MS = 20;
const ATTACH_MS_MAX = 200;
/** After a pass that could not observe or plan; events may bring the next one sooner. */
const RETRY_MS = 5000;
/** How often to look for pods on bridges that have sent their first packets. */
const SIGHTINGS_MS = 500;
const FIRST_PASS = 'the first pass is under way';
/** How often a pass observes again what it has made itself: devices, then the programs for them. */
const ROUNDS_MAX = 4;

export interface IncarnationOptions {
  readonly agent: AgentOptions;
  readonly netConf: NetConf;
  /** Our Node as it is at the start. */
  readonly own: OwnNode;
  /** IPv4 first. */
  readonly families: readonly NodeFamily[];
  readonly store: AttachmentStore;
  readonly subnets: Pick<SubnetManager, 'snapshot'>;
  /** Called after each pass, and after each change of the pods. */
  readonly onOutcomes: (outcomes: readonly Outcome[], statuses: readonly TargetStatus[]) => void;
  /** Called after each pass. */
  readonly onPass: (cluster: ClusterSnapshot, durationMs: number) => Promise<void>;
  /** Whether the cluster has given this node other podCIDRs than `own` has. */
  readonly hasMoved: (now: OwnNode | undefined) => boolean;
  readonly log: Logger;
}

/** Whether peers and pods have something to build on. */
type Standing =
  | { readonly kind: 'starting'; readonly why: string }
  /** The node's own part of the kernel path has stood at least once. */
  | { readonly kind: 'standing'; readonly plan: KeptPlan; readonly node: NodeSnapshot };

export class Incarnation implements Disposable {
  readonly #options: IncarnationOptions;
  readonly #planOptions: PlanOptions;
  readonly #programs: ProgramSet;
  readonly #xdp = new XdpAnswers();
  readonly #observerOptions: ObserverOptions;
  readonly #observer: NodeObserver;
  readonly #targets: Targets;
  readonly #loop = new Loop(() => this.#pass(), { settleMs: SETTLE_MS });
  readonly #podTurn = new Turn(() => this.#reconcilePods((pods) => podJobs(this.#targets, pods)));
  readonly #podLinkTurn = new Turn(() => this.#reconcilePods((pods) => podLinkJobs(this.#targets, pods)));
  readonly #moved = new AbortController();
  #attachTimer: NodeJS.Timeout | undefined;
  /** When waiting programs must be attached (monotonic ms), however many pods keep coming. */
  #attachByMs: number | undefined;
  #standing: Standing = { kind: 'starting', why: FIRST_PASS };
  /** Whether a whole pass has been made. */
  #hasPassed = false;
  /** Why the last pass could not observe the node, or make a plan for it. */
  readonly #failure: LogOnce;
  #peers: Peers = { revision: -1, peers: [], synced: false };
  #uplink = '';
  #auditMs = AUDIT_MS;
  #auditedAtMs = -Infinity;
  #audits = 0;

  constructor(options: IncarnationOptions) {
    this.#options = options;
    const { agent, netConf, own, families, store, log } = options;
    const { backend } = netConf;
    this.#failure = new LogOnce(log, 'cannot bring this node in line; retrying', 'error');
    const { links: linkPins } = pinPaths(agent.bpffs);
    const used = families.map(({ family }) => family);
    this.#planOptions = { agent, backend, own, families, freshMac: { v4: randomMac(), v6: randomMac() } };
    this.#programs = new ProgramSet(pinPaths(agent.bpffs));
    const shared = { programs: this.#programs, xdp: this.#xdp, linkPins };
    const uplink = { families: used, ifaceCanReach: agent.ifaceCanReach };
    const isDirect = backend.type === 'host-gw' || (backend.type === 'vxlan' && backend.directRouting);
    const podCidrs = families.map(({ podCidr }) => podCidr);
    const bridgedPods = new BridgedPods();
    this.#observerOptions = { ...shared, uplink, store, podCidrs, bridgedPods, isDirect };
    this.#observer = new NodeObserver(this.#observerOptions);
    this.#targets = createTargets({
      ...shared,
      podCidrs,
      vtepNames: backend.type === 'vxlan' ? used.map((family) => vtepDeviceName(family, backend.vni)) : [],
      log,
    });
  }

  /** How long the current pass has been running, in ms. */
  get underWayMs(): number {
    return this.#loop.underWayMs;
  }

  /** What the node should be, and what it was observed to be then; undefined before the kernel path stood. */
  get standing(): { readonly plan: KeptPlan; readonly node: NodeSnapshot } | undefined {
    return this.#standing.kind === 'standing' ? this.#standing : undefined;
  }

  /** What our pods have their addresses from. */
  get podCidrs(): Cidr[] {
    return this.#options.families.map(({ podCidr }) => podCidr);
  }

  /** Decides about peers as the last plan did; undefined before there was one. */
  get serviceOf(): ((peer: Peer) => PeerService) | undefined {
    const { standing } = this;
    return standing && peerService(standing.plan.outline, standing.node, this.#planOptions);
  }

  /** How many pods this node serves, as of the last pass. */
  get podCount(): number {
    return this.standing?.plan.podCount() ?? 0;
  }

  /** Undefined before programs were loaded. */
  get loaded(): LoadedPrograms | undefined {
    return this.#programs.loaded;
  }

  get tables(): Tables | undefined {
    return this.loaded?.tables;
  }

  /** The networks by which the programs tell whose an address is; undefined before there was a plan for them. */
  get networks(): Networks | undefined {
    const { standing } = this;
    return standing && desiredConfig(standing.plan.outline.settings);
  }

  get statuses(): TargetStatus[] {
    return Object.values(this.#targets).map(({ status }) => status);
  }

  /** Why no pod can be added; undefined when one can. */
  get notReady(): string | undefined {
    if (this.#failure.reason !== undefined) return this.#failure.reason;
    if (this.#standing.kind === 'starting') return this.#standing.why;
    if (!this.#hasPassed) return FIRST_PASS;
    return this.#failureOfNode() ?? this.#standing.plan.blocked;
  }

  /** Whether pods that are there may lack a part of their network: the node's own part could not be brought in line. */
  get isImpaired(): boolean {
    return this.#failure.reason !== undefined || this.#failureOfNode() !== undefined;
  }

  /** Something about the cluster changed. */
  trigger(): void {
    this.#loop.trigger();
  }

  /** Run until the signal, or until the node has moved to other podCIDRs. */
  async run(signal: AbortSignal): Promise<void> {
    await using running = new AsyncDisposableStack();
    running.use(monitorNode((events) => this.#onEvents(events)));
    const sightings = setInterval(() => this.#takeSightings(), SIGHTINGS_MS);
    running.defer(() => clearInterval(sightings));
    await this.#loop.run(AbortSignal.any([signal, this.#moved.signal]));
  }

  /**
   * Have the node serve this pod, which the store has by now. Resolves when the kernel path does, and the maps know the
   * pod. Its programs follow: attaching one takes an RCU grace period (10 to 20 ms), one after the other, and until
   * then the kernel path carries its packets.
   * @throws RipstopError with the pod's own failure; those of others are none of its business.
   */
  async attach(attachment: Attachment): Promise<void> {
    await this.#podTurn.run();
    this.#attachLater();
    const { standing } = this;
    if (!standing) throw new RipstopError(`the node is not ready: ${this.notReady}`);
    const keys = podKeys(attachment, standing.plan.outline);
    const { podRoutes, endpoints, endpoints6 } = this.#targets;
    const why =
      podRoutes.failureOf(keys.podRoutes) ??
      endpoints.failureOf(keys.endpoints) ??
      endpoints6.failureOf(keys.endpoints6);
    if (why !== undefined) throw new RipstopError(`the pod cannot be reached: ${why}`);
  }

  /** Take what the programs have seen of pods on bridges. */
  #takeSightings(): void {
    const table = this.tables?.sightings;
    if (!table || this.standing?.node.bridged.value.ports.length === 0) return;
    const seen = [...table.entries()].map(([ip, { mac, ifindex }]) => ({ ip, mac, port: ifindex }));
    table.deleteMany(seen.map(({ ip }) => ip));
    if (this.#observer.noteSightings(seen)) this.#followPods();
  }

  /** Pods on a bridge have come, gone or moved, or somebody has changed what pods need. */
  #followPods(): void {
    this.detach().catch((error: unknown) => {
      this.#options.log.error({ err: error }, 'cannot follow the pods; the next pass retries');
    });
  }

  /** Serve a pod no longer that the store does not have any more. */
  async detach(): Promise<void> {
    await this.#podTurn.run();
    this.#attachLater();
  }

  /**
   * What the maps should hold, by a plan for this cluster and a node that is observed from scratch. Changes nothing.
   * @throws RipstopError before the kernel path stood.
   */
  async desiredMaps(cluster: ClusterSnapshot): Promise<DesiredMaps> {
    const { standing } = this;
    if (!standing) throw new RipstopError(`the node is not ready: ${this.notReady}`);
    const store = new AttachmentStore(this.#planOptions.agent.runDir);
    const observer = new NodeObserver({ ...this.#observerOptions, store });
    observer.sendFrom(standing.plan.outline.uplink.ips);
    const peers = this.#peersOf(cluster);
    return desiredMapsOf(plan(peers, await observer.observe(peers), this.#planOptions));
  }

  #peersOf({ peersRevision, peers, synced }: ClusterSnapshot): Peers {
    // With `alloc` somebody else brings packets to other nodes.
    const isAlloc = this.#options.netConf.backend.type === 'alloc';
    return { revision: peersRevision, peers: isAlloc ? [] : peers, synced };
  }

  /**
   * Bring the pods' programs in line, without anybody waiting for it. Not while pods keep coming, since the kernel
   * holds the RTNL lock for a whole grace period and each ADD needs it, too; but soon in any case.
   */
  #attachLater(): void {
    const nowMs = performance.now();
    this.#attachByMs ??= nowMs + ATTACH_MS_MAX;
    clearTimeout(this.#attachTimer);
    const attach = (): void => {
      this.#attachByMs = undefined;
      this.#podLinkTurn.run().catch((error: unknown) => {
        this.#options.log.error({ err: error }, "cannot attach the pods' programs; the next pass retries");
      });
    };
    this.#attachTimer = setTimeout(attach, Math.min(ATTACH_MS, this.#attachByMs - nowMs));
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#attachTimer);
    this.#programs[Symbol.dispose]();
  }

  /** One pass. @returns in how many ms the next one is due. */
  async #pass(): Promise<number> {
    const { subnets, hasMoved, onOutcomes, onPass } = this.#options;
    const startedAtMs = performance.now();
    const cluster = subnets.snapshot(this.podCidrs);
    if (hasMoved(cluster.own)) {
      this.#moved.abort();
      return 0;
    }
    this.#peers = this.#peersOf(cluster);
    const isAudit = startedAtMs - this.#auditedAtMs > this.#auditMs;
    if (isAudit) audit(this.#observer, this.#targets, this.#audits++ % THOROUGH_EVERY === 0);
    try {
      onOutcomes(await this.#reconcile(), this.statuses);
      this.#failure.over();
    } catch (error) {
      this.#failure.met(error);
    }
    const durationMs = performance.now() - startedAtMs;
    if (isAudit) this.#auditedAtMs = startedAtMs;
    // The first pass also loads the programs, which no audit does.
    const fairMs = this.#hasPassed ? durationMs / AUDIT_SHARE : 0;
    this.#auditMs = Math.min(Math.max(isAudit ? AUDIT_MS : this.#auditMs, fairMs), AUDIT_MS_MAX);
    this.#hasPassed = true;
    await onPass(cluster, durationMs);
    return this.#dueInMs();
  }

  async #reconcile(): Promise<Outcome[]> {
    const { planned, outcomes } = await this.#reconcileNode();
    if (!this.standing) return outcomes;
    outcomes.push(...(await reconcile(peerJobs(this.#targets, planned.peers))));
    await this.#podTurn.run();
    await this.#podLinkTurn.run();
    outcomes.push(...(await this.#reconcileLinks(planned)));
    return outcomes;
  }

  /** The node's own part. What it makes is observed and planned with before anything is built on it. */
  async #reconcileNode(): Promise<{ planned: Plan; outcomes: Outcome[] }> {
    const outcomes: Outcome[] = [];
    for (let round = 1; ; round++) {
      const node = await this.#observeNode();
      const planned = this.#planOf(node);
      if (this.#observer.sendFrom(planned.outline.uplink.ips) && round < ROUNDS_MAX) continue;
      const done = await reconcile(nodeJobs(this.#targets, planned.node));
      const why = this.#standing.kind === 'starting' ? this.#failureOfNode() : undefined;
      this.#standing =
        why === undefined ? { kind: 'standing', plan: keptOf(planned), node } : { kind: 'starting', why };
      if (why === undefined) done.push(...(await reconcile(programJobs(this.#targets, planned.node))));
      outcomes.push(...done);
      const made = done.filter(
        ({ target, upserts, removals }) => OBSERVED.has(target) && upserts + removals > 0,
      );
      if (made.length === 0 || round === ROUNDS_MAX) return { planned, outcomes };
      this.#observer.invalidate('links', 'routes', 'nextHops');
      // Programs that were loaded anew may have other maps: what the old ones hold is no help.
      this.#targets.endpoints.invalidate();
      this.#targets.endpoints6.invalidate();
    }
  }

  /** Observe the node. Attachments follow host veths that somebody has renamed; all else is derived from them. */
  async #observeNode(): Promise<NodeSnapshot> {
    const node = await this.#observer.observe(this.#peers);
    const renamed = renamedPods(node);
    if (renamed.length === 0) return node;
    for (const attachment of renamed) {
      this.#options.store.update(attachment);
      const { containerId, podName, hostIfname } = attachment;
      this.#options.log.warn(
        { containerId, podName, hostIfname },
        "a pod's host veth was renamed: following it",
      );
    }
    return this.#observer.observe(this.#peers);
  }

  /** A plan for what was observed. @throws RipstopError when there can be none. */
  #planOf(node: NodeSnapshot): Plan {
    const planned = plan(this.#peers, node, this.#planOptions);
    const { explanation } = planned.outline.uplink;
    if (explanation !== this.#uplink) this.#options.log.info({ uplink: explanation }, 'chose the uplink');
    this.#uplink = explanation;
    return planned;
  }

  /** The pods' part alone, for a pass and for an ADD or DEL alike. */
  async #reconcilePods(jobsOf: (pods: PodPlan) => Job[]): Promise<void> {
    if (!this.standing) return;
    const node = await this.#observer.observePods();
    const { plan } = this.standing;
    const { pods, podCount } = replanPods(plan, this.#peers, node, this.#planOptions);
    this.#standing = { kind: 'standing', plan: { ...plan, podCount }, node };
    const outcomes = await reconcile(jobsOf(pods));
    this.#options.onOutcomes(outcomes, this.statuses);
    // The loop knows when it is to be tried again.
    if (outcomes.some(({ failures }) => failures > 0)) this.#loop.trigger();
  }

  /** The programs on the node's own interfaces; once a driver has refused XDP, without it. */
  async #reconcileLinks(planned: Plan): Promise<Outcome[]> {
    const refusals = this.#xdp.refusals.size;
    const outcomes = await reconcile(linkJobs(this.#targets, planned.links));
    if (this.#xdp.refusals.size === refusals) return outcomes;
    const node = await this.#observer.observe(this.#peers);
    const links = replanLinks(planned, this.#peers, node, this.#planOptions);
    this.#standing = { kind: 'standing', plan: { ...keptOf(planned), links }, node };
    return [...outcomes, ...(await reconcile(linkJobs(this.#targets, links)))];
  }

  #failureOfNode(): string | undefined {
    const { vtepDevices, kernelModules, sysctls, rules, files } = this.#targets;
    for (const target of [vtepDevices, kernelModules, sysctls, rules, files]) {
      const [failure] = target.status.failures;
      if (failure) return failure.why;
    }
    return undefined;
  }

  #onEvents(events: readonly NodeEvent[]): void {
    const [cause] = events.flatMap((event) => causeOf(event) ?? []);
    if (cause !== undefined) this.#programs.loaded?.moveEpoch(cause);
    const concerns = new Set(events.map((event) => noteEvent(event, this.#observer, this.#targets)));
    if (concerns.has('pods')) this.#followPods();
    if (concerns.has('node')) this.#loop.trigger();
  }

  #dueInMs(): number {
    const retries = Object.values(this.#targets).map(({ retryAtMs = Infinity }) => retryAtMs);
    const retryAtMs = this.#failure.reason === undefined ? Infinity : performance.now() + RETRY_MS;
    const dueAtMs = Math.min(this.#auditedAtMs + this.#auditMs, retryAtMs, ...retries);
    return Math.max(0, dueAtMs - performance.now()) + 1;
  }
}

/** Targets that change what is observed. */
const OBSERVED: ReadonlySet<string> = new Set(['vtep-devices', 'idle-bridges', 'programs']);
