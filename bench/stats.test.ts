// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { interleave, median, pairedRatio, quantile, seededRandom, summarize } from './stats.ts';

describe('summaries', () => {
  it('find the middle of odd and even counts, in any order', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 3, 2])).toBe(2.5);
    expect(median([7])).toBe(7);
  });

  it('interpolate quantiles between neighbours and do not change the input', () => {
    const values = [40, 10, 30, 20];
    expect(quantile(values, 0.25)).toBe(17.5);
    expect(summarize(values)).toEqual({ n: 4, min: 10, q1: 17.5, median: 25, q3: 32.5, max: 40 });
    expect(values).toEqual([40, 10, 30, 20]);
  });

  it('sort as numbers, not as text', () => {
    expect(median([9, 10, 100])).toBe(10);
  });

  it('of no values are refused', () => {
    expect(() => median([])).toThrow(/nothing was measured/);
    expect(() => summarize([])).toThrow(/nothing was measured/);
  });
});

describe('the seeded generator', () => {
  it('repeats for the same seed, and differs for another', () => {
    const draw = (seed: number) => Array.from({ length: 5 }, seededRandom(seed));
    expect(draw(1)).toEqual(draw(1));
    expect(draw(1)).not.toEqual(draw(2));
  });

  it.each([0, 1, -1, 2 ** 31, 0x9e3779b9])('is uniform over [0, 1) for seed %d', (seed) => {
    const random = seededRandom(seed);
    const tenths = Array.from({ length: 10 }, () => 0);
    for (let i = 0; i < 10_000; i++) {
      const x = random();
      expect(x >= 0 && x < 1).toBe(true);
      const tenth = Math.floor(x * 10);
      tenths[tenth] = (tenths[tenth] ?? 0) + 1;
    }
    expect(Math.min(...tenths)).toBeGreaterThan(850);
    expect(Math.max(...tenths)).toBeLessThan(1150);
  });
});

describe('rounds', () => {
  it('run every variant once, each round in another order', () => {
    const rounds = interleave(['host', 'flannel', 'ripstop'], 60, 7);
    expect(rounds).toHaveLength(60);
    for (const round of rounds) expect(round.toSorted()).toEqual(['flannel', 'host', 'ripstop']);
    expect(new Set(rounds.map((round) => round.join())).size).toBe(6);
    for (const variant of ['host', 'flannel', 'ripstop']) {
      expect(rounds.filter((round) => round[0] === variant).length).toBeGreaterThan(10);
    }
    expect(interleave(['a', 'b'], 20, 3)).toEqual(interleave(['a', 'b'], 20, 3));
  });
});

describe('paired ratios', () => {
  it('cancel what slowed a whole round', () => {
    // The machine's speed varies threefold; the candidate is always 1.5 times as fast.
    const baseline = [10, 30, 15, 22, 11];
    const ratio = pairedRatio(
      baseline,
      baseline.map((value) => value * 1.5),
      { seed: 1 },
    );
    expect(ratio).toMatchObject({ n: 5, min: 1.5, median: 1.5, max: 1.5, low: 1.5, high: 1.5 });
  });

  it('are robust against one bad round', () => {
    const ratio = pairedRatio([10, 10, 10, 10, 10, 10, 10], [20, 21, 20, 1, 19, 20, 20], { seed: 1 });
    expect(ratio.median).toBe(2);
    expect(ratio.min).toBe(0.1);
    expect(ratio.low).toBeGreaterThan(1.8);
  });

  it('show no difference for noise', () => {
    const random = seededRandom(11);
    const noise = () => Array.from({ length: 15 }, () => 100 + 20 * random());
    const { low, high } = pairedRatio(noise(), noise(), { seed: 2 });
    expect(low).toBeLessThan(1);
    expect(high).toBeGreaterThan(1);
  });

  it('have the true ratio within their bounds with about the given confidence', () => {
    const random = seededRandom(5);
    let held = 0;
    for (let trial = 0; trial < 200; trial++) {
      const baseline = Array.from({ length: 15 }, () => 50 + 50 * random());
      const candidate = baseline.map((value) => value * (1.2 + 0.2 * random()));
      const { low, high } = pairedRatio(baseline, candidate, { seed: trial, resamples: 400 });
      if (low <= 1.3 && 1.3 <= high) held++;
    }
    expect(held).toBeGreaterThan(180);
  });

  it('have narrower bounds with more rounds, and wider ones with more confidence', () => {
    const random = seededRandom(3);
    const spread = (rounds: number, confidence: number) => {
      const candidate = Array.from({ length: rounds }, () => 1 + random());
      const { low, high } = pairedRatio(
        candidate.map(() => 1),
        candidate,
        { seed: 1, confidence },
      );
      return high - low;
    };
    expect(spread(200, 0.95)).toBeLessThan(spread(10, 0.95));
    expect(spread(15, 0.5)).toBeLessThan(spread(15, 0.99));
  });

  it('are the same for the same seed', () => {
    const measure = (seed: number) => pairedRatio([1, 2, 3, 4], [2, 3, 5, 9], { seed });
    expect(measure(4)).toEqual(measure(4));
  });

  it('refuse rounds that do not pair, or have no measurement', () => {
    expect(() => pairedRatio([1, 2], [1], { seed: 1 })).toThrow(/2 baseline and 1 candidate rounds/);
    expect(() => pairedRatio([1, 0], [1, 1], { seed: 1 })).toThrow(/round 2 measured 1 against 0/);
    expect(() => pairedRatio([1, 1], [0, 1], { seed: 1 })).toThrow(/round 1 measured 0 against 1/);
    expect(() => pairedRatio([], [], { seed: 1 })).toThrow(/nothing was measured/);
  });
});
