// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { backoffMs } from './backoff.ts';

const timing = { backoffMinMs: 1000, backoffMaxMs: 20_000, retryAfterMaxMs: 60_000 };
const many = (failures: number, retryAfterMs?: number): number[] =>
  Array.from({ length: 1000 }, () => backoffMs(timing, failures, retryAfterMs));

describe('the wait after a failure', () => {
  it.each([
    [0, 1000],
    [1, 2000],
    [4, 16_000],
    [5, 20_000],
    [1_000_000, 20_000],
  ])('after %i earlier ones is spread over the upper half of %i ms', (failures, ceiling) => {
    const waits = many(failures);
    for (const wait of waits) {
      expect(wait).toBeGreaterThanOrEqual(ceiling / 2);
      expect(wait).toBeLessThanOrEqual(ceiling);
    }
    // A thousand nodes that fail together come back over the whole of that time.
    const quarters = new Set(waits.map((wait) => Math.floor((wait / ceiling - 0.5) * 8)));
    for (const quarter of [0, 1, 2, 3]) expect(quarters).toContain(quarter);
  });

  it('is at least what the server asks for, and not all come back at that very moment', () => {
    const waits = many(0, 10_000);
    expect(Math.min(...waits)).toBeGreaterThanOrEqual(10_000);
    expect(Math.max(...waits)).toBeLessThanOrEqual(11_000);
    expect(Math.max(...waits) - Math.min(...waits)).toBeGreaterThan(500);
  });

  it('does not follow a server that asks for a day', () => {
    expect(Math.max(...many(0, 86_400_000))).toBeLessThanOrEqual(66_000);
  });
});
