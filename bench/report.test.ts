// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Samples } from './compare.ts';
import { contrastLabel, contrasts } from './contrasts.ts';
import type { Results, Side } from './netbench.ts';
import { costsBetween } from './program-cost.ts';
import { chartsOf, renderReport, rowsOf, type RunResult, warningsOf } from './report.ts';
import { bystanderWorks, controlWorks, cpuSeconds, figuresOf, labelOf, scaleWorks, works } from './works.ts';

const where = 'across nodes, one core, GSO wire';
const stream: Samples = {
  question: 'stream',
  name: 'TCP stream ×1',
  where,
  samples: { host: [10, 20, 30], flannel: [5, 10, 15], ripstop: [9, 18, null] },
};
const loss: Samples = {
  question: 'loss',
  name: 'UDP 64 B',
  where,
  samples: { host: [0, 0, 0], flannel: [1, 2, 3], ripstop: [null, null, null] },
};
const p99: Samples = {
  question: 'latency',
  name: 'TCP at 5000/s',
  detail: 'p99',
  where,
  samples: { host: [100, 100, 100], flannel: [300, 300, 300], ripstop: [110, 110, 110] },
};
const control = (again: readonly number[]): RunResult['control'] => ({
  arms: ['ripstop', 'ripstop-again'],
  measured: [{ ...stream, samples: { ripstop: [10, 10, 10], 'ripstop-again': again } }],
});
const run: RunResult = {
  meta: {
    date: '2026-01-02T03:04:05.000Z',
    kernel: '6.18',
    cpu: 'A CPU',
    cpus: 2,
    rounds: 5,
    seconds: 1,
    services: 100,
    seed: 1,
  },
  control: control([10, 10, 10.1]),
  planes: { arms: ['host', 'flannel', 'ripstop'], measured: [stream, loss, p99] },
  bystanders: {
    arms: ['not attached', 'attached'],
    measured: [
      {
        question: 'round-trip',
        name: 'TCP RR ×1',
        where: 'host network, one core, GSO wire',
        samples: { 'not attached': [20, 20], attached: [20.1, 20.1] },
      },
    ],
  },
  peers: {
    arms: ['10 peers', '10,000 peers'],
    measured: [{ ...stream, samples: { '10 peers': [10, 10], '10,000 peers': [9, 9] } }],
  },
  endpoints: { arms: [], measured: [] },
  programs: [{ program: 'from_pod', load: 'UDP 64 B', runs: 1000, nsPerRun: 123.4 }],
  countingNs: 23.4,
  contrasts: {
    services: {
      arms: ['ripstop', 'ripstop, ClusterIP', 'flannel, ClusterIP'],
      measured: [
        {
          ...stream,
          samples: {
            ripstop: [10, 10, 10],
            'ripstop, ClusterIP': [9.9, 9.9, 9.9],
            'flannel, ClusterIP': [5, 5, 5],
          },
        },
      ],
    },
  },
  parts: [{ part: 'a lookup in the flow table', ns: 27.4 }],
  failures: [],
};

function fastPath(samples: Samples['samples']): Samples {
  return { ...stream, question: 'fast-path', samples };
}

function side(cpu: number | null, softirqSeconds: number, busySeconds: number): Side {
  const machine = { softirqSeconds, busySeconds, totalSeconds: 1 };
  return { cpu, seconds: 1, userSeconds: 0, systemSeconds: 0, machine };
}

it('an arm without measurements has a row without numbers, not with zeros', () => {
  const row = rowsOf(run.planes, 1).find(({ question }) => question.id === 'loss')!;
  expect(row.summaries['flannel']).toMatchObject({ median: 2 });
  expect(row.summaries['host']).toMatchObject({ median: 0 });
  expect(row.summaries['ripstop']).toBeUndefined();
});

describe('the report', () => {
  const report = renderReport(run);

  it('has for every question its unit, and which direction is better', () => {
    expect(report).toContain('## How much does a TCP stream carry?\n\nIn Gbit/s; more is better.');
    expect(report).toContain('In %; less is better.');
  });

  it('has for every number its target, and whether it is met', () => {
    const line = report.split('\n').find((one) => one.startsWith('| TCP at 5000/s, p99'));
    expect(line).toContain('÷ host ≤ 1.1 met · ÷ flannel ≤ 0.6 met');
  });

  it('begins with the targets', () => {
    expect(report.indexOf('Which figures are reached?')).toBeLessThan(report.indexOf('How much'));
    expect(report).toContain(
      '| TCP stream ×1, as the cluster grows | 10,000 peers ÷ 10 peers | 0.98 … 1.02 | 0.90 (0.90–0.90) | not met |',
    );
  });

  it('shows the cost of counting for each program', () => {
    expect(report).toContain('| from_pod | UDP 64 B | 1000 | 123 | 100 |');
  });

  it('shows what the parts of programs cost', () => {
    expect(report).toContain('| a lookup in the flow table | 27 |');
  });

  it('has for every contrast the ratios of its pairs', () => {
    const lines = report.split('\n');
    const at = lines.findIndex((line) => /^\| work .*ClusterIP ÷/.test(line));
    expect(lines[at]).toContain('ripstop, ClusterIP ÷ flannel, ClusterIP');
    expect(lines[at + 2]).toContain('| 0.99 (0.99–0.99) | 1.98 (1.98–1.98) | - |');
  });

  it('shows exactly the charts that exist', () => {
    const pictures = Array.from(report.matchAll(/\]\((.*)\.png\)/g), ([, name]) => name);
    expect(pictures).toEqual([
      'targets',
      'stream',
      'loss',
      'latency',
      'services',
      'bystanders',
      'peers',
      'programs',
    ]);
    expect(new Set(chartsOf(run).map(({ name }) => name))).toEqual(new Set(pictures));
  });

  it('names what failed', () => {
    const failures = ['UDP 64 B: ripstop, round 1: it broke'];
    expect(renderReport({ ...run, failures })).toContain('- UDP 64 B: ripstop, round 1: it broke');
  });
});

