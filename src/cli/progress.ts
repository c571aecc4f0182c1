// SPDX-License-Identifier: Apache-2.0
import { Listr } from 'listr2';
import type { Progress } from '../lab/index.ts';

/**
 * Run `work` while showing the steps of these titles as they begin and end: alive on a terminal; elsewhere `plain` gets
 * one line for each as it is done. Steps that the work does not report are done when it is.
 */
export async function showProgress<T>(
  titles: readonly string[],
  work: (progress: Progress) => Promise<T>,
  plain: (line: string) => void = () => {},
): Promise<T> {
  // A terminal of no width is none to draw on (a container's, at times).
  const alive = process.stdout.isTTY && process.stdout.columns > 0;
  const steps = new Map(titles.map((title) => [title, Promise.withResolvers<void>()]));
  for (const [title, { promise }] of steps) {
    promise.then(
      () => alive || plain(`✔ ${title}`),
      () => {},
    );
  }
  const shown = alive
    ? new Listr(
        [...steps].map(([title, { promise }]) => ({ title, task: () => promise })),
        {
          concurrent: true,
          exitOnError: false,
          // It shows the cursor again and ends the process; a program that handles signals does that itself.
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
    // The work's own error is the one to show.
    for (const [title, { reject }] of steps) reject(new Error(title));
    throw error;
  } finally {
    for (const { resolve } of steps.values()) resolve();
    await shown;
  }
}
