// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import { errorText } from './errors.ts';

/**
 * Logs a failure that is retried: once, not at each attempt, and again only when its reason changes or it comes back.
 *
 *   const failure = new LogOnce(log, 'cannot publish our lease; retrying');
 *   try { await publish(); failure.over('published our lease'); } catch (error) { failure.met(error); }
 */
export class LogOnce {
  readonly #log: Logger;
  readonly #message: string;
  readonly #level: 'warn' | 'error';
  #reason: string | undefined;

  /** @param message what fails, and what happens now. */
  constructor(log: Logger, message: string, level: 'warn' | 'error' = 'warn') {
    this.#log = log;
    this.#message = message;
    this.#level = level;
  }

  /** Why it failed last; undefined when it did not, or has worked since. */
  get reason(): string | undefined {
    return this.#reason;
  }

  /**
   * It failed.
   * @param why the error, or a text.
   * @param fields more for the log; not compared.
   */
  met(why: unknown, fields: object = {}): void {
    const reason = errorText(why);
    if (reason !== this.#reason) this.#log[this.#level]({ ...fields, why: reason }, this.#message);
    else this.#log.debug({ ...fields, why: reason }, this.#message);
    this.#reason = reason;
  }

  /** It worked. @param message logged if it had failed before. */
  over(message?: string): void {
    if (this.#reason !== undefined && message !== undefined) this.#log.info(message);
    this.#reason = undefined;
  }
}
