// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { errorText } from '../errors.ts';
import { LogOnce } from '../log-once.ts';
import { type ApiClient, ApiError } from './api-client.ts';
import { backoffMs, type BackoffTiming } from './backoff.ts';
import { addressesText, nodeSchema, podCidrsText } from './node-lease.ts';

/** A Node of which only the metadata is known. */
export interface BareNode {
  readonly name: string;
  readonly uid: string;
  readonly resourceVersion: string;
}

export interface FetchTiming extends BackoffTiming {
  /** Requests under way at once. */
  readonly parallel: number;
  readonly deadlineMs: number;
  /** How long changes are gathered before Nodes are asked for. */
  readonly settleMs: number;
  /** How soon a Node that has no podCIDR yet is asked for again, once it has changed. */
  readonly recheckMs: number;
  /** How soon a Node that the API server refuses to show is asked for again. */
  readonly refusedMs: number;
}

const FETCH_TIMING: FetchTiming = {
  parallel: 4,
  deadlineMs: 15_000,
  settleMs: 20,
  recheckMs: 5_000,
  refusedMs: 60_000,
  backoffMinMs: 1_000,
  backoffMaxMs: 20_000,
  retryAfterMaxMs: 60_000,
};

/** `empty`: no podCIDR yet · `gone`: no such Node · `refused`: a retry hardly helps · `failed`: a retry may help */
interface Attempt {
  readonly outcome: 'empty' | 'gone' | 'refused' | 'failed';
  readonly error?: string;
  readonly resourceVersion: string;
  readonly count: number;
  readonly againAtMs: number;
}

/**
 * Gets the podCIDRs of Nodes that do not publish them as an annotation (plain flannel's): reads each of those Nodes
 * whole, once. What is known of a UID stays true: Kubernetes never changes podCIDRs that are set.
 */
export class PodCidrFetcher {
  readonly #client: ApiClient;
  readonly #wanted: () => readonly BareNode[];
  readonly #onChange: () => void;
  readonly #failure: LogOnce;
  readonly #timing: FetchTiming;
  readonly #known = new Map<string, { readonly podCidrs: string; readonly addresses: string }>();
  /** Of those that are wanted. */
  #attempts = new Map<string, Attempt>();
  readonly #stopping = new AbortController();
  #running: Promise<void> | undefined;
  #wake = Promise.withResolvers<void>();

  /**
   * @param wanted which Nodes lack their podCIDRs now.
   * @param onChange something is known now, or could not be read. Should only take a note.
   */
  constructor(options: {
    client: ApiClient;
    wanted: () => readonly BareNode[];
    onChange: () => void;
    log: Logger;
    timing?: Partial<FetchTiming>;
  }) {
    this.#client = options.client;
    this.#wanted = options.wanted;
    this.#onChange = options.onChange;
    this.#failure = new LogOnce(options.log, 'cannot read a Node without ripstop.io/pod-cidrs; retrying');
    this.#timing = { ...FETCH_TIMING, ...options.timing };
  }

  /** As in the spec, joined with commas; undefined while unknown or none. */
  known(uid: string): string | undefined {
    return this.#known.get(uid)?.podCidrs;
  }

  /** The Node's addresses when it was last read whole, joined with commas. */
  addresses(uid: string): string | undefined {
    return this.#known.get(uid)?.addresses;
  }

  /** Take note of what a whole Node says. */
  learn(uid: string, podCidrs: string, addresses: string): void {
    if (podCidrs !== '') this.#known.set(uid, { podCidrs: this.known(uid) ?? podCidrs, addresses });
  }

