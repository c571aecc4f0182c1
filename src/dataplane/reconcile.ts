// SPDX-License-Identifier: Apache-2.0
import { errorText } from '../errors.ts';
import { diff, type Target } from './target.ts';

/** One target and what it should hold. */
export interface Step<V = unknown> {
  readonly target: Target<V>;
  readonly desired: ReadonlyMap<string, V>;
  /** False as long as absence from `desired` may only mean that we do not know yet (before the first complete sync). */
  readonly mayRemove: boolean;
}

/** Pair a target with its desired entries; the types meet here and are forgotten in the list of steps. */
export function step<V>(target: Target<V>, desired: ReadonlyMap<string, V>, mayRemove = true): Step {
  return { target, desired, mayRemove };
}

/** What one pass did to one target. */
export interface Outcome {
  readonly target: string;
  readonly upserts: number;
  readonly removals: number;
  /** What went wrong; the target is tried again in the next pass. */
  readonly error?: string;
}

/**
 * One pass: bring every target to its desired entries. All upserts come first, in the order of the steps, and then the
 * removals in reverse order, so that nothing is taken away before what replaces it is there. A target that fails does
 * not keep the others from their turn.
 */
export async function reconcile(steps: readonly Step[]): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  const removing: { step: Step; removals: Map<string, unknown>; at: number }[] = [];
  for (const step of steps) {
    const { target, desired, mayRemove } = step;
    try {
      const { upserts, removals } = diff(desired, await target.list());
      if (upserts.size > 0) await target.upsert(upserts);
      if (mayRemove && removals.size > 0) removing.unshift({ step, removals, at: outcomes.length });
      outcomes.push({ target: target.name, upserts: upserts.size, removals: 0 });
    } catch (error) {
      outcomes.push({ target: target.name, upserts: 0, removals: 0, error: errorText(error) });
    }
  }
  for (const { step, removals, at } of removing) {
    try {
      await step.target.remove(removals);
      outcomes[at] = { ...outcomes[at]!, removals: removals.size };
    } catch (error) {
      outcomes[at] = { ...outcomes[at]!, error: errorText(error) };
    }
  }
  return outcomes;
}
