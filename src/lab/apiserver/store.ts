// SPDX-License-Identifier: Apache-2.0
import { randomBytes, randomUUID } from 'node:crypto';
import { decideCreate, decideDelete, decideUpdate, type Subresource } from './decide.ts';
import { History, type StoreEvent } from './history.ts';
import type { KubeObject, ObjectInput } from './objects.ts';
import { applyPatch, type PatchType } from './patch.ts';
import { keyOf, objectKey, type Resource, type ResourceName, resources } from './resources.ts';
import { alreadyExists, expired, notFound, StatusError } from './status.ts';

/** A resource's objects at one moment, sorted by key. */
export interface Snapshot {
  readonly resourceVersion: number;
  readonly objects: readonly KubeObject[];
}

interface Table {
  readonly resource: Resource;
  readonly objects: Map<string, KubeObject>;
  readonly history: History;
  readonly listeners: Set<(event: StoreEvent) => void>;
  /** `objects` in key order, until the next write. */
  sorted: readonly KubeObject[] | undefined;
  /** Snapshots that a continue token may still name, by resourceVersion, oldest first. */
  readonly snapshots: Map<number, Snapshot>;
}

/** How many unfinished paged lists a resource remembers. */
const maxSnapshots = 16;

/**
 * All objects, with one resourceVersion counter, in place of etcd and the watch cache of a real API server. Every write
 * is one event, which listeners get before the write returns. Errors are {@link StatusError}s.
 */
export class Store {
  #revision = 0;
  readonly #tables: Readonly<Record<ResourceName, Table>>;

