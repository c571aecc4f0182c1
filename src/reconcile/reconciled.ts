// SPDX-License-Identifier: Apache-2.0
import { errorText } from '../errors.ts';
import { diff, type Difference, type Failures, isSame, noFailures, type Target } from './target.ts';

/** What a plan says about one target. */
export interface Desired<V> {
  /** What the entries are made from, as text: the same revision stands for the same entries. */
  readonly revision: string;
  /** Computed only when the target is looked at; the same each time. */
  readonly entries: () => ReadonlyMap<string, V>;
  /** Whether these are all. While there may be more (before the first sync), nothing is removed. */
  readonly complete: boolean;
  /** Keys that there should be and cannot be, and why: they count as failed. */
  readonly impossible?: () => ReadonlyMap<string, string>;
}

/** A key that is not as it should be. `sinceMs` is in ms since 1970. */
export interface Failure {
  readonly key: string;
  readonly why: string;
  readonly sinceMs: number;
}

/** How a target stands; every desired key that is not among `pending` and `failures` is ok. */
export interface TargetStatus {
  readonly name: string;
  /** How many entries there should be. */
  readonly desired: number;
  /** How many were not tried yet. */
  readonly pending: number;
  readonly failures: readonly Failure[];
  /** Since when all of this is so, in ms since 1970. */
  readonly sinceMs: number;
}

/** What one pass did to one target: entries that were written, and how many failures there were. */
export interface Outcome {
  readonly target: string;
  readonly upserts: number;
  readonly removals: number;
  readonly failures: number;
}

export interface ReconciledOptions {
  /**
   * Remember what the target holds, so that a change costs what it changes and not a list. For few entries only;
   * events and audits tell what others change.
   */
  readonly remembers?: boolean;
}

/** The key of a failure that is not about one key, as when the target cannot be listed. */
export const WHOLE_TARGET = '*';

const FIRST_RETRY_MS = 1000;
const LAST_RETRY_MS = 30_000;

/** One pass over one target. Nothing of it throws: what failed is in the outcome and in the target's status. */
export interface Pass {
  upsert(): Promise<void>;
  /** After the upserts of all targets. */
  remove(): Promise<void>;
  end(nowMs: number): Outcome;
}

/** A target, and what came of keeping it: a status per key. One object for as long as the target is kept. */
export class Reconciled<V> {
  readonly target: Target<V>;
  readonly #remembers: boolean;
  /** What the target was last found, or brought, to agree with; undefined: it must be looked at. */
  #verified: { readonly revision: string; readonly complete: boolean } | undefined;
  #actual: Map<string, V> | undefined;
  #invalidations = 0;
  readonly #failures = new Map<string, Failure>();
  #desired: ReadonlyMap<string, V> | undefined;
  #size = 0;
  #tried = false;
  #sinceMs = Date.now();
  /** After a failure: when it is tried again (monotonic). */
  #retry: { readonly revision: string; readonly atMs: number; readonly delayMs: number } | undefined;

  constructor(target: Target<V>, { remembers = false }: ReconciledOptions = {}) {
    this.target = target;
    this.#remembers = remembers;
  }

  get name(): string {
    return this.target.name;
  }

  /** Something may have changed it, or an audit is due: the next pass looks at it. */
  invalidate(): void {
    this.#invalidations++;
    this.#verified = undefined;
    this.#actual = undefined;
    this.#retry = undefined;
  }

  /**
   * An event says that the target now holds this value under the key; undefined: nothing. What is known already, as of
   * our own changes, invalidates nothing; nor does what a target holds that cannot be listed, and was not read yet.
   * @returns whether it invalidated the target.
   */
  noteActual(key: string, value: V | undefined): boolean {
    const actual = this.#actual;
    if (this.target.read && !actual?.has(key)) return false;
    const isKnown = actual && (value === undefined ? !actual.has(key) : isSame(actual.get(key), value));
    if (!isKnown) this.invalidate();
    return !isKnown;
  }

  /** Why these keys are not as desired; undefined when all are. */
  failureOf(keys: Iterable<string>): string | undefined {
    for (const key of [WHOLE_TARGET, ...keys]) {
      const failure = this.#failures.get(key);
      if (failure) return failure.why;
    }
    return undefined;
  }

