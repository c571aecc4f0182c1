// SPDX-License-Identifier: Apache-2.0
/**
 * Alarms as Kubernetes Events on the Node concerned, where `kubectl describe node` shows them. Every node sees the same
 * alarms, and one of them reports each: which one follows from the alarm and the nodes' names, without coordination.
 */
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { errorText } from '../errors.ts';
import { type ApiClient, ApiError } from './api-client.ts';
import type { PeerAlarm } from './peer.ts';

export interface EventTiming {
  /** How often a lasting alarm is reported again: the API server forgets Events after an hour. */
  readonly repeatMs: number;
  /** How many may be sent at once… */
  readonly burst: number;
  /** …and then one in this time. */
  readonly refillMs: number;
  /** Between a failure and the next try. */
  readonly retryMs: number;
}

const usual: EventTiming = { repeatMs: 30 * 60_000, burst: 10, refillMs: 10_000, retryMs: 30_000 };

/** What is known of the Event of an alarm that lasts. */
interface Told {
  readonly firstTimestamp: string;
  readonly message: string;
  readonly count: number;
  /** On the monotonic clock. */
  readonly atMs: number;
}

/**
 * Which node reports an alarm: the one with the highest hash of both (rendezvous hashing), so that a node that comes or
 * goes moves only its own alarms. Never the node concerned: it may be broken, and does not see all that others do.
 * @param reporters the names of all nodes that run ripstop.
 */
export function reporterOf(
  alarm: Pick<PeerAlarm, 'node' | 'kind'>,
  reporters: Iterable<string>,
): string | undefined {
  let chosen: { name: string; weight: string } | undefined;
  for (const name of reporters) {
    if (name === alarm.node) continue;
    const weight = hashOf(name, alarm.node, alarm.kind);
    if (!chosen || weight > chosen.weight) chosen = { name, weight };
  }
  return chosen?.name;
}

/** The same for each reporter and each try, so that an alarm has one Event at any time. */
export function eventName({ node, uid, kind }: PeerAlarm): string {
  return `${node.slice(0, 200)}.${hashOf(uid, kind).slice(0, 16)}`;
}

