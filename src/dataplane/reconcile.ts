// SPDX-License-Identifier: Apache-2.0
import { errorText } from '../errors.ts';
import { once } from './memo.ts';
import { diff, type Target } from './target.ts';

/** One target and what it should hold. */
export interface Step<V = unknown> {
  readonly target: Target<V>;
  /** Only asked for when the target is looked at, to compute it may be most of the work; each time the same. */
  readonly desired: () => ReadonlyMap<string, V>;
  /** False as long as absence from `desired` may only mean that we do not know yet (before the first complete sync). */
  readonly mayRemove: boolean;
  /** For a {@link Ledger}; without it the target is looked at in each pass. */
  readonly basis?: Basis;
  /** What the target is known to hold, so that it need not be listed. */
  readonly held?: () => ReadonlyMap<string, V>;
}

/** What a step depends on. */
export interface Basis {
  /** One step's own, in all passes. */
  readonly key: string;
  /** What `desired` is made from and nothing else depends on, compared by identity. */
  readonly content: readonly unknown[];
  /** What the target itself is, or `desired` is made from too, compared by identity. */
  readonly inputs: readonly unknown[];
  /** Whether changes in the world are told of: then {@link Ledger.doubt} is for this target, too. */
  readonly toldOf: boolean;
}

/** Pair a target with its desired entries; the types meet here and are forgotten in the list of steps. */
export function step<V>(
  target: Target<V>,
  desired: ReadonlyMap<string, V> | (() => ReadonlyMap<string, V>),
  mayRemove = true,
  basis?: Basis,
): Step {
  return {
    target,
    desired: typeof desired === 'function' ? desired : () => desired,
    mayRemove,
    ...(basis && { basis }),
  };
}

/**
 * Remembers which targets were seen to be as they should be, so that a pass need not look at what nothing has happened to:
 * what is wanted is made from the same as then, no event has cast doubt on it, and the next audit is not due. Where only
 * the wanted content is another, what was seen then stands for a look.
 */
export class Ledger {
  /** For how long what was seen is believed. */
  auditMs: number;
  readonly #settled = new Map<
    string,
    { readonly basis: Basis; readonly at: number; readonly held?: () => ReadonlyMap<string, unknown> }
  >();
  #doubts = 0;
  #doubtsBefore = 0;

  constructor(auditMs: number) {
    this.auditMs = auditMs;
  }

  /** The steps of a pass that begins now that have something to do, if only to look. */
  due(steps: readonly Step[]): Step[] {
    this.#doubtsBefore = this.#doubts;
    return steps.flatMap((one) => {
      const { basis } = one;
      const step = { ...one, desired: once(one.desired) };
      const before = basis && this.#settled.get(basis.key);
      if (!before || performance.now() - before.at > this.auditMs) return [step];
      if (isOther(before.basis.inputs, basis.inputs)) return [step];
      if (!isOther(before.basis.content, basis.content)) return [];
      return [before.held ? { ...step, held: before.held } : step];
    });
  }

  /** What came of them. What had to be written is looked at once more. */
  note(due: readonly Step[], outcomes: readonly Outcome[]): void {
    for (const [i, { basis, desired, mayRemove, target }] of due.entries()) {
      if (!basis) continue;
      const { upserts, removals, error } = outcomes[i]!;
      const doubted = basis.toldOf && this.#doubts !== this.#doubtsBefore;
      if (upserts + removals > 0 || error !== undefined || doubted) this.#settled.delete(basis.key);
      else {
        // A target that tells differences by itself does so for less than it costs to know all that it holds.
        const held = mayRemove && !target.difference ? desired : undefined;
        this.#settled.set(basis.key, { basis, at: performance.now(), ...(held && { held }) });
      }
    }
  }

  /** Something has happened in the world that events tell of. */
  doubt(): void {
    this.#doubts++;
    for (const [key, { basis }] of this.#settled) if (basis.toldOf) this.#settled.delete(key);
  }

  /** Look at everything again. */
  doubtAll(): void {
    this.#doubts++;
    this.#settled.clear();
  }
}

function isOther(before: readonly unknown[], now: readonly unknown[]): boolean {
  return before.length !== now.length || before.some((input, i) => input !== now[i]);
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
    steps.map(
      async ({ target, desired, held }) =>
        target.difference?.(desired()) ?? diff(desired(), held?.() ?? (await target.list())),
    ),
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
