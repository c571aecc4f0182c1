// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * Runs a pass whenever something changed, one pass at a time. Events during a pass only cause one more pass, so a burst
 * of them is cheap. Without events the next pass runs when the last one asked for it.
 */
export class Loop {
  readonly #pass: () => Promise<number>;
  readonly #settleMs: number;
  #begunAt: number | undefined;
  /** Events so far. */
  #events = 0;
  #dirty = Promise.withResolvers<void>();

  /**
   * @param pass returns in how many ms the next one is due if nothing happens before.
   * @param settleMs how long there must be no event before a pass starts; after ten times that it starts in any case.
   */
  constructor(pass: () => Promise<number>, { settleMs }: { settleMs: number }) {
    this.#pass = pass;
    this.#settleMs = settleMs;
  }

  /** How long the current pass has been running, in ms; 0 between passes. */
  get underWayMs(): number {
    return this.#begunAt === undefined ? 0 : performance.now() - this.#begunAt;
  }

  /** Something changed. */
  trigger(): void {
    this.#events++;
    this.#dirty.resolve();
  }

  /** Wait as long as events keep coming, so that one pass handles them all. */
  async #settle(): Promise<void> {
    for (let waited = 0, seen = -1; seen !== this.#events && waited < 10; waited++) {
      seen = this.#events;
      await sleep(this.#settleMs);
    }
  }

  /** Run passes until the signal. */
  async run(signal: AbortSignal): Promise<void> {
    const stopped = new Promise<void>((resolve) => {
      signal.addEventListener('abort', () => resolve(), { once: true });
    });
    while (!signal.aborted) {
      this.#dirty = Promise.withResolvers();
      this.#begunAt = performance.now();
      const dueMs = await this.#pass();
      this.#begunAt = undefined;
      const due = new AbortController();
      const timer = sleep(dueMs, undefined, { signal: due.signal }).catch(() => {});
      await Promise.race([this.#dirty.promise, stopped, timer]);
      due.abort();
      if (!signal.aborted) await this.#settle();
    }
  }
}
