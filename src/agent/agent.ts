// SPDX-License-Identifier: Apache-2.0
/**
 * The agent of one node: wiring and lifecycle, no decisions of its own.
 *
 *   Nodes (reflector) ┐
 *   pods (CNI) ───────┼─▶ loop ─▶ one pass: desired state → targets (maps, links, kernel path) → our lease
 *   kernel (monitor) ─┘
 *
 * Every event only triggers the loop; a pass looks at everything and applies the difference, so start, restart, upgrade
 * and steady state are the same. When the agent ends, everything that it made stays and forwards.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import {
  ApiClient,
  ApiError,
  type ClusterSnapshot,
  KubeSubnetManager,
  type LeasePart,
  leaseSettings,
  type NetConf,
  type OwnLease,
  type OwnNode,
  ownPodCidrs,
  type PeerNode,
  readNetConf,
  type SubnetManager,
} from '../cluster/index.ts';
import { AttachmentStore } from '../cni/attachments.ts';
import { installConflist } from '../cni/conflist.ts';
import { deferredDir } from '../cni/deferred.ts';
import { type CniContext, forgetGone } from '../cni/ops.ts';
import { createCniServer } from '../cni/server.ts';
import { type FamilySettings, type NodeSettings, type Peer, podMtu } from '../dataplane/desired.ts';
import type { Outcome } from '../dataplane/reconcile.ts';
import { errorText, RipstopError } from '../errors.ts';
import { ensureBpffs } from '../host/mount.ts';
import { monitorKernel, monitorRules } from '../host/monitor.ts';
import { gatherHostFacts, missingRequirements } from '../host/requirements.ts';
import { createMetrics, type Metrics } from '../metrics/metrics.ts';
import { type Endpoint, serveEndpoints } from '../metrics/server.ts';
import { type Cidr, familyKey, formatCidr, partsOf, perFamily, type PerFamily } from '../net/ip.ts';
import { LastKnownFile } from './last-known.ts';
import { Loop } from './loop.ts';
import { type NodeFamily, NodePath } from './node-path.ts';
import { type AgentOptions, runFiles } from './options.ts';
import { Publisher } from './publisher.ts';
import { AgentState } from './state.ts';

const SETTLE_MS = 20;
const AUDIT_MS = 30_000;
/** No pass takes so long, not the first one among 15,000 nodes: whoever watches over us should start us anew. */
const STUCK_MS = 120_000;
/** How long to wait for our own node before the last-known state has to do. */
const ANSWER_MS = 3000;

/**
 * Run until the signal.
 * @throws RipstopError when this node cannot run ripstop or the configuration is wrong; an API server that is down is
 * waited for.
 */
export async function runAgent(options: AgentOptions, log: Logger, signal: AbortSignal): Promise<void> {
  refuseWhatIsNotBuilt(options);
  const missing = missingRequirements(await gatherHostFacts());
  if (missing.length > 0) throw new RipstopError(missing.join('; '));
  const source = options.etcd
    ? await (await import('./etcd-source.ts')).openEtcd(options, options.etcd, log, signal)
    : await openKubernetes(options, log);
  if (!source) return;
  const { netConf, subnets } = source;
  if (await ensureBpffs(options.bpffs)) log.info({ bpffs: options.bpffs }, 'mounted a BPF file system');
  mkdirSync(options.runDir, { recursive: true, mode: 0o700 });
  await new Agent(options, netConf, subnets, log).run(signal);
}

async function openKubernetes(
  options: AgentOptions,
  log: Logger,
): Promise<{ netConf: NetConf; subnets: SubnetManager }> {
  const netConf = await readNetConf(options.netConf);
  const client = await ApiClient.open(
    options.kubeconfig === undefined ? {} : { kubeconfig: options.kubeconfig },
  );
  const subnets = new KubeSubnetManager(
    client,
    options.nodeName,
    leaseSettings(netConf, options.annotationPrefix),
    log,
  );
  return { netConf, subnets };
}

class Agent {
  readonly #options: AgentOptions;
  readonly #netConf: NetConf;
  readonly #subnets: SubnetManager;
  readonly #log: Logger;
  readonly #state: AgentState;
  readonly #store: AttachmentStore;
  readonly #metrics: Metrics;
  readonly #file: LastKnownFile;
  readonly #publisher: Publisher;
  /** The peers until all nodes are seen, if they could not be asked for at the start. */
  #lastKnown: readonly PeerNode[] | undefined;
  /** Undefined until our own Node is known. */
  #node: NodePath | undefined;
  /** The uplink's addresses as of the last pass. */
  #ips = '';
  #loop: Loop | undefined;
  readonly #conflist = { installed: false, lastError: '' };

