// SPDX-License-Identifier: Apache-2.0
/** The report of a run: rows with medians and ratios, charts, and a text that can be read without the code. */
import type { Column } from '../src/cli/table.ts';
import { type Bar, type Chart, formatNumber, type Panel } from './charts.ts';
import type { Comparison, Samples } from './compare.ts';
import { type Contrast, contrasts, type Pair } from './contrasts.ts';
import type { PartCost } from './program-cost.ts';
import { type Ratio, type Summary, summarize } from './stats.ts';
import { boundsOf, formatBound, type Judged, judge, type Judgement, ratioOf, verdictOn } from './targets.ts';
import { type Question, type QuestionId, questionOf, questions, titleOf } from './works.ts';

/** With fewer rounds, resampling says little about the certainty of a median. */
export const MIN_ROUNDS = 5;
/**
 * The largest acceptable difference between two labs of the same data plane. Beyond it small differences mean nothing.
 */
const CONTROL_TOLERANCE = 0.02;
/**
 * The largest acceptable share of packets on the other path than the arm is to show, in percent. Datagrams without answers
 * take the kernel path for their first 50 ms, which is much of a short measurement.
 */
const PATH_TOLERANCE = 15;
/** The largest useful distance of an interval's ends from its median. */
const NOISY = 0.1;

/** Everything that a run has measured: the content of results.json. A part that was left out has no arms. */
export interface RunResult extends Judged {
  readonly meta: {
    readonly date: string;
    readonly kernel: string;
    readonly cpu: string;
    readonly cpus: number;
    readonly rounds: number;
    readonly seconds: number;
    readonly services: number;
    readonly seed: number;
  };
  /** Two labs of the same data plane. */
  readonly control: Comparison;
  readonly endpoints: Comparison;
  /** What parts of the programs cost alone. */
  readonly parts: readonly PartCost[];
  readonly failures: readonly string[];
}

/** One number of one work, in all arms. */
export interface Row {
  readonly question: Question;
  readonly title: string;
  readonly samples: Samples;
  /** By arm; undefined if no round has a measurement. */
  readonly summaries: Readonly<Record<string, Summary | undefined>>;
  /** Of an arm ÷ a baseline; undefined without two rounds that measured both. */
  ratio(baseline: string, arm: string): Ratio | undefined;
}

export function rowsOf({ arms, measured }: Comparison, seed: number): Row[] {
  return measured.map((samples) => ({
    question: questionOf(samples.question),
    title: titleOf(samples),
    samples,
    summaries: Object.fromEntries(
      arms.map((arm) => {
        const values = (samples.samples[arm] ?? []).filter((value) => value !== null);
        return [arm, values.length > 0 ? summarize(values) : undefined];
      }),
    ),
    ratio: (baseline, arm) => ratioOf(samples, baseline, arm, seed),
  }));
}

type Interval = Pick<Ratio, 'median' | 'low' | 'high'>;

/** `1.23 (1.20–1.26)`, or nothing. */
function formatRatio(ratio: Interval | undefined): string | undefined {
  return ratio && `${ratio.median.toFixed(2)} (${ratio.low.toFixed(2)}–${ratio.high.toFixed(2)})`;
}

/** `12.9 (12.3–14.5)`: median and quartiles, or nothing. */
function formatSummary(summary: Summary | undefined): string | undefined {
  return (
    summary && `${formatNumber(summary.median)} (${formatNumber(summary.q1)}–${formatNumber(summary.q3)})`
  );
}

/** `÷ host ≤ 1.02 met · ÷ flannel ≤ 0.571 not met`, or nothing without targets. */
function formatVerdicts(row: Row, services: number): string | undefined {
  const bounds = boundsOf(row.samples, services);
  const verdicts = (['host', 'flannel'] as const).flatMap((base) => {
    const bound = bounds[base];
    return bound ? [`÷ ${base} ${formatBound(bound)} ${verdictOn(row.ratio(base, 'ripstop'), bound)}`] : [];
  });
  return verdicts.length > 0 ? verdicts.join(' · ') : undefined;
}

/** A table of the data planes, with one number in each line. A terminal has no room for the quartiles. */
export function planeColumns(arms: readonly string[], services: number, quartiles: boolean): Column<Row>[] {
  return [
    ...armColumns(arms, quartiles),
    { title: 'ripstop ÷ host', align: 'right', value: (row) => formatRatio(row.ratio('host', 'ripstop')) },
    {
      title: 'ripstop ÷ flannel',
      align: 'right',
      value: (row) => formatRatio(row.ratio('flannel', 'ripstop')),
    },
    { title: 'target', value: (row) => formatVerdicts(row, services) },
  ];
}

