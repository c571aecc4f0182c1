// SPDX-License-Identifier: Apache-2.0

/** A value is at most so old, where reading it costs little. The page polls once a second. */
const FRESH_MS = 900;
/** Nobody looks any more. */
const IDLE_MS = 10_000;

/**
 * A value that is read while somebody asks for it, and so seldom that reading takes no larger share of a core than it
 * may, however much there is to read and however many ask.
 */
export class Paced<T> {
  readonly #read: (before: T | undefined) => T;
  readonly #share: number;
  #value: T | undefined;
  #staleAtMs = -Infinity;
  /** The CPU time of the last two readings. The first of all is left out: code is compiled for it. */
  #costsMs: readonly number[] | undefined;
  #idle: NodeJS.Timeout | undefined;

  /**
   * @param share of a core, such as 0.005.
   * @param read gets the last value, unless nobody has asked for a while: nothing is kept for nobody.
   */
  constructor(share: number, read: (before: T | undefined) => T) {
    this.#share = share;
    this.#read = read;
  }

  get(): T {
    const begun = performance.now();
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => (this.#value = undefined), IDLE_MS);
    this.#idle.unref();
    if (this.#value !== undefined && begun < this.#staleAtMs) return this.#value;
    const before = process.cpuUsage();
    const value = this.#read(this.#value);
    const { user, system } = process.cpuUsage(before);
    const costMs = (user + system) / 1000;
    this.#costsMs = this.#costsMs ? [...this.#costsMs.slice(-1), costMs] : [];
    const meanMs = this.#costsMs.reduce((sum, one) => sum + one, 0) / Math.max(1, this.#costsMs.length);
    this.#staleAtMs = begun + Math.max(FRESH_MS, meanMs / this.#share);
    this.#value = value;
    return value;
  }
}
