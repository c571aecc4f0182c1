// SPDX-License-Identifier: Apache-2.0
/** Checks: each judges facts, and says what is wrong, why, and what helps. Pure. */
import type { Facts } from './facts.ts';

/** `warn`: it works, but not as fast or as sure as it could. `fail`: a person must look at it. */
export type State = 'ok' | 'warn' | 'fail' | 'skipped';

/** One thing that is wrong. Each text is a sentence or two, without a full stop. */
export interface Problem {
  readonly state: 'warn' | 'fail';
  readonly what: string;
  readonly why: string;
  /** A command, or a setting to change. */
  readonly cure: string;
}

export interface Finding {
  readonly check: string;
  readonly state: State;
  /** What is wrong; of what is in order, what that means. */
  readonly what: string;
  /** Absent for what is in order. */
  readonly why?: string;
  readonly cure?: string;
}

/** What is known of the facts: each, or why it could not be found out. */
export type Known = {
  readonly [K in keyof Facts]?: { readonly is: Facts[K] } | { readonly unknown: string };
};

/** What deploy/TROUBLESHOOTING.md says of a check. Markdown. */
export interface Guide {
  readonly symptom: string;
  readonly cause: string;
  readonly cure: string;
}

/** Says that a check cannot be made, and why. */
export interface Skipped {
  readonly skipped: string;
}

export interface Check {
  readonly name: string;
  /** What holds when it finds nothing. */
  readonly ok: string;
  readonly guide: Guide;
  /** The facts that it needs. */
  readonly needs: readonly (keyof Facts)[];
  judge(known: Known): Finding[];
}

/** Make a check. @param judge is called only when all facts that it needs are known. */
export function check<K extends keyof Facts>(
  name: string,
  { ok, needs, ...guide }: Guide & { readonly ok: string; readonly needs: readonly K[] },
  judge: (facts: Pick<Facts, K>) => readonly Problem[] | Skipped,
): Check {
  return {
    name,
    ok,
    guide,
    needs,
    judge(known) {
      const facts: Record<string, unknown> = {};
      const whys = new Set<string>();
      for (const need of needs) {
        const fact: { is: unknown } | { unknown: string } = known[need] ?? { unknown: 'nobody looked' };
        if ('unknown' in fact) whys.add(fact.unknown);
        else facts[need] = fact.is;
      }
      const skipped = (why: string): Finding[] => [{ check: name, state: 'skipped', what: ok, why }];
      if (whys.size > 0) return skipped([...whys].join('; '));
      const result = judge(facts as unknown as Pick<Facts, K>);
      if ('skipped' in result) return skipped(result.skipped);
      if (result.length === 0) return [{ check: name, state: 'ok', what: ok }];
      return result.map((problem) => ({ check: name, ...problem }));
    },
  };
}

export const fail = (what: string, why: string, cure: string): Problem => ({
  state: 'fail',
  what,
  why,
  cure,
});
export const warn = (what: string, why: string, cure: string): Problem => ({
  state: 'warn',
  what,
  why,
  cure,
});

/** An endpoint for people. */
export function endpointName({ pod, ip, device }: Facts['endpoints'][number]): string {
  return pod ?? ip ?? device ?? 'a pod that is gone';
}

/** A command in a text. */
export const code = (command: string): string => `\`${command}\``;

const SHOWN = 3;

/** Some of many, for a sentence: `a, b, c and 4 more`. */
export function some(names: readonly string[]): string {
  if (names.length <= SHOWN + 1) return names.join(', ');
  return `${names.slice(0, SHOWN).join(', ')} and ${names.length - SHOWN} more`;
}
