// SPDX-License-Identifier: Apache-2.0
import { Listr } from 'listr2';
import type { Progress } from '../lab/index.ts';

/**
 * Run `work`, and show the progress of the steps with these titles: on a terminal as a list that changes; elsewhere
 * `plain` gets a line for each step that is done. Steps that the work does not report are done when it is.
 */
export async function showProgress<T>(
  titles: readonly string[],
  work: (progress: Progress) => Promise<T>,
  plain: (line: string) => void = () => {},
): Promise<T> {
  // A container's terminal may have no width; a list cannot be drawn there.
  const isTerminal = process.stdout.isTTY && process.stdout.columns > 0;
  const steps = new Map(titles.map((title) => [title, Promise.withResolvers<void>()]));
  for (const [title, { promise }] of steps) {
    promise.then(
      () => isTerminal || plain(`✔ ${title}`),
      () => {},
    );
  }
  const shown = isTerminal
    ? new Listr(
        [...steps].map(([title, { promise }]) => ({ title, task: () => promise })),
        {
          concurrent: true,
          exitOnError: false,
          // Its listener shows the cursor and ends the process. A program with its own listener does that itself.
          registerSignalListeners: process.listenerCount('SIGINT') === 0,
        },
      ).run()
    : Promise.resolve();
  try {
    return await work(({ title, state }) => {
      if (state === 'done') steps.get(title)?.resolve();
      if (state === 'failed') steps.get(title)?.reject(new Error(title));
    });
  } catch (error) {
    // The caller shows the work's own error.
    for (const [title, { reject }] of steps) reject(new Error(title));
    throw error;
  } finally {
    for (const { resolve } of steps.values()) resolve();
    await shown;
  }
}
