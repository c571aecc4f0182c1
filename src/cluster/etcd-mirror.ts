// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import { errorText } from '../errors.ts';
import type { BackoffTiming } from './backoff.ts';
import { type EtcdClient, EtcdError, grpcStatus } from './etcd-client.ts';
import { type KeyValue, prefixEnd, range, watch, type WatchResponse } from './etcd-wire.ts';
import { type Fault, ListWatch } from './list-watch.ts';
import type { SourceHealth } from './subnet-manager.ts';

export interface EtcdTiming extends BackoffTiming {
  /** How often an open watch is asked for a sign of life. */
  readonly progressMs: number;
  /** Without any sign for so long a watch counts as dead: its server hangs, or the network swallows all. */
  readonly idleMs: number;
}

const DEFAULT_TIMING: EtcdTiming = {
  progressMs: 10_000,
  idleMs: 25_000,
  backoffMinMs: 250,
  backoffMaxMs: 10_000,
  retryAfterMaxMs: 0,
};

const PAGE = 1000;

export interface MirrorItem<T> {
  readonly kv: KeyValue;
  readonly value: T;
}

export interface EtcdMirrorOptions<T> {
  readonly client: EtcdClient;
  /** Ends with `/`. */
  readonly prefix: string;
  /** What is kept of a key, once for each change of it. @param name the key without the prefix. */
  readonly project: (name: string, kv: KeyValue) => T;
  readonly onChange: () => void;
  readonly log: Logger;
  readonly timing?: Partial<EtcdTiming> | undefined;
}

/** All keys below a prefix at one revision of the store. */
export async function listPrefix(
  client: EtcdClient,
  prefix: string,
  signal?: AbortSignal,
): Promise<{ kvs: KeyValue[]; revision: number; clusterId: bigint }> {
  const kvs: KeyValue[] = [];
  const rangeEnd = prefixEnd(prefix);
  let key = prefix;
  let revision = 0;
  for (;;) {
    const page = await client.call(range, { key, rangeEnd, limit: PAGE, revision }, signal ? { signal } : {});
    revision ||= page.header.revision;
    kvs.push(...page.kvs);
    const last = page.kvs.at(-1);
    if (!page.more || !last) return { kvs, revision, clusterId: page.header.clusterId };
    key = `${last.key}\0`;
  }
}

/**
 * A live copy of all keys below a prefix: listed at one revision, watched from the next one on (see {@link ListWatch}),
 * after a fault perhaps at another endpoint. It is listed again only when the revision is gone (compacted) or the store
 * is another one; what is the same then is kept.
 */
export class EtcdMirror<T> {
  readonly #options: EtcdMirrorOptions<T>;
  readonly #timing: EtcdTiming;
  readonly #items = new Map<string, MirrorItem<T>>();
  readonly #listWatch: ListWatch;
  /** Everything up to this revision is here. */
  #revision = 0;
  #clusterId = 0n;
  #epoch = 0;

  constructor(options: EtcdMirrorOptions<T>) {
    this.#options = options;
    this.#timing = { ...DEFAULT_TIMING, ...options.timing };
    const source = {
      list: (signal: AbortSignal) => this.#list(signal),
      watch: (signal: AbortSignal) => this.#watch(signal),
      faultOf: (error: unknown) => this.#faultOf(error),
      onChange: () => options.onChange(),
    };
    const log = options.log.child({ mirror: options.prefix });
    this.#listWatch = new ListWatch(source, this.#timing, log);
  }

  /** By key without the prefix. A live view. */
  get items(): ReadonlyMap<string, MirrorItem<T>> {
    return this.#items;
  }

  get synced(): boolean {
    return this.#listWatch.synced;
  }

  get revision(): number {
    return this.#revision;
  }

  /** Another number is another store, whose revisions have nothing to do with those of the one before. */
  get epoch(): number {
    return this.#epoch;
  }

  get health(): SourceHealth {
    return this.#listWatch.health;
  }

  start(): void {
    this.#listWatch.start();
  }

  stop(): Promise<void> {
    return this.#listWatch.stop();
  }

