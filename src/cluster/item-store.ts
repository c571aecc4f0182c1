// SPDX-License-Identifier: Apache-2.0
import { isDeepStrictEqual } from 'node:util';
import { type Frame, newer, type ObjectMeta } from './frames.ts';

/** An object of the cluster, reduced to what its consumer wants to keep. */
export interface Item<T> {
  readonly name: string;
  readonly uid: string;
  readonly resourceVersion: string;
  readonly value: T;
}

export type ObjectFrame = Extract<Frame, { meta: ObjectMeta }>;

/**
 * The objects of one resource as of one resourceVersion. Keyed by UID, because an object that is deleted and created
 * again under the same name is another one.
 *
 * Values are compared by content (public fields). Most events change nothing of what is kept, e.g. a kubelet's
 * heartbeat: then only the version moves on, the old value stays, and nobody is told of a change.
 */
export class ItemStore<T> {
  #items = new Map<string, Item<T>>();
  /** By namespace and name: the UID that has the name now. */
  #uids = new Map<string, string>();
  /** The newest version seen; a watch goes on from here. Empty before the first list. */
  #resourceVersion = '';

  get items(): ReadonlyMap<string, Item<T>> {
    return this.#items;
  }

  get resourceVersion(): string {
    return this.#resourceVersion;
  }

  /**
   * Take over a complete list. It is the truth, also where it is older than what is here: an API server restored from a
   * backup counts from an earlier version.
   * @returns whether anything but versions differs from before.
   */
  replace(list: readonly { meta: ObjectMeta; value: T }[], resourceVersion: string): boolean {
    const items = new Map<string, Item<T>>();
    const uids = new Map<string, string>();
    let changed = false;
    for (const { meta, value } of list) {
      const old = this.#items.get(meta.uid);
      const item = old?.resourceVersion === meta.resourceVersion ? old : toItem(meta, value, old);
      changed ||= !old || item.value !== old.value;
      items.set(meta.uid, item);
      uids.set(nameKey(meta), meta.uid);
    }
    changed ||= items.size !== this.#items.size;
    this.#items = items;
    this.#uids = uids;
    this.#resourceVersion = resourceVersion;
    return changed;
  }

  /**
   * Apply an event. Versions rise along a watch, so whatever is not newer than what is here has been seen already.
   * @param project makes the value to keep; not called for events that are ignored.
   * @returns whether anything but the version changed.
   */
  apply(frame: ObjectFrame, project: (object: unknown) => T): boolean {
    const { meta } = frame;
    const known = this.#items.get(meta.uid);
    if (frame.type === 'DELETED') {
      const stale = known !== undefined && newer(known.resourceVersion, meta.resourceVersion);
      this.advance(meta.resourceVersion);
      if (!known || stale) return false;
      this.#items.delete(meta.uid);
      if (this.#uids.get(nameKey(meta)) === meta.uid) this.#uids.delete(nameKey(meta));
      return true;
    }
    // An unknown object that is not newer than the newest event was deleted before that event.
    if (!newer(meta.resourceVersion, known?.resourceVersion ?? this.#resourceVersion)) return false;
    const item = toItem(meta, project(frame.object), known);
    const predecessor = this.#uids.get(nameKey(meta));
    if (predecessor !== undefined && predecessor !== meta.uid) this.#items.delete(predecessor);
    this.#items.set(meta.uid, item);
    this.#uids.set(nameKey(meta), meta.uid);
    this.advance(meta.resourceVersion);
    return !known || item.value !== known.value;
  }

  /** Note that all up to this version has been seen (a bookmark). */
  advance(resourceVersion: string): void {
    if (newer(resourceVersion, this.#resourceVersion)) this.#resourceVersion = resourceVersion;
  }
}

/** @param old what is known of the same object; an equal value stays, so that only one is kept. */
function toItem<T>({ name, uid, resourceVersion }: ObjectMeta, value: T, old: Item<T> | undefined): Item<T> {
  if (!old) return { name, uid, resourceVersion, value };
  // The old strings, too: those of the event would stay in memory beside those that maps have for keys.
  const same = isDeepStrictEqual(old.value, value);
  return { name: old.name, uid: old.uid, resourceVersion, value: same ? old.value : value };
}

function nameKey({ namespace, name }: ObjectMeta): string {
  return namespace === undefined ? name : `${namespace}/${name}`;
}
