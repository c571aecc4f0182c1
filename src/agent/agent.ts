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
  fetchOwnNode,
  type LeaseSettings,
  leaseSettings,
  type NetConf,
  type OwnNode,
  ownPodCidrs,
  type ParsedNode,
  parseNode,
  parseOwnNode,
  PeerTable,
  type PeerView,
  publishLease,
  readNetConf,
  Reflector,
} from '../cluster/index.ts';
import { AttachmentStore } from '../cni/attachments.ts';
import type { CniContext } from '../cni/ops.ts';
import { createCniServer } from '../cni/server.ts';
import { type FamilySettings, type NodeSettings, type Peer, podMtu } from '../dataplane/desired.ts';
import { type Outcome, reconcile } from '../dataplane/reconcile.ts';
import { errorText, RipstopError } from '../errors.ts';
import { ensureBpffs } from '../host/mount.ts';
import { monitorKernel } from '../host/monitor.ts';
import { gatherHostFacts, missingRequirements } from '../host/requirements.ts';
import { readSubnetEnv, type SubnetEnv } from '../host/subnet-env.ts';
import { createMetrics, type Metrics } from '../metrics/metrics.ts';
import { type Endpoint, serveEndpoints } from '../metrics/server.ts';
import { type Cidr, formatCidr } from '../net/ip.ts';
import { Loop } from './loop.ts';
import { type NodeFamily, NodePath } from './node-path.ts';
import { type AgentOptions, runFiles } from './options.ts';
import { AgentState } from './state.ts';

const SETTLE_MS = 20;
const AUDIT_MS = 30_000;

/** What is kept of a Node object: its meaning as a peer, and for our own Node what publishing needs. */
interface NodeView {
  readonly parsed: ParsedNode;
  readonly own?: OwnNode;
}

/**
 * Run until the signal.
 * @throws RipstopError when this node cannot run ripstop or the configuration is wrong; an API server that is down is
 * waited for.
 */
export async function runAgent(options: AgentOptions, log: Logger, signal: AbortSignal): Promise<void> {
  refuseWhatIsNotBuilt(options);
  const missing = missingRequirements(await gatherHostFacts());
  if (missing.length > 0) throw new RipstopError(missing.join('; '));
  const netConf = await readNetConf(options.netConf);
  const client = await ApiClient.open(
    options.kubeconfig === undefined ? {} : { kubeconfig: options.kubeconfig },
  );
  if (await ensureBpffs(options.bpffs)) log.info({ bpffs: options.bpffs }, 'mounted a BPF file system');
  mkdirSync(options.runDir, { recursive: true, mode: 0o700 });
  await new Agent(options, netConf, client, log).run(signal);
}

class Agent {
  readonly #options: AgentOptions;
  readonly #netConf: NetConf;
  readonly #client: ApiClient;
  readonly #log: Logger;
  readonly #leaseSettings: LeaseSettings;
  readonly #state: AgentState;
  readonly #store: AttachmentStore;
  readonly #metrics: Metrics;
  /** Undefined until our own Node is known. */
  #node: NodePath | undefined;
  #loop: Loop | undefined;