function armColumns(arms: readonly string[], quartiles: boolean): Column<Row>[] {
  return [
    { title: 'work', value: ({ title }) => title },
    { title: 'unit', value: ({ question }) => `${question.unit} ${question.better === 'more' ? '↑' : '↓'}` },
    ...arms.map((arm): Column<Row> => ({
      title: arm,
      align: 'right',
      value: ({ summaries: { [arm]: summary } }) =>
        quartiles ? formatSummary(summary) : summary && formatNumber(summary.median),
    })),
  ];
}

/** Columns of arms that are compared with the first. */
function againstFirst(arms: readonly string[]): Column<Row>[] {
  const [first, ...others] = arms;
  return pairColumns(
    arms,
    others.map((candidate) => ({ candidate, baseline: first! })),
  );
}

function pairColumns(
  arms: readonly string[],
  pairs: readonly Pair[],
  valuesOnly: readonly QuestionId[] = [],
): Column<Row>[] {
  return [
    ...armColumns(arms, true),
    ...pairs.map((pair): Column<Row> => ({
      title: nameOf(pair),
      align: 'right',
      value: (row) =>
        valuesOnly.includes(row.question.id)
          ? undefined
          : formatRatio(row.ratio(pair.baseline, pair.candidate)),
    })),
  ];
}

function nameOf({ candidate, baseline }: Pair): string {
  return `${candidate} ÷ ${baseline}`;
}

export const judgementColumns: Column<Judgement>[] = [
  { title: 'figure', value: ({ figure }) => figure },
  { title: 'of', value: ({ of }) => of },
  { title: 'target', align: 'right', value: ({ bound }) => formatBound(bound) },
  {
    title: 'measured',
    align: 'right',
    value: ({ value }) => (value && value.median >= 10 ? value.median.toFixed(0) : formatRatio(value)),
  },
  { title: 'verdict', value: ({ verdict }) => verdict },
];

/** Warnings for the reader: a biased control, too few rounds, arms that did not take the path of their name. */
export function warningsOf(run: RunResult): string[] {
  const warnings: string[] = [];
  const { rounds, seed } = run.meta;
  if (rounds < MIN_ROUNDS)
    warnings.push(
      `Only ${rounds} rounds: the intervals are narrower than they are true. Use at least ${MIN_ROUNDS}.`,
    );
  for (const row of rowsOf(run.control, seed)) {
    const ratio = controlRatio(run, row);
    if (row.question.id === 'loss' || (ratio && Math.abs(ratio.median - 1) <= CONTROL_TOLERANCE)) continue;
    const what = `${row.title} (${row.question.unit})`;
    warnings.push(
      ratio
        ? `Two labs of the same data plane differ by ${percent(ratio.median - 1)} in ${what}: believe no smaller difference there.`
        : `The control has no answer for ${what}.`,
    );
  }
  const noisy = rowsOf(run.planes, seed).filter((row) => {
    const ratio = row.ratio('flannel', 'ripstop');
    return ratio && Math.max(ratio.high - ratio.median, ratio.median - ratio.low) > NOISY * ratio.median;
  });
  if (noisy.length > 0) {
    const names = noisy.map((row) => `${row.title} (${row.question.unit})`).join('; ');
    warnings.push(
      `Too noisy to tell, the interval of ripstop ÷ flannel being wider than ±${NOISY * 100} %: ${names}.`,
    );
  }
  warnings.push(...pathWarnings(run));
  if (run.failures.length > 0)
    warnings.push(`${run.failures.length} measurements failed; they are named at the end.`);
  return warnings;
}

/** Of what the kernel path must see: beginnings and ends of connections, and flows that are new. */
const PARTLY_KERNEL_PATH = ['TCP connect-request-response', 'TCP connect-request-reset'];

/** The arms of ripstop that were not on the path that they are to show. */
function pathWarnings(run: RunResult): string[] {
  const { 'new-flows': _partly, ...contrasts } = run.contrasts;
  return [run.control, run.planes, run.peers, run.endpoints, ...Object.values(contrasts)].flatMap(
    (comparison) =>
      rowsOf(comparison, run.meta.seed)
        .filter(({ question }) => question.id === 'fast-path')
        .flatMap(({ samples, summaries, title }) =>
          Object.entries(summaries).flatMap(([arm, summary]) => {
            const expected = arm === 'ripstop-kernel' ? 0 : 100;
            const isExpected = !summary || Math.abs(summary.median - expected) <= PATH_TOLERANCE;
            if (isExpected || PARTLY_KERNEL_PATH.includes(samples.name)) return [];
            const share = summary.median.toFixed(1);
            return [
              `The fast path carried ${share} % of the packets of ${arm} in ${title}, not ${expected} %.`,
            ];
          }),
        ),
  );
}

