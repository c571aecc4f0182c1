// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { Ledger, reconcile, step, type Step } from './reconcile.ts';
import { diff, isSame, type Target } from './target.ts';

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

describe('isSame', () => {
  it.each([
    [{ a: 1, b: { c: 'x' } }, { b: { c: 'x' }, a: 1 }, true],
    [{ a: 1 }, { a: 1, b: undefined }, false],
    [{ a: undefined }, { b: undefined }, false],
    [{ a: { b: 1 } }, { a: { b: 2 } }, false],
    [[1, 2], [1, 2], true],
    [null, {}, false],
    [true, true, true],
    ['1', 1, false],
  ])('%j and %j: %j', (a, b, same) => expect(isSame(a, b)).toBe(same));
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

describe('a ledger', () => {
  const HOUR_MS = 3_600_000;

  /** Passes over one target with a ledger; each says whether the target was listed, and what was done to it. */
  function passes(options: { auditMs?: number; toldOf?: boolean } = {}) {
    const log: string[] = [];
    const held = new Map<string, number>();
    const target = memory('t', log, held);
    const list = target.list.bind(target);
    let during = (): void => {};
    target.list = () => {
      log.push('look');
      during();
      return list();
    };
    const ledger = new Ledger(options.auditMs ?? HOUR_MS);
    const pass = async (wanted: Map<string, number>, world = 'the same'): Promise<string[]> => {
      log.length = 0;
      const toldOf = options.toldOf ?? true;
      const steps: Step[] = [
        step(target, () => wanted, true, {
          key: 't',
          content: [wanted],
          inputs: [world],
          toldOf,
        }),
      ];
      const due = ledger.due(steps);
      ledger.note(due, await reconcile(due));
      return [...log];
    };
    return { held, ledger, pass, target, whileListing: (act: () => void) => (during = act) };
  }

  it('has what was written looked at once more, and then no longer', async () => {
    const { pass } = passes();
    const wanted = new Map([['a', 1]]);
    expect(await pass(wanted)).toEqual(['look', 't + a=1']);
    expect(await pass(wanted)).toEqual(['look']);
    expect(await pass(wanted)).toEqual([]);
  });

  it('has a target changed by what it was seen to hold when something else is wanted of it, and then looked at', async () => {
    const { pass } = passes();
    const before = new Map([['a', 1]]);
    for (let i = 0; i < 3; i++) await pass(before);
    const after = new Map([['b', 2]]);
    expect(await pass(after)).toEqual(['t + b=2', 't - a']);
    expect(await pass(after)).toEqual(['look']);
    expect(await pass(after)).toEqual([]);
  });

  it('does not trust what it has seen of a target that is another one now', async () => {
    const { held, pass } = passes();
    const wanted = new Map([['a', 1]]);
    for (let i = 0; i < 3; i++) await pass(wanted);
    held.clear();
    expect(await pass(wanted, 'another')).toEqual(['look', 't + a=1']);
  });

  it('has it looked at after an event, also one that came while it was being listed', async () => {
    const { held, ledger, pass, whileListing } = passes();
    const wanted = new Map([['a', 1]]);
    for (let i = 0; i < 3; i++) await pass(wanted);
    held.delete('a');
    ledger.doubt();
    expect(await pass(wanted)).toEqual(['look', 't + a=1']);
    whileListing(() => ledger.doubt());
    expect(await pass(wanted)).toEqual(['look']);
    whileListing(() => {});
    expect(await pass(wanted)).toEqual(['look']);
    expect(await pass(wanted)).toEqual([]);
  });

  it('lets events be about those only that they can be about', async () => {
    const { ledger, pass } = passes({ toldOf: false });
    const wanted = new Map([['a', 1]]);
    for (let i = 0; i < 3; i++) await pass(wanted);
    ledger.doubt();
    expect(await pass(wanted)).toEqual([]);
    ledger.doubtAll();
    expect(await pass(wanted)).toEqual(['look']);
  });

  it('has everything looked at when an audit is due', async () => {
    const { held, pass } = passes({ auditMs: -1 });
    const wanted = new Map([['a', 1]]);
    for (let i = 0; i < 3; i++) await pass(wanted);
    held.set('drifted', 9);
    expect(await pass(wanted)).toEqual(['look', 't - drifted']);
  });

  it('has a target that failed tried again', async () => {
    const { pass, target } = passes();
    const wanted = new Map([['a', 1]]);
    target.broken = true;
    expect(await pass(wanted)).toEqual(['look']);
    target.broken = false;
    expect(await pass(wanted)).toEqual(['look', 't + a=1']);
  });
});
