// SPDX-License-Identifier: Apache-2.0
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

/**
 * Make V8 collect garbage early. By itself it lets the heap grow to a multiple of what is in use first, which in a
 * large cluster is 200 MB more; early costs a tenth more time during lists and large changes, and nothing at rest. To
 * be called before much is loaded.
 */
export function keepHeapSmall(): void {
  // When the heap is a fifth larger than what was in use after the last collection.
  setFlagsFromString('--heap-growing-percent=20');
}

/** A pass that took so long has left much garbage; an agent at rest might not collect it for minutes. */
const LARGE_PASS_MS = 250;
const COLLECT_AFTER_MS = 1000;

/** Gives the memory of large passes back once they are over. */
export class GarbageCollector implements Disposable {
  readonly #collect: () => void;
  #timer: NodeJS.Timeout | undefined;

  constructor() {
    // The function exists in contexts that are made after the flag.
    setFlagsFromString('--expose-gc');
    this.#collect = runInNewContext('gc') as () => void;
  }

  /** A pass is over. */
  passed(durationMs: number): void {
    if (durationMs < LARGE_PASS_MS && this.#timer === undefined) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.#collect();
    }, COLLECT_AFTER_MS);
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
  }
}
