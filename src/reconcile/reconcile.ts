// SPDX-License-Identifier: Apache-2.0
import type { Desired, Outcome, Pass, Reconciled } from './reconciled.ts';

/** A target with what a plan says about it; the type of its values is forgotten here. */
export interface Job {
  readonly name: string;
  isDue(nowMs: number): boolean;
  begin(): Pass;
}

export function job<V>(target: Reconciled<V>, desired: Desired<V>): Job {
  return {
    name: target.name,
    isDue: (nowMs) => target.isDue(desired, nowMs),
    begin: () => target.begin(desired),
  };
}

/**
 * One pass: bring those targets that have a reason to their desired entries. All are compared first; then come all
 * upserts, in the order of the jobs, and then the removals in reverse order, so that nothing is removed before its
 * replacement is there. A target that fails keeps no other from its turn.
 */
export async function reconcile(jobs: readonly Job[]): Promise<Outcome[]> {
  const nowMs = performance.now();
  const passes = jobs.filter((one) => one.isDue(nowMs)).map((one) => one.begin());
  for (const pass of passes) await pass.upsert();
  for (const pass of passes.toReversed()) await pass.remove();
  const endMs = performance.now();
  return passes.map((pass) => pass.end(endMs));
}