function controlRatio({ control }: RunResult, row: Row): Ratio | undefined {
  return row.ratio(control.arms[0]!, control.arms[1]!);
}

function percent(part: number): string {
  return `${(Math.abs(part) * 100).toFixed(1)} %`;
}

function direction({ better }: Pick<Question, 'better'>): string {
  return better === 'more' ? 'longer is better' : 'shorter is better';
}

function bySeries(rows: readonly Row[], arms: readonly string[]): Panel['groups'] {
  return rows.map(({ samples, summaries }) => ({
    label: samples.name,
    bars: arms.flatMap((series): Bar[] => {
      const summary = summaries[series];
      return summary ? [{ series, value: summary.median, low: summary.q1, high: summary.q3 }] : [];
    }),
  }));
}

/** Panels by circumstances, since these have different scales. */
function panelsOf(rows: readonly Row[], arms: readonly string[]): Panel[] {
  const panels = Map.groupBy(rows, ({ samples: { where, detail } }) =>
    detail ? `${detail}, ${where}` : where,
  );
  return Array.from(panels, ([title, own]) => ({ title, groups: bySeries(own, arms) }));
}

/** The ratios of the other arms' numbers to those of the first. */
function growthChart(name: string, title: string, run: RunResult, comparison: Comparison): Chart {
  const [first, ...others] = comparison.arms;
  const pairs = others.map((candidate) => ({ candidate, baseline: first! }));
  return ratioChart(
    { name, title, pairs, nameOf: ({ candidate }) => candidate },
    run,
    comparison,
    `÷ ${first}: `,
  );
}

/** Ratios, in one series for each pair of arms. */
function ratioChart(
  look: {
    name: string;
    title: string;
    pairs: readonly Pair[];
    nameOf: (pair: Pair) => string;
    valuesOnly?: readonly QuestionId[];
  },
  run: RunResult,
  comparison: Comparison,
  of = '',
): Chart {
  const { name, title, pairs, valuesOnly = [] } = look;
  const unshown = ['loss', 'fast-path', ...valuesOnly];
  const rows = rowsOf(comparison, run.meta.seed).filter(({ question }) => !unshown.includes(question.id));
  return {
    name,
    title,
    subtitle: `${of}1 is no difference · bar: median of ${run.meta.rounds} rounds · whiskers: 95 % interval`,
    series: pairs.map(look.nameOf),
    panels: [
      {
        title: '',
        groups: rows.map((row) => ({
          label: `${row.samples.name}, ${row.question.unit}`,
          bars: pairs.flatMap((pair): Bar[] => {
            const ratio = row.ratio(pair.baseline, pair.candidate);
            const series = look.nameOf(pair);
            return ratio ? [{ ...interval(ratio), series, target: 1, text: ratio.median.toFixed(3) }] : [];
          }),
        })),
      },
    ],
  };
}

function contrastChart({ id, title, pairs, valuesOnly = [] }: Contrast, run: RunResult): Chart[] {
  const comparison = run.contrasts[id];
  return comparison ? [ratioChart({ name: id, title, pairs, nameOf, valuesOnly }, run, comparison)] : [];
}

function interval({ median: value, low, high }: Interval): Pick<Bar, 'value' | 'low' | 'high'> {
  return { value, low, high };
}

function targetChart(run: RunResult): Chart {
  const panels = Map.groupBy(judge(run), ({ of }) => of);
  return {
    name: 'targets',
    title: 'Which figures are reached?',
    subtitle:
      'bar: median · whiskers: 95 % interval · black line: the target, to be reached (≥) or not to be passed (≤)',
    series: ['met', 'met?', 'not met?', 'not met'],
    colours: ['#009e73', '#8fd3bf', '#f2b27a', '#d55e00'],
    panels: Array.from(panels, ([title, judgements]) => ({
      title,
      groups: judgements.flatMap(({ figure, bound, value, verdict }) => {
        if (!value) return [];
        const target = bound.atLeast ?? bound.atMost ?? 0;
        const measured = value.median >= 10 ? value.median.toFixed(0) : value.median.toFixed(2);
        const text = `${measured}, target ${formatBound(bound)}`;
        // The table has the part after the semicolon.
        return [
          { label: figure.split(';')[0]!, bars: [{ ...interval(value), series: verdict, target, text }] },
        ];
      }),
    })).filter(({ groups }) => groups.length > 0),
  };
}

