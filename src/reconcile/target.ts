// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';

/**
 * One kind of kernel or cluster state that ripstop keeps as it should be: a BPF map, the routes to peers, a set of
 * links. Upserting what is there and removing what is not there are no errors, so that start, restart, upgrade and
 * steady state are one path: list, {@link diff}, apply (the idea of cilium/statedb's reconciler).
 */
export interface Target<V> {
  /** A short unique name for logs, metrics and status, e.g. `peers`. */
  readonly name: string;
  /** Everything of ours that is there now, by key. */
  list(): Promise<Map<string, V>>;
  /** What there is now under the keys of these entries: for a target that cannot list what there may be. */
  read?(entries: ReadonlyMap<string, V>): Promise<Map<string, V>>;
  /** The difference between `list` and these entries, where it costs less than a whole list. */
  difference?(desired: ReadonlyMap<string, V>): Promise<Difference<V>>;
  /** Make these entries exist, with exactly these values. Throws when nothing of it was done. */
  upsert(entries: ReadonlyMap<string, V>): Promise<Failures>;
  /** Make these entries not exist; `values` are as `list` gave them. Throws when nothing of it was done. */
  remove(entries: ReadonlyMap<string, V>): Promise<Failures>;
}

/** What could not be done: the reason by key. All other keys are done. */
export type Failures = ReadonlyMap<string, string>;

export const noFailures: Failures = new Map();

/** For callers that need all of it done. @throws RipstopError with the first reason. */
export function allDone(failures: Failures): void {
  const [first] = failures;
  if (!first) return;
  const more = failures.size > 1 ? ` (and ${failures.size - 1} more)` : '';
  throw new RipstopError(`${first[0]}: ${first[1]}${more}`);
}

/** What to do to make the actual entries equal the desired ones. */
export interface Difference<V> {
  upserts: Map<string, V>;
  removals: Map<string, V>;
}

/** Compare by key, and values member by member: keep them plain. */
export function diff<V>(desired: ReadonlyMap<string, V>, actual: ReadonlyMap<string, V>): Difference<V> {
  const upserts = new Map<string, V>();
  const removals = new Map<string, V>();
  for (const [key, value] of desired) {
    const present = actual.get(key);
    if (present === undefined || !isSame(present, value)) upserts.set(key, value);
  }
  for (const [key, value] of actual) if (!desired.has(key)) removals.set(key, value);
  return { upserts, removals };
}

/** Whether two plain values (objects, arrays, maps and what they hold) have the same members. */
export function isSame(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  if (a instanceof Map && b instanceof Map) {
    return a.size === b.size && a.entries().every(([key, value]) => b.has(key) && isSame(value, b.get(key)));
  }
  if (Array.isArray(a) && Array.isArray(b))
    return a.length === b.length && a.every((value, i) => isSame(value, b[i]));
  const [keys, others] = [Object.keys(a), Object.keys(b)];
  return (
    keys.length === others.length &&
    keys.every((key) => Object.hasOwn(b, key) && isSame(a[key as keyof typeof a], b[key as keyof typeof b]))
  );
}