describe('a warning', () => {
  it('is not given without a reason', () => {
    expect(warningsOf(run)).toEqual([]);
  });

  it('is not given of packets that the kernel path must see: of new connections, and of new flows', () => {
    const connects = { ...fastPath({ ripstop: [20, 20, 20] }), name: 'TCP connect-request-response' };
    const planes = { ...run.planes, measured: [connects] };
    const beside = 'ripstop, beside new flows';
    const contrasts = {
      'new-flows': { arms: [beside], measured: [fastPath({ [beside]: [60, 60, 60] })] },
    };
    expect(warningsOf({ ...run, planes, contrasts })).toEqual([]);
  });

  it.each<[string, Partial<RunResult>, string]>([
    ['too few rounds', { meta: { ...run.meta, rounds: 3 } }, 'Only 3 rounds'],
    [
      'a control that is off by more than 2 %',
      { control: control([12, 12, 12]) },
      'differ by 20.0 % in TCP stream',
    ],
    ['a control without an answer', { control: control([]) }, 'no answer for TCP stream'],
    [
      'an interval that says nothing',
      {
        planes: {
          ...run.planes,
          measured: [{ ...stream, samples: { flannel: [5, 5, 5], ripstop: [2, 9, 20] } }],
        },
      },
      'Too noisy to tell, the interval of ripstop ÷ flannel being wider than ±10 %: TCP stream',
    ],
    [
      'a fast path that was none',
      { planes: { ...run.planes, measured: [fastPath({ ripstop: [50, 50, 50] })] } },
      'The fast path carried 50.0 % of the packets of ripstop in TCP stream ×1',
    ],
    [
      'a kernel path that was none',
      { planes: { arms: ['ripstop-kernel'], measured: [fastPath({ 'ripstop-kernel': [90, 90, 90] })] } },
      'The fast path carried 90.0 % of the packets of ripstop-kernel',
    ],
    [
      'a large cluster that is not on the fast path',
      { peers: { arms: ['10,000 peers'], measured: [fastPath({ '10,000 peers': [60, 60, 60] })] } },
      'The fast path carried 60.0 % of the packets of 10,000 peers in TCP stream ×1',
    ],
    [
      'a contrast on another path',
      {
        contrasts: {
          services: {
            arms: ['ripstop, ClusterIP'],
            measured: [fastPath({ 'ripstop, ClusterIP': [2, 2, 2] })],
          },
        },
      },
      'of the packets of ripstop, ClusterIP in TCP stream',
    ],
    ['failures', { failures: ['it broke'] }, '1 measurements failed'],
  ])('is given of %s, in the report too', (_, change, words) => {
    const warnings = warningsOf({ ...run, ...change });
    expect(warnings.join('\n')).toContain(words);
    expect(renderReport({ ...run, ...change })).toContain(`- ${warnings[0]}`);
  });
});

describe('CPU time', () => {
  it('of a core that both sides share, or of the whole machine, counts once', () => {
    expect(cpuSeconds(side(1, 0.2, 0.9), side(1, 0.2, 0.9))).toEqual({ softirq: 0.2, busy: 0.9 });
    expect(cpuSeconds(side(null, 0.2, 0.9), side(null, 0.2, 0.9))).toEqual({ softirq: 0.2, busy: 0.9 });
    expect(cpuSeconds(side(0, 0.25, 0.5), side(1, 0.5, 1))).toEqual({ softirq: 0.75, busy: 1.5 });
  });

  it('is given for each gigabyte that arrived', () => {
    const result = {
      gbitPerSecond: 16,
      receivedBytes: 2e9,
      client: side(1, 0.5, 1),
      server: side(1, 0.5, 1),
    } as Results['tcp-stream'];
    expect(figuresOf(result)).toEqual([
      { question: 'stream', value: 16 },
      { question: 'softirq-per-gb', value: 0.25 },
      { question: 'cpu-per-gb', value: 0.5 },
    ]);
  });

  it('of a program is the difference of two readings', () => {
    const start = new Map([
      ['from_pod', { runs: 10, ns: 5000 }],
      ['to_wire', { runs: 3, ns: 900 }],
    ]);
    const end = new Map([
      ['from_pod', { runs: 30, ns: 7000 }],
      ['to_wire', { runs: 3, ns: 900 }],
    ]);
    expect(costsBetween(start, end)).toEqual([{ program: 'from_pod', runs: 20, nsPerRun: 100 }]);
  });
});

describe('the works', () => {
  it('have names of their own', () => {
    const labels = [...works, ...bystanderWorks].map(labelOf);
    const contrasted = contrasts.flatMap((contrast) =>
      contrast.works.map((work) => contrastLabel(contrast, work)),
    );
    expect(new Set(labels).size).toBe(labels.length);
    expect(new Set(contrasted).size).toBe(contrasted.length);
  });

  it('of the control and of the scale exist', () => {
    expect(scaleWorks).not.toContain(undefined);
    expect(controlWorks).not.toContain(undefined);
    expect(contrasts.flatMap((contrast) => contrast.works)).not.toContain(undefined);
  });

  it('of a quick run answer all kinds of questions', () => {
    const quick = works.filter((work) => work.quick);
    expect(quick).toHaveLength(10);
    expect(new Set(quick.map(({ command }) => command)).size).toBe(6);
  });
});
