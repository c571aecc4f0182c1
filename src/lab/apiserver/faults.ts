// SPDX-License-Identifier: Apache-2.0
import type { RequestInfo } from './routes.ts';

/** A fault, of a request or of the answer to it. */
export type Fault =
  /** Wait before the answer. Latencies add up, and come before all other faults. */
  | { kind: 'latency'; ms: number }
  /** Reset the connection (TCP RST) instead of answering. */
  | { kind: 'reset' }
  /** Never answer; the connection stays open. */
  | { kind: 'hang' }
  /** Answer with this Status, and optionally a Retry-After header. */
  | { kind: 'refuse'; code: 401 | 403 | 429 | 500 | 503; retryAfterSeconds?: number }
  /** Send in chunks of so many bytes, each by itself. */
  | { kind: 'chunk'; bytes: number }
  /** Send the first half of a watch event or of a body, then end the answer: cleanly (default) or with a reset. */
  | { kind: 'truncate'; end?: 'clean' | 'reset' }
  /** Send something other than JSON instead of a watch event or a body. */
  | { kind: 'garbage' }
  /** Send a watch event twice. */
  | { kind: 'duplicate' }
  /** After a watch event, send an older state of its object (an older resourceVersion) as MODIFIED. */
  | { kind: 'stale' }
  /** From this event on a watch is silent: no events, no bookmarks, no end, but the connection stays open. */
  | { kind: 'mute' };

export interface Scope {
  /** Which requests; the default is all. */
  match?: (request: RequestInfo) => boolean;
  /** How many requests, watch events or bodies, depending on the kind; the default is all. */
  times?: number;
}

/** An injected fault. */
export interface Injection {
  /** How often it has occurred. */
  readonly hits: number;
  remove(): void;
}

/** What faults can do to the running server as a whole. */
export interface Controls {
  resetConnections(): void;
  dropWatches(match: (request: RequestInfo) => boolean, end: 'clean' | 'reset'): number;
  expireHistory(): void;
}

interface Rule {
  readonly fault: Fault;
  readonly match: (request: RequestInfo) => boolean;
  left: number;
  hits: number;
}

/** The server's faults. All can be changed while it runs. */
export class Faults {
  /**
   * What happens to new connections, before TLS: `serve` them, let them `hang` (accepted and never answered, as by a
   * half-open peer) or `reset` them. Open connections stay: see {@link resetConnections}.
   */
  connections: 'serve' | 'hang' | 'reset' = 'serve';
  /**
   * How a watch from a forgotten resourceVersion gets its 410: in the stream (as from the watch cache) or as the
   * answer.
   */
  goneAs: 'stream' | 'status' = 'stream';
  /** Do not serve PartialObjectMetadata, like a server that does not know it. */
  wholeOnly = false;
  readonly #controls: Controls;
  #rules: Rule[] = [];

  constructor(controls: Controls) {
    this.#controls = controls;
  }

  /** Inject a fault. Of several of one kind, the oldest that matches occurs. */
  inject(fault: Fault, scope: Scope = {}): Injection {
    const rule: Rule = {
      fault,
      match: scope.match ?? (() => true),
      left: scope.times ?? Number.POSITIVE_INFINITY,
      hits: 0,
    };
    this.#rules.push(rule);
    return {
      get hits() {
        return rule.hits;
      },
      remove: () => {
        this.#rules = this.#rules.filter((other) => other !== rule);
      },
    };
  }

  /** Reset every open connection (TCP RST). */
  resetConnections(): void {
    this.#controls.resetConnections();
  }

  /** End the live watches that match, cleanly or with a reset of their connection. Returns how many there were. */
  dropWatches(
    match: (request: RequestInfo) => boolean = () => true,
    end: 'clean' | 'reset' = 'clean',
  ): number {
    return this.#controls.dropWatches(match, end);
  }

  /**
   * Forget all events: every resourceVersion that a client has seen is then too old to watch from, and every continue
   * token has expired. Live watches end: with an ERROR event for `stream`; without one for `status`, where the next
   * watch gets HTTP
   * 410. Sets {@link goneAs}.
   */
  expireHistory(as: 'stream' | 'status' = 'stream'): void {
    this.goneAs = as;
    this.#controls.expireHistory();
  }

  /** Remove every injected fault and serve new connections again. */
  clear(): void {
    this.#rules = [];
    this.connections = 'serve';
    this.goneAs = 'stream';
    this.wholeOnly = false;
  }

  /** The fault of that kind that occurs now, if any. It counts as one hit. */
  strike<K extends Fault['kind']>(kind: K, request: RequestInfo): Extract<Fault, { kind: K }> | undefined {
    for (const rule of this.#rules) {
      if (rule.fault.kind !== kind || !rule.match(request)) continue;
      rule.hits += 1;
      rule.left -= 1;
      if (rule.left <= 0) this.#rules = this.#rules.filter((other) => other !== rule);
      return rule.fault as Extract<Fault, { kind: K }>;
    }
    return undefined;
  }

  /** The sum of all latencies for a request, in milliseconds. */
  strikeLatency(request: RequestInfo): number {
    const due = this.#rules.filter(({ fault, match }) => fault.kind === 'latency' && match(request));
    for (const rule of due) {
      rule.hits += 1;
      rule.left -= 1;
    }
    this.#rules = this.#rules.filter(({ left }) => left > 0);
    return due.reduce((sum, { fault }) => sum + (fault.kind === 'latency' ? fault.ms : 0), 0);
  }
}
