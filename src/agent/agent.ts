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
import { createCniServer } from '../cni/server.ts';
import { type NodeSettings, type Peer, podMtu } from '../dataplane/desired.ts';
import { type Outcome, reconcile } from '../dataplane/reconcile.ts';
import { errorText, RipstopError } from '../errors.ts';
import { ensureBpffs } from '../host/mount.ts';
import { monitorKernel } from '../host/monitor.ts';
import { gatherHostFacts, missingRequirements } from '../host/requirements.ts';
import { createMetrics } from '../metrics/metrics.ts';
import { serveEndpoints } from '../metrics/server.ts';
import { type Cidr, formatCidr } from '../net/ip.ts';
import { Loop } from './loop.ts';
import { NodePath } from './node-path.ts';
import { type AgentOptions, runFiles } from './options.ts';
import type { AgentStatus } from './status.ts';

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
  if (!netConf.network || netConf.enableIpv6) {
    throw new RipstopError(
      `${options.netConf} enables IPv6, which this version does not carry yet; set EnableIPv6 to false`,
    );
  }
  if (await ensureBpffs(options.bpffs)) log.info({ bpffs: options.bpffs }, 'mounted a BPF file system');
  mkdirSync(options.runDir, { recursive: true, mode: 0o700 });

  const settings = leaseSettings(netConf);
  await using client = await openClient(options);
  const state = new AgentState(options.nodeName);
  const store = new AttachmentStore(options.runDir);
  let node: NodePath | undefined;

  const metrics = createMetrics({
    tables: () => node?.tables,
    api: () => state.api,
    peers: () => state.view.peers.length,
    endpoints: () => node?.endpointCount ?? 0,
    alarms: () => state.view.alarms.length,
  });
  const server = await serveEndpoints(options.metricsAddr, join(options.runDir, runFiles.agentSocket), {
    '/metrics': async () => ({
      body: await metrics.registry.metrics(),
      contentType: metrics.registry.contentType,
    }),
    '/healthz': async () => ({ body: 'ok\n' }),
    '/readyz': async () => {
      const why = state.notReady;
      return why === undefined ? { body: 'ok\n' } : { status: 503, body: `not ready: ${why}\n` };
    },
    '/status': async () => ({
      body: JSON.stringify(state.toStatus(node, netConf.network)),
      contentType: 'application/json',
    }),
  });

  try {
    const own = await waitForOwnNode(client, options.nodeName, settings, state, log, signal);
    if (!own) return;
    const podCidr = ownPodCidrs(own, netConf).v4!;
    node = new NodePath({
      options,
      netConf: { ...netConf, network: netConf.network },
      own,
      podCidr,
      store,
      log,
    });
    const running = node;

    const peerTable = new PeerTable();
    const reflector = new Reflector<NodeView>({
      client,
      path: '/api/v1/nodes',
      project: (object) => viewNode(object, options.nodeName, settings),
      onChange: () => loop.trigger(),
      log,
    });
    state.reflector = reflector;

    const loop = new Loop(
      async () => {
        const startedAt = performance.now();
        const nodes = [...reflector.items.values()];
        state.setView(
          peerTable.update(
            nodes.map(({ value }) => value.parsed),
            { name: own.name, podCidrs: [podCidr] },
          ),
          log,
        );
        const outcomes = await pass(running, state.view, reflector.synced);
        state.passed(outcomes, performance.now() - startedAt, log);
        metrics.observePass(
          state.lastDurationMs,
          outcomes.filter((outcome) => outcome.error !== undefined).map(({ target }) => target),
        );
        const now = nodes.find(({ name }) => name === own.name)?.value.own ?? own;
        const settled = running.settings;
        if (reflector.synced && settled) await publish(client, now, settled, state, settings, log);
      },
      { settleMs: SETTLE_MS, auditMs: AUDIT_MS },
    );

    const cni = await createCniServer({
      socketPath: join(options.runDir, runFiles.cniSocket),
      log,
      context: () => {
        const settled = running.settings;
        if (!settled) return undefined;
        return {
          podCidr: formatCidr(podCidr),
          clusterNetwork: formatCidr(settled.network),
          mtu: podMtu(settled),
          cniPath: [],
          dataDir: options.ipamDir,
          store,
          attach: async () => {
            await loop.settled();
            const failed = state.lastErrors.find(({ target }) => target === 'pod-routes');
            if (failed) throw new RipstopError(`the pod's route could not be set: ${failed.error}`);
          },
          detach: () => loop.settled(),
          ready: () => (state.notReady === undefined ? { ok: true } : { ok: false, reason: state.notReady }),
        };
      },
    });
    const monitor = monitorKernel(() => loop.trigger(), {
      onTrouble: (why) => log.warn({ why }, 'ip monitor ended; it is started again'),
    });
    reflector.start();
    try {
      await loop.run(signal);
    } finally {
      await Promise.allSettled([cni.close(), monitor.stop(), reflector.stop()]);
    }
  } finally {
    await server.close();
    node?.[Symbol.dispose]();
  }
}

function refuseWhatIsNotBuilt({ mode, ingress }: AgentOptions): void {
  if (mode === 'boost') {
    throw new RipstopError(
      '--mode boost is not built yet; use --mode cni on a node without a running flanneld',
      { exitCode: 2 },
    );
  }
  if (ingress === 'xdp') {
    throw new RipstopError('--ingress xdp is not built yet; use --ingress tc', { exitCode: 2 });
  }
}

