// SPDX-License-Identifier: Apache-2.0

import { errorText } from '../../src/errors.ts';

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

/** What a step is called, and what it does: it throws when something is wrong, or says why it cannot be taken here. */
export type Step = readonly [check: string, act: () => Promise<string | undefined | void>];

export function expectThat(truth: boolean, otherwise: string): void {
  if (!truth) throw new Error(otherwise);
}

/** Take the steps, print a {@link Check} as JSON for each, and end the process. The first that fails is the last. */
export async function tellStory(steps: readonly Step[]): Promise<never> {
  const begun = performance.now();
  for (const [check, act] of steps) {
    const since = performance.now();
    const outcome = await act().then(
      (skipped) => (skipped === undefined ? {} : { skipped }),
      (error: unknown) => ({ problem: errorText(error) }),
    );
    say({ check, since, ...outcome });
    if ('problem' in outcome) process.exit(1); // Each step stands on the ones before.
  }
  say({ check: theEnd, since: begun });
  process.exit(0);
}

function say({ since, ...check }: Omit<Check, 'ms'> & { since: number }): void {
  console.log(JSON.stringify({ ...check, ms: Math.round(performance.now() - since) } satisfies Check));
}
