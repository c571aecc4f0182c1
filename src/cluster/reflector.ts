// SPDX-License-Identifier: Apache-2.0
import type { Readable } from 'node:stream';
import { finished } from 'node:stream/promises';
import type { Logger } from 'pino';
import { errorText } from '../errors.ts';
import { type ApiClient, ApiError, type Query } from './api-client.ts';
import type { BackoffTiming } from './backoff.ts';
import {
  type Frame,
  FrameError,
  Lines,
  type ListPage,
  type ObjectMeta,
  parseFrame,
  parseListPage,
} from './frames.ts';
import { type Item, ItemStore } from './item-store.ts';
import { type Fault, ListWatch } from './list-watch.ts';
import type { SourceActivity, SourceHealth } from './subnet-manager.ts';

/**
 * A live copy of one resource of the API server, for a daemon that must never lose sight of it for good.
 *
 * It lists page by page, then watches (see {@link ListWatch}). A new list comes only after a 410, an ERROR or a frame
 * that cannot be read.
 *
 * A connection that is open but dead is the worst fault, because it looks like a quiet cluster. Three limits find it:
 * TCP keep-alive (about 25 s) when the host is gone, the idle limit when only the server process hangs, and the
 * watch's own lifetime. A watch that was idle or reached its lifetime is renewed at once.
 */
export class Reflector<T> {
  readonly #options: ReflectorOptions<T>;
  readonly #timing: ReflectorTiming;
  readonly #log: Logger;
  readonly #store = new ItemStore<T>();
  readonly #listWatch: ListWatch;

  constructor(options: ReflectorOptions<T>) {
    this.#options = options;
    this.#timing = { ...DEFAULT_TIMING, ...options.timing };
    this.#log = options.log.child({ reflector: options.path });
    const source = {
      list: (signal: AbortSignal) => this.#list(signal),
      watch: (signal: AbortSignal) => this.#watch(signal),
      faultOf: classify,
      onChange: () => options.onChange(),
    };
    this.#listWatch = new ListWatch(source, this.#timing, this.#log);
  }

  /** By UID. A live view: read it anew after each `onChange`. Empty until `synced`. */
  get items(): ReadonlyMap<string, Item<T>> {
    return this.#store.items;
  }

  /** Whether a complete list was seen since the start: before that, absence means nothing. */
  get synced(): boolean {
    return this.#listWatch.synced;
  }

  get health(): ReflectorHealth {
    const { activity, health } = this.#listWatch;
    return { ...health, activity };
  }

  /** Begin; returns at once, and goes on for ever. */
  start(): void {
    this.#listWatch.start();
  }

  /** End for good; resolves when the last connection is closed. */
  stop(): Promise<void> {
    return this.#listWatch.stop();
  }

