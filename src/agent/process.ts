// SPDX-License-Identifier: Apache-2.0
/**
 * The agent's process: its sockets, its metrics and its view of the cluster. Everything on the node is done by an
 * incarnation; a node that gets another podCIDR gets another incarnation.
 */
import { mkdirSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import {
  ApiClient,
  ApiError,
  type ClusterSnapshot,
  KubeSubnetManager,
  leaseSettings,
  type NetConf,
  type OwnNode,
  ownPodCidrs,
  type Peer,
  type PeerNode,
  readNetConf,
  type SubnetManager,
} from '../cluster/index.ts';
import { AttachmentStore } from '../cni/attachments.ts';
import { ConflistInstaller, installedConflist } from '../cni/conflist.ts';
import { deferredDir, listSetAside } from '../cni/deferred.ts';
import { HostLocalStore } from '../cni/host-local.ts';
import { type CniContext, forgetGone } from '../cni/ops.ts';
import { choosePodDevice, type PodDeviceChoice, whyNoNetkit } from '../cni/pod-device.ts';
import { createCniServer } from '../cni/server.ts';
import { contradictions, hearWitnesses } from '../cni/witnesses.ts';
import { readCounters } from '../dataplane/counters.ts';
import { readRuns } from '../dataplane/programs.ts';
import { packetsBetweenPods, type RecentTraffic, TrafficHistory } from '../dataplane/pod-traffic.ts';
import { errorText, RipstopError } from '../errors.ts';
import { forgetBoost, noteBoost } from '../host/boost-state.ts';
import { conntrackUse } from '../host/conntrack.ts';
import { ensureBpffs } from '../host/mount.ts';
import { openNetlink } from '../host/netlink.ts';
import { gatherHostFacts, missingRequirements } from '../host/requirements.ts';
import { LogOnce } from '../log-once.ts';
import { MapReader } from '../metrics/map-reader.ts';
import { createMetrics, type Facts, type Metrics } from '../metrics/metrics.ts';
import { type Address, type HttpRoute, serveRoutes } from '../metrics/server.ts';
import { familyKey, formatCidr } from '../net/ip.ts';
import { findMode, otherTunnel, type RunningFlannel, waitForFlannel } from './boost.ts';
import { listCluster } from './desired-maps.ts';
import { Incarnation } from './incarnation.ts';
import { enteredOwn, enteredPeers, KernelSubnetManager } from './kernel-source.ts';
import { type LastKnown, LastKnownFile } from './last-known.ts';
import { GarbageCollector } from './memory.ts';
import { leaseOf } from './lease.ts';
import { readPage } from './page/page.ts';
import { OverviewReader } from './page/reader.ts';
import { type AgentOptions, type Mode, runFiles } from './options.ts';
import { KERNEL_PATH_REASONS, type NodeFamily } from './plan/index.ts';
import { podNetworks } from './pod-networks.ts';
import { Publisher } from './publisher.ts';
import { Report, type StatusFacts } from './report.ts';
import type { NodeSnapshot } from './snapshot.ts';
import { Talkers } from './talkers.ts';

/** /healthz fails when a pass takes longer, so that the kubelet restarts the agent. A first pass takes seconds. */
const STUCK_MS = 120_000;
/** How often the counters are read, for the traffic of the last minute. */
const NOTE_TRAFFIC_MS = 10_000;
/** How often, at most, files are asked whether they contradict what the kernel says of pods on a bridge. */
const HEAR_WITNESSES_MS = 2000;
/** How long to wait for our own Node before the last-known state is used. */
const ANSWER_MS = 3000;

/**
 * Run the agent until the signal. If the API server is down, it waits.
 * @throws RipstopError when this node cannot run ripstop or the configuration is wrong.
 */
export async function runAgent(options: AgentOptions, log: Logger, signal: AbortSignal): Promise<void> {
  const missing = missingRequirements(await gatherHostFacts());
  if (missing.length > 0) throw new RipstopError(missing.join('; '));
  const { mode, why } = await findMode(options.mode);
  log.info({ mode, why }, 'chose the mode');
  const podDevice = findPodDevice(options.podDevice, mode);
  if (podDevice) log.info({ device: podDevice.kind, why: podDevice.why }, 'chose what new pods get');
  const open = (sourceLog: Logger): Promise<Source | undefined> =>
    (mode === 'boost' ? openBoost : openSource)(options, sourceLog, signal);
  for (;;) {
    const source = await open(log);
    if (!source) return;
    if (await ensureBpffs(options.bpffs)) log.info({ bpffs: options.bpffs }, 'mounted a BPF file system');
    mkdirSync(options.runDir, { recursive: true, mode: 0o700 });
    const end = await new AgentProcess({ ...options, mode }, podDevice, source, open, log).run(signal);
    if (end === 'stopped') return;
  }
}

/** What new pods get; undefined in boost mode, where flannel makes their devices. */
function findPodDevice(flag: AgentOptions['podDevice'], mode: Mode): PodDeviceChoice | undefined {
  if (mode === 'boost') {
    const whyNot = "in boost mode flannel's plugin makes the pods' devices";
    return flag === 'netkit' ? choosePodDevice(flag, whyNot) : undefined;
  }
  if (flag === 'veth') return choosePodDevice(flag, undefined);
  using socket = openNetlink({});
  return choosePodDevice(flag, whyNoNetkit(release(), socket));
}

/** Where the configuration and the cluster's nodes come from. */
interface Source {
  readonly netConf: NetConf;
  readonly subnets: SubnetManager;
  /** In boost mode, the flannel that runs here. */
  readonly flannel?: RunningFlannel;
}

/** @returns undefined when the signal came first. */
async function openSource(
  options: AgentOptions,
  log: Logger,
  signal: AbortSignal,
): Promise<Source | undefined> {
  if (options.etcd) return (await import('./etcd-source.ts')).openEtcd(options, options.etcd, log, signal);
  const netConf = await readNetConf(options.netConf);
  return { netConf, subnets: await openKubernetes(options, netConf, log) };
}

/** @returns undefined when the signal came first. */
async function openBoost(
  options: AgentOptions,
  log: Logger,
  signal: AbortSignal,
): Promise<Source | undefined> {
  const flannel = await waitForFlannel(options, log, signal);
  if (!flannel) return undefined;
  const { netConf, tunnel } = flannel;
  const hasApi = options.kubeconfig !== undefined || process.env['KUBERNETES_SERVICE_HOST'] !== undefined;
  const subnets = hasApi
    ? await openKubernetes(options, netConf, log)
    : new KernelSubnetManager(options, tunnel, log);
  return { netConf, subnets, flannel };
}

async function openKubernetes(
  options: AgentOptions,
  netConf: NetConf,
  log: Logger,
): Promise<KubeSubnetManager> {
  const client = await ApiClient.open(
    options.kubeconfig === undefined ? {} : { kubeconfig: options.kubeconfig },
  );
  return new KubeSubnetManager(
    client,
    options.nodeName,
    leaseSettings(netConf, options.annotationPrefix),
    log,
  );
}

type Phase =
  | { readonly kind: 'waiting'; readonly why: string }
  | { readonly kind: 'serving'; readonly incarnation: Incarnation };

/** What the agent starts with: our own Node, and the last-known peers if nobody answered. */
interface Start {
  readonly own: OwnNode;
  readonly lastKnown: readonly PeerNode[];
}

class AgentProcess {
  readonly #options: AgentOptions & { readonly mode: Mode };
  readonly #podDevice: PodDeviceChoice | undefined;
  readonly #netConf: NetConf;
  readonly #subnets: SubnetManager;
  readonly #flannel: RunningFlannel | undefined;
  readonly #openSource: (log: Logger) => Promise<Source | undefined>;
  readonly #log: Logger;
  readonly #store: AttachmentStore;
  readonly #addresses: HostLocalStore;
  readonly #report: Report;
  readonly #metrics: Metrics;
  readonly #mapReader = new MapReader();
  readonly #talkers = new Talkers();
  readonly #lastKnownFile: LastKnownFile;
  readonly #publisher: Publisher;
  readonly #conflist: ConflistInstaller;
  readonly #garbage = new GarbageCollector();
  readonly #traffic = new TrafficHistory();
  readonly #overview: OverviewReader;
  /** What files said against the kernel when they were last asked, and when that was (monotonic ms). */
  #heard: { readonly whys: readonly string[]; readonly atMs: number } = { whys: [], atMs: -Infinity };
  /** What they said twice in a row: once may be an ADD or DEL under way. */
  #doubts: readonly string[] = [];
  readonly #otherFlannel = new AbortController();
  readonly #flannelFailure: LogOnce;
  readonly #witnessFailure: LogOnce;
  #phase: Phase = { kind: 'waiting', why: 'starting' };
  #servedPeers:
    | {
        readonly standing: Incarnation['standing'];
        readonly peers: readonly Peer[];
        readonly counts: ReadonlyMap<string, number>;
      }
    | undefined;
  /** The addresses of the uplink as of the last pass. */
  #uplinkIps = '';

  /** @param openSource opens the source once more. */
  constructor(
    options: AgentOptions & { readonly mode: Mode },
    podDevice: PodDeviceChoice | undefined,
    { netConf, subnets, flannel }: Source,
    openSource: (log: Logger) => Promise<Source | undefined>,
    log: Logger,
  ) {
    this.#options = { ...options, podDevice: podDevice?.kind ?? 'veth' };
    this.#podDevice = podDevice;
    this.#openSource = openSource;
    this.#netConf = netConf;
    this.#subnets = subnets;
    this.#flannel = flannel;
    this.#log = log;
    this.#flannelFailure = new LogOnce(log, 'cannot find out which tunnel flannel has; retrying');
    this.#witnessFailure = new LogOnce(log, "cannot read the pods' leases and libcni's notes; retrying");
    this.#store = new AttachmentStore(options.runDir);
    this.#addresses = new HostLocalStore(options.ipamDir);
    this.#publisher = new Publisher(subnets, log);
    const installed = installedConflist(options.stateDir);
    this.#conflist = new ConflistInstaller(options.cniConf && { ...options.cniConf, installed }, log);
    const lease = leaseSettings(netConf, options.annotationPrefix);
    const file = join(options.stateDir, 'last-known.json');
    this.#lastKnownFile = new LastKnownFile(file, { nodeName: options.nodeName, lease }, log);
    this.#report = new Report(options, flannel?.contradictions ?? [], log);
    this.#metrics = createMetrics(() => this.#facts());
    this.#overview = new OverviewReader({
      summary: () => this.#report.summary(this.#statusFacts()),
      peers: () => this.#report.peers(this.#incarnation?.serviceOf),
      attachments: () => this.#store.list(),
      node: () => this.#incarnation?.standing?.node,
      tables: () => this.#incarnation?.tables,
      networks: () => this.#incarnation?.networks,
    });
  }

  /**
   * Start servers first, writers last; stop in reverse order. Resolves when the signal comes, or when the flannel that is
   * boosted has another tunnel, so that all that was derived from it must be derived anew.
   */
  async run(stop: AbortSignal): Promise<'stopped' | 'other flannel'> {
    const signal = AbortSignal.any([stop, this.#otherFlannel.signal]);
    await this.#run(signal);
    return stop.aborted ? 'stopped' : 'other flannel';
  }

  async #run(signal: AbortSignal): Promise<void> {
    await using running = new AsyncDisposableStack();
    running.defer(() => this.#subnets.stop());
    running.use(this.#garbage);
    const noting = setInterval(() => this.#noteTraffic(), NOTE_TRAFFIC_MS);
    running.defer(() => clearInterval(noting));
    const { runDir, stateDir } = this.#options;
    const socket = join(runDir, runFiles.agentSocket);
    const http = await serveRoutes(this.#served(), socket, this.#routes(), this.#localRoutes());
    running.defer(() => http.close());

    if (this.#flannel) await noteBoost(stateDir);
    else running.defer(await this.#serveCni());

    const start = await this.#findOwn(signal);
    if (!start) return;
    this.#subnets.start(() => this.#incarnation?.trigger(), start.lastKnown);
    running.defer(() => this.#lastKnownFile.flush());
    for (let own: OwnNode | undefined = start.own; own;) own = await this.#serve(own, signal);
  }

  /** @returns what ends it. */
  async #serveCni(): Promise<() => Promise<void>> {
    const { runDir, stateDir } = this.#options;
    await forgetBoost(stateDir);
    await this.#forgetGone();
    const cni = await createCniServer({
      socketPath: join(runDir, runFiles.cniSocket),
      deferredDir: deferredDir(stateDir),
      log: this.#log,
      context: () => this.#cniContext(),
      onCall: (call) => this.#metrics.observeCni(call),
    });
    return () => cni.close();
  }

  get #incarnation(): Incarnation | undefined {
    return this.#phase.kind === 'serving' ? this.#phase.incarnation : undefined;
  }

  get #notReady(): string | undefined {
    return this.#phase.kind === 'serving' ? this.#phase.incarnation.notReady : this.#phase.why;
  }

  async #forgetGone(): Promise<void> {
    try {
      const pods = (await forgetGone(this.#cniContext())).map(
        ({ podName, containerId }) => podName ?? containerId,
      );
      if (pods.length > 0)
        this.#log.info({ pods }, 'removed the attachments of pods that another plugin deleted');
    } catch (error) {
      this.#log.warn({ error: errorText(error) }, 'cannot find out which pods another plugin deleted');
    }
  }

  /** Our own Node; the last-known one when nobody answers for a while. Undefined when the signal came first. */
  async #findOwn(signal: AbortSignal): Promise<Start | undefined> {
    const fetched = this.#fetchOwn(signal).then((own) => own && { own, lastKnown: [] });
    const silence = sleep(ANSWER_MS, 'silence' as const, { signal, ref: false }).catch(() => undefined);
    const first = await Promise.race([fetched, silence]);
    if (first !== 'silence') return first;
    const known = (await this.#lastKnownFile.read()) ?? (await this.#entered());
    if (!known) return fetched;
    const { own, peers, at } = known;
    this.#report.lastKnownAt = at;
    const since = new Date(at).toISOString();
    this.#log.warn(
      { since, peers: peers.length },
      'the API server does not answer: going on with the last-known state',
    );
    return { own, lastKnown: peers };
  }

  /** What flannel has entered in the kernel; undefined where no flannel runs. */
  async #entered(): Promise<(LastKnown & { at: number }) | undefined> {
    if (!this.#flannel) return undefined;
    const own = await enteredOwn(this.#options);
    return { own, peers: await enteredPeers(this.#options, this.#flannel.tunnel), at: Date.now() };
  }

  /** Our own Node, requested until there is an answer; undefined when the signal came first. */
  async #fetchOwn(signal: AbortSignal): Promise<OwnNode | undefined> {
    const failure = new LogOnce(
      this.#log,
      'cannot read our own Node yet; pinned programs keep forwarding; retrying',
    );
    for (let delayMs = 250; !signal.aborted;) {
      try {
        return await this.#subnets.fetchOwn();
      } catch (error) {
        failure.met(error);
        if (this.#phase.kind === 'waiting') this.#phase = { kind: 'waiting', why: errorText(error) };
        await sleep(delayMs * (0.5 + Math.random()), undefined, { signal }).catch(() => {});
        // While nobody listens, kube-proxy may not have started yet: do not back off.
        const isNobodyThere = error instanceof ApiError && error.nobodyThere;
        if (!isNobodyThere) delayMs = Math.min(delayMs * 2, 15_000);
      }
    }
    return undefined;
  }

  /**
   * Run an incarnation until the signal, or until the node has other podCIDRs.
   * @returns our own Node with the other podCIDRs.
   */
  async #serve(own: OwnNode, signal: AbortSignal): Promise<OwnNode | undefined> {
    let moved: OwnNode | undefined;
    using incarnation = new Incarnation({
      agent: this.#options,
      netConf: this.#netConf,
      own,
      families: this.#families(own),
      store: this.#store,
      subnets: this.#subnets,
      onOutcomes: (outcomes, statuses) => {
        this.#report.reconciled(outcomes, statuses);
        this.#metrics.observeOutcomes(outcomes);
      },
      onPass: (cluster, durationMs) => this.#afterPass(own, cluster, durationMs),
      hasMoved: (now) => (moved = this.#movedTo(own, now)) !== undefined,
      log: this.#log,
    });
    this.#phase = { kind: 'serving', incarnation };
    await incarnation.run(signal);
    return signal.aborted ? undefined : moved;
  }

  /** Our own Node if it has other podCIDRs than before, and valid ones. */
  #movedTo(own: OwnNode, now: OwnNode | undefined): OwnNode | undefined {
    const [was, is] = [own, now ?? own].map(({ podCidrs }) => podCidrs.map(formatCidr).join(','));
    if (!now || is === was) return undefined;
    try {
      ownPodCidrs(now, this.#netConf);
    } catch {
      return undefined; // The Node was deleted, and has none yet, for example: the old ones stay in use until then.
    }
    this.#log.error(
      { was, is },
      "this node's podCIDR has changed: other nodes cannot reach pods with addresses of the old one; restart those",
    );
    return now;
  }

  /** After each pass: report, and publish our lease once this node forwards. In boost mode flannel does the latter. */
  async #afterPass(own: OwnNode, cluster: ClusterSnapshot, durationMs: number): Promise<void> {
    this.#report.passed(cluster, durationMs);
    this.#report.noteMalformed(await this.#malformedFiles());
    this.#metrics.observePass(durationMs);
    this.#garbage.passed(durationMs);
    if (!this.#flannel) {
      if (cluster.synced) this.#subnets.report?.(cluster.alarms);
      if (this.#notReady === undefined) await this.#conflist.install();
    } else await this.#followFlannel(this.#flannel);
    const standing = this.#incarnation?.standing;
    if (!standing) return;
    if (this.#flannel) await this.#hearWitnesses(standing.node);
    this.#report.noteDoubtfulPods([...standing.node.bridged.value.contradictions, ...this.#doubts]);
    const ips = Object.values(standing.plan.outline.uplink.ips).join();
    if (this.#uplinkIps !== '' && ips !== this.#uplinkIps) this.#subnets.reconnect();
    this.#uplinkIps = ips;
    if (!cluster.synced) return;
    const now = cluster.own ?? own;
    const lease = leaseOf(standing, this.#options);
    if (!this.#flannel) this.#publisher.publish(now, lease);
    this.#lastKnownFile.noteCluster(now, lease, cluster);
  }

  /** Find what leases and libcni's notes say against what the kernel says of pods on the bridge. */
  async #hearWitnesses({ bridged, links }: NodeSnapshot): Promise<void> {
    const nowMs = performance.now();
    if (nowMs - this.#heard.atMs < HEAR_WITNESSES_MS) return;
    const names = new Map(links.value.values().map(({ ifindex, name }) => [ifindex, name]));
    const pods = bridged.value.pods.map(({ ip, podMac, port }) => ({
      ip,
      podMac,
      device: names.get(port) ?? `port ${port}`,
    }));
    try {
      const testimony = await hearWitnesses(this.#addresses, this.#incarnation?.podCidrs ?? []);
      const whys = contradictions(pods, testimony);
      this.#doubts = whys.filter((why) => this.#heard.whys.includes(why));
      this.#heard = { whys, atMs: nowMs };
      this.#witnessFailure.over();
    } catch (error) {
      this.#witnessFailure.met(error);
    }
  }

  /** flannel may have been given another VNI, and another uplink. */
  async #followFlannel({ tunnel: was }: RunningFlannel): Promise<void> {
    try {
      const is = await otherTunnel(was, this.#options);
      this.#flannelFailure.over();
      if (!is) return;
      this.#log.warn({ was, is }, 'flannel has another tunnel: beginning anew with it');
      this.#otherFlannel.abort();
    } catch (error) {
      this.#flannelFailure.met(error);
    }
  }

  /** What is wrong with files of ours: attachments, deferred DELs, leases of the networks that our pods are on. */
  async #malformedFiles(): Promise<string[]> {
    const networks = new Set((await this.#store.list()).map(({ network }) => network));
    return [
      ...this.#store.malformed.map(({ why }) => why),
      ...(await listSetAside(deferredDir(this.#options.stateDir))),
      ...[...networks].flatMap((network) => this.#addresses.malformed(network)),
    ];
  }

  /** The cluster's address families, each with this node's part. */
  #families(own: OwnNode): NodeFamily[] {
    const podCidrs = ownPodCidrs(own, this.#netConf);
    const networks = { v4: this.#netConf.network, v6: this.#netConf.ipv6Network };
    return ([4, 6] as const).flatMap((family) => {
      const [network, podCidr] = [networks[familyKey(family)], podCidrs[familyKey(family)]];
      return network && podCidr ? [{ family, network, podCidr }] : [];
    });
  }

  /** The context of CNI calls. Before our own Node is known, pods can only be deleted. */
  #cniContext(): CniContext {
    const incarnation = this.#incarnation;
    return {
      families: podNetworks(incarnation?.standing?.plan.outline),
      ...(this.#podDevice && { podDevice: this.#podDevice.kind }),
      addresses: this.#addresses,
      store: this.#store,
      attach: async (attachment) => incarnation?.attach(attachment),
      detach: async () => incarnation?.detach(),
      ready: () => {
        const reason = this.#notReady;
        return reason === undefined
          ? { ok: true }
          : { ok: false, reason, limited: incarnation?.isImpaired ?? false };
      },
    };
  }

  #served(): Address[] {
    const { metricsAddr, healthzAddr } = this.#options;
    const health = { flag: '--healthz-addr', paths: ['/healthz', '/readyz'] };
    return [
      { flag: '--metrics-addr', text: metricsAddr },
      ...(healthzAddr ? [{ ...health, text: healthzAddr }] : []),
    ];
  }

  #routes(): Record<string, HttpRoute> {
    return {
      '/': readPage,
      '/overview.json': async () => ({
        body: await this.#overview.text(),
        contentType: 'application/json',
      }),
      '/metrics': async () => ({
        body: await this.#metrics.scrape(),
        contentType: this.#metrics.contentType,
      }),
      '/healthz': async () => {
        const stuckMs = this.#incarnation?.underWayMs ?? 0;
        if (stuckMs < STUCK_MS) return { body: 'ok\n' };
        return { status: 503, body: `a pass has been running for ${Math.round(stuckMs / 1000)} s\n` };
      },
      '/readyz': async () => {
        const why = this.#notReady;
        return why === undefined ? { body: 'ok\n' } : { status: 503, body: `not ready: ${why}\n` };
      },
      '/status': async () => ({
        body: JSON.stringify(this.#report.toStatus({ ...this.#statusFacts(), recent: this.#recent() })),
        contentType: 'application/json',
      }),
    };
  }

  /** Routes for who is root on this node: they cost more than a scrape may. */
  #localRoutes(): Record<string, HttpRoute> {
    return {
      '/maps/desired': async () => {
        const incarnation = this.#incarnation;
        if (!incarnation) throw new RipstopError(`the agent is not ready: ${this.#notReady}`);
        // Lists the cluster anew: what a watch may have missed is what an audit is for.
        const source = await this.#openSource(this.#log.child({}, { level: 'silent' }));
        if (!source) throw new RipstopError('the agent is stopping');
        const cluster = await listCluster(source.subnets, incarnation.podCidrs);
        const desired = await incarnation.desiredMaps(cluster);
        return { body: JSON.stringify(desired), contentType: 'application/json' };
      },
    };
  }

  /** What the metrics are made of. */
  #facts(): Facts {
    const { statuses = [], podCount = 0, loaded, standing } = this.#incarnation ?? {};
    const { cluster } = this.#report;
    const maps = loaded && this.#mapReader.read(loaded, statuses);
    return {
      ready: this.#notReady === undefined,
      api: this.#subnets.health,
      peers: cluster.nodes.length,
      withoutFastPath: this.#withoutFastPath(),
      endpoints: podCount,
      lastKnownAgeMs: this.#report.lastKnownAgeMs,
      alarms: this.#report.alarms,
      targets: statuses,
      conntrack: conntrackUse(),
      runs: loaded ? readRuns(loaded.programs) : [],
      maps,
      talkers:
        loaded && maps && standing
          ? this.#talkers.find(maps.flows, loaded.settings, cluster.peers, standing.node)
          : { peers: [], pods: [] },
      top: this.#options.metricsTop,
    };
  }

  /** How many peers the kernel path alone serves, by reason: counted again after a pass or a change of the peers. */
  #withoutFastPath(): ReadonlyMap<string, number> {
    const { standing, serviceOf } = this.#incarnation ?? {};
    const { peers } = this.#report.cluster;
    const last = this.#servedPeers;
    if (last?.standing === standing && last?.peers === peers) return last.counts;
    const counts = new Map<string, number>(KERNEL_PATH_REASONS.map((reason) => [reason, 0]));
    for (const peer of serviceOf ? peers : []) {
      const reason = serviceOf!(peer).kernelPathOnly?.reason;
      if (reason !== undefined) counts.set(reason, counts.get(reason)! + 1);
    }
    this.#servedPeers = { standing, peers, counts };
    return counts;
  }

  #recent(): RecentTraffic | undefined {
    const tables = this.#incarnation?.tables;
    return tables && this.#traffic.recent(packetsBetweenPods(readCounters(tables)), performance.now());
  }

  #noteTraffic(): void {
    const tables = this.#incarnation?.tables;
    if (tables) this.#traffic.note(packetsBetweenPods(readCounters(tables)), performance.now());
  }

  #statusFacts(): StatusFacts {
    const { standing, serviceOf, statuses = [] } = this.#incarnation ?? {};
    return {
      notReady: this.#notReady,
      health: this.#subnets.health,
      podDevice: this.#podDevice,
      standing,
      serviceOf,
      statuses,
    };
  }
}
