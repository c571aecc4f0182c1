// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { job, reconcile } from './reconcile.ts';
import { type Desired, Reconciled } from './reconciled.ts';
import { allDone, diff, isSame, noFailures, type Target } from './target.ts';

/** A target in memory that writes down what is done to it. */
class Memory implements Target<number> {
  readonly name: string;
  readonly log: string[];
  readonly held: Map<string, number>;
  /** Why keys cannot be written. */
  readonly broken = new Map<string, string>();
  /** Called while it is listed. */
  whileListing = (): void => {};
  /** Why nothing can be listed. */
  unreadable: string | undefined;

  constructor(name: string, held: Record<string, number> = {}, log: string[] = []) {
    this.name = name;
    this.held = new Map(Object.entries(held));
    this.log = log;
  }

  async list(): Promise<Map<string, number>> {
    this.log.push(`${this.name} list`);
    this.whileListing();
    if (this.unreadable !== undefined) throw new Error(this.unreadable);
    return new Map(this.held);
  }

  async upsert(entries: ReadonlyMap<string, number>): Promise<ReadonlyMap<string, string>> {
    for (const [key, value] of entries) {
      if (this.broken.has(key)) continue;
      this.log.push(`${this.name} + ${key}=${value}`);
      this.held.set(key, value);
    }
    return new Map([...this.broken].filter(([key]) => entries.has(key)));
  }

  async remove(entries: ReadonlyMap<string, number>): Promise<ReadonlyMap<string, string>> {
    for (const key of entries.keys()) {
      this.log.push(`${this.name} - ${key}`);
      this.held.delete(key);
    }
    return noFailures;
  }
}

/** One that tells only of the keys that it is asked for. */
class Readable extends Memory {
  async read(entries: ReadonlyMap<string, number>): Promise<Map<string, number>> {
    this.log.push(`${this.name} read ${[...entries.keys()].join(' ')}`);
    return new Map([...entries.keys()].map((key) => [key, this.held.get(key)!]));
  }
}

const desired = (entries: Record<string, number>, more: Partial<Desired<number>> = {}): Desired<number> => ({
  revision: JSON.stringify(entries),
  entries: () => new Map(Object.entries(entries)),
  complete: true,
  ...more,
});