  async #list(signal: AbortSignal): Promise<boolean> {
    const { path, project, listWhole } = this.#options;
    let { metadataOnly = false } = this.#options;
    const { listDeadlineMs } = this.#timing;
    const endsAt = performance.now() + listDeadlineMs;
    const list: { meta: ObjectMeta; value: T }[] = [];
    let next = '';
    for (;;) {
      const leftMs = endsAt - performance.now();
      if (leftMs <= 0) {
        throw new ApiError(`GET ${path}: the list was not complete after ${listDeadlineMs / 1000} s`, {
          reason: 'Deadline',
        });
      }
      const page = await this.#page(next, metadataOnly, leftMs, signal);
      const objects = page.objects.map(({ meta, object }) => ({ meta, value: project(object) }));
      if (metadataOnly && listWhole?.(objects.map(({ value }) => value))) {
        metadataOnly = false;
        continue;
      }
      list.push(...objects);
      next = page.next;
      if (next !== '') continue;
      this.#log.debug({ objects: list.length, resourceVersion: page.resourceVersion }, 'listed');
      return this.#store.replace(list, page.resourceVersion);
    }
  }

  async #page(next: string, metadataOnly: boolean, leftMs: number, signal: AbortSignal): Promise<ListPage> {
    const { client, path, query } = this.#options;
    const { pageSize, pageDeadlineMs } = this.#timing;
    return parseListPage(
      await client.request('GET', path, {
        query: { ...query, limit: pageSize, continue: next || undefined },
        ...(metadataOnly && { accept: partialMetadata('PartialObjectMetadataList') }),
        deadlineMs: Math.min(pageDeadlineMs, leftMs),
        signal,
      }),
    );
  }

  async #watch(signal: AbortSignal): Promise<'watch'> {
    const { watchSecondsMin, watchSecondsMax, watchGraceMs, idleMs, healthyAfterMs } = this.#timing;
    // Each node has its own time, or all nodes of a cluster would come back to the API server at once.
    const timeoutSeconds = Math.ceil(watchSecondsMin + Math.random() * (watchSecondsMax - watchSecondsMin));
    const response = await this.#openWatch(timeoutSeconds, signal);
    this.#listWatch.connected();
    let proven = false;
    let renew: 'idle' | 'life' | undefined;
    const end = (why: 'idle' | 'life'): void => {
      renew = why;
      response.destroy();
    };
    const idle = setTimeout(end, idleMs, 'idle');
    const life = setTimeout(end, timeoutSeconds * 1000 + watchGraceMs, 'life');
    const proof = setTimeout(() => {
      proven = true;
      this.#listWatch.proven();
    }, healthyAfterMs);
    const abort = (): void => void response.destroy();
    signal.addEventListener('abort', abort, { once: true });
    try {
      if (signal.aborted) return 'watch';
      await this.#follow(response, () => idle.refresh());
    } catch (error) {
      if (renew === undefined && !signal.aborted) throw error;
    } finally {
      clearTimeout(idle);
      clearTimeout(life);
      clearTimeout(proof);
      signal.removeEventListener('abort', abort);
      response.destroy();
    }
    if (renew === 'idle') {
      this.#listWatch.count('idle' satisfies FaultKind);
      this.#log.debug({ idleMs }, 'watch was silent, renewing it');
    } else if (!proven && !signal.aborted) {
      throw new ShortWatchError();
    }
    return 'watch';
  }

  #openWatch(timeoutSeconds: number, signal: AbortSignal): Promise<Readable> {
    const { client, path, query, metadataOnly } = this.#options;
    return client.stream(path, {
      query: {
        ...query,
        watch: 1,
        allowWatchBookmarks: true,
        resourceVersion: this.#store.resourceVersion,
        timeoutSeconds,
      },
      ...(metadataOnly && { accept: partialMetadata('PartialObjectMetadata') }),
      deadlineMs: this.#timing.headerDeadlineMs,
      signal,
    });
  }

  /** Take the events of a watch until it ends. @param alive called with every chunk. */
  async #follow(response: Readable, alive: () => void): Promise<void> {
    const lines = new Lines();
    // Cheaper than `for await`, which has a share in what an event costs.
    response.on('data', (chunk: Uint8Array) => {
      alive();
      try {
        for (const line of lines.push(chunk)) this.#take(parseFrame(line));
      } catch (error) {
        response.destroy(error instanceof Error ? error : new Error(errorText(error)));
      }
    });
    await finished(response);
    lines.end();
  }

  #take(frame: Frame): void {
    this.#listWatch.seen();
    if (frame.type === 'ERROR') throw new StreamError(frame.code, frame.message, frame.retryAfterMs);
    if (frame.type === 'BOOKMARK') this.#store.advance(frame.resourceVersion);
    else if (this.#store.apply(frame, this.#options.project)) this.#listWatch.changed();
  }
}

export interface ReflectorOptions<T> {
  readonly client: ApiClient;
  /** The resource's collection, e.g. `/api/v1/nodes`. */
  readonly path: string;
  /** Selectors, e.g. `{ fieldSelector: 'spec.nodeName=a' }`. */
  readonly query?: Query;
  /**
   * Ask only for the metadata. `project` then gets objects of kind PartialObjectMetadata, but whole objects from a
   * server that cannot do that, and where `listWhole` wants them.
   */
  readonly metadataOnly?: boolean;
  /** Asked with each page of a list of metadata: whether to get this page and the next ones whole. */
  listWhole?(this: void, page: readonly T[]): boolean;
  /**
   * Gives the little that is kept of an object; see {@link ItemStore}. Should not throw: that counts as a fault.
   */
  project(this: void, object: unknown): T;
  /** A value in `items` differs, or they are complete for the first time. Should only take a note. */
  onChange(this: void): void;
  readonly log: Logger;
  readonly timing?: Partial<ReflectorTiming>;
}

