// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Comparison, Samples } from './compare.ts';
import { contrastOf, contrasts } from './contrasts.ts';
import {
  boundsOf,
  contrastTargets,
  formatBound,
  type Judged,
  judge,
  ratioOf,
  targets,
  verdictOn,
} from './targets.ts';
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
  meta: { seed: 1, services: 100 },
  planes: none,
  contrasts: {},
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

  it('of contrasts are for numbers that every run measures, also a quick one, and for pairs that it shows', () => {
    for (const { figure, contrast, name, candidate, baseline } of contrastTargets) {
      const { works: own, pairs } = contrastOf(contrast);
      expect(
        own.find((work) => work.name === name),
        figure,
      ).toBeDefined();
      expect(pairs, figure).toContainEqual({ candidate, baseline });
    }
    for (const contrast of contrasts) expect(contrast.works.some(({ quick }) => quick)).toBe(true);
  });

  it('compare with the host only where both have kube-proxy’s rules: without, it is a contrast', () => {
    const planes = comparison([stream({ host: [10, 10], flannel: [5, 5], ripstop: [9, 9] })]);
    const bare = comparison([stream({ 'bare-host': [10, 10], 'bare-ripstop': [9.2, 9.2] })]);
    const run = { ...blank, meta: { seed: 1, services: 0 }, planes, contrasts: { 'bare-host': bare } };
    const found = judge(run).filter(({ verdict }) => verdict !== 'not measured');
    expect(found.map(({ of, verdict }) => [of, verdict])).toEqual([
      ['ripstop ÷ flannel', 'met'],
      ['bare-ripstop ÷ bare-host', 'met'],
      ['times better than flannel', 'met'],
    ]);
    expect(boundsOf(planes.measured[0]!, 0)).not.toHaveProperty('host');
  });

  it('compare a ClusterIP with the way without it, and with flannel’s', () => {
    const services = comparison([
      {
        ...stream({}),
        question: 'round-trip',
        name: 'TCP RR ×1',
        samples: { ripstop: [20, 20], 'ripstop, ClusterIP': [21, 21], 'flannel, ClusterIP': [42, 42] },
      },
    ]);
    const found = judge({ ...blank, contrasts: { services } }).filter(({ value }) => value);
    expect(found.map(({ of, verdict }) => [of, verdict])).toEqual([
      ['ripstop, ClusterIP ÷ ripstop', 'not met'],
      ['ripstop, ClusterIP ÷ flannel, ClusterIP', 'met'],
    ]);
  });

  it('deduct from what is sent again what is sent again without moves; a rare burst counts', () => {
    const again = { ...stream({}), question: 'retransmissions' } as const;
    const epoch = comparison([{ ...again, samples: { still: [2, 0, 1], moving: [1, 0, 14] } }]);
    const found = judge({ ...blank, contrasts: { epoch } }).find(({ value }) => value);
    expect(found).toMatchObject({ of: 'moving − still', value: { median: 4 }, verdict: 'not met' });
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
    const cost = { program: 'from_pod', load: 'UDP 64 B', runs: 1000, nsPerRun: 350 };
    const found = judge({ ...blank, programs: [cost], countingNs: 70 });
    expect(found.find(({ figure }) => figure.includes('from_pod'))).toMatchObject({
      value: { median: 280 },
      verdict: 'met',
    });
  });
});

describe('a number without a target of its own', () => {
  it('must not be worse than flannel', () => {
    const other = { name: 'TCP stream ×8', where: 'anywhere' };
    expect(boundsOf({ question: 'stream', ...other }, 100)).toEqual({ flannel: { atLeast: 1 } });
    expect(boundsOf({ question: 'cpu-per-gb', ...other }, 100)).toEqual({ flannel: { atMost: 1 } });
    expect(boundsOf({ question: 'loss', ...other }, 100)).toEqual({});
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

it('what is sent again is counted by the arms that move the epoch, beside the work’s own numbers', () => {
  const side = { cpu: 1, machine: { softirqSeconds: 0, busySeconds: 1, totalSeconds: 1 } };
  const result = {
    gbitPerSecond: 16,
    receivedBytes: 1e9,
    client: side,
    server: side,
    retransmittedPerMove: 0.5,
  };
  expect(figuresOf(result as Parameters<typeof figuresOf>[0])).toContainEqual({
    question: 'retransmissions',
    value: 0.5,
  });
});
