// SPDX-License-Identifier: Apache-2.0
import type { StoreEvent } from './history.ts';
import { type KubeObject, objectJson, type View } from './objects.ts';
import type { Outlet } from './outlet.ts';
import { groupVersion, type Resource, type ResourceName, resources } from './resources.ts';
import type { RequestInfo } from './routes.ts';
import { expired, StatusError } from './status.ts';
import type { Store } from './store.ts';

type EventType = StoreEvent['type'];

/** The parameters of a watch. */
export interface WatchRequest {
  readonly resource: ResourceName;
  readonly matches: (object: KubeObject) => boolean;
  readonly view: View;
  /** Replay the events after this resourceVersion. Undefined means from now on. */
  readonly since: number | undefined;
  /** Begin with an ADDED event for every existing object. */
  readonly initialState: boolean;
  /** Mark the end of the initial state with a bookmark (`sendInitialEvents`). */
  readonly initialEventsEnd: boolean;
  readonly bookmarks: boolean;
  readonly timeoutSeconds: number;
}

interface Watch {
  readonly request: WatchRequest;
  readonly outlet: Outlet;
  readonly timer: NodeJS.Timeout;
}

/** A watch with more unread bytes than this is cut off, as in Kubernetes, so that memory stays bounded. */
const maxBacklogBytes = 64 << 20;

/** All live watches. Each event is serialised once for each view. */
export class Watches {
  readonly #store: Store;
  readonly #live = new Map<ResourceName, Set<Watch>>();
  readonly #ticker: NodeJS.Timeout;

  /** @param bookmarkIntervalMs how often watches get a bookmark with the current resourceVersion */
  constructor(store: Store, bookmarkIntervalMs: number) {
    this.#store = store;
    for (const name of Object.keys(resources) as ResourceName[]) {
      this.#live.set(name, new Set());
      store.subscribe(name, (event) => this.#dispatch(name, event));
    }
    this.#ticker = setInterval(() => {
      for (const watch of this.#all()) if (watch.request.bookmarks) this.#bookmark(watch);
    }, bookmarkIntervalMs).unref();
  }

  /** The events to replay. @throws StatusError 410 when they are forgotten, 504 for a future resourceVersion. */
  missed(request: WatchRequest): readonly StoreEvent[] {
    if (request.since === undefined) return [];
    if (request.since > this.#store.revision) {
      throw new StatusError(504, `too large resource version: ${request.since} (${this.#store.revision})`, {
        details: { causes: [{ reason: 'ResourceVersionTooLarge', message: 'Too large resource version' }] },
      });
    }
    return this.#store.eventsSince(request.resource, request.since);
  }

  /** Begin a watch whose headers have been sent. Call the returned function when its connection has ended. */
  start(request: WatchRequest, missed: readonly StoreEvent[], outlet: Outlet): () => void {
    if (request.initialState) {
      for (const object of this.#store.list(request.resource)) {
        if (!request.matches(object)) continue;
        outlet.event(eventFrame('ADDED', object, request.view), () =>
          olderFrame(object, undefined, request.view),
        );
      }
    }
    const timer = setTimeout(
      () => this.#finish(watch, () => request.bookmarks && this.#bookmark(watch)),
      Math.min(request.timeoutSeconds * 1000, 2 ** 31 - 1),
    ).unref();
    const watch: Watch = { request, outlet, timer };
    if (request.initialEventsEnd) this.#bookmark(watch, { 'k8s.io/initial-events-end': 'true' });
    for (const event of missed) deliver(watch, event, new Map());
    this.#live.get(request.resource)?.add(watch);
    return () => this.#forget(watch);
  }

  /** End the live watches that match. Returns how many there were. */
  drop(match: (request: RequestInfo) => boolean, end: 'clean' | 'reset'): number {
    const dropped = this.#all().filter(({ outlet }) => match(outlet.request));
    for (const watch of dropped) this.#finish(watch, undefined, end);
    return dropped.length;
  }

