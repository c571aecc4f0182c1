// SPDX-License-Identifier: Apache-2.0
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { Paced } from './paced.ts';

/** In µs. */
let user = 0;

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance', 'setTimeout', 'clearTimeout'] });
  vi.spyOn(process, 'cpuUsage').mockImplementation((since) => ({
    user: user - (since?.user ?? 0),
    system: 0,
  }));
});
afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

/** Counts its readings, each of which takes so much CPU time. */
function counting(tookMs: number): { paced: Paced<number>; befores: (number | undefined)[] } {
  const befores: (number | undefined)[] = [];
  const paced = new Paced<number>(0.008, (before) => {
    befores.push(before);
    user += tookMs * 1000;
    // Others want the CPU, too.
    vi.advanceTimersByTime(2 * tookMs);
    return befores.length;
  });
  return { paced, befores };
}

it('reads when somebody asks, and once for all who ask in the same second', () => {
  const { paced, befores } = counting(1);
  vi.advanceTimersByTime(5000);
  expect(befores).toEqual([]);
  expect([paced.get(), paced.get()]).toEqual([1, 1]);
  vi.advanceTimersByTime(500);
  expect(paced.get()).toBe(1);
  vi.advanceTimersByTime(500);
  expect(paced.get()).toBe(2);
  expect(befores).toEqual([undefined, 1]);
});

it('keeps nothing once nobody asks', () => {
  const { paced, befores } = counting(1);
  paced.get();
  vi.advanceTimersByTime(60_000);
  paced.get();
  expect(befores).toEqual([undefined, undefined]);
});

it('reads what costs much so seldom that its readings take less than 1 % of a core', () => {
  const { paced, befores } = counting(40);
  for (let second = 1; second <= 100; second++) {
    paced.get();
    vi.advanceTimersByTime(second * 1000 - performance.now());
  }
  // The first reading, for which code is compiled, does not count.
  expect(((befores.length - 1) * 40) / 100_000).toBeLessThan(0.01);
  expect(befores.length).toBeGreaterThan(15);
});