  /** @param historySize how many events of each resource can be replayed. */
  constructor(historySize: number) {
    const table = (resource: Resource): Table => ({
      resource,
      objects: new Map(),
      history: new History(historySize),
      listeners: new Set(),
      sorted: undefined,
      snapshots: new Map(),
    });
    this.#tables = Object.fromEntries(
      Object.entries(resources).map(([name, resource]) => [name, table(resource)]),
    ) as Record<ResourceName, Table>;
  }

  /** The resourceVersion of the latest write, of any kind. */
  get revision(): number {
    return this.#revision;
  }

  /**
   * Store a new object. `metadata.generateName` may replace the name. The default namespace is `default`.
   */
  create(resourceName: ResourceName, input: ObjectInput): KubeObject {
    const table = this.#tables[resourceName];
    const { resource } = table;
    const { generateName, ...given } = input.metadata ?? {};
    const name =
      given.name ?? (generateName ? generateName + randomBytes(3).toString('hex').slice(0, 5) : '');
    const namespace = resource.namespaced ? (given.namespace ?? 'default') : undefined;
    if (table.objects.has(objectKey(resource, namespace, name))) throw alreadyExists(resource.plural, name);
    const object = decideCreate(
      resource,
      { ...input, metadata: { ...input.metadata, ...(namespace && { namespace }) } },
      {
        name,
        uid: randomUUID(),
        creationTimestamp: new Date().toISOString().replace(/\.\d+Z$/, 'Z'),
        resourceVersion: String(this.#revision + 1),
      },
    );
    this.#commit(table, { type: 'ADDED', object, previous: undefined });
    return object;
  }

  /** The object, or undefined. `namespace` defaults to `default` for namespaced kinds, here and below. */
  get(resourceName: ResourceName, name: string, namespace = 'default'): KubeObject | undefined {
    const { resource, objects } = this.#tables[resourceName];
    return objects.get(objectKey(resource, namespace, name));
  }

  /** All objects of a kind, in key order. */
  list(resourceName: ResourceName): readonly KubeObject[] {
    const table = this.#tables[resourceName];
    table.sorted ??= [...table.objects].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, object]) => object);
    return table.sorted;
  }

  /**
   * Replace an object (`subresource` 'status': only its status and metadata). A resourceVersion in `input` must be
   * current.
   */
  update(resourceName: ResourceName, input: ObjectInput, subresource?: Subresource): KubeObject {
    const table = this.#tables[resourceName];
    const current = this.#existing(table, input.metadata?.name ?? '', input.metadata?.namespace);
    return this.#replace(table, current, input, subresource);
  }

  /** Apply a patch of a content type to an object, or to its status and metadata. */
  patch(
    resourceName: ResourceName,
    name: string,
    type: PatchType,
    patch: unknown,
    options: { namespace?: string; subresource?: Subresource } = {},
  ): KubeObject {
    const table = this.#tables[resourceName];
    const current = this.#existing(table, name, options.namespace);
    // The patched object has the current resourceVersion and uid, unless the patch itself names others.
    return this.#replace(table, current, applyPatch(type, current, patch), options.subresource);
  }

  /** Remove an object. Returns its last state, with the deletion's resourceVersion. */
  delete(
    resourceName: ResourceName,
    name: string,
    options: { namespace?: string; preconditions?: { uid?: string; resourceVersion?: string } } = {},
  ): KubeObject {
    const table = this.#tables[resourceName];
    const current = this.#existing(table, name, options.namespace);
    const revision = String(this.#revision + 1);
    const object = decideDelete(table.resource, current, options.preconditions ?? {}, revision);
    this.#commit(table, { type: 'DELETED', object, previous: current });
    return object;
  }

  /**
   * Call the listener for every write to a resource, synchronously and in order, until the returned function is called.
   */
  subscribe(resourceName: ResourceName, listener: (event: StoreEvent) => void): () => void {
    const { listeners } = this.#tables[resourceName];
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  /** Every event after a resourceVersion. @throws StatusError 410 when some of them are forgotten. */
  eventsSince(resourceName: ResourceName, revision: number): readonly StoreEvent[] {
    const events = this.#tables[resourceName].history.since(revision);
    if (!events) throw expired(`too old resource version: ${revision} (${this.#revision})`);
    return events;
  }

  /** The objects as they are now, kept for continue tokens until they expire. */
  snapshot(resourceName: ResourceName): Snapshot {
    const { snapshots } = this.#tables[resourceName];
    const snapshot = { resourceVersion: this.#revision, objects: this.list(resourceName) };
    snapshots.set(snapshot.resourceVersion, snapshot);
    if (snapshots.size > maxSnapshots) snapshots.delete(snapshots.keys().next().value ?? 0);
    return snapshot;
  }

  /** The result of {@link snapshot} at that resourceVersion. @throws StatusError 410 when it is forgotten. */
  snapshotAt(resourceName: ResourceName, revision: number): Snapshot {
    const { snapshots, history } = this.#tables[resourceName];
    const snapshot = snapshots.get(revision);
    if (!snapshot || !history.covers(revision)) {
      throw expired('the continue token is too old for a consistent list; list again from the start');
    }
    return snapshot;
  }

  /** Forget all events and increase the counter, so that every resourceVersion seen so far is too old to watch from. */
  expireHistory(): void {
    this.#revision += 1;
    for (const { history } of Object.values(this.#tables)) history.expire(this.#revision);
  }

  #existing({ resource, objects }: Table, name: string, namespace = 'default'): KubeObject {
    const object = objects.get(objectKey(resource, namespace, name));
    if (!object) throw notFound(resource.plural, name);
    return object;
  }

  #replace(table: Table, current: KubeObject, input: ObjectInput, subresource: Subresource): KubeObject {
    if (subresource === 'status' && !table.resource.status) {
      throw new StatusError(404, `${table.resource.plural} have no status subresource`);
    }
    const revision = String(this.#revision + 1);
    const object = decideUpdate(table.resource, current, input, subresource, revision);
    if (object !== current) this.#commit(table, { type: 'MODIFIED', object, previous: current });
    return object;
  }

  #commit(table: Table, change: Omit<StoreEvent, 'revision'>): void {
    this.#revision += 1;
    const event = { ...change, revision: this.#revision };
    const key = keyOf(table.resource, event.object);
    if (event.type === 'DELETED') table.objects.delete(key);
    else table.objects.set(key, event.object);
    table.sorted = undefined;
    table.history.push(event);
    for (const listener of table.listeners) listener(event);
  }
}
