// SPDX-License-Identifier: Apache-2.0

/**
 * One place in the world that ripstop keeps equal to what it wants: a BPF map, the routes of flannel.1, a set of links.
 * The three verbs are idempotent: upserting what is there and removing what is not are no errors. Start, restart,
 * upgrade and steady state are then one path: list, {@link diff}, apply (the idea of cilium/statedb's reconciler).
 */
export interface Target<V> {
  /** A short name for logs and metrics, e.g. `peers`. */
  readonly name: string;
  /** Everything of ours that is there now, by key. */
  list(): Promise<Map<string, V>>;
  /** What separates `list` from these entries, where that can be told for less than listing it all. */
  difference?(desired: ReadonlyMap<string, V>): Promise<Difference<V>>;
  /** Make these entries be there, with exactly these values. */
  upsert(entries: ReadonlyMap<string, V>): Promise<void>;
  /** Make these entries not be there; `values` are as `list` gave them. */
  remove(entries: ReadonlyMap<string, V>): Promise<void>;
}

/** What to do to make `actual` equal `desired`. Values are compared member by member, so keep them plain. */
export interface Difference<V> {
  upserts: Map<string, V>;
  removals: Map<string, V>;
}

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

/** Whether two plain values have the same members. */
export function isSame(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  const [keys, others] = [Object.keys(a), Object.keys(b)];
  return (
    keys.length === others.length &&
    keys.every((key) => Object.hasOwn(b, key) && isSame(a[key as keyof typeof a], b[key as keyof typeof b]))
  );
}
