// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import type { ClusterSnapshot, SubnetManager } from '../cluster/index.ts';
import type { Outcome } from '../dataplane/reconcile.ts';
import { formatCidr } from '../net/ip.ts';
import { vtepDeviceName } from '../host/vtep-device.ts';
import type { NodePath } from './node-path.ts';
import type { AgentStatus } from './status.ts';

/** What the endpoints tell about the agent. */
export class AgentState {
  readonly #name: string;
  /** Undefined before it is followed. */
  source: Pick<SubnetManager, 'health'> | undefined;
  /** As of the last pass; undefined before the first. */
  snapshot: ClusterSnapshot | undefined;
  waitingFor = 'starting';
  /** Since when what we go by may be untrue (ms since 1970); undefined while it comes from the API server. */
  lastKnownAt: number | undefined;
  lastErrors: readonly Outcome[] = [];
  lastDurationMs = 0;
  #passes = 0;
  /** How many passes there were before the node's path was begun anew. */
  #begunAt = 0;
  #errors = 0;

  constructor(name: string) {
    this.#name = name;
  }

  get api(): { connected: boolean; lastEventAgeMs?: number | undefined } {
    return this.source?.health ?? { connected: false };
  }

  get lastKnownAgeMs(): number | undefined {
    return this.lastKnownAt === undefined ? undefined : Math.max(0, Date.now() - this.lastKnownAt);
  }

  get notReady(): string | undefined {
    if (!this.source) return this.waitingFor;
    if (this.#passes === this.#begunAt) return 'the first pass is under way';
    const fatal = this.lastErrors.find(({ target }) => target === 'node');
    return fatal?.error;
  }

  /** From here on nothing is ready before there was another pass. */
  begin(): void {
    this.#begunAt = this.#passes;
  }

  setSnapshot(snapshot: ClusterSnapshot, log: Logger): void {
    const before = this.snapshot;
    this.snapshot = snapshot;
    if (snapshot.revision === before?.revision) return;
    const known = new Set(before?.alarms.map(({ node, reason }) => `${node} ${reason}`));
    for (const alarm of snapshot.alarms)
      if (!known.has(`${alarm.node} ${alarm.reason}`)) log.warn(alarm, 'a node needs a look');
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
    const health = this.source?.health;
    const { lastKnownAgeMs } = this;
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
                  ip: one.vtepIp,
                  ...(settled?.tunnel && {
                    device: vtepDeviceName(one.podCidr.family, settled.tunnel.vni),
                    mac: one.vtepMac,
                  }),
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
        synced: this.snapshot?.synced ?? false,
        ...(health?.lastEventAgeMs !== undefined && { lastEventAgeMs: Math.round(health.lastEventAgeMs) }),
        ...(health?.lastError !== undefined && { lastError: health.lastError }),
        ...(lastKnownAgeMs !== undefined && { lastKnownAgeMs }),
      },
      peers: (this.snapshot?.peers ?? []).map(({ name, podCidr, vtepIp }) => ({
        name,
        podCidr: formatCidr(podCidr),
        vtepIp,
      })),
      alarms: this.snapshot?.alarms ?? [],
      passes: {
        count: this.#passes,
        errors: this.#errors,
        lastDurationMs: Math.round(this.lastDurationMs),
        lastErrors: this.lastErrors,
      },
    };
  }
}
