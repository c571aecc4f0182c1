// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Comparison, Samples } from './compare.ts';
import { boundsOf, formatBound, type Judged, judge, ratioOf, targets, verdictOn } from './targets.ts';
import { figuresOf, titleOf, works } from './works.ts';

const work = { name: 'TCP stream ×1', where: 'across nodes, one core, GSO wire' };

function stream(samples: Samples['samples']): Samples {
  return { question: 'stream', ...work, samples };
}

function comparison(measured: readonly Samples[]): Comparison {
  return { arms: Object.keys(measured[0]?.samples ?? {}), measured };
}

const none = comparison([]);
const blank: Judged = {
  meta: { seed: 1 },
  planes: none,
  bystanders: none,
  peers: none,
  programs: [],
  countingNs: undefined,
};

describe('a ratio', () => {
  it('is taken within rounds, and only in rounds that measured both', () => {
    const samples = stream({ host: [10, 20, 30], flannel: [5, 10, 15], ripstop: [9, 18, null] });
    expect(ratioOf(samples, 'host', 'flannel', 1)).toMatchObject({ n: 3, median: 0.5 });
    expect(ratioOf(samples, 'host', 'ripstop', 1)).toMatchObject({ n: 2, median: 0.9 });
  });

  it('is undefined for a missing baseline, for itself, and for too few rounds', () => {
    expect(ratioOf(stream({ host: [0, 0], ripstop: [1, 1] }), 'host', 'ripstop', 1)).toBeUndefined();
    expect(ratioOf(stream({ host: [1, 1] }), 'host', 'host', 1)).toBeUndefined();
    expect(ratioOf(stream({ host: [1, null], ripstop: [1, 1] }), 'host', 'ripstop', 1)).toBeUndefined();
  });
});

describe('a verdict', () => {
  it.each([
    ['at least 1', { atLeast: 1 }, 1.2, 1.1, 1.3, 'met'],
    ['at least 1', { atLeast: 1 }, 1.2, 0.9, 1.3, 'met?'],
    ['at least 1', { atLeast: 1 }, 0.9, 0.8, 1.1, 'not met?'],
    ['at least 1', { atLeast: 1 }, 0.9, 0.8, 0.95, 'not met'],
    ['at most 1', { atMost: 1 }, 1, 1, 1, 'met'],
    ['within 2 %', { atLeast: 0.98, atMost: 1.02 }, 1, 0.99, 1.01, 'met'],
    ['within 2 %', { atLeast: 0.98, atMost: 1.02 }, 1, 0.97, 1.03, 'met?'],
    // The interval exceeds both bounds, so nothing is known.
    ['within 2 %', { atLeast: 0.98, atMost: 1.02 }, 1.05, 0.7, 1.4, 'not met?'],
    ['within 2 %', { atLeast: 0.98, atMost: 1.02 }, 1.05, 1.04, 1.06, 'not met'],
  ] as const)('on %s %o with %d (%d to %d) is %s', (_, bound, median, low, high, verdict) => {
    expect(verdictOn({ median, low, high }, bound)).toBe(verdict);
  });

  it('without a value is none', () => {
    expect(verdictOn(undefined, { atLeast: 1 })).toBe('not measured');
  });
});

describe('the targets', () => {
  it('are for numbers that every run measures, also a quick one', () => {
    for (const target of targets) {
      const found = works.find(({ name, where }) => name === target.name && where === target.where);
      expect(found, titleOf(target)).toMatchObject({ quick: true });
    }
  });

  it('are all listed, and none is met by a run without measurements', () => {
    const verdicts = judge(blank).map(({ verdict }) => verdict);
    expect(verdicts.length).toBeGreaterThan(20);
    expect(new Set(verdicts)).toEqual(new Set(['not measured']));
  });

  it('compare with both other data planes', () => {
    const planes = comparison([stream({ host: [10, 10], flannel: [5, 5], ripstop: [9, 9] })]);
    const found = judge({ ...blank, planes }).filter(({ figure }) => figure === 'TCP stream, GSO wire');
    expect(found.map(({ of, verdict }) => [of, verdict])).toEqual([
      ['ripstop ÷ host', 'not met'],
      ['ripstop ÷ flannel', 'met'],
    ]);
  });

  it('compare the worst number with flannel, in both directions', () => {
    const slower: Samples = {
      question: 'cpu-per-gb',
      ...work,
      samples: { host: [1, 1], flannel: [1, 1], ripstop: [1.25, 1.25] },
    };
    const planes = comparison([stream({ host: [10, 10], flannel: [5, 5], ripstop: [9, 9] }), slower]);
    const cell = judge({ ...blank, planes }).find(({ figure }) => figure.startsWith('no cell'))!;
    expect(cell).toMatchObject({ verdict: 'not met', value: { median: 0.8 } });
    expect(cell.figure).toContain('worst of 2: TCP stream');
  });

  it('compare the largest cluster with the smallest', () => {
    const peers = comparison([
      stream({ '10 peers': [10, 10], '100 peers': [5, 5], '10,000 peers': [9.9, 9.9] }),
    ]);
    expect(judge({ ...blank, peers })).toContainEqual(
      expect.objectContaining({ of: '10,000 peers ÷ 10 peers', verdict: 'met' }),
    );
  });

  it('subtract the cost of counting from the cost of a program', () => {
    const cost = { program: 'from_pod', load: 'UDP 64 B', runs: 1000, nsPerRun: 180 };
    const found = judge({ ...blank, programs: [cost], countingNs: 70 });
    expect(found.find(({ figure }) => figure.includes('from_pod'))).toMatchObject({
      value: { median: 110 },
      verdict: 'met',
    });
  });
});

describe('a number without a target of its own', () => {
  it('must not be worse than flannel', () => {
    const other = { name: 'TCP stream ×8', where: 'anywhere' };
    expect(boundsOf({ question: 'stream', ...other })).toEqual({ flannel: { atLeast: 1 } });
    expect(boundsOf({ question: 'cpu-per-gb', ...other })).toEqual({ flannel: { atMost: 1 } });
    expect(boundsOf({ question: 'loss', ...other })).toEqual({});
  });
});

describe('a bound', () => {
  it.each([
    [{ atLeast: 1.35 }, '≥ 1.35'],
    [{ atMost: 1 / 1.75 }, '≤ 0.571'],
    [{ atLeast: 0.98, atMost: 1.02 }, '0.98 … 1.02'],
  ])('%o reads %s', (bound, text) => {
    expect(formatBound(bound)).toBe(text);
  });
});

it('a round trip is measured where one request is pending at a time', () => {
  const side = { cpu: 1, machine: { softirqSeconds: 0, busySeconds: 1, totalSeconds: 1 } };
  const result = (connections: number): Parameters<typeof figuresOf>[0] =>
    ({
      connections,
      rate: 5000,
      transactions: 1000,
      latencyUs: { p50: 33 },
      client: side,
      server: side,
    }) as Parameters<typeof figuresOf>[0];
  expect(figuresOf(result(1))).toContainEqual({ question: 'round-trip', value: 33 });
  expect(figuresOf(result(8)).map(({ question }) => question)).toEqual([
    'transactions',
    'cpu-per-transaction',
  ]);
});