  constructor(options: AgentOptions, netConf: NetConf, subnets: SubnetManager, log: Logger) {
    this.#options = options;
    this.#netConf = netConf;
    this.#subnets = subnets;
    this.#log = log;
    this.#publisher = new Publisher(subnets, log);
    this.#state = new AgentState(options.nodeName);
    this.#store = new AttachmentStore(options.runDir);
    const lease = leaseSettings(netConf, options.annotationPrefix);
    const file = join(options.stateDir, 'last-known.json');
    this.#file = new LastKnownFile(file, { nodeName: options.nodeName, lease }, log);
    this.#metrics = createMetrics({
      tables: () => this.#node?.tables,
      api: () => this.#state.api,
      peers: () => this.#state.snapshot?.nodes.length ?? 0,
      endpoints: () => this.#node?.endpointCount ?? 0,
      alarms: () => this.#state.snapshot?.alarms ?? [],
      lastKnownAgeMs: () => this.#state.lastKnownAgeMs,
    });
  }

  /** Who can be asked is up first, who changes the node comes last; they end in the reverse order. */
  async run(signal: AbortSignal): Promise<void> {
    await using running = new AsyncDisposableStack();
    running.defer(() => this.#subnets.stop());
    const { runDir, stateDir, metricsAddr } = this.#options;
    const endpoints = await serveEndpoints(
      metricsAddr,
      join(runDir, runFiles.agentSocket),
      this.#endpoints(),
    );
    running.defer(() => endpoints.close());

    await this.#forgetGone();
    const cni = await createCniServer({
      socketPath: join(runDir, runFiles.cniSocket),
      deferredDir: deferredDir(stateDir),
      log: this.#log,
      context: () => this.#cniContext(),
    });
    running.defer(() => cni.close());

    let own = await this.#findOwn(signal);
    if (!own) return;
    this.#state.source = this.#subnets;
    this.#subnets.start(() => this.#loop?.trigger(), this.#lastKnown);
    running.defer(() => this.#file.flush());
    while (own) own = await this.#serve(own, signal);
  }

  async #forgetGone(): Promise<void> {
    try {
      const pods = (await forgetGone(this.#cniContext())).map(
        ({ podName, containerId }) => podName ?? containerId,
      );
      if (pods.length > 0) this.#log.info({ pods }, 'forgot pods that another plugin has ended');
    } catch (thrown) {
      this.#log.warn({ error: errorText(thrown) }, 'cannot tell which pods have ended without us');
    }
  }

  /** Our own node; as we last knew it, when nobody answers for a while. Undefined when the signal came first. */
  async #findOwn(signal: AbortSignal): Promise<OwnNode | undefined> {
    const found = waitForOwnNode(this.#subnets, this.#state, this.#log, signal);
    const silence = sleep(ANSWER_MS, 'silence' as const, { signal, ref: false }).catch(() => undefined);
    const first = await Promise.race([found, silence]);
    if (first !== 'silence') return first;
    const known = await this.#file.read();
    if (!known) return found;
    const { own, peers, at } = known;
    this.#lastKnown = peers;
    this.#state.lastKnownAt = at;
    const since = new Date(at).toISOString();
    this.#log.warn({ since, peers: peers.length }, 'nobody answers: going on with the last-known state');
    return own;
  }

  /** Be this node until the signal, or until it gets other podCIDRs: then it is another node, which is returned. */
  async #serve(own: OwnNode, signal: AbortSignal): Promise<OwnNode | undefined> {
    await using running = new AsyncDisposableStack();
    this.#state.begin();
    const podCidrs = ownPodCidrs(own, this.#netConf);
    const families = this.#families(podCidrs);
    this.#node = running.use(
      new NodePath({
        options: this.#options,
        netConf: this.#netConf,
        own,
        families,
        store: this.#store,
        log: this.#log,
      }),
    );

    const moved = new AbortController();
    let successor: OwnNode | undefined;
    const pass = async (): Promise<void> => {
      const snapshot = this.#subnets.snapshot(partsOf(podCidrs));
      successor = this.#movedTo(own, snapshot.own);
      if (successor) moved.abort();
      else await this.#pass(own, snapshot);
    };
    const loop = new Loop(pass, { settleMs: SETTLE_MS, auditMs: AUDIT_MS });
    this.#loop = loop;
    const node = this.#node;
    const monitors = [
      monitorKernel(
        (change) => {
          if (change !== 'pods') node.doubt(change === 'any');
          loop.trigger();
        },
        {
          onTrouble: (why) => this.#log.warn({ why }, 'ip monitor ended; it is started again'),
        },
      ),
      monitorRules(
        () => {
          node.auditNext();
          loop.trigger();
        },
        {
          onTrouble: (why) => this.#log.warn({ why }, 'nft monitor ended; it is started again'),
        },
      ),
    ];
    running.defer(async () => void (await Promise.all(monitors.map((monitor) => monitor.stop()))));
    await loop.run(AbortSignal.any([signal, moved.signal]));
    return signal.aborted ? undefined : successor;
  }

  /** Our own node when it has got other podCIDRs than these, and ones that serve. */
  #movedTo(own: OwnNode, now: OwnNode | undefined): OwnNode | undefined {
    const [was, is] = [own, now ?? own].map(({ podCidrs }) => podCidrs.map(formatCidr).join(','));
    if (!now || is === was) return undefined;
    try {
      ownPodCidrs(now, this.#netConf);
    } catch {
      return undefined; // As when the Node was deleted, and has none yet: what it had holds until then.
    }
    this.#log.error(
      { was, is },
      "this node's podCIDR has changed: pods from before keep addresses that no other node sends here; start them anew",
    );
    return now;
  }

  /** One pass: peers from Nodes, the node's path, maps and links, and our lease. */
  async #pass(own: OwnNode, snapshot: ClusterSnapshot): Promise<void> {
    const startedAt = performance.now();
    const { synced } = snapshot;
    if (synced && this.#lastKnown) {
      this.#log.info('all nodes are known again: the last-known state is history');
      this.#lastKnown = undefined;
      this.#state.lastKnownAt = undefined;
    }
    this.#state.setSnapshot(snapshot, this.#log);
    if (synced) this.#subnets.report?.(snapshot.alarms);
    // With `alloc` somebody else brings packets to other nodes.
    const peers = this.#netConf.backend.type === 'alloc' ? NOBODY : snapshot.peers;
    const outcomes = await applyPeers(this.#node!, peers, synced);
    this.#state.passed(outcomes, performance.now() - startedAt, this.#log);
    const failed = outcomes.filter(({ error }) => error !== undefined).map(({ target }) => target);
    this.#metrics.observePass(this.#state.lastDurationMs, failed);
    await this.#installConflist();
    const ips = Object.values(this.#node!.uplink?.ips ?? {}).join();
    if (this.#ips !== '' && ips !== this.#ips) this.#subnets.reconnect();
    this.#ips = ips;
    if (!synced) return;
    const { settings } = this.#node!;
    if (!settings) return;
    const now = snapshot.own ?? own;
    const lease = this.#leaseOf(settings);
    this.#publisher.say(now, lease);
    // Our Node tells the MACs only when the API server has answered what we publish; peers may use them, and we restart, before.
    const vtepMac = perFamily((family) => lease[familyKey(family)]?.vtepMac);
    this.#file.note({ own: { ...now, vtepMac }, peers: snapshot.nodes });
  }

  /** Tell the container runtime of us, once an ADD would succeed. A failure is told once, and each pass tries again. */
  async #installConflist(): Promise<void> {
    const { cniConf } = this.#options;
    if (!cniConf || this.#conflist.installed || this.#state.notReady !== undefined) return;
    try {
      const written = await installConflist(cniConf.source, cniConf.dir);
      this.#conflist.installed = true;
      if (written)
        this.#log.info({ dir: cniConf.dir }, 'pods can be wired: the CNI configuration is in place');
    } catch (error) {
      const why = errorText(error);
      if (why !== this.#conflist.lastError)
        this.#log.error({ error: why }, 'the CNI configuration is not in place; retrying');
      this.#conflist.lastError = why;
    }
  }

  /** What the others need to know of us, once this node forwards. */
  #leaseOf({ v4, v6, tunnel }: NodeSettings): OwnLease {
    const leaseOf = ({ vtepIp, vtepMac }: FamilySettings): LeasePart => ({
      publicIp: vtepIp,
      ...(tunnel && { vtepMac }),
    });
    return {
      ...(v4 && { v4: leaseOf(v4) }),
      ...(v6 && { v6: { ...leaseOf(v6), zeroChecksum: this.#node?.acceptsZeroChecksum === true } }),
      flannelIsUp: this.#options.setNodeNetworkUnavailable,
    };
  }

  /** The families that the cluster has, each with this node's part. */
  #families(podCidrs: PerFamily<Cidr>): NodeFamily[] {
    const { network, ipv6Network } = this.#netConf;
    return [
      ...(network && podCidrs.v4 ? [{ family: 4 as const, network, podCidr: podCidrs.v4 }] : []),
      ...(ipv6Network && podCidrs.v6
        ? [{ family: 6 as const, network: ipv6Network, podCidr: podCidrs.v6 }]
        : []),
    ];
  }

  /** What the CNI plugin works with. Before our own Node is known, pods can only be taken away. */
  #cniContext(): CniContext {
    const settings = this.#node?.settings;
    const known = [settings?.v4, settings?.v6].filter((one) => one !== undefined);
    const settled = async (): Promise<void> => this.#loop?.settled();
    return {
      families: known.map(({ network, podCidr }) => ({
        podCidr: formatCidr(podCidr),
        clusterNetwork: formatCidr(network),
        mtu: podMtu(settings!, podCidr.family),
      })),
      dataDir: this.#options.ipamDir,
      store: this.#store,
      attach: async () => {
        await settled();
        const failed = this.#state.lastErrors.find(({ target }) => target === 'pod-routes');
        if (failed) throw new RipstopError(`the pod's route could not be set: ${failed.error}`);
      },
      detach: settled,
      ready: () => {
        const reason = this.#state.notReady;
        return reason === undefined ? { ok: true } : { ok: false, reason };
      },
    };
  }

  #endpoints(): Record<string, Endpoint> {
    return {
      '/metrics': async () => ({
        body: await this.#metrics.registry.metrics(),
        contentType: this.#metrics.registry.contentType,
      }),
      '/healthz': async () => {
        const stuckMs = this.#loop?.underWayMs ?? 0;
        if (stuckMs < STUCK_MS) return { body: 'ok\n' };
        return { status: 503, body: `a pass has been under way for ${Math.round(stuckMs / 1000)} s\n` };
      },
      '/readyz': async () => {
        const why = this.#state.notReady;
        return why === undefined ? { body: 'ok\n' } : { status: 503, body: `not ready: ${why}\n` };
      },
      '/status': async () => ({
        body: JSON.stringify(this.#state.toStatus(this.#node)),
        contentType: 'application/json',
      }),
    };
  }
}

function refuseWhatIsNotBuilt({ mode }: AgentOptions): void {
  if (mode === 'boost') {
    throw new RipstopError(
      '--mode boost is not built yet; use --mode cni on a node without a running flanneld',
      { exitCode: 2 },
    );
  }
}

/** Our own node, asked for until there is an answer; undefined when the signal came first. */
async function waitForOwnNode(
  subnets: SubnetManager,
  state: AgentState,
  log: Logger,
  signal: AbortSignal,
): Promise<OwnNode | undefined> {
  let delayMs = 250;
  let said = '';
  while (!signal.aborted) {
    try {
      return await subnets.fetchOwn();
    } catch (error) {
      const why = errorText(error);
      state.waitingFor = why;
      if (why !== said)
        log.warn({ why }, 'cannot read our own Node yet; what is pinned keeps forwarding, trying on');
      said = why;
      await sleep(delayMs * (0.5 + Math.random()), undefined, { signal }).catch(() => {});
      // A kube-proxy that starts after us is to be noticed soon.
      const soon = error instanceof ApiError && error.nobodyThere;
      if (!soon) delayMs = Math.min(delayMs * 2, 15_000);
    }
  }
  return undefined;
}

const NOBODY: readonly Peer[] = [];

/** Bring the node's path and everything of its peers and pods to what it should be. Never throws: see the outcomes. */
async function applyPeers(node: NodePath, peers: readonly Peer[], synced: boolean): Promise<Outcome[]> {
  const problems = await node.ensure(peers, synced);
  try {
    return [...problems, ...(await node.apply(peers, synced))];
  } catch (error) {
    return [...problems, { target: 'node', upserts: 0, removals: 0, error: errorText(error) }];
  }
}