  /** Forget Nodes that no longer exist, now and then. */
  forget(existing: ReadonlyMap<string, unknown>): void {
    if (this.#known.size < 2 * existing.size + 1000) return;
    for (const uid of this.#known.keys()) if (!existing.has(uid)) this.#known.delete(uid);
  }

  /** Whether the Node was read, and had none. */
  isEmpty(uid: string): boolean {
    return this.#attempts.get(uid)?.outcome === 'empty';
  }

  /** Why a Node could not be read. */
  failure(uid: string): string | undefined {
    return this.#attempts.get(uid)?.error;
  }

  /** Whether nothing more can be found out now about Nodes that lack their podCIDRs. */
  get settled(): boolean {
    return this.#wanted().every(({ uid }) => (this.#attempts.get(uid)?.outcome ?? 'failed') !== 'failed');
  }

  /** What is wrong now; undefined when nothing is. */
  get lastError(): string | undefined {
    return this.#failure.reason;
  }

  /** Begin; returns at once. */
  start(): void {
    this.#running ??= this.#run(this.#stopping.signal);
  }

  /** Other Nodes may be wanted. */
  wake(): void {
    this.#wake.resolve();
  }

  async stop(): Promise<void> {
    this.#stopping.abort();
    this.#wake.resolve();
    await this.#running;
  }

  async #run(signal: AbortSignal): Promise<void> {
    let failures = 0;
    while (!signal.aborted) {
      const due = this.#due();
      if (due.length === 0) {
        await this.#untilWoken(signal);
        continue;
      }
      const error = await this.#fetch(due, signal);
      if (signal.aborted) return;
      this.#onChange();
      if (!error) {
        this.#failure.over();
        failures = 0;
        continue;
      }
      this.#failure.met(error);
      const retryAfterMs = error instanceof ApiError ? error.retryAfterMs : undefined;
      await sleep(backoffMs(this.#timing, failures++, retryAfterMs), undefined, { signal }).catch(() => {});
    }
  }

  /** The Nodes to ask for now; those that failed most often come last, so that they do not hold up the others. */
  #due(): BareNode[] {
    const wanted = this.#wanted();
    const attempts = new Map<string, Attempt>();
    for (const { uid } of wanted) {
      const attempt = this.#attempts.get(uid);
      if (attempt) attempts.set(uid, attempt);
    }
    this.#attempts = attempts;
    const now = performance.now();
    return wanted
      .filter(({ uid, resourceVersion }) => {
        const attempt = attempts.get(uid);
        if (!attempt) return true;
        const useless = attempt.outcome === 'empty' && attempt.resourceVersion === resourceVersion;
        return !useless && now >= attempt.againAtMs;
      })
      .sort((a, b) => (attempts.get(a.uid)?.count ?? 0) - (attempts.get(b.uid)?.count ?? 0));
  }

  async #untilWoken(signal: AbortSignal): Promise<void> {
    const { recheckMs, settleMs } = this.#timing;
    this.#wake = Promise.withResolvers<void>();
    const recheck = this.#attempts.size > 0 ? setTimeout(() => this.#wake.resolve(), recheckMs) : undefined;
    await this.#wake.promise;
    clearTimeout(recheck);
    await sleep(settleMs, undefined, { signal }).catch(() => {});
  }

  /** @returns the failure that ended it: a failing API server is not asked for the rest at once. */
  async #fetch(due: readonly BareNode[], signal: AbortSignal): Promise<Error | undefined> {
    const queue = due.values();
    let failure: Error | undefined;
    const work = async (): Promise<void> => {
      for (const node of queue) {
        failure = (await this.#fetchOne(node, signal)) ?? failure;
        if (failure || signal.aborted) return;
      }
    };
    await Promise.all(Array.from({ length: this.#timing.parallel }, work));
    return failure;
  }

  /** @returns the error, when a retry may help. */
  async #fetchOne(node: BareNode, signal: AbortSignal): Promise<Error | undefined> {
    const { name, uid, resourceVersion } = node;
    const { deadlineMs, recheckMs, refusedMs } = this.#timing;
    const note = (outcome: Attempt['outcome'], waitMs: number, error?: string): void => {
      const count = (this.#attempts.get(uid)?.count ?? 0) + 1;
      const againAtMs = performance.now() + waitMs;
      const attempt = { outcome, resourceVersion, count, againAtMs, ...(error !== undefined && { error }) };
      this.#attempts.set(uid, attempt);
    };
    try {
      const settings = { deadlineMs, signal };
      const read = nodeSchema.safeParse(
        await this.#client.request('GET', `/api/v1/nodes/${encodeURIComponent(name)}`, settings),
      );
      if (!read.success) {
        note('refused', refusedMs, 'the API server answered with something that is no Node');
        return undefined;
      }
      const { metadata, spec, status } = read.data;
      const podCidrs = podCidrsText(spec);
      this.learn(metadata.uid, podCidrs, addressesText(status));
      // Another UID: the Node that we asked for is gone, as the watch will tell.
      if (metadata.uid !== uid) note('gone', recheckMs);
      else if (podCidrs === '') note('empty', recheckMs);
      return undefined;
    } catch (error) {
      if (signal.aborted) return undefined;
      const status = error instanceof ApiError ? (error.status ?? 0) : 0;
      if (status === 404) note('gone', recheckMs);
      else if (status >= 400 && status < 500 && ![401, 408, 429].includes(status)) {
        note('refused', refusedMs, errorText(error));
      } else {
        note('failed', 0, errorText(error));
        return error instanceof Error ? error : new Error(errorText(error));
      }
      return undefined;
    }
  }
}
