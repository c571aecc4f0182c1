// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseNode } from '../src/cluster/node-lease.ts';
import { leaseSettings, parseNetConf } from '../src/cluster/index.ts';
import { formatCidr } from '../src/net/ip.ts';
import { Store } from '../src/lab/apiserver/index.ts';
import { appliedIn } from './scale-measure.ts';
import {
  CLUSTER_NETWORK,
  conditionsAt,
  leaseAnnotations,
  leaseOf,
  nodeName,
  realisticNode,
} from './scale-nodes.ts';
import { chartOf, type Figures, judge, renderReport, type ScaleResult } from './scale-report.ts';
import { renderSvg } from './charts.ts';

const numbers = [0, 1, 255, 256, 14_999];
const settings = leaseSettings(
  parseNetConf(JSON.stringify({ Network: CLUSTER_NETWORK, Backend: { Type: 'vxlan' } })),
);

describe('the Nodes of a large cluster', () => {
  it('have the size of real ones', () => {
    const sizes = Array.from({ length: 100 }, (_, i) => JSON.stringify(realisticNode(i * 150)).length);
    expect(Math.min(...sizes)).toBeGreaterThan(10_000);
    expect(Math.max(...sizes)).toBeLessThan(30_000);
  });

  it.each(numbers)('are peers as their lease says: %i', (i) => {
    const node = new Store(10).create('nodes', realisticNode(i));
    const { podCidr, publicIp, vtepMac } = leaseOf(i);
    const parsed = parseNode(node, settings);
    expect(parsed).toMatchObject({ kind: 'peer', peer: { v4: { vtepIp: publicIp, vtepMac } } });
    expect(parsed.kind === 'peer' && parsed.peer.v4 && formatCidr(parsed.peer.v4.podCidr)).toBe(podCidr);
  });

  it('have names, addresses and MACs of their own', () => {
    for (const of of [
      nodeName,
      ...(['podCidr', 'publicIp', 'vtepMac'] as const).map((key) => (i: number) => leaseOf(i)[key]),
    ]) {
      expect(new Set(Array.from({ length: 15_000 }, (_, i) => of(i))).size).toBe(15_000);
    }
  });

  it('change what ripstop reads in a burst, and nothing of it with a heartbeat', () => {
    const store = new Store(10);
    const before = parseNode(store.create('nodes', realisticNode(7)), settings);
    const node = store.get('nodes', nodeName(7))!;
    const status = { ...node.status, conditions: conditionsAt(new Date()) };
    expect(parseNode(store.update('nodes', { ...node, status }, 'status'), settings)).toEqual(before);
    const annotations = leaseAnnotations(leaseOf(7, 1));
    const patched = store.patch('nodes', nodeName(7), 'application/merge-patch+json', {
      metadata: { annotations },
    });
    expect(parseNode(patched, settings)).toMatchObject({ peer: { v4: { vtepMac: leaseOf(7, 1).vtepMac } } });
  });
});

describe('what an agent says that it did', () => {
  it('is read from its log', () => {
    const log = [
      '{"level":30,"time":100,"node":"node1","msg":"published our lease"}',
      '{"level":30,"time":200,"changed":"vtep-set +5 -0, peer-routes +3 -2","durationMs":7,"msg":"applied"}',
      'ripstop: not JSON',
      '',
    ].join('\n');
    expect(appliedIn(log)).toEqual([{ at: 200, changes: { 'vtep-set': 5, 'peer-routes': 5 } }]);
  });
});

const figures = (own: Partial<Figures>): Figures => ({
  nodes: 15_000,
  subject: 'ripstop',
  listSeconds: 3,
  pages: 60,
  syncSeconds: 5,
  cpuToSync: 6,
  cpuShare: 0.02,
  passesDuringBeats: 2,
  scrapeMs: 30,
  scrapeBytes: 60e3,
  burstSeconds: 0.5,
  burstFromFirstSeconds: 0.9,
  peakBytes: 140e6,
  firstPeakBytes: 140e6,
  afterSyncBytes: 120e6,
  steadyBytes: 110e6,
  steadyPssBytes: 90e6,
  restartWrites: { 'node-links': 2 },
  restartKernelEvents: 0,
  restartListSeconds: 3,
  ...own,
});

const result = (...measured: Figures[]): ScaleResult => ({
  meta: {
    date: '2026-01-01T00:00:00.000Z',
    kernel: '6.18',
    cpu: 'a CPU',
    cpus: 2,
    node: 'v26',
    nodeBytes: 15_000,
    seconds: 60,
    beatsPerSecond: 50,
    burst: 1000,
    program: 'bundle',
  },
  measured,
  failures: [],
});

describe('the verdicts on a run', () => {
  const verdicts = (own: Partial<Figures>): Record<string, string> =>
    Object.fromEntries(judge(result(figures(own))).map(({ figure, verdict }) => [figure, verdict]));

  it('are all met by an agent that reaches every figure; programs loaded anew are no write', () => {
    expect(new Set(Object.values(verdicts({})))).toEqual(new Set(['met']));
  });

  it.each([
    ['from the list to everything in place', { syncSeconds: 6.1 }],
    ['resident memory, peak', { peakBytes: 151e6 }],
    ['resident memory, steady', { steadyBytes: 151e6 }],
    ['CPU while nothing of interest changes', { cpuShare: 0.031 }],
    ['a scrape of the metrics', { scrapeMs: 101 }],
    ['text of a scrape', { scrapeBytes: 5.1e6 }],
    ['a burst of changes in place', { burstSeconds: 1.1 }],
    ['written by a restart with everything in place', { restartWrites: { 'node-links': 2, peers: 1 } }],
  ] as [string, Partial<Figures>][])('name what is not reached: %s', (figure, own) => {
    expect(Object.entries(verdicts(own)).filter(([, verdict]) => verdict !== 'met')).toEqual([
      [figure, 'not met'],
    ]);
  });

  it('ask for what depends on the size only there, and put flanneld beside', () => {
    const run = result(
      figures({ nodes: 1000 }),
      figures({ nodes: 1000, subject: 'flanneld', restartWrites: undefined }),
    );
    expect(judge(run).map(({ figure, flanneld }) => [figure, flanneld])).toEqual([
      ['CPU while nothing of interest changes', 2],
      ['a burst of changes in place', 0.5],
      ['written by a restart with everything in place', undefined],
    ]);
  });

  it('say when nothing was measured', () => {
    const flanneld = figures({ subject: 'flanneld' });
    expect(new Set(judge(result(flanneld)).map(({ verdict }) => verdict))).toEqual(new Set(['not measured']));
  });

  it('stand in the report and in the chart', () => {
    const run = result(figures({}), figures({ subject: 'flanneld' }));
    expect(renderReport(run)).toContain('| resident memory, peak, MB | 15,000 | ≤ 150 | 140 | 140 | met |');
    expect(renderSvg(chartOf(run))).toContain('resident memory, steady, MB');
  });
});
