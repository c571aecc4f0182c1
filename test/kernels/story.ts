// SPDX-License-Identifier: Apache-2.0

import { errorText } from '../../src/errors.ts';

/** The result of a step, which the story prints as a line of JSON. */
export interface Check {
  readonly check: string;
  /** The failure, if there is one. */
  readonly problem?: string;
  /** What this kernel lacks for this step. */
  readonly skipped?: string;
  readonly ms: number;
}

/** The last check of a complete story. Without it the story has failed. */
export const theEnd = 'all of it';

/** A step: its title, and its work, which throws on failure, or returns why it is impossible here. */
export type Step = readonly [check: string, act: () => Promise<string | undefined | void>];

export function expectThat(truth: boolean, otherwise: string): void {
  if (!truth) throw new Error(otherwise);
}

/** Run the steps, print a {@link Check} as JSON for each, and end the process. A failure ends the story. */
export async function tellStory(steps: readonly Step[]): Promise<never> {
  const begun = performance.now();
  for (const [check, act] of steps) {
    const since = performance.now();
    const outcome = await act().then(
      (skipped) => (skipped === undefined ? {} : { skipped }),
      (error: unknown) => ({ problem: errorText(error) }),
    );
    say({ check, since, ...outcome });
    if ('problem' in outcome) process.exit(1); // Each step depends on the previous ones.
  }
  say({ check: theEnd, since: begun });
  process.exit(0);
}

function say({ since, ...check }: Omit<Check, 'ms'> & { since: number }): void {
  console.log(JSON.stringify({ ...check, ms: Math.round(performance.now() - since) } satisfies Check));
}
