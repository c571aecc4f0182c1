// SPDX-License-Identifier: Apache-2.0
/** The measurement: runs works in all arms. */
import { errorText, RipstopError } from '../src/errors.ts';
import type { Arm, Packets } from './arms.ts';
import { formatNumber } from './charts.ts';
import { interleave } from './stats.ts';
import { type Figure, figuresOf, labelOf, questionOf, type QuestionId, type Work } from './works.ts';

/** All samples of one number, by arm: one for each round, null if the measurement failed. */
export interface Samples extends Pick<Work, 'name' | 'where'> {
  readonly question: QuestionId;
  /** Distinguishes numbers for the same question, e.g. `p99`. */
  readonly detail?: string;
  readonly samples: Readonly<Record<string, readonly (number | null)[]>>;
}

/** The result of a comparison. */
export interface Comparison {
  /** In the order of tables and legends. By default the others are compared with the first. */
  readonly arms: readonly string[];
  readonly measured: readonly Samples[];
}

export interface Settings {
  readonly rounds: number;
  readonly seed: number;
  readonly timing: { readonly seconds: number; readonly warmup: number };
  /** The CPU that client and server of a pinned work share. */
  readonly cpu: number;
  readonly signal: AbortSignal;
  readonly say: (text: string) => void;
  /** Gets a line for each failure. The others continue. */
  readonly fail: (what: string) => void;
}

/** Run one work in one arm, once. */
export function measure(
  arm: Arm,
  work: Work,
  { timing, cpu }: Pick<Settings, 'timing' | 'cpu'>,
): ReturnType<Arm['run']> {
  const pinned = work.cpus === 'one core' ? { cpu } : {};
  const seconds = timing.seconds * work.stretch;
  return arm.run(work.command, { ...work.options, ...timing, seconds, ...pinned }, work.place);
}

/**
 * Run every work in every arm once in each round, with the arms in a new order each round.
 * @throws RipstopError when interrupted.
 */
export async function compare(
  arms: readonly Arm[],
  works: readonly Work[],
  settings: Settings,
): Promise<Comparison> {
  const { rounds, seed, say } = settings;
  const measured: Samples[] = [];
  for (const [i, work] of works.entries()) {
    const found = new Map<string, Samples & { samples: Record<string, (number | null)[]> }>();
    for (const [round, order] of interleave(arms, rounds, seed + i).entries()) {
      for (const arm of order) {
        for (const { question, detail, value } of await figures(arm, work, round, settings)) {
          const key = `${question} ${detail}`;
          if (!found.has(key)) {
            const blank = arms.map(({ name }) => [name, Array.from<null>({ length: rounds }).fill(null)]);
            const samples = Object.fromEntries(blank) as Record<string, (number | null)[]>;
            const { name, where } = work;
            found.set(key, { question, ...(detail && { detail }), name, where, samples });
          }
          if (Number.isFinite(value)) found.get(key)!.samples[arm.name]![round] = value;
        }
      }
      const [main] = found.values();
      const now = arms.map(({ name }) => {
        const value = main?.samples[name]?.[round];
        return `${name} ${value == null ? '-' : formatNumber(value)}`;
      });
      const unit = main ? questionOf(main.question).unit : '';
      say(
        `[${i + 1}/${works.length}] ${labelOf(work)}, round ${round + 1}/${rounds}: ${now.join(' · ')} ${unit}`,
      );
    }
    measured.push(...found.values());
  }
  return { arms: arms.map(({ name }) => name), measured };
}

/** The numbers of one measurement; none when it failed. */
async function figures(arm: Arm, work: Work, round: number, settings: Settings): Promise<Figure[]> {
  try {
    if (settings.signal.aborted) throw settings.signal.reason;
    const before = work.place === 'host network' ? undefined : arm.packets();
    const result = await measure(arm, work, settings);
    return [...figuresOf(result), ...fastShare(before, before && arm.packets())];
  } catch (error) {
    if (settings.signal.aborted)
      throw new RipstopError('interrupted; there are no results', { cause: error });
    settings.fail(`${labelOf(work)}: ${arm.name}, round ${round + 1}: ${errorText(error)}`);
    return [];
  }
}

/** The share of the packets between two readings that the fast path has carried; none without ripstop's programs. */
function fastShare(before: Packets | undefined, after: Packets | undefined): Figure[] {
  if (!before || !after) return [];
  const [fast, all] = [after.fast - before.fast, after.all - before.all];
  return [{ question: 'fast-path', value: (100 * fast) / all }];
}
