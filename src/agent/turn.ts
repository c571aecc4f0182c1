// SPDX-License-Identifier: Apache-2.0

/** Runs a task, one run at a time. Callers during a run share the next run. */
export class Turn {
  readonly #task: () => Promise<void>;
  #running: Promise<void> = Promise.resolve();
  #next: Promise<void> | undefined;

  constructor(task: () => Promise<void>) {
    this.#task = task;
  }

  /** Resolves after a run that began after this call. */
  run(): Promise<void> {
    this.#next ??= this.#running.then(() => {
      this.#next = undefined;
      return (this.#running = this.#task());
    });
    return this.#next;
  }
}
