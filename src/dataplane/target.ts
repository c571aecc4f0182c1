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
  /** Make these entries be there, with exactly these values. */
  upsert(entries: ReadonlyMap<string, V>): Promise<void>;
  /** Make these entries not be there; `values` are as `list` gave them. */
  remove(entries: ReadonlyMap<string, V>): Promise<void>;
}

/** What to do to make `actual` equal `desired`. Values are compared by their JSON, so keep them plain and canonical. */
export interface Difference<V> {
  upserts: Map<string, V>;
  removals: Map<string, V>;
}

export function diff<V>(desired: ReadonlyMap<string, V>, actual: ReadonlyMap<string, V>): Difference<V> {
  const upserts = new Map<string, V>();
  const removals = new Map<string, V>();
  for (const [key, value] of desired) {
    const present = actual.get(key);
    if (present === undefined || JSON.stringify(present) !== JSON.stringify(value)) upserts.set(key, value);
  }
  for (const [key, value] of actual) if (!desired.has(key)) removals.set(key, value);
  return { upserts, removals };
}