  /** End every live watch, with a 410 ERROR event when `inStream`. */
  expire(inStream: boolean): void {
    const error = errorFrame(expired(`the history up to ${this.#store.revision} has been compacted`));
    for (const watch of this.#all()) this.#finish(watch, () => inStream && watch.outlet.frame(error));
  }

  close(): void {
    clearInterval(this.#ticker);
    for (const watch of this.#all()) this.#forget(watch);
  }

  #all(): Watch[] {
    return [...this.#live.values()].flatMap((watches) => [...watches]);
  }

  #dispatch(name: ResourceName, event: StoreEvent): void {
    const frames = new Map<string, Buffer>();
    for (const watch of this.#live.get(name) ?? []) {
      deliver(watch, event, frames);
      if (watch.outlet.backlog > maxBacklogBytes) this.#cutOff(watch);
    }
  }

  #bookmark({ request, outlet }: Watch, annotations?: Record<string, string>): void {
    outlet.frame(bookmarkFrame(resources[request.resource], request.view, this.#store.revision, annotations));
  }

  #finish(watch: Watch, lastWords?: () => unknown, end: 'clean' | 'reset' = 'clean'): void {
    this.#forget(watch);
    lastWords?.();
    watch.outlet.end(end);
  }

  #cutOff(watch: Watch): void {
    this.#forget(watch);
    watch.outlet.abort();
  }

  #forget(watch: Watch): void {
    clearTimeout(watch.timer);
    this.#live.get(watch.request.resource)?.delete(watch);
  }
}

/**
 * The type of an event for a watch that sees only matching objects: an object that begins to match is ADDED, one that
 * no longer matches is DELETED. Undefined when the watch does not see it. Pure.
 */
export function visibleType(
  event: StoreEvent,
  matches: (object: KubeObject) => boolean,
): EventType | undefined {
  const before = event.previous !== undefined && matches(event.previous);
  const after = event.type !== 'DELETED' && matches(event.object);
  if (after) return before ? 'MODIFIED' : 'ADDED';
  return before ? 'DELETED' : undefined;
}

/** Send one event to one watch, if it sees it. `frames` shares the event's bytes among watches. */
function deliver({ request, outlet }: Watch, event: StoreEvent, frames: Map<string, Buffer>): void {
  const type = visibleType(event, request.matches);
  if (!type) return;
  const { view } = request;
  const key = `${type}/${view}`;
  let frame = frames.get(key);
  if (!frame) {
    // An object that no longer matches is sent as the watch last saw it, at the resourceVersion of the change.
    const left = type === 'DELETED' && event.type !== 'DELETED' && event.previous;
    frame = eventFrame(type, left ? at(left, event.revision) : event.object, view);
    frames.set(key, frame);
  }
  outlet.event(frame, () => olderFrame(event.object, event.previous, view));
}

function at(object: KubeObject, revision: number): KubeObject {
  return { ...object, metadata: { ...object.metadata, resourceVersion: String(revision) } };
}

function frameOf(type: string, json: string): Buffer {
  return Buffer.from(`{"type":"${type}","object":${json}}\n`);
}

function eventFrame(type: EventType, object: KubeObject, view: View): Buffer {
  return frameOf(type, objectJson(object, view));
}

/** For the `stale` fault: the state before, or the same state under the oldest resourceVersion. */
function olderFrame(object: KubeObject, previous: KubeObject | undefined, view: View): Buffer {
  return eventFrame('MODIFIED', previous ?? at(object, 1), view);
}

function bookmarkFrame(
  resource: Resource,
  view: View,
  revision: number,
  annotations: Record<string, string> | undefined,
): Buffer {
  const [kind, apiVersion] =
    view === 'metadata'
      ? ['PartialObjectMetadata', 'meta.k8s.io/v1']
      : [resource.kind, groupVersion(resource)];
  const metadata = { resourceVersion: String(revision), annotations };
  return frameOf('BOOKMARK', JSON.stringify({ kind, apiVersion, metadata }));
}

export function errorFrame(error: StatusError): Buffer {
  return frameOf('ERROR', JSON.stringify(error.body));
}
