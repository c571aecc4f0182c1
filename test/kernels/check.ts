// SPDX-License-Identifier: Apache-2.0

/** What the story prints for each of its steps, one line of JSON. */
export interface Check {
  readonly check: string;
  /** What is wrong; left out when all is well. */
  readonly problem?: string;
  /** What this kernel lacks for it. */
  readonly skipped?: string;
  readonly ms: number;
}

/** The last check of a story that was told to its end: only then is all well. */
export const theEnd = 'all of it';
