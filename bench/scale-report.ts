// SPDX-License-Identifier: Apache-2.0
/** What a run of the scale benchmark says: tables, verdicts, a chart and a report. */
import type { Column } from '../src/cli/table.ts';
import type { Bar, Chart } from './charts.ts';
import { markdown } from './report.ts';
import { type Bound, formatBound, type Verdict } from './targets.ts';

/** What one agent did at one size. */
export interface Figures {
  readonly nodes: number;
  /** Who was measured: `ripstop` or `flanneld`. */
  readonly subject: string;
  /** From the agent's start to the last byte of its list; `pages` of it. */
  readonly listSeconds: number;
  readonly pages: number;
  /** From the list's last byte until all of the kernel path and the maps was in place. */
  readonly syncSeconds: number;
  /** CPU seconds from the start until then. */
  readonly cpuToSync: number;
  /** Of one core, while Nodes had heartbeats and nothing else happened. */
  readonly cpuShare: number;
  /** Undefined where the agent does not tell. */
  readonly passesDuringBeats: number | undefined;
  /** Of the metrics: undefined where the agent has none. */
  readonly scrapeMs: number | undefined;
  readonly scrapeBytes: number | undefined;
  /** From the last of a burst of changes until all were in place. */
  readonly burstSeconds: number;
  readonly burstFromFirstSeconds: number;
  /** The most that was ever resident: of the first start and of the restart. */
  readonly peakBytes: number;
  readonly firstPeakBytes: number;
  readonly afterSyncBytes: number;
  /** Resident after the heartbeats. */
  readonly steadyBytes: number;
  readonly steadyPssBytes: number;
  /** What a restart with everything in place wrote, by target; undefined where the agent does not tell. */
  readonly restartWrites: Readonly<Record<string, number>> | undefined;
  /** What the kernel told of meanwhile: links, addresses, routes, FDB, nft. */
  readonly restartKernelEvents: number;
  readonly restartListSeconds: number;
}

export interface ScaleResult {
  readonly meta: {
    readonly date: string;
    readonly kernel: string;
    readonly cpu: string;
    readonly cpus: number;
    readonly node: string;
    /** Of a mean Node, as JSON. */
    readonly nodeBytes: number;
    /** How long the heartbeats lasted. */
    readonly seconds: number;
    readonly beatsPerSecond: number;
    /** Nodes changed at once. */
    readonly burst: number;
    /** What ran as ripstop's agent. */
    readonly program: 'bundle' | 'sources';
  };
  readonly measured: readonly Figures[];
  readonly failures: readonly string[];
}

/** Attaching the programs that a restart loads anew is no write to a map. */
const NO_MAP = new Set(['programs', 'pod-links', 'node-links']);

function writes({ restartWrites }: Figures): number | undefined {
  if (!restartWrites) return undefined;
  return Object.entries(restartWrites).reduce(
    (sum, [target, count]) => sum + (NO_MAP.has(target) ? 0 : count),
    0,
  );
}

interface Target {
  readonly figure: string;
  readonly unit: string;
  readonly value: (figures: Figures) => number | undefined;
  /** By the number of Nodes; `all`: at any. */
  readonly bounds: Readonly<Record<number, Bound>> & { readonly all?: Bound };
}

/** The figures to reach. */
const scaleTargets: readonly Target[] = [
  {
    figure: 'from the list to everything in place',
    unit: 's',
    value: ({ syncSeconds }) => syncSeconds,
    bounds: { 5000: { atMost: 2 }, 15_000: { atMost: 6 } },
  },
  {
    figure: 'resident memory, peak',
    unit: 'MB',
    value: ({ peakBytes }) => peakBytes / 1e6,
    bounds: { 15_000: { atMost: 150 } },
  },
  {
    figure: 'resident memory, steady',
    unit: 'MB',
    value: ({ steadyBytes }) => steadyBytes / 1e6,
    bounds: { 15_000: { atMost: 150 } },
  },
  {
    figure: 'CPU while nothing of interest changes',
    unit: '% of a core',
    value: ({ cpuShare }) => cpuShare * 100,
    bounds: { all: { atMost: 3 } },
  },
  {
    figure: 'a scrape of the metrics',
    unit: 'ms',
    value: ({ scrapeMs }) => scrapeMs,
    bounds: { 15_000: { atMost: 100 } },
  },
  {
    figure: 'text of a scrape',
    unit: 'MB',
    value: ({ scrapeBytes }) => scrapeBytes && scrapeBytes / 1e6,
    bounds: { 15_000: { atMost: 5 } },
  },
  {
    figure: 'a burst of changes in place',
    unit: 's',
    value: ({ burstSeconds }) => burstSeconds,
    bounds: { all: { atMost: 1 } },
  },
  {
    figure: 'written by a restart with everything in place',
    unit: 'entries',
    value: writes,
    bounds: { all: { atMost: 0 } },
  },
];

export interface ScaleJudgement {
  readonly figure: string;
  readonly nodes: number;
  readonly unit: string;
  readonly bound: Bound;
  readonly value: number | undefined;
  /** The same figure of flanneld in this run. */
  readonly flanneld: number | undefined;
  readonly verdict: Verdict;
}

/** Every figure to reach at every size, measured or not. */
export function judge({ measured }: Pick<ScaleResult, 'measured'>): ScaleJudgement[] {
  const sizes = [...new Set(measured.map(({ nodes }) => nodes))];
  return scaleTargets.flatMap(({ figure, unit, value, bounds }) =>
    sizes.flatMap((nodes): ScaleJudgement[] => {
      const bound = bounds[nodes] ?? bounds.all;
      if (!bound) return [];
      const of = (subject: string): number | undefined => {
        const figures = measured.find((one) => one.nodes === nodes && one.subject === subject);
        return figures && value(figures);
      };
      const own = of('ripstop');
      const verdict =
        own === undefined ? 'not measured' : own <= (bound.atMost ?? Infinity) ? 'met' : 'not met';
      return [{ figure, nodes, unit, bound, value: own, flanneld: of('flanneld'), verdict }];
    }),
  );
}

