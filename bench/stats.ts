// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../src/errors.ts';

/** Five numbers that summarize values without assuming a distribution. */
export interface Summary {
  n: number;
  min: number;
  q1: number;
  median: number;
  q3: number;
  max: number;
}

/** A candidate compared with its baseline: the summary of the rounds' ratios, and the bounds of their median. */
export interface Ratio extends Summary {
  /** Bounds of the median, by bootstrap. */
  low: number;
  high: number;
}

/**
 * The quantile `q` (0 … 1) with linear interpolation between neighbours (Hyndman and Fan's type 7, as R and NumPy do).
 * @throws RipstopError when there are no values.
 */
export function quantile(values: readonly number[], q: number): number {
  return quantileOfSorted(
    values.toSorted((a, b) => a - b),
    q,
  );
}

function quantileOfSorted(sorted: ArrayLike<number>, q: number): number {
  const position = q * (sorted.length - 1);
  const low = sorted[Math.floor(position)];
  const high = sorted[Math.ceil(position)];
  if (low === undefined || high === undefined) {
    throw new RipstopError('nothing was measured, so there is no quantile; run at least one round');
  }
  return low + (high - low) * (position - Math.floor(position));
}

/** The median. @throws RipstopError when there are no values. */
export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** @throws RipstopError when there are no values. */
export function summarize(values: readonly number[]): Summary {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (q: number) => quantileOfSorted(sorted, q);
  return { n: sorted.length, min: at(0), q1: at(0.25), median: at(0.5), q3: at(0.75), max: at(1) };
}

/** Numbers in [0, 1), the same for the same seed (Marsaglia's xorshift32 over a mixed seed). Not for secrets. */
export function seededRandom(seed: number): () => number {
  let state = Math.imul((seed | 0) ^ 0x9e3779b9, 0x85ebca6b) || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

/**
 * The order in which to run `variants`: every round runs each once, in a new random order. A machine that gets slower
 * or faster with time, or that favours the second, then favours none, and each round's values can be paired.
 */
export function interleave<T>(variants: readonly T[], rounds: number, seed: number): T[][] {
  const random = seededRandom(seed);
  return Array.from({ length: rounds }, () => {
    const round = [...variants];
    // Fisher and Yates: repeatedly take one of those left.
    return variants.flatMap(() => round.splice(Math.floor(random() * round.length), 1));
  });
}

/**
 * Candidate over baseline, round by round: `baseline[i]` and `candidate[i]` were measured in the same round, so
 * whatever slowed that round slowed both and cancels out. The median of the rounds' ratios is the result; `low` and
 * `high` bound it with `confidence`, by resampling the rounds (percentile bootstrap). Few rounds give wide bounds.
 * @throws RipstopError when the rounds do not pair, or one of them has no measurement.
 */
export function pairedRatio(
  baseline: readonly number[],
  candidate: readonly number[],
  options: { seed: number; confidence?: number; resamples?: number },
): Ratio {
  const { seed, confidence = 0.95, resamples = 2000 } = options;
  if (baseline.length !== candidate.length) {
    throw new RipstopError(
      `${baseline.length} baseline and ${candidate.length} candidate rounds do not pair up; measure both in every round`,
    );
  }
  const ratios = baseline.map((base, round) => {
    const ratio = (candidate[round] ?? Number.NaN) / base;
    if (Number.isFinite(ratio) && ratio > 0) return ratio;
    throw new RipstopError(
      `round ${round + 1} measured ${candidate[round]} against ${base}, which is no ratio; drop the round or find its fault`,
    );
  });
  const summary = summarize(ratios);
  const random = seededRandom(seed);
  const medians = new Float64Array(resamples);
  const sample = new Float64Array(ratios.length);
  for (let i = 0; i < resamples; i++) {
    for (let j = 0; j < sample.length; j++)
      sample[j] = ratios[Math.floor(random() * ratios.length)] ?? Number.NaN;
    medians[i] = quantileOfSorted(sample.sort(), 0.5);
  }
  medians.sort();
  const tail = (1 - confidence) / 2;
  return { ...summary, low: quantileOfSorted(medians, tail), high: quantileOfSorted(medians, 1 - tail) };
}
