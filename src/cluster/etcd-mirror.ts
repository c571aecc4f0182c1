// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { errorText } from '../errors.ts';
import { type EtcdClient, EtcdError, grpcStatus } from './etcd-client.ts';
import { type KeyValue, prefixEnd, range, watch, type WatchResponse } from './etcd-wire.ts';
import type { SourceHealth } from './subnet-manager.ts';

export interface EtcdTiming {
  /** How often an open watch is asked for a sign of life. */
  readonly progressMs: number;
  /** Without any sign for so long a watch counts as dead: its server hangs, or the network swallows all. */
  readonly idleMs: number;
  readonly backoffMinMs: number;
  readonly backoffMaxMs: number;
}

const DEFAULT_TIMING: EtcdTiming = {
  progressMs: 10_000,
  idleMs: 25_000,
  backoffMinMs: 250,
  backoffMaxMs: 10_000,
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
 * A live copy of all keys below a prefix: listed at one revision, watched from the next one on. A watch that breaks goes
 * on from the last revision seen, at another endpoint if need be. Only when that is gone (compacted), or the store is
 * another one than before, comes a new list; what is here stays until it is complete, and then only the difference counts.
 */
export class EtcdMirror<T> {
  readonly #options: EtcdMirrorOptions<T>;
  readonly #timing: EtcdTiming;
  readonly #items = new Map<string, MirrorItem<T>>();
  readonly #stopping = new AbortController();
  #running: Promise<void> | undefined;
  /** Everything up to this revision is here. */
  #revision = 0;
  #clusterId = 0n;
  #listNext = true;
  #synced = false;
  #connected = false;
  #lastEventAt: number | undefined;
  #lastError: string | undefined;
  #failures = 0;
  #epoch = 0;

  constructor(options: EtcdMirrorOptions<T>) {
    this.#options = options;
    this.#timing = { ...DEFAULT_TIMING, ...options.timing };
  }

  /** By key without the prefix. A live view. */
  get items(): ReadonlyMap<string, MirrorItem<T>> {
    return this.#items;
  }

  get synced(): boolean {
    return this.#synced;
  }

  get revision(): number {
    return this.#revision;
  }

  /** Another number is another store, whose revisions have nothing to do with those of the one before. */
  get epoch(): number {
    return this.#epoch;
  }

  get health(): SourceHealth {
    return {
      connected: this.#connected,
      ...(this.#lastEventAt !== undefined && { lastEventAgeMs: performance.now() - this.#lastEventAt }),
      ...(this.#lastError !== undefined && { lastError: this.#lastError }),
    };
  }

  start(): void {
    this.#running ??= this.#run(this.#stopping.signal);
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    await this.#running;
  }

  async #run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        if (this.#listNext) await this.#list(signal);
        await this.#watch(signal);
      } catch (error) {
        if (signal.aborted) return;
        await this.#backOff(error, signal);
      }
    }
  }

  async #backOff(error: unknown, signal: AbortSignal): Promise<void> {
    const { client, log } = this.#options;
    const { backoffMinMs, backoffMaxMs } = this.#timing;
    const why = errorText(error);
    if (why !== this.#lastError) log.warn({ why }, 'lost sight of the leases in etcd; what is known stays');
    this.#lastError = why;
    // A watch is refused to an outdated token with few words.
    if (error instanceof EtcdError && error.code !== grpcStatus.unavailable) client.dropToken();
    const delayMs = Math.min(backoffMinMs * 2 ** this.#failures++, backoffMaxMs);
    await sleep(delayMs * (0.5 + Math.random() / 2), undefined, { signal }).catch(() => {});
  }

  async #list(signal: AbortSignal): Promise<void> {
    const { client, prefix, log, onChange } = this.#options;
    const { kvs, revision, clusterId } = await listPrefix(client, prefix, signal);
    const present = new Set(kvs.map(({ key }) => key.slice(prefix.length)));
    let changed = !this.#synced;
    for (const name of this.#items.keys()) {
      if (!present.has(name)) changed = this.#items.delete(name);
    }
    // Another store counts its revisions anew: what is the same there may look older.
    const force = clusterId !== this.#clusterId || revision < this.#revision;
    for (const kv of kvs) changed = this.#set(kv, force) || changed;
    this.#revision = revision;
    this.#clusterId = clusterId;
    this.#listNext = false;
    this.#synced = true;
    if (force) this.#epoch++;
    this.#proven();
    log.debug({ leases: kvs.length, revision }, 'listed the leases in etcd');
    if (changed) onChange();
  }

  #set(kv: KeyValue, force = false): boolean {
    const name = kv.key.slice(this.#options.prefix.length);
    const before = this.#items.get(name)?.kv.modRevision ?? 0;
    if (before === kv.modRevision || (before > kv.modRevision && !force)) return false;
    this.#items.set(name, { kv, value: this.#options.project(name, kv) });
    return true;
  }

  /** Follow the changes. Returns when a new list is due. */
  async #watch(signal: AbortSignal): Promise<void> {
    const { client, prefix } = this.#options;
    const { progressMs, idleMs } = this.#timing;
    const silence = new AbortController();
    let idle = setTimeout(() => silence.abort(), idleMs);
    let asking: NodeJS.Timeout | undefined;
    try {
      await using stream = await client.stream(watch, AbortSignal.any([signal, silence.signal]));
      stream.send({ key: prefix, rangeEnd: prefixEnd(prefix), startRevision: this.#revision + 1 });
      asking = setInterval(() => stream.send('progress'), progressMs);
      for await (const response of stream.responses) {
        clearTimeout(idle);
        idle = setTimeout(() => silence.abort(), idleMs);
        if (!this.#take(response)) return;
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
      this.#connected = false;
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
    const { log, prefix, onChange } = this.#options;
    const other = header.clusterId !== this.#clusterId || (created && header.revision < this.#revision);
    if (compactRevision !== 0 || (other && !canceled)) {
      const why = other ? 'the store is another one' : `compacted up to revision ${compactRevision}`;
      log.info({ why }, 'the leases in etcd are listed anew');
      this.#listNext = true;
      return false;
    }
    if (canceled) {
      throw new EtcdError(
        `etcd refuses the watch: ${cancelReason || 'no reason given'}`,
        grpcStatus.permissionDenied,
      );
    }
    this.#connected = true;
    this.#proven();
    let changed = false;
    for (const { type, kv } of events) {
      changed = (type === 'put' ? this.#set(kv) : this.#items.delete(kv.key.slice(prefix.length))) || changed;
      this.#revision = Math.max(this.#revision, kv.modRevision);
    }
    // An answer to our question may overtake events (before 3.4.25 and 3.5.8); what the server tells by itself does not.
    if (events.length === 0 && watchId >= 0 && !created) {
      this.#revision = Math.max(this.#revision, header.revision);
    }
    if (changed) onChange();
    return true;
  }

  #proven(): void {
    this.#lastEventAt = performance.now();
    this.#lastError = undefined;
    this.#failures = 0;
  }
}