const mb = (bytes: number): string => (bytes / 1e6).toFixed(0);
const right = (title: string, value: (figures: Figures) => string | number | undefined): Column<Figures> => ({
  title,
  align: 'right',
  value,
});

export const scaleColumns: Column<Figures>[] = [
  right('Nodes', ({ nodes }) => nodes.toLocaleString('en')),
  { title: 'agent', value: ({ subject }) => subject },
  right('start to list, s', ({ listSeconds }) => listSeconds.toFixed(2)),
  right('list to in place, s', ({ syncSeconds }) => syncSeconds.toFixed(2)),
  right('CPU until then, s', ({ cpuToSync }) => cpuToSync.toFixed(2)),
  right('peak, MB', ({ peakBytes }) => mb(peakBytes)),
  right('steady, MB', ({ steadyBytes }) => mb(steadyBytes)),
  right('steady PSS, MB', ({ steadyPssBytes }) => mb(steadyPssBytes)),
  right('CPU steady, %', ({ cpuShare }) => (cpuShare * 100).toFixed(1)),
  right('passes then', ({ passesDuringBeats }) => passesDuringBeats),
  right('scrape, ms', ({ scrapeMs }) => scrapeMs?.toFixed(1)),
  right('… kB', ({ scrapeBytes }) => scrapeBytes && (scrapeBytes / 1e3).toFixed(0)),
  right('burst, s', ({ burstSeconds }) => burstSeconds.toFixed(2)),
  right('… from its first', ({ burstFromFirstSeconds }) => burstFromFirstSeconds.toFixed(2)),
  right('restart writes', writes),
  right('… kernel events', ({ restartKernelEvents }) => restartKernelEvents),
];

const number = (value: number | undefined): string | undefined => value?.toFixed(value >= 20 ? 0 : 2);

export const verdictColumns: Column<ScaleJudgement>[] = [
  { title: 'figure', value: ({ figure, unit }) => `${figure}, ${unit}` },
  { title: 'Nodes', align: 'right', value: ({ nodes }) => nodes.toLocaleString('en') },
  { title: 'target', align: 'right', value: ({ bound }) => formatBound(bound) },
  { title: 'measured', align: 'right', value: ({ value }) => number(value) },
  { title: 'flanneld', align: 'right', value: ({ flanneld }) => number(flanneld) },
  { title: 'verdict', value: ({ verdict }) => verdict },
];

/** A panel for each figure, a bar for each agent at each size; the line across is the target. */
export function chartOf({ measured, meta }: ScaleResult): Chart {
  const series = [...new Set(measured.map(({ subject }) => subject))];
  const sizes = [...new Set(measured.map(({ nodes }) => nodes))];
  return {
    name: 'scale',
    title: 'What does it cost an agent to follow a large cluster?',
    subtitle: `shorter is better · one run · Nodes of ${(meta.nodeBytes / 1e3).toFixed(0)} KB · black line: the target, not to be passed`,
    series,
    colours: ['#0072b2', '#e69f00'],
    panels: scaleTargets
      .filter(({ value }) => measured.some((figures) => (value(figures) ?? 0) > 0))
      .map(({ figure, unit, value, bounds }) => ({
        title: `${figure}, ${unit}`,
        groups: sizes.map((nodes) => ({
          label: `${nodes.toLocaleString('en')} Nodes`,
          bars: measured.flatMap((figures): Bar[] => {
            const own = figures.nodes === nodes ? value(figures) : undefined;
            if (own === undefined) return [];
            const target = (bounds[nodes] ?? bounds.all)?.atMost;
            return [
              {
                series: figures.subject,
                value: own,
                low: own,
                high: own,
                ...(target !== undefined && { target }),
              },
            ];
          }),
        })),
      })),
  };
}

export function renderReport(result: ScaleResult): string {
  const { meta, measured, failures } = result;
  return `# ripstop in large clusters, ${meta.date}

${meta.cpus} × ${meta.cpu}, Linux ${meta.kernel}, Node ${meta.node}; ripstop's agent from its ${meta.program}. The API server is the lab's, a process of
its own on the same machine. A mean Node has ${(meta.nodeBytes / 1e3).toFixed(1)} KB.

${markdown(verdictColumns, judge(result))}

![What does it cost an agent to follow a large cluster?](scale.png)

## All figures

${markdown(scaleColumns, measured)}

- **list to in place**: from the last byte of the list of Nodes until routes, neighbours, FDB, and of ripstop also the nft set and the
  BPF maps, were what they have to be. It is looked at when nothing has changed for a while; the time is that of the last change.
- **peak, steady**: resident memory of the agent's process; the peak is the larger one of a first start, with heartbeats and the burst, and
  of a restart; steady is after ${meta.seconds} s of heartbeats.
- **CPU steady**: of the agent and all that it starts, during ${meta.beatsPerSecond} heartbeats a second on Nodes in turn, which change no more than their
  conditions.
- **burst**: ${meta.burst} Nodes get another VTEP MAC at once; from the last of these writes.
- **restart writes**: entries of maps and kernel path that a restart wrote although all were there; programs, which it loads anew, are
  not counted. Kernel events are links, addresses, routes, FDB entries and nft rules.
${failures.length > 0 ? `\n## What failed\n\n${failures.map((failure) => `- ${failure}`).join('\n')}\n` : ''}`;
}
