// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { LogOnce } from '../log-once.ts';
import { backoffMs, type BackoffTiming } from './backoff.ts';
import type { SourceActivity, SourceHealth } from './subnet-manager.ts';

/** How to list and watch one kind of server. */
export interface ListWatchSource {
  /**
   * Get everything, and take it over only when it is complete.
   * @returns whether anything differs from before.
   */
  list(signal: AbortSignal): Promise<boolean>;
  /**
   * Follow the changes, from what was last seen on.
   * @returns what comes next without a fault: another watch, or another list.
   */
  watch(signal: AbortSignal): Promise<'watch' | 'list'>;
  /** What an error of either means. */
  faultOf(error: unknown): Fault;
  /** Something differs, or everything has been seen for the first time. Should only take a note. */
  onChange(): void;
}

export interface Fault {
  /** A word, by which faults are counted. */
  readonly kind: string;
  readonly text: string;
  /** Whether what was last seen is of no use to a watch, or in doubt: list again. */
  readonly relist: boolean;
  /** What the server asked for. */
  readonly retryAfterMs?: number | undefined;
  /** Nobody listens at the server's address; see ApiError. */
  readonly nobodyThere?: boolean | undefined;
}

/**
 * List once, then watch, for ever. When a watch ends, the next one continues from what was last seen, so nothing is
 * missed and nothing is listed again. It lists again only when that is impossible or in doubt. After a fault it backs
 * off, and what is known stays: a fault of the server costs freshness, never state.
 */
export class ListWatch {
  readonly #source: ListWatchSource;
  readonly #timing: BackoffTiming;
  readonly #log: Logger;
  readonly #failure: LogOnce;
  readonly #stopping = new AbortController();
  #running: Promise<void> | undefined;
  #synced = false;
  #listNext = true;
  #connected = false;
  #lastEventAt: number | undefined;
  #lists = 0;
  #watches = 0;
  readonly #faults: Record<string, number> = {};
  /** Faults since a watch last proved itself; sets the back-off. */
  #failures = 0;

  constructor(source: ListWatchSource, timing: BackoffTiming, log: Logger) {
    this.#source = source;
    this.#timing = timing;
    this.#log = log;
    this.#failure = new LogOnce(log, 'cannot list or watch; the last known state stays, retrying');
  }

  /** Whether a complete list was seen since the start: before that, absence means nothing. */
  get synced(): boolean {
    return this.#synced;
  }

  get activity(): SourceActivity {
    return { lists: this.#lists, watches: this.#watches, faults: { ...this.#faults } };
  }

  get health(): SourceHealth {
    const { reason } = this.#failure;
    return {
      connected: this.#connected,
      activity: this.activity,
      ...(this.#lastEventAt !== undefined && { lastEventAgeMs: performance.now() - this.#lastEventAt }),
      ...(reason !== undefined && { lastError: reason }),
    };
  }

  /** Begin; returns at once, and goes on for ever. */
  start(): void {
    this.#running ??= this.#run(this.#stopping.signal);
  }

  /** End for good; resolves when the last connection is closed. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
  }

  /** The watch is open. */
  connected(): void {
    if (!this.#connected) this.#watches++;
    this.#connected = true;
  }

  /** A fault was met. */
  count(kind: string): void {
    this.#faults[kind] = (this.#faults[kind] ?? 0) + 1;
  }

  /** The server has sent something. */
  seen(): void {
    this.#lastEventAt = performance.now();
  }

  /** The watch works: the next fault is a new one. */
  proven(): void {
    this.#failures = 0;
    this.#failure.over('watching again');
  }

  /** Something differs. */
  changed(): void {
    try {
      this.#source.onChange();
    } catch (error) {
      this.#log.error({ err: error }, 'onChange failed');
    }
  }

  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        if (this.#listNext) await this.#list(signal);
        await this.#watch(signal);
      } catch (error) {
        if (signal.aborted) return;
        await sleep(this.#noteFault(error), undefined, { signal }).catch(() => {});
      }
    }
  }

  async #watch(signal: AbortSignal): Promise<void> {
    try {
      this.#listNext = (await this.#source.watch(signal)) === 'list';
    } finally {
      this.#connected = false;
    }
  }

  async #list(signal: AbortSignal): Promise<void> {
    const changed = await this.#source.list(signal);
    const first = !this.#synced;
    this.#lists++;
    this.#listNext = false;
    this.#synced = true;
    this.seen();
    if (changed || first) this.changed();
  }

  /** @returns how long to wait before the next attempt, in ms. */
  #noteFault(error: unknown): number {
    const { kind, text, relist, retryAfterMs, nobodyThere } = this.#source.faultOf(error);
    this.count(kind);
    if (relist) this.#listNext = true;
    // A node that has just started waits only for its own kube-proxy. Later the whole cluster may be waiting.
    const failures = nobodyThere && !this.#synced ? 0 : this.#failures;
    const delayMs = backoffMs(this.#timing, failures, retryAfterMs);
    this.#failures++;
    const retryInMs = Math.round(delayMs);
    this.#failure.met(text, { failures: this.#failures, retryInMs, nextIsList: this.#listNext });
    return delayMs;
  }
}
