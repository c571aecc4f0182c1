// SPDX-License-Identifier: Apache-2.0
import type { RequestInfo } from './routes.ts';

/** A way to misbehave, applied to requests or to what is sent in answer to them. */
export type Fault =
  /** Wait before answering. Adds up with other latencies and precedes every other fault. */
  | { kind: 'latency'; ms: number }
  /** Reset the connection (TCP RST) instead of answering. */
  | { kind: 'reset' }
  /** Never answer; the connection stays open. */
  | { kind: 'hang' }
  /** Answer with this Status, with a Retry-After header when told. */
  | { kind: 'refuse'; code: 401 | 403 | 429 | 500 | 503; retryAfterSeconds?: number }
  /** Send in chunks of so many bytes, each in its own turn: 1 cuts everywhere. */
  | { kind: 'chunk'; bytes: number }
  /** Send the first half of a watch event or of a body, then end the answer: cleanly (default) or with a reset. */
  | { kind: 'truncate'; end?: 'clean' | 'reset' }
  /** Send a line that is no JSON instead of a watch event, or such a body. */
  | { kind: 'garbage' }
  /** Send a watch event twice. */
  | { kind: 'duplicate' }
  /** After a watch event, send an older state of its object (an older resourceVersion) as MODIFIED. */
  | { kind: 'stale' }
  /** A watch falls silent with this event: no events, bookmarks or end any more, the connection stays open. */
  | { kind: 'mute' };

export interface Scope {
  /** Which requests; all when left out. */
  match?: (request: RequestInfo) => boolean;
  /** How often: requests, watch events or bodies, whatever the kind acts on. For ever when left out. */
  times?: number;
}

/** A fault in force. */
export interface Injection {
  /** How often it has struck. */
  readonly hits: number;
  remove(): void;
}

/** What the faults can do to the running server at once. */
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

/** The server's fault knobs; all may be turned while it runs. */
export class Faults {
  /**
   * What happens to new connections, before TLS: `serve` them, let them `hang` (accepted and never answered, as a
   * half-open peer) or `reset` them. Open ones go on: see {@link resetConnections}.
   */
  connections: 'serve' | 'hang' | 'reset' = 'serve';
  /**
   * How a watch from a forgotten resourceVersion is told: 410 in the stream (as the watch cache does) or as the answer.
   */
  goneAs: 'stream' | 'status' = 'stream';
  /** Serve no metadata alone, as a server that knows no such thing: what else the client accepts counts. */
  wholeOnly = false;
  readonly #controls: Controls;
  #rules: Rule[] = [];

  constructor(controls: Controls) {
    this.#controls = controls;
  }

  /** Bring a fault into force. Of several of one kind the oldest that matches strikes. */
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

  /** End the live watches that match, cleanly or with a reset of their connection; how many there were. */
  dropWatches(
    match: (request: RequestInfo) => boolean = () => true,
    end: 'clean' | 'reset' = 'clean',
  ): number {
    return this.#controls.dropWatches(match, end);
  }

  /**
   * Forget all events: every resourceVersion that a client can hold is then too old to watch from, and every continue
   * token expired. Live watches end: with an ERROR event for `stream`; silently for `status`, where the next one meets
   * HTTP 410. Sets {@link goneAs}.
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

  /** The fault of that kind that strikes now, if any; it counts as one hit. */
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

  /** How long all matching latencies together hold up a request, in milliseconds. */
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