/** A chart for each question that has an answer. */
export function chartsOf(run: RunResult): Chart[] {
  const { planes, bystanders, meta } = run;
  const spread = `bar: median of ${meta.rounds} rounds · whiskers: quartiles`;
  const rows = rowsOf(planes, meta.seed);
  const loads = [...new Set(run.programs.map(({ load }) => load))];
  const names = [...new Set(run.programs.map(({ program }) => program))];
  const charts: Chart[] = [
    targetChart(run),
    ...questions.map((question) => ({
      name: question.id,
      title: question.title,
      subtitle: `${question.unit}, ${direction(question)} · ${spread}`,
      series: planes.arms,
      panels: panelsOf(
        rows.filter((row) => row.question === question),
        planes.arms,
      ),
    })),
    {
      name: 'bystanders',
      title: bystanderTitle,
      subtitle: `µs of a request between the nodes themselves, shorter is better · ${spread}`,
      series: bystanders.arms,
      panels: panelsOf(
        rowsOf(bystanders, meta.seed).filter(({ question }) => question.id === 'round-trip'),
        bystanders.arms,
      ),
    },
    ...contrasts.flatMap((contrast) => contrastChart(contrast, run)),
    growthChart('peers', peersTitle, run, run.peers),
    growthChart('endpoints', endpointsTitle, run, run.endpoints),
    {
      name: 'programs',
      title: programsTitle,
      subtitle: `ns per run, mean, shorter is better · of it for counting itself: ${run.countingNs?.toFixed(0) ?? '?'} ns`,
      series: loads,
      panels: [
        {
          title: '',
          groups: names.map((program) => ({
            label: program,
            bars: run.programs
              .filter((cost) => cost.program === program)
              .map(({ load, nsPerRun: ns }) => ({ series: load, value: ns, low: ns, high: ns })),
          })),
        },
      ],
    },
  ];
  return charts.filter(({ panels }) =>
    panels.some(({ groups }) => groups.some(({ bars }) => bars.length > 0)),
  );
}

const bystanderTitle = 'Do bystanders pay?';
const peersTitle = 'Does the path grow slower with the number of nodes?';
const endpointsTitle = 'Does the path grow slower with the number of pods?';
const programsTitle = 'How long does each BPF program run?';

export function markdown<T>(columns: readonly Column<T>[], rows: readonly T[]): string {
  const line = (cells: readonly (string | number | undefined)[]): string =>
    `| ${cells.map((cell) => String(cell ?? '-').replaceAll('|', '\\|')).join(' | ')} |`;
  return [
    line(columns.map(({ title }) => title)),
    line(columns.map(({ align }) => (align === 'right' ? '---:' : '---'))),
    ...rows.map((row) => line(columns.map(({ value }) => value(row)))),
  ].join('\n');
}

