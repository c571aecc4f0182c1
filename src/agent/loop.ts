// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { RipstopError } from '../errors.ts';

/**
 * Runs a pass whenever something changed, one at a time and at its own pace: events only mark the state dirty, so a storm
 * of them costs one pass. Without events a pass runs every `auditMs`, which repairs what drifted unseen.
 */
export class Loop {
  readonly #pass: () => Promise<void>;
  readonly #settleMs: number;
  readonly #auditMs: number;
  #begunAt: number | undefined;
  /** Events so far. */
  #heard = 0;
  #dirty = Promise.withResolvers<void>();
  /** Resolved by the first pass that starts after the promise was handed out. */
  #next = Promise.withResolvers<void>();

  /** @param settleMs how long it is quiet before a pass takes all events so far; ten times that, and it does not wait for quiet. */
  constructor(pass: () => Promise<void>, { settleMs, auditMs }: { settleMs: number; auditMs: number }) {
    this.#pass = pass;
    this.#settleMs = settleMs;
    this.#auditMs = auditMs;
  }

  /** How long the pass under way has been so, in ms; 0 between passes. */
  get underWayMs(): number {
    return this.#begunAt === undefined ? 0 : performance.now() - this.#begunAt;
  }

  /** Something changed. */
  trigger(): void {
    this.#heard++;
    this.#dirty.resolve();
  }

  /**
   * Trigger a pass and wait for the end of one that began after this call.
   * @throws RipstopError when the loop ends before that.
   */
  async settled(): Promise<void> {
    this.trigger();
    await this.#next.promise;
  }

  /** Let events gather, for longer as long as they keep coming: who waits for the last of them waits for one pass only. */
  async #settle(): Promise<void> {
    for (let waited = 0, heard = -1; heard !== this.#heard && waited < 10; waited++) {
      heard = this.#heard;
      await sleep(this.#settleMs);
    }
  }

  /** Run passes until the signal; each begins as soon as there is a reason. Who waits for one more then is told so. */
  async run(signal: AbortSignal): Promise<void> {
    const stopped = new Promise<void>((resolve) => {
      signal.addEventListener('abort', () => resolve(), { once: true });
    });
    while (!signal.aborted) {
      const waiting = this.#next;
      this.#next = Promise.withResolvers();
      this.#dirty = Promise.withResolvers();
      this.#begunAt = performance.now();
      await this.#pass();
      this.#begunAt = undefined;
      waiting.resolve();
      const audit = new AbortController();
      await Promise.race([
        this.#dirty.promise,
        stopped,
        sleep(this.#auditMs, undefined, { signal: audit.signal }).catch(() => {}),
      ]);
      audit.abort();
      if (!signal.aborted) await this.#settle();
    }
    this.#next.promise.catch(() => {}); // mostly nobody waits
    this.#next.reject(new RipstopError('the agent is stopping; try again when it runs'));
  }
}
