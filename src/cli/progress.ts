// SPDX-License-Identifier: Apache-2.0
import { Listr } from 'listr2';
import { type LabOptions, labSteps, type Progress } from '../lab/index.ts';

/** Run `work` while showing the lab's steps as they begin and end; plain lines where no terminal is. */
export async function showProgress<T>(
  options: LabOptions,
  work: (progress: Progress) => Promise<T>,
): Promise<T> {
  const steps = new Map(labSteps(options).map((title) => [title, Promise.withResolvers<void>()]));
  // A step that never begins because an earlier one failed stays open; the work's own error is the one to show.
  for (const { promise } of steps.values()) promise.catch(() => {});
  const tasks = new Listr(
    [...steps].map(([title, { promise }]) => ({ title, task: () => promise })),
    {
      concurrent: true,
      exitOnError: false,
      fallbackRenderer: 'silent',
      rendererOptions: { collapseErrors: true },
    },
  );
  const shown = tasks.run();
  try {
    return await work(({ title, state }) => {
      if (state === 'done') steps.get(title)?.resolve();
      if (state === 'failed') steps.get(title)?.reject(new Error(title));
    });
  } catch (error) {
    for (const { reject } of steps.values()) reject(new Error('not reached'));
    throw error;
  } finally {
    for (const { resolve } of steps.values()) resolve();
    await shown;
  }
}