describe('diff', () => {
  it('upserts what is missing or different and removes what is not desired', () => {
    const wanted = new Map([
      ['same', { a: 1 }],
      ['changed', { a: 2 }],
      ['new', { a: 3 }],
    ]);
    const actual = new Map([
      ['same', { a: 1 }],
      ['changed', { a: 9 }],
      ['old', { a: 4 }],
    ]);
    expect(diff(wanted, actual)).toEqual({
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
    [new Map([['a', { b: 1 }]]), new Map([['a', { b: 1 }]]), true],
    [new Map([['a', { b: 1 }]]), new Map([['a', { b: 2 }]]), false],
    [new Map([['a', 1]]), new Map([['b', 1]]), false],
  ])('%o and %o: %s', (a, b, same) => expect(isSame(a, b)).toBe(same));
});

it('failures become an error for a caller that needs everything done', () => {
  expect(() => allDone(noFailures)).not.toThrow();
  const two = new Map([
    ['a', 'disk full'],
    ['b', 'disk full'],
  ]);
  expect(() => allDone(two)).toThrow('a: disk full (and 1 more)');
});

describe('a pass', () => {
  it('adds everywhere before it removes anywhere, and removes in reverse order', async () => {
    const log: string[] = [];
    const targets = ['first', 'second'].map((name) => new Reconciled(new Memory(name, { old: 1 }, log)));
    await reconcile(targets.map((target) => job(target, desired({ new: 3 }))));
    expect(log.slice(2)).toEqual(['first + new=3', 'second + new=3', 'second - old', 'first - old']);
  });

  it('writes nothing when everything is in place', async () => {
    const target = new Memory('t', { a: 1 });
    const outcomes = await reconcile([job(new Reconciled(target), desired({ a: 1 }))]);
    expect(target.log).toEqual(['t list']);
    expect(outcomes).toEqual([{ target: 't', upserts: 0, removals: 0, failures: 0 }]);
  });

  it('removes nothing while there may be more than is known', async () => {
    const target = new Memory('t', { 'unknown yet': 1 });
    const kept = new Reconciled(target);
    await reconcile([job(kept, desired({ a: 1 }, { complete: false }))]);
    expect(target.log).toEqual(['t list', 't + a=1']);
    await reconcile([job(kept, desired({ a: 1 }))]);
    expect(target.log).toEqual(['t list', 't + a=1', 't list', 't - unknown yet']);
  });

  it('goes on past a target that cannot be listed', async () => {
    const [bad, good] = [new Memory('bad'), new Memory('good')];
    bad.unreadable = 'disk on fire\nas expected';
    const kept = [new Reconciled(bad), new Reconciled(good)];
    const outcomes = await reconcile(kept.map((target) => job(target, desired({ a: 1 }))));
    expect(outcomes.map(({ failures }) => failures)).toEqual([1, 0]);
    expect(kept[0]!.failureOf(['anything'])).toBe('disk on fire · as expected');
    expect(good.log).toEqual(['good list', 'good + a=1']);
  });
});

describe('a key that fails', () => {
  async function failing() {
    const target = new Memory('t');
    target.broken.set('bad', 'no space');
    const kept = new Reconciled(target, { remembers: true });
    const pass = () => reconcile([job(kept, desired({ bad: 1, good: 2 }))]);
    return { target, kept, pass, outcomes: await pass() };
  }

  it('keeps no other from its turn, and is told of with its reason', async () => {
    const { target, kept, outcomes } = await failing();
    expect(outcomes).toEqual([{ target: 't', upserts: 1, removals: 0, failures: 1 }]);
    expect([...target.held]).toEqual([['good', 2]]);
    expect(kept.failureOf(['good'])).toBeUndefined();
    expect(kept.failureOf(['good', 'bad'])).toBe('no space');
    const { desired: size, failures } = kept.status;
    expect(size).toBe(2);
    expect(failures).toMatchObject([{ key: 'bad', why: 'no space' }]);
  });

  it('is retried when its time has come, and not in every pass before', async () => {
    const { target, kept, pass } = await failing();
    expect(await pass()).toEqual([]);
    expect(kept.retryAtMs! - performance.now()).toBeGreaterThan(500);
    target.broken.clear();
    kept.invalidate();
    expect(await pass()).toMatchObject([{ upserts: 1, failures: 0 }]);
    expect(kept.status.failures).toEqual([]);
    expect(kept.retryAtMs).toBeUndefined();
  });

  it('keeps the time since when it has failed', async () => {
    const { kept, pass } = await failing();
    const [before] = kept.status.failures;
    kept.invalidate();
    await pass();
    expect(kept.status.failures).toEqual([before]);
  });

  it('is one that a plan calls impossible, too; but nobody retries it', async () => {
    const kept = new Reconciled(new Memory('t'));
    const impossible = () => new Map([['far', 'no route']]);
    await reconcile([job(kept, desired({ a: 1 }, { impossible }))]);
    expect(kept.status.failures).toMatchObject([{ key: 'far', why: 'no route' }]);
    expect(kept.retryAtMs).toBeUndefined();
  });
});

describe('a target is looked at', () => {
  /** Passes over one target; each tells what was done to it. */
  function passes(options: { remembers?: boolean } = {}) {
    const target = new Memory('t');
    const kept = new Reconciled(target, options);
    const pass = async (entries: Record<string, number>, revision?: string): Promise<string[]> => {
      target.log.length = 0;
      await reconcile([job(kept, desired(entries, revision === undefined ? {} : { revision }))]);
      return [...target.log];
    };
    return { target, kept, pass };
  }

  it('once more after it was written, and then no longer', async () => {
    const { pass } = passes();
    expect(await pass({ a: 1 })).toEqual(['t list', 't + a=1']);
    expect(await pass({ a: 1 })).toEqual(['t list']);
    expect(await pass({ a: 1 })).toEqual([]);
  });

  it('again for another revision', async () => {
    const { pass } = passes();
    for (let i = 0; i < 3; i++) await pass({ a: 1 }, 'first');
    expect(await pass({ a: 1 }, 'second')).toEqual(['t list']);
  });

  it('again when it was invalidated, also while it was being listed', async () => {
    const { target, kept, pass } = passes();
    for (let i = 0; i < 3; i++) await pass({ a: 1 });
    target.held.delete('a');
    kept.invalidate();
    expect(await pass({ a: 1 })).toEqual(['t list', 't + a=1']);
    target.whileListing = () => kept.invalidate();
    expect(await pass({ a: 1 })).toEqual(['t list']);
    target.whileListing = () => {};
    expect(await pass({ a: 1 })).toEqual(['t list']);
    expect(await pass({ a: 1 })).toEqual([]);
  });

  it('only once where it is remembered: later changes cost what they change', async () => {
    const { pass } = passes({ remembers: true });
    expect(await pass({ a: 1 })).toEqual(['t list', 't + a=1']);
    expect(await pass({ a: 1 })).toEqual([]);
    expect(await pass({ b: 2 })).toEqual(['t + b=2', 't - a']);
    expect(await pass({ b: 2 })).toEqual([]);
  });

  it('again where it is remembered only if an event tells of something else than is known', async () => {
    const { target, kept, pass } = passes({ remembers: true });
    await pass({ a: 1 });
    kept.noteActual('a', 1);
    kept.noteActual('never there', undefined);
    expect(await pass({ a: 1 })).toEqual([]);
    target.held.delete('a');
    kept.noteActual('a', undefined);
    expect(await pass({ a: 1 })).toEqual(['t list', 't + a=1']);
  });

  it('again where it is remembered when it was invalidated while it was being listed', async () => {
    const { target, kept, pass } = passes({ remembers: true });
    target.whileListing = () => kept.invalidate();
    expect(await pass({ a: 1 })).toEqual(['t list', 't + a=1']);
    target.whileListing = () => {};
    expect(await pass({ a: 1 })).toEqual(['t list']);
  });

  it('key by key where it cannot be listed: at those that are new, and at all when it was invalidated', async () => {
    const target = new Readable('t', { a: 1, b: 0 });
    const kept = new Reconciled(target, { remembers: true });
    const pass = async (entries: Record<string, number>): Promise<string[]> => {
      target.log.length = 0;
      await reconcile([job(kept, desired(entries))]);
      return [...target.log];
    };
    expect(await pass({ a: 1 })).toEqual(['t read a']);
    expect(await pass({ a: 1, b: 2 })).toEqual(['t read b', 't + b=2']);
    expect([kept.noteActual('b', 2), kept.noteActual("somebody else's", 5)]).toEqual([false, false]);
    expect(await pass({ a: 1, b: 2 })).toEqual([]);
    target.held.set('b', 0);
    expect(kept.noteActual('b', 0)).toBe(true);
    expect(await pass({ a: 1, b: 2 })).toEqual(['t read a b', 't + b=2']);
  });
});