export interface ReflectorTiming extends BackoffTiming {
  /** Objects in one page of a list. */
  readonly pageSize: number;
  readonly pageDeadlineMs: number;
  /** For all pages together; the API server keeps a list's snapshot for about 5 minutes. */
  readonly listDeadlineMs: number;
  /** Until a watch answers. */
  readonly headerDeadlineMs: number;
  /** A watch's lifetime, asked for at random between these. */
  readonly watchSecondsMin: number;
  readonly watchSecondsMax: number;
  /** How long past its lifetime a watch may linger. */
  readonly watchGraceMs: number;
  /** After so long without a byte a watch is renewed. Bookmarks come once a minute, so a quiet cluster renews often. */
  readonly idleMs: number;
  /** A watch that lived so long proves that all is well. */
  readonly healthyAfterMs: number;
}

/** An Accept header for metadata alone, or for whole objects where the server has no such thing. */
function partialMetadata(kind: 'PartialObjectMetadata' | 'PartialObjectMetadataList'): string {
  return `application/json;as=${kind};g=meta.k8s.io;v=v1,application/json`;
}

/** A node is back within 60 s of the API server's return: 20 s of back-off and 15 s for the current attempt. */
export const DEFAULT_TIMING: ReflectorTiming = {
  // A page of whole Nodes is read and parsed at once, and has 2 MB.
  pageSize: 100,
  pageDeadlineMs: 30_000,
  listDeadlineMs: 240_000,
  headerDeadlineMs: 15_000,
  watchSecondsMin: 300,
  watchSecondsMax: 600,
  watchGraceMs: 15_000,
  idleMs: 45_000,
  healthyAfterMs: 5_000,
  backoffMinMs: 1_000,
  backoffMaxMs: 20_000,
  retryAfterMaxMs: 60_000,
};

/**
 * `gone`: the version to watch from is too old · `frame`: garbage, truncated or of a wrong shape · `stream_error`: an
 * ERROR in the stream · `auth`: 401, 403 · `status`: any other HTTP status · `unreachable`: no connection, or it broke
 * · `deadline`: no answer in time · `credentials`: they cannot be read · `short_watch`: ended at once, without a reason
 * · `idle`: silent, renewed
 */
export type FaultKind =
  | 'gone'
  | 'frame'
  | 'stream_error'
  | 'auth'
  | 'status'
  | 'unreachable'
  | 'deadline'
  | 'credentials'
  | 'short_watch'
  | 'idle';

/** A reflector always follows a server. Faults are counted by {@link FaultKind}. */
export type ReflectorHealth = SourceHealth & { readonly activity: SourceActivity };

/** An ERROR event, with the code of its Status. */
class StreamError extends Error {
  readonly code: number;
  readonly retryAfterMs: number | undefined;

  constructor(code: number, message: string, retryAfterMs: number | undefined) {
    super(message);
    this.code = code;
    this.retryAfterMs = retryAfterMs;
  }
}

class ShortWatchError extends Error {}

type ReflectorFault = Fault & { readonly kind: FaultKind };

function classify(error: unknown): ReflectorFault {
  if (error instanceof StreamError) {
    const { code, retryAfterMs } = error;
    const text = `the watch reported ${code} ${errorText(error).slice(0, 300)}`;
    return { kind: code === 410 ? 'gone' : 'stream_error', text, relist: true, retryAfterMs };
  }
  if (error instanceof FrameError)
    return { kind: 'frame', text: `the API server sent an invalid frame: ${errorText(error)}`, relist: true };
  if (error instanceof ShortWatchError) {
    return { kind: 'short_watch', text: 'the API server ended the watch at once', relist: false };
  }
  if (!(error instanceof ApiError)) {
    // A connection that breaks under a watch is a plain socket error. If `project` throws, that is its own defect.
    const broken = error instanceof Error && 'code' in error;
    return broken
      ? { kind: 'unreachable', text: `the watch broke off: ${errorText(error)}`, relist: false }
      : { kind: 'frame', text: `an object could not be read: ${errorText(error)}`, relist: true };
  }
  const { status, reason, retryAfterMs, nobodyThere, message: text } = error;
  if (status === undefined) {
    if (reason === 'BadAnswer') return { kind: 'frame', text, relist: true };
    const kind =
      reason === 'Deadline' ? 'deadline' : reason === 'Credentials' ? 'credentials' : 'unreachable';
    return { kind, text, relist: false, nobodyThere };
  }
  if (status === 410) return { kind: 'gone', text, relist: true, retryAfterMs };
  if (status === 401 || status === 403) return { kind: 'auth', text, relist: false, retryAfterMs };
  // An overloaded server is not to be loaded with lists. 504 also means: a version that this server has not reached,
  // which after a restore from a backup it never will.
  const overloaded = status === 429 || (status >= 500 && status !== 504);
  return { kind: 'status', text, relist: !overloaded, retryAfterMs };
}
