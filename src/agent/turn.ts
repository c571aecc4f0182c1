// SPDX-License-Identifier: Apache-2.0

/** Runs one piece of work, one run at a time; callers that come during a run share the next one. */
export class Turn {
  readonly #work: () => Promise<void>;
  #running: Promise<void> = Promise.resolve();
  #next: Promise<void> | undefined;

  constructor(work: () => Promise<void>) {
    this.#work = work;
  }

  /** Resolves after a run that began after this call. */
  run(): Promise<void> {
    this.#next ??= this.#running.then(() => {
      this.#next = undefined;
      return (this.#running = this.#work());
    });
    return this.#next;
  }
}