async function openClient({ kubeconfig }: AgentOptions): Promise<ApiClient & AsyncDisposable> {
  const client = await ApiClient.open(kubeconfig === undefined ? {} : { kubeconfig });
  return Object.assign(client, { [Symbol.asyncDispose]: async () => client.close() });
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

/** One pass over node, maps and kernel path. Never throws: what failed is in the outcomes. */
async function pass(node: NodePath, view: PeerView, synced: boolean): Promise<Outcome[]> {
  const problems = await node.ensure();
  const peers: Peer[] = view.peers.flatMap(({ name, v4 }) => (v4 ? [{ name, ...v4 }] : []));
  try {
    return [...problems, ...(await reconcile(await node.steps(peers, synced)))];
  } catch (error) {
    return [...problems, { target: 'node', upserts: 0, removals: 0, error: errorText(error) }];
  }
}

/** Make our Node say where our VTEP is, once this node forwards. */
async function publish(
  client: ApiClient,
  own: OwnNode,
  { uplink, vtepMac }: NodeSettings,
  state: AgentState,
  settings: LeaseSettings,
  log: Logger,
): Promise<void> {
  try {
    const lease = { v4: { publicIp: uplink.ip, vtepMac }, flannelIsUp: true };
    if (await publishLease(client, own, lease, settings)) log.info(lease.v4, 'published our lease');
    state.published = true;
  } catch (error) {
    log.warn({ why: errorText(error) }, 'cannot publish our lease; trying again at the next pass');
  }
}

/** What the endpoints tell about the agent. */
class AgentState {
  readonly #name: string;
  reflector: Reflector<NodeView> | undefined;
  view: PeerView = { peers: [], alarms: [] };
  waitingFor = 'starting';
  published = false;
  lastErrors: readonly Outcome[] = [];
  lastDurationMs = 0;
  #passes = 0;
  #errors = 0;

  constructor(name: string) {
    this.#name = name;
  }

  get api(): { connected: boolean; lastEventAgeMs?: number | undefined } {
    return this.reflector?.health ?? { connected: false };
  }

  get notReady(): string | undefined {
    if (!this.reflector) return this.waitingFor;
    if (this.#passes === 0) return 'the first pass is under way';
    const fatal = this.lastErrors.find(({ target }) => target === 'node');
    return fatal?.error;
  }

  setView(view: PeerView, log: Logger): void {
    const known = new Set(this.view.alarms.map(({ node, reason }) => `${node} ${reason}`));
    for (const alarm of view.alarms)
      if (!known.has(`${alarm.node} ${alarm.reason}`)) log.warn(alarm, 'a node needs a look');
    this.view = view;
  }

  passed(outcomes: readonly Outcome[], durationMs: number, log: Logger): void {
    this.#passes++;
    this.lastDurationMs = durationMs;
    const known = new Set(this.lastErrors.map(({ target, error }) => `${target} ${error}`));
    this.lastErrors = outcomes.filter(({ error }) => error !== undefined);
    this.#errors += this.lastErrors.length;
    for (const { target, error } of this.lastErrors) {
      if (!known.has(`${target} ${error}`))
        log.error({ target, error }, 'not in its desired state; trying again');
    }
    const changed = outcomes.filter(({ upserts, removals }) => upserts + removals > 0);
    if (changed.length > 0) {
      const summary = changed
        .map(({ target, upserts, removals }) => `${target} +${upserts} -${removals}`)
        .join(', ');
      log.info({ changed: summary, durationMs: Math.round(durationMs) }, 'applied');
    }
  }

  toStatus(node: NodePath | undefined, network: Cidr | undefined): AgentStatus {
    const health = this.reflector?.health;
    const settled = node?.settings;
    const why = this.notReady;
    return {
      node: this.#name,
      mode: 'cni',
      ingress: 'tc',
      ready: why === undefined,
      ...(why !== undefined && { notReady: why }),
      ...(network && { network: formatCidr(network) }),
      ...(settled && {
        podCidr: formatCidr(settled.podCidr),
        vtep: { device: `flannel.${settled.vni}`, mac: settled.vtepMac },
      }),
      ...(node?.uplink && {
        uplink: {
          name: node.uplink.name,
          ip: node.uplink.ip,
          mtu: node.uplink.mtu,
          explanation: node.uplink.explanation,
        },
      }),
      api: {
        connected: health?.connected ?? false,
        synced: this.reflector?.synced ?? false,
        ...(health?.lastEventAgeMs !== undefined && { lastEventAgeMs: Math.round(health.lastEventAgeMs) }),
        ...(health?.lastError !== undefined && { lastError: health.lastError }),
      },
      peers: this.view.peers.flatMap(({ name, v4 }) =>
        v4 ? [{ name, podCidr: formatCidr(v4.podCidr), vtepIp: v4.vtepIp }] : [],
      ),
      alarms: this.view.alarms,
      passes: {
        count: this.#passes,
        errors: this.#errors,
        lastDurationMs: Math.round(this.lastDurationMs),
        lastErrors: this.lastErrors,
      },
    };
  }
}
