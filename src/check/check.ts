// SPDX-License-Identifier: Apache-2.0
/** One check from its beginning to its end, in a lab or in a cluster. */
import type { Progress } from '../lab/index.ts';
import { type Kind, type Planned, planProbes, type Skipped, skippedNodes } from './plan.ts';
import { type Report, reportOf, type Unready } from './report.ts';
import { probersOf, runPlan, type Site } from './run.ts';
import { Session } from './session.ts';

/** The titles of a check's steps, in order: those of the preparation, and the kinds of probes. */
export const PREPARE = 'prepare';
export const PROBERS = 'start probers';
export const CLEAN_UP = 'clean up';

export interface CheckOptions {
  readonly kinds: readonly Kind[];
  readonly sample?: Report['sample'];
  /** Leave what was prepared where it is. */
  readonly keep: boolean;
}

/** Do what is to be done, and tell of the step. */
async function step<T>(progress: Progress, title: string, work: () => Promise<T>): Promise<T> {
  progress({ title, state: 'begun' });
  try {
    const result = await work();
    progress({ title, state: 'done' });
    return result;
  } catch (error) {
    progress({ title, state: 'failed' });
    throw error;
  }
}

/**
 * Prepare, probe, and clean up, also after a failure and when `signal` aborts it.
 * @param prepare makes the place ready. What it has made when it fails it removes itself.
 * @throws what failed; the signal's reason
 */
export async function check(
  prepare: () => Promise<Site & { readonly notReady?: readonly Unready[] }>,
  { kinds, sample, keep }: CheckOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<Report> {
  const site = await step(progress, PREPARE, prepare);
  const sessions = new Map<string, Session>();
  const ended = new AbortController();
  const aborted = new Promise<never>((_, reject) => {
    const abort = (): void => reject(signal.reason as Error);
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
  });
  aborted.catch(() => {});
  try {
    const scope = { nodes: site.nodes, kinds: kinds.filter((kind) => !isSkipped(kind, site.skipped)) };
    const plan = planProbes(scope);
    const work = async () => {
      await step(progress, PROBERS, () => startProbers(plan, site, sessions, ended.signal));
      return runPlan(plan, site, sessions, (kind, passed) =>
        progress({ title: kind, state: passed ? 'done' : 'failed' }),
      );
    };
    const working = work();
    // After an abort the sessions end, and what is still under way fails.
    working.catch(() => {});
    const results = await Promise.race([working, aborted]);
    return reportOf(results, {
      where: site.name,
      nodes: site.nodes.map(({ name }) => name),
      ...(sample && { sample }),
      notReady: site.notReady ?? [],
      skipped: [...site.skipped.filter(({ kind }) => kinds.includes(kind)), ...skippedNodes(scope)],
      next: site.next,
    });
  } finally {
    ended.abort();
    if (!keep) await step(progress, CLEAN_UP, site.close);
  }
}

/** Whether a kind cannot be tried on any node. */
function isSkipped(kind: Kind, skipped: readonly Skipped[]): boolean {
  return skipped.some((one) => one.kind === kind && one.node === undefined);
}

/** @param ended ends them, also those that are about to start. */
async function startProbers(
  plan: readonly Planned[],
  site: Site,
  sessions: Map<string, Session>,
  ended: AbortSignal,
): Promise<void> {
  await Promise.all(
    [...probersOf(plan)].map(async ([place, serve]) => {
      const process = await site.start(place, serve);
      const end = (): unknown => process.stdin.end();
      if (ended.aborted) end();
      else ended.addEventListener('abort', end, { once: true });
      sessions.set(place.name, await Session.open(place.name, process));
    }),
  );
}