/** The report in Markdown. Its charts are PNG files beside it. */
export function renderReport(run: RunResult): string {
  const { meta, planes, control, bystanders } = run;
  const charts = chartsOf(run);
  const section = (title: string, text: string, chart: string, body: string): string => {
    const picture = charts.find(({ name }) => name === chart);
    return [`## ${title}`, text, picture && `![${picture.title}](${chart}.png)`, body]
      .filter(Boolean)
      .join('\n\n');
  };
  const grown = (title: string, chart: string, text: string, comparison: Comparison): string[] =>
    comparison.measured.length === 0
      ? []
      : [section(title, text, chart, markdown(againstFirst(comparison.arms), rowsOf(comparison, meta.seed)))];

  const warnings = warningsOf(run);
  const rows = rowsOf(planes, meta.seed);
  const sections = [
    section(
      'Which figures are reached?',
      'Ratios with their 95 % intervals. A verdict goes by the median; a question mark says that the interval holds the target too, so that more rounds might turn it.',
      'targets',
      markdown(judgementColumns, judge(run)),
    ),
    ...questions.flatMap((question) => {
      const own = rows.filter((row) => row.question === question);
      if (own.length === 0) return [];
      const text = `In ${question.unit}; ${question.better} is better.`;
      return [
        section(
          question.title,
          text,
          question.id,
          markdown(planeColumns(planes.arms, meta.services, true), own),
        ),
      ];
    }),
    ...contrasts.flatMap(({ id, title, text, pairs, valuesOnly }) => {
      const comparison = run.contrasts[id];
      if (!comparison || comparison.measured.length === 0) return [];
      const columns = pairColumns(comparison.arms, pairs, valuesOnly);
      return [section(title, text, id, markdown(columns, rowsOf(comparison, meta.seed)))];
    }),
    ...(bystanders.measured.length === 0
      ? []
      : [
          section(
            bystanderTitle,
            "Traffic of the nodes themselves, which shares the uplink with ripstop's programs: two equal labs, in one of them the programs detached and the agents ended.",
            'bystanders',
            markdown(againstFirst(bystanders.arms), rowsOf(bystanders, meta.seed)),
          ),
        ]),
    ...grown(
      peersTitle,
      'peers',
      'ripstop in clusters that look larger and larger: Node objects without nodes behind them, taken up by the agents into maps, routes, neighbours and FDB. All traffic is between the two real nodes. The agents are ended before measuring, so that only the path is compared.',
      run.peers,
    ),
    ...grown(
      endpointsTitle,
      'endpoints',
      'The same with growing numbers of pods on both nodes. One pod on each node talks, the others are idle.',
      run.endpoints,
    ),
    ...(run.programs.length === 0
      ? []
      : [
          section(
            programsTitle,
            `Mean over all runs on both nodes during a known load, by \`kernel.bpf_stats_enabled\`; less is better. A run of a TCP stream may carry a super-packet. Counting costs time itself, and that is in these figures: a program that does nothing is counted with ${run.countingNs?.toFixed(0) ?? '?'} ns.`,
            'programs',
            markdown(
              [
                { title: 'program', value: ({ program }) => program },
                { title: 'load', value: ({ load }) => load },
                { title: 'runs', align: 'right', value: ({ runs }) => runs },
                { title: 'ns per run', align: 'right', value: ({ nsPerRun }) => nsPerRun.toFixed(0) },
                {
                  title: 'without counting',
                  align: 'right',
                  value: ({ nsPerRun }) =>
                    run.countingNs === undefined ? undefined : (nsPerRun - run.countingNs).toFixed(0),
                },
              ],
              run.programs,
            ),
          ),
        ]),
    ...(run.parts.length === 0
      ? []
      : [
          section(
            'What do the parts of a program cost?',
            'Each alone, a million times on one packet in a warm cache, so these are least values; counting is deducted. What remains of a program is parsing, checking and writing headers, and what the kernel adds for a real packet, such as moving its head to make room.',
            '',
            markdown(
              [
                { title: 'part', value: ({ part }) => part },
                { title: 'ns', align: 'right', value: ({ ns }) => ns.toFixed(0) },
              ],
              run.parts,
            ),
          ),
        ]),
    section(
      'Can this run distinguish equal from different?',
      `Two labs of the same data plane, measured like everything else. How far a ratio is from 1 is about the smallest difference that this report can show; beyond ±${CONTROL_TOLERANCE * 100} % it is among the warnings at the top.`,
      '',
      control.measured.length === 0
        ? 'The control was not measured in this run.'
        : markdown(againstFirst(control.arms), rowsOf(control, meta.seed)),
    ),
    ...(run.failures.length === 0
      ? []
      : [
          section(
            'What failed',
            'These measurements are missing above.',
            '',
            run.failures.map((failure) => `- ${failure}`).join('\n'),
          ),
        ]),
  ];
  return `# ripstop benchmark, ${meta.date}

${meta.cpus} × ${meta.cpu}, Linux ${meta.kernel}. ${meta.rounds} rounds of ${meta.seconds} s, the arms in a new order each round;
kube-proxy's rules for ${meta.services} services on every node.
${warnings.length > 0 ? `\n**Warnings:**\n\n${warnings.map((warning) => `- ${warning}`).join('\n')}\n` : ''}
- **host**: the nodes themselves, without pods; nothing of ripstop is attached. On one node this is the loopback device.
- **flannel**: flannel's kernel path between pods, with br_netfilter and FORWARD rules. On one node this is the bridge.
- **ripstop**: ripstop's fast path between pods.
- **ripstop-kernel**: the same, with the pods marked for the kernel path: the cost of ripstop where it does not help.

A ratio is the median over rounds of an arm ÷ the baseline *of the same round*, with its 95 % interval; a plain number has its
quartiles after it. Absolute numbers are valid for this machine and this hour. "One core": client, server and path share one CPU;
"free": the scheduler decides. "GSO wire": the kernel's super-packets cross the wire whole; "MTU wire": every packet fits the
MTU, as on a plain NIC. ↑: more is better, ↓: less is. Where no other target is set, ripstop must not be worse than flannel.

${sections.join('\n\n')}
`;
}
