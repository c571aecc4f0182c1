// SPDX-License-Identifier: Apache-2.0

/** Takes the time of the steps of an ADD, for the log and the benchmark. */
export class Steps {
  /** By step, in ms, in order. */
  readonly ms: Record<string, number> = {};
  #atMs = performance.now();

  /** This step ends now; it began when the one before it ended. */
  done(step: string): void {
    const nowMs = performance.now();
    this.ms[step] = Math.round((nowMs - this.#atMs) * 1000) / 1000;
    this.#atMs = nowMs;
  }
}
