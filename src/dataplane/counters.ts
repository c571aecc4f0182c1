// SPDX-License-Identifier: Apache-2.0
/** The per-CPU counters, summed and named. */
import { layout } from './layout.gen.ts';
import type { HookName } from './links.ts';
import type { Tables } from './tables.ts';

export type Verdict = 'fast' | 'kernel' | 'drop';

export interface Counter {
  readonly hook: string;
  readonly verdict: Verdict;
  readonly reason: string;
  readonly packets: number;
  readonly bytes: number;
}

/** `FAST_LOCAL` → verdict `fast`, reason `local`: the first word of a reason is its verdict. */
export function splitReason(enumerator: string): { verdict: Verdict; reason: string } {
  const [verdict, ...reason] = enumerator.toLowerCase().split('_');
  return { verdict: verdict as Verdict, reason: reason.join('_') };
}

const { REASONS, ...reasons } = layout.enums.reason;
const { HOOKS: _count, ...hooks } = layout.enums.hook;

/** Reasons by number. */
export const reasonNames = Object.keys(reasons).map(splitReason);
/** Hooks by number. */
export const hookNames = Object.keys(hooks).map(
  (name) => name.replace(/^HOOK_/, '').toLowerCase() as HookName,
);

/** All counters, zero ones too, summed over CPUs, ordered by hook and reason. */
export function readCounters(tables: Pick<Tables, 'counters'>): Counter[] {
  const counters: Counter[] = [];
  for (const hook of hookNames.keys()) {
    for (const reason of reasonNames.keys()) {
      const perCpu = tables.counters.getPerCpu(hook * REASONS + reason) ?? [];
      counters.push({
        hook: hookNames[hook]!,
        ...reasonNames[reason]!,
        packets: perCpu.reduce((sum, counter) => sum + counter.packets, 0),
        bytes: perCpu.reduce((sum, counter) => sum + counter.bytes, 0),
      });
    }
  }
  return counters;
}