  #faultOf(error: unknown): Fault {
    // etcd refuses a watch with an outdated token, and says little more.
    if (error instanceof EtcdError && error.code !== grpcStatus.unavailable) this.#options.client.dropToken();
    const unreachable = error instanceof EtcdError && error.code === grpcStatus.unavailable;
    return { kind: unreachable ? 'unreachable' : 'status', text: errorText(error), relist: false };
  }

  async #list(signal: AbortSignal): Promise<boolean> {
    const { client, prefix, log } = this.#options;
    const { kvs, revision, clusterId } = await listPrefix(client, prefix, signal);
    const present = new Set(kvs.map(({ key }) => key.slice(prefix.length)));
    let changed = false;
    for (const name of this.#items.keys()) {
      if (!present.has(name)) changed = this.#items.delete(name);
    }
    // Another store counts its revisions anew: what is the same there may look older.
    const force = clusterId !== this.#clusterId || revision < this.#revision;
    for (const kv of kvs) changed = this.#set(kv, force) || changed;
    this.#revision = revision;
    this.#clusterId = clusterId;
    if (force) this.#epoch++;
    log.debug({ leases: kvs.length, revision }, 'listed the leases in etcd');
    return changed;
  }

  #set(kv: KeyValue, force = false): boolean {
    const name = kv.key.slice(this.#options.prefix.length);
    const before = this.#items.get(name)?.kv.modRevision ?? 0;
    if (before === kv.modRevision || (before > kv.modRevision && !force)) return false;
    this.#items.set(name, { kv, value: this.#options.project(name, kv) });
    return true;
  }

  async #watch(signal: AbortSignal): Promise<'list'> {
    const { client, prefix } = this.#options;
    const { progressMs, idleMs } = this.#timing;
    const silence = new AbortController();
    const idle = setTimeout(() => silence.abort(), idleMs);
    let asking: NodeJS.Timeout | undefined;
    try {
      await using stream = await client.stream(watch, AbortSignal.any([signal, silence.signal]));
      stream.send({ key: prefix, rangeEnd: prefixEnd(prefix), startRevision: this.#revision + 1 });
      asking = setInterval(() => stream.send('progress'), progressMs);
      for await (const response of stream.responses) {
        idle.refresh();
        if (!this.#take(response)) return 'list';
      }
      throw new EtcdError('etcd ended the watch', grpcStatus.unavailable);
    } catch (error) {
      // Answers and refusals are an endpoint's own; the next one may be better off.
      if (!signal.aborted) await client.nextEndpoint();
      if (!silence.signal.aborted || signal.aborted) throw error;
      const why = `etcd gave no sign of life for ${idleMs / 1000} s`;
      throw new EtcdError(why, grpcStatus.unavailable, { cause: error });
    } finally {
      clearTimeout(idle);
      clearInterval(asking);
    }
  }

  /** @returns whether the watch goes on. */
  #take({
    header,
    watchId,
    created,
    canceled,
    compactRevision,
    cancelReason,
    events,
  }: WatchResponse): boolean {
    const { log, prefix } = this.#options;
    const other = header.clusterId !== this.#clusterId || (created && header.revision < this.#revision);
    if (compactRevision !== 0 || (other && !canceled)) {
      const why = other ? 'the store is another one' : `compacted up to revision ${compactRevision}`;
      log.info({ why }, 'listing the leases in etcd again');
      return false;
    }
    if (canceled) {
      throw new EtcdError(
        `etcd refuses the watch: ${cancelReason || 'no reason given'}`,
        grpcStatus.permissionDenied,
      );
    }
    this.#listWatch.connected();
    this.#listWatch.seen();
    this.#listWatch.proven();
    let changed = false;
    for (const { type, kv } of events) {
      changed = (type === 'put' ? this.#set(kv) : this.#items.delete(kv.key.slice(prefix.length))) || changed;
      this.#revision = Math.max(this.#revision, kv.modRevision);
    }
    // An answer to our progress request may overtake events (before 3.4.25 and 3.5.8); unsolicited progress does not.
    if (events.length === 0 && watchId >= 0 && !created) {
      this.#revision = Math.max(this.#revision, header.revision);
    }
    if (changed) this.#listWatch.changed();
    return true;
  }
}
