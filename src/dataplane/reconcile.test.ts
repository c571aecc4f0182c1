// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { reconcile, step } from './reconcile.ts';
import { diff, type Target } from './target.ts';

/** A target in memory that writes down what is done to it. */
function memory(
  name: string,
  log: string[],
  held: Map<string, number>,
): Target<number> & { broken: boolean } {
  return {
    name,
    broken: false,
    list: async () => new Map(held),
    async upsert(entries) {
      if (this.broken) throw new Error('disk on fire\nas expected');
      for (const [key, value] of entries) {
        log.push(`${name} + ${key}=${value}`);
        held.set(key, value);
      }
    },
    async remove(entries) {
      for (const [key] of entries) {
        log.push(`${name} - ${key}`);
        held.delete(key);
      }
    },
  };
}

describe('diff', () => {
  it('upserts what is missing or different and removes what is not wanted', () => {
    const wanted = new Map([
      ['same', { a: 1 }],
      ['changed', { a: 2 }],
      ['new', { a: 3 }],
    ]);
    const there = new Map([
      ['same', { a: 1 }],
      ['changed', { a: 9 }],
      ['old', { a: 4 }],
    ]);
    expect(diff(wanted, there)).toEqual({
      upserts: new Map([
        ['changed', { a: 2 }],
        ['new', { a: 3 }],
      ]),
      removals: new Map([['old', { a: 4 }]]),
    });
  });
});

describe('reconcile', () => {
  it('adds everywhere before it removes anywhere, and removes in reverse order', async () => {
    const log: string[] = [];
    const first = memory('first', log, new Map([['old', 1]]));
    const second = memory('second', log, new Map([['old', 2]]));
    const wanted = new Map([['new', 3]]);
    await reconcile([step(first, wanted), step(second, wanted)]);
    expect(log).toEqual(['first + new=3', 'second + new=3', 'second - old', 'first - old']);
  });

  it('writes nothing when everything is in place', async () => {
    const log: string[] = [];
    const target = memory('t', log, new Map([['a', 1]]));
    const outcomes = await reconcile([step(target, new Map([['a', 1]]))]);
    expect({ log, outcomes }).toEqual({ log: [], outcomes: [{ target: 't', upserts: 0, removals: 0 }] });
  });

  it('removes nothing before the first complete sync', async () => {
    const log: string[] = [];
    const target = memory('t', log, new Map([['unknown yet', 1]]));
    await reconcile([step(target, new Map([['a', 1]]), false)]);
    expect(log).toEqual(['t + a=1']);
  });

  it('goes on past a target that fails, and heals it in the next pass', async () => {
    const log: string[] = [];
    const bad = memory('bad', log, new Map());
    const good = memory('good', log, new Map());
    bad.broken = true;
    const wanted = new Map([['a', 1]]);
    const outcomes = await reconcile([step(bad, wanted), step(good, wanted)]);
    expect(outcomes).toEqual([
      { target: 'bad', upserts: 0, removals: 0, error: 'disk on fire · as expected' },
      { target: 'good', upserts: 1, removals: 0 },
    ]);
    bad.broken = false;
    await reconcile([step(bad, wanted), step(good, wanted)]);
    expect(log).toEqual(['good + a=1', 'bad + a=1']);
  });
});
