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
 * One pass: bring every target to its desired entries. All targets are listed at once; then come all upserts, in the
 * order of the steps, and then the removals in reverse order, so that nothing is taken away before what replaces it is
 * there. A target that fails does not keep the others from their turn.
 */
export async function reconcile(steps: readonly Step[]): Promise<Outcome[]> {
  const differences = await Promise.allSettled(
    steps.map(async ({ target, desired }) => diff(desired, await target.list())),
  );
  const outcomes = steps.map(({ target }): Outcome => ({ target: target.name, upserts: 0, removals: 0 }));
  const attempt = async (at: number, act: () => Promise<Partial<Outcome>>): Promise<void> => {
    try {
      outcomes[at] = { ...outcomes[at]!, ...(await act()) };
    } catch (error) {
      outcomes[at] = { ...outcomes[at]!, error: errorText(error) };
    }
  };
  for (const [at, { target }] of steps.entries()) {
    await attempt(at, async () => {
      const { upserts } = settled(differences[at]!);
      if (upserts.size > 0) await target.upsert(upserts);
      return { upserts: upserts.size };
    });
  }
  for (const [at, { target, mayRemove }] of Array.from(steps.entries()).toReversed()) {
    if (!mayRemove || outcomes[at]!.error !== undefined) continue;
    await attempt(at, async () => {
      const { removals } = settled(differences[at]!);
      if (removals.size > 0) await target.remove(removals);
      return { removals: removals.size };
    });
  }
  return outcomes;
}

function settled<T>(result: PromiseSettledResult<T>): T {
  if (result.status === 'rejected') throw result.reason;
  return result.value;
}