  constructor(options: AgentOptions, netConf: NetConf, client: ApiClient, log: Logger) {
    this.#options = options;
    this.#netConf = netConf;
    this.#client = client;
    this.#log = log;
    this.#leaseSettings = leaseSettings(netConf);
    this.#state = new AgentState(options.nodeName);
    this.#store = new AttachmentStore(options.runDir);
    this.#metrics = createMetrics({
      tables: () => this.#node?.tables,
      api: () => this.#state.api,
      peers: () => this.#state.view.peers.length,
      endpoints: () => this.#node?.endpointCount ?? 0,
      alarms: () => this.#state.view.alarms.length,
    });
  }

  /** Who can be asked is up first, who changes the node comes last; they end in the reverse order. */
  async run(signal: AbortSignal): Promise<void> {
    await using running = new AsyncDisposableStack();
    running.defer(() => this.#client.close());
    const { runDir, metricsAddr, subnetFile, nodeName } = this.#options;
    const endpoints = await serveEndpoints(
      metricsAddr,
      join(runDir, runFiles.agentSocket),
      this.#endpoints(),
    );
    running.defer(() => endpoints.close());

    const before = await readSubnetEnv(subnetFile).catch(() => undefined);
    const cni = await createCniServer({
      socketPath: join(runDir, runFiles.cniSocket),
      log: this.#log,
      context: () => this.#cniContext(before),
    });
    running.defer(() => cni.close());

    const own = await waitForOwnNode(
      this.#client,
      nodeName,
      this.#leaseSettings,
      this.#state,
      this.#log,
      signal,
    );
    if (!own) return;
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

    const peerTable = new PeerTable();
    const reflector = new Reflector<NodeView>({
      client: this.#client,
      path: '/api/v1/nodes',
      project: (object) => viewNode(object, nodeName, this.#leaseSettings),
      onChange: () => loop.trigger(),
      log: this.#log,
    });
    const loop = new Loop(() => this.#pass(reflector, peerTable, own, Object.values(podCidrs)), {
      settleMs: SETTLE_MS,
      auditMs: AUDIT_MS,
    });
    this.#state.reflector = reflector;
    this.#loop = loop;
    const monitor = monitorKernel(() => loop.trigger(), {
      onTrouble: (why) => this.#log.warn({ why }, 'ip monitor ended; it is started again'),
    });
    running.defer(() => monitor.stop());
    running.defer(() => reflector.stop());
    reflector.start();
    await loop.run(signal);
  }

  /** One pass: peers from Nodes, the node's path, maps and links, and our lease. */
  async #pass(
    reflector: Reflector<NodeView>,
    peerTable: PeerTable,
    own: OwnNode,
    podCidrs: readonly Cidr[],
  ): Promise<void> {
    const startedAt = performance.now();
    const nodes = [...reflector.items.values()].map(({ value }) => value);
    const view = peerTable.update(
      nodes.map(({ parsed }) => parsed),
      { name: own.name, podCidrs },
    );
    this.#state.setView(view, this.#log);
    const outcomes = await applyPeers(this.#node!, view, reflector.synced);
    this.#state.passed(outcomes, performance.now() - startedAt, this.#log);
    const failed = outcomes.filter(({ error }) => error !== undefined).map(({ target }) => target);
    this.#metrics.observePass(this.#state.lastDurationMs, failed);
    const { settings } = this.#node!;
    if (reflector.synced && settings) {
      await this.#publish(nodes.find((node) => node.own)?.own ?? own, settings);
    }
  }

  /** Make our Node say where our VTEPs are, once this node forwards. */
  async #publish(own: OwnNode, { v4, v6 }: NodeSettings): Promise<void> {
    const leaseOf = (one: FamilySettings): { publicIp: string; vtepMac: string } => ({
      publicIp: one.vtepIp,
      vtepMac: one.vtepMac,
    });
    try {
      const lease = { ...(v4 && { v4: leaseOf(v4) }), ...(v6 && { v6: leaseOf(v6) }), flannelIsUp: true };
      const written = await publishLease(this.#client, own, lease, this.#leaseSettings);
      if (written) this.#log.info(lease, 'published our lease');
    } catch (error) {
      this.#log.warn({ why: errorText(error) }, 'cannot publish our lease; trying again at the next pass');
    }
  }

  /** The families that the cluster has, each with this node's part. */
  #families(podCidrs: { readonly v4?: Cidr; readonly v6?: Cidr }): NodeFamily[] {
    const { network, ipv6Network } = this.#netConf;
    return [
      ...(network && podCidrs.v4 ? [{ family: 4 as const, network, podCidr: podCidrs.v4 }] : []),
      ...(ipv6Network && podCidrs.v6
        ? [{ family: 6 as const, network: ipv6Network, podCidr: podCidrs.v6 }]
        : []),
    ];
  }

  /**
   * What the CNI plugin works with. Before our own Node is known, pods can only be taken away, with what the agent before
   * us has written about this node.
   */
  #cniContext(before: SubnetEnv | undefined): CniContext | undefined {
    const settings = this.#node?.settings;
    const known = [settings?.v4, settings?.v6].filter((one) => one !== undefined);
    const networks = settings ? known : (before?.networks ?? []);
    if (networks.length === 0) return undefined;
    const settled = async (): Promise<void> => this.#loop?.settled();
    return {
      families: networks.map(({ network, podCidr }) => ({
        podCidr: formatCidr(podCidr),
        clusterNetwork: formatCidr(network),
        mtu: settings ? podMtu(settings, podCidr.family) : before!.mtu,
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
      '/healthz': async () => ({ body: 'ok\n' }),
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

/** Our own Node, asked for until the API server answers; undefined when the signal came first. */
async function waitForOwnNode(
  client: ApiClient,
  name: string,
  settings: LeaseSettings,
  state: AgentState,
  log: Logger,
  signal: AbortSignal,
): Promise<OwnNode | undefined> {
  let delayMs = 250;
  let said = '';
  while (!signal.aborted) {
    try {
      return await fetchOwnNode(client, name, settings);
    } catch (error) {
      const why = errorText(error);
      state.waitingFor = why;
      if (why !== said)
        log.warn({ why }, 'cannot read our own Node yet; what is pinned keeps forwarding, trying on');
      said = why;
      await sleep(delayMs * (0.5 + Math.random()), undefined, { signal }).catch(() => {});
      delayMs = Math.min(delayMs * 2, 15_000);
    }
  }
  return undefined;
}

function viewNode(object: unknown, ownName: string, settings: LeaseSettings): NodeView {
  const parsed = parseNode(object, settings);
  if (parsed.name !== ownName) return { parsed };
  try {
    return { parsed, own: parseOwnNode(object, settings) };
  } catch {
    return { parsed };
  }
}

/** Bring the node's path and everything of its peers and pods to what it should be. Never throws: see the outcomes. */
async function applyPeers(node: NodePath, view: PeerView, synced: boolean): Promise<Outcome[]> {
  const peers: Peer[] = view.peers.flatMap(({ name, v4, v6 }) =>
    [v4, v6].flatMap((one) => (one ? [{ name, ...one }] : [])),
  );
  const problems = await node.ensure(peers, synced);
  try {
    return [...problems, ...(await reconcile(await node.steps(peers, synced)))];
  } catch (error) {
    return [...problems, { target: 'node', upserts: 0, removals: 0, error: errorText(error) }];
  }
}