  get status(): TargetStatus {
    return {
      name: this.name,
      desired: this.#size,
      pending: this.#pending(),
      failures: [...this.#failures.values()],
      sinceMs: this.#sinceMs,
    };
  }

  #pending(): number {
    if (!this.#tried) return this.#size;
    if (!this.#desired || !this.#actual) return 0;
    const actual = this.#actual;
    return this.#desired
      .keys()
      .filter((key) => !actual.has(key) && !this.#failures.has(key))
      .toArray().length;
  }

  /** When a failure is to be tried again (monotonic ms); undefined: nothing is. */
  get retryAtMs(): number | undefined {
    return this.#retry?.atMs;
  }

  /** Whether a pass has a reason to look at the target: another revision, an invalidation, or a retry that is due. */
  isDue({ revision, complete }: Desired<V>, nowMs: number): boolean {
    if (this.#retry) return this.#retry.revision !== revision || nowMs >= this.#retry.atMs;
    return this.#verified?.revision !== revision || this.#verified.complete !== complete;
  }

  /** Begin a pass: compare the desired entries with the actual ones. */
  begin(desired: Desired<V>): Pass {
    const invalidations = this.#invalidations;
    const entries = desired.entries();
    this.#size = entries.size;
    // Few, where they are remembered.
    if (this.#remembers) this.#desired = entries;
    const difference = this.#compare(entries);
    difference.catch(() => {}); // reported by whoever awaits it below
    const failed = new Map<string, string>();
    const outcome = { target: this.name, upserts: 0, removals: 0, failures: 0 };
    const attempt = async (act: () => Promise<Failures>): Promise<void> => {
      try {
        for (const [key, why] of await act()) failed.set(key, why);
      } catch (error) {
        failed.set(WHOLE_TARGET, errorText(error));
      }
    };
    return {
      upsert: () =>
        attempt(async () => {
          const { upserts } = await difference;
          if (upserts.size === 0) return noFailures;
          const failures = await this.target.upsert(upserts);
          outcome.upserts = upserts.size - failures.size;
          for (const [key, value] of upserts) if (!failures.has(key)) this.#actual?.set(key, value);
          return failures;
        }),
      remove: () =>
        attempt(async () => {
          if (!desired.complete || failed.has(WHOLE_TARGET)) return noFailures;
          const { removals } = await difference;
          if (removals.size === 0) return noFailures;
          const failures = await this.target.remove(removals);
          outcome.removals = removals.size - failures.size;
          for (const key of removals.keys()) if (!failures.has(key)) this.#actual?.delete(key);
          return failures;
        }),
      end: (endMs) => {
        const { upserts, removals } = outcome;
        // What was written is looked at once more, except where it is remembered.
        const isSure = failed.size === 0 && (this.#remembers || upserts + removals === 0);
        const isUndisturbed = invalidations === this.#invalidations;
        const { revision, complete } = desired;
        this.#verified = isSure && isUndisturbed ? { revision, complete } : undefined;
        // Who knows what of it was done, or is older than the event?
        if (failed.has(WHOLE_TARGET) || !isUndisturbed) this.#actual = undefined;
        this.#noteRetry(failed.size > 0, revision, endMs);
        this.#noteFailures(new Map([...(desired.impossible?.() ?? []), ...failed]));
        return { ...outcome, failures: failed.size };
      },
    };
  }

  async #compare(desired: ReadonlyMap<string, V>): Promise<Difference<V>> {
    const { target } = this;
    if (this.#remembers) return diff(desired, (this.#actual = await this.#recall(desired)));
    return target.difference?.(desired) ?? diff(desired, await (target.read?.(desired) ?? target.list()));
  }

  /** What the target holds. It is asked only for what is not remembered. */
  async #recall(desired: ReadonlyMap<string, V>): Promise<Map<string, V>> {
    const { target } = this;
    if (!target.read) return this.#actual ?? target.list();
    const known = this.#actual ?? new Map<string, V>();
    const unknown = new Map(desired.entries().filter(([key]) => !known.has(key)));
    return unknown.size === 0 ? known : new Map([...known, ...(await target.read(unknown))]);
  }

  #noteRetry(failed: boolean, revision: string, nowMs: number): void {
    const isSameAgain = failed && this.#retry?.revision === revision;
    const delayMs = isSameAgain ? Math.min(this.#retry!.delayMs * 2, LAST_RETRY_MS) : FIRST_RETRY_MS;
    this.#retry = failed ? { revision, atMs: nowMs + delayMs, delayMs } : undefined;
  }

  #noteFailures(failed: ReadonlyMap<string, string>): void {
    const before = new Map(this.#failures);
    const now = Date.now();
    this.#failures.clear();
    for (const [key, why] of failed) {
      const known = before.get(key);
      this.#failures.set(key, known?.why === why ? known : { key, why, sinceMs: now });
    }
    if (!this.#tried || !isSame(before, this.#failures)) this.#sinceMs = now;
    this.#tried = true;
  }
}
