// SPDX-License-Identifier: Apache-2.0
import type { KubeObject } from './objects.ts';

/** One write, as the store made it. */
export interface StoreEvent {
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED';
  /** The write's own resourceVersion. */
  readonly revision: number;
  /** The object after the write; for DELETED its last state with the deletion's resourceVersion. */
  readonly object: KubeObject;
  /** The object before the write; undefined for ADDED. */
  readonly previous: KubeObject | undefined;
}

/** The last `capacity` events of a resource. */
export class History {
  readonly #capacity: number;
  #events: StoreEvent[] = [];
  /** Index of the oldest event that is kept. */
  #start = 0;
  /** The highest resourceVersion of a forgotten event. */
  #forgotten = 0;

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  push(event: StoreEvent): void {
    this.#events.push(event);
    if (this.#events.length - this.#start <= this.#capacity) return;
    this.#forgotten = this.#events[this.#start]!.revision;
    this.#start += 1;
    // Compact rarely, so that each event is moved once on average.
    if (this.#start > this.#capacity) {
      this.#events = this.#events.slice(this.#start);
      this.#start = 0;
    }
  }

  /** Whether every event after that resourceVersion is still known. */
  covers(revision: number): boolean {
    return revision >= this.#forgotten;
  }

  /** Every event after that resourceVersion, or undefined when some of them are forgotten. */
  since(revision: number): readonly StoreEvent[] | undefined {
    if (!this.covers(revision)) return undefined;
    let low = this.#start;
    let high = this.#events.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#events[middle]!.revision <= revision) low = middle + 1;
      else high = middle;
    }
    return this.#events.slice(low);
  }

  /** Forget everything up to that resourceVersion. */
  expire(revision: number): void {
    this.#events = [];
    this.#start = 0;
    this.#forgotten = revision;
  }
}