/** `podcidr_conflict` → `PodcidrConflict`. */
export function eventReason(kind: string): string {
  return kind.replaceAll(/(?:^|_)([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

/** Reports this node's share of the alarms to the API server, at a limited rate. */
export class AlarmEvents {
  readonly #client: ApiClient;
  readonly #self: string;
  readonly #log: Logger;
  readonly #timing: EventTiming;
  readonly #stop = new AbortController();
  /** This node's share, by the name of the Event. */
  #lasting = new Map<string, PeerAlarm>();
  readonly #told = new Map<string, Told>();
  #tokens: number;
  #countedAtMs = performance.now();
  /** In a row. An API server that has just started forbids everything until it has read the roles. */
  #refusals = 0;
  #sending: Promise<void> | undefined;

  /** @param self this node's name. */
  constructor(client: ApiClient, self: string, log: Logger, timing: EventTiming = usual) {
    this.#client = client;
    this.#self = self;
    this.#log = log;
    this.#timing = timing;
    this.#tokens = timing.burst;
  }

  /**
   * These alarms are up now, and no others. Returns at once.
   * @param reporters the names of all nodes that run ripstop, asked for only when there is an alarm.
   */
  update(alarms: readonly PeerAlarm[], reporters: () => Iterable<string>): void {
    if (this.#stop.signal.aborted) return;
    const lasting = new Map<string, PeerAlarm>();
    if (alarms.length > 0) {
      const names = [...reporters()];
      for (const alarm of alarms) {
        // Without a UID there is no Node for the Event to refer to.
        if (alarm.uid === '' || reporterOf(alarm, names) !== this.#self) continue;
        const name = eventName(alarm);
        if (!lasting.has(name)) lasting.set(name, alarm);
      }
    }
    this.#lasting = lasting;
    for (const name of this.#told.keys()) if (!lasting.has(name)) this.#told.delete(name);
    if (!this.#sending && this.#due()) {
      this.#sending = this.#send().finally(() => (this.#sending = undefined));
    }
  }

  /** Resolves when nothing is under way any more. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#sending;
  }

  #due(): [name: string, alarm: PeerAlarm] | undefined {
    for (const [name, alarm] of this.#lasting) {
      const told = this.#told.get(name);
      if (told?.message !== alarm.reason || performance.now() - told.atMs > this.#timing.repeatMs)
        return [name, alarm];
    }
    return undefined;
  }

  /** One after the other, until all that are due have been sent. */
  async #send(): Promise<void> {
    const { signal } = this.#stop;
    for (let due = this.#due(); due && !signal.aborted; due = this.#due()) {
      try {
        await this.#takeToken(signal);
        // It may be over by now.
        if (this.#lasting.has(due[0])) await this.#tell(...due, signal);
        this.#refusals = 0;
      } catch (error) {
        if (signal.aborted) return;
        const { repeatMs, retryMs } = this.#timing;
        const refused = error instanceof ApiError && error.status === 403;
        this.#refusals = refused ? this.#refusals + 1 : 0;
        if (refused && this.#refusals === 2) {
          this.#log.warn(
            { why: error.message },
            'not allowed to write Events, so alarms are only in `ripstop status`, the metrics and this log; ' +
              'grant create and patch on events',
          );
        }
        this.#log.debug({ why: errorText(error) }, 'cannot write an Event; trying again');
        // An Event that the server always refuses must not hold up the others.
        if (error instanceof ApiError && error.status === 422)
          this.#note(...due, { firstTimestamp: '', count: 0 });
        const waitMs = this.#refusals < 2 ? retryMs : repeatMs;
        await sleep(waitMs, undefined, { signal }).catch(() => {});
      }
    }
  }

  async #tell(name: string, alarm: PeerAlarm, signal: AbortSignal): Promise<void> {
    const now = new Date().toISOString().replace(/\.\d+Z$/, 'Z');
    const before = this.#told.get(name);
    const firstTimestamp = before?.firstTimestamp ?? now;
    const count = (before?.count ?? 0) + 1;
    const message = alarm.reason;
    const again = async (change: object): Promise<void> => {
      await this.#client.request('PATCH', `/api/v1/namespaces/default/events/${encodeURIComponent(name)}`, {
        body: { lastTimestamp: now, message, ...change },
        contentType: 'application/merge-patch+json',
        signal,
      });
    };
    const create = async (): Promise<void> => {
      const body = { ...eventOf(name, alarm, this.#self), firstTimestamp, lastTimestamp: now, count };
      await this.#client.request('POST', '/api/v1/namespaces/default/events', { body, signal });
    };
    try {
      await (before ? again({ count }) : create());
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      // It has expired; or another node, or the agent before us, has told of it, and how often is not ours to say.
      if (before && error.status === 404) await create();
      else if (!before && error.status === 409) await again({});
      else throw error;
    }
    this.#note(name, alarm, { firstTimestamp, count });
  }

  #note(name: string, { reason }: PeerAlarm, event: Pick<Told, 'firstTimestamp' | 'count'>): void {
    this.#told.set(name, { ...event, message: reason, atMs: performance.now() });
  }

  async #takeToken(signal: AbortSignal): Promise<void> {
    const { burst, refillMs } = this.#timing;
    const now = performance.now();
    this.#tokens = Math.min(burst, this.#tokens + (now - this.#countedAtMs) / refillMs);
    this.#countedAtMs = now;
    this.#tokens -= 1;
    if (this.#tokens < 0) await sleep(-this.#tokens * refillMs, undefined, { signal });
  }
}

function eventOf(name: string, alarm: PeerAlarm, self: string): object {
  return {
    apiVersion: 'v1',
    kind: 'Event',
    metadata: { name, namespace: 'default' },
    involvedObject: { apiVersion: 'v1', kind: 'Node', name: alarm.node, uid: alarm.uid },
    type: 'Warning',
    reason: eventReason(alarm.kind),
    message: alarm.reason,
    source: { component: 'ripstop', host: self },
    reportingComponent: 'ripstop',
    reportingInstance: self,
  };
}

function hashOf(...parts: string[]): string {
  return createHash('sha256').update(parts.join('\0')).digest('hex');
}
