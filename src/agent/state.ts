// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import type { PeerView, Reflector } from '../cluster/index.ts';
import type { Outcome } from '../dataplane/reconcile.ts';
import { formatCidr } from '../net/ip.ts';
import { type NodePath, vtepDeviceName } from './node-path.ts';
import type { AgentStatus } from './status.ts';

/** What the endpoints tell about the agent. */
export class AgentState {
  readonly #name: string;
  reflector: Pick<Reflector<unknown>, 'health' | 'synced'> | undefined;
  view: PeerView = { peers: [], alarms: [] };
  waitingFor = 'starting';
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

  toStatus(node: NodePath | undefined): AgentStatus {
    const health = this.reflector?.health;
    const settled = node?.settings;
    const why = this.notReady;
    return {
      node: this.#name,
      mode: 'cni',
      ...(node?.ingress && { ingress: node.ingress }),
      ready: why === undefined,
      ...(why !== undefined && { notReady: why }),
      families: [settled?.v4, settled?.v6].flatMap((one) =>
        one
          ? [
              {
                network: formatCidr(one.network),
                podCidr: formatCidr(one.podCidr),
                vtep: {
                  device: vtepDeviceName(one.podCidr.family, settled!.vni),
                  ip: one.vtepIp,
                  mac: one.vtepMac,
                },
              },
            ]
          : [],
      ),
      ...(node?.uplink && {
        uplink: {
          name: node.uplink.name,
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
      peers: this.view.peers.flatMap(({ name, v4, v6 }) =>
        [v4, v6].flatMap((one) =>
          one ? [{ name, podCidr: formatCidr(one.podCidr), vtepIp: one.vtepIp }] : [],
        ),
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
