// SPDX-License-Identifier: Apache-2.0
/** The targets, as data, and whether a run has met them. */
import type { Comparison, Samples } from './compare.ts';
import { besideName, clusterIpName, type ContrastId, contrastOf, type Pair } from './contrasts.ts';
import type { ProgramCost } from './program-cost.ts';
import { pairedRatio, type Ratio } from './stats.ts';
import { questionOf, type QuestionId, titleOf } from './works.ts';

/** The range that a value must stay in, ends included. */
export interface Bound {
  readonly atLeast?: number;
  readonly atMost?: number;
}

export interface Target {
  /** Its name for people. */
  readonly figure: string;
  readonly question: QuestionId;
  readonly name: string;
  readonly where: string;
  readonly detail?: string;
  /** The bound for ripstop ÷ this arm, in the question's unit. */
  readonly host?: Bound;
  readonly flannel?: Bound;
}

const oneCore = 'across nodes, one core, GSO wire';
const oneNode = 'one node, one core, GSO wire';

export const targets: readonly Target[] = [
  {
    figure: 'TCP RR, p50',
    question: 'round-trip',
    name: 'TCP RR ×1',
    where: oneCore,
    host: { atMost: 1.02 },
    flannel: { atMost: 1 / 1.75 },
  },
  {
    figure: 'UDP RR ×32',
    question: 'transactions',
    name: 'UDP RR ×32',
    where: oneCore,
    host: { atLeast: 0.98 },
    flannel: { atLeast: 1.5 },
  },
  {
    figure: 'UDP 64 B packet rate',
    question: 'datagrams',
    name: 'UDP 64 B',
    where: oneCore,
    host: { atLeast: 0.98 },
    flannel: { atLeast: 2.5 },
  },
  {
    figure: 'TCP stream, GSO wire',
    question: 'stream',
    name: 'TCP stream ×1',
    where: oneCore,
    host: { atLeast: 0.96 },
    flannel: { atLeast: 1.35 },
  },
  {
    // It cannot exceed 0.966: each packet carries 50 bytes more.
    figure: 'TCP stream, MTU wire',
    question: 'stream',
    name: 'TCP stream ×1',
    where: 'across nodes, one core, MTU wire',
    host: { atLeast: 0.955 },
    flannel: { atLeast: 1.2 },
  },
  {
    figure: 'TCP connect-request-response',
    question: 'transactions',
    name: 'TCP connect-request-response',
    where: oneCore,
    flannel: { atLeast: 1.35 },
  },
  {
    figure: 'p99 at a fixed load',
    question: 'latency',
    name: 'TCP at 5000/s',
    where: oneCore,
    detail: 'p99',
    host: { atMost: 1.1 },
    flannel: { atMost: 0.6 },
  },
  {
    figure: 'softirq time per GB',
    question: 'softirq-per-gb',
    name: 'TCP stream ×1',
    where: oneCore,
    flannel: { atMost: 0.65 },
  },
  {
    figure: 'softirq time per GB, MTU wire',
    question: 'softirq-per-gb',
    name: 'TCP stream ×1',
    where: 'across nodes, one core, MTU wire',
    flannel: { atMost: 0.65 },
  },
  {
    figure: 'TCP RR on one node, against the bridge',
    question: 'transactions',
    name: 'TCP RR ×1',
    where: oneNode,
    flannel: { atLeast: 1.3 },
  },
  {
    figure: 'UDP 64 B on one node, against the bridge',
    question: 'datagrams',
    name: 'UDP 64 B',
    where: oneNode,
    flannel: { atLeast: 1.5 },
  },
];

/** For the ratio of a contrast's pair. */
export interface ContrastTarget extends Pair {
  readonly figure: string;
  readonly contrast: ContrastId;
  readonly question: QuestionId;
  readonly name: string;
  readonly bound: Bound;
}

type Aim = readonly [figure: string, question: QuestionId, name: string, bound: Bound];

/** Targets for one pair of a contrast. */
function aims(contrast: ContrastId, pair: Pair, list: readonly Aim[]): ContrastTarget[] {
  return list.map(([figure, question, name, bound]) => ({
    figure,
    contrast,
    question,
    name,
    ...pair,
    bound,
  }));
}

/** One flow among more flows, ÷ among fewer. */
const flowsBound: Bound = { atLeast: 0.97, atMost: 1.03 };
const moving: Pair = { candidate: 'moving', baseline: 'still' };

export const contrastTargets: readonly ContrastTarget[] = [
  ...aims('services', { candidate: clusterIpName('ripstop'), baseline: 'ripstop' }, [
    ['through a ClusterIP: TCP RR, p50', 'round-trip', 'TCP RR ×1', { atMost: 1.03 }],
    ['through a ClusterIP: UDP RR ×32', 'transactions', 'UDP RR ×32', { atLeast: 0.96 }],
    ['through a ClusterIP: UDP 64 B packet rate', 'datagrams', 'UDP 64 B', { atLeast: 0.96 }],
    ['through a ClusterIP: TCP stream', 'stream', 'TCP stream ×1', { atLeast: 0.98 }],
  ]),
  ...aims('services', { candidate: clusterIpName('ripstop'), baseline: clusterIpName('flannel') }, [
    ['through a ClusterIP: TCP RR, p50', 'round-trip', 'TCP RR ×1', { atMost: 1 / 1.75 }],
    [
      'through a ClusterIP: TCP connect-request-response',
      'transactions',
      'TCP connect-request-response',
      { atLeast: 1.25 },
    ],
  ]),
  ...contrastOf('flows').pairs.flatMap((pair) =>
    aims('flows', pair, [
      ['one flow among many: TCP RR, p50', 'round-trip', 'TCP RR ×1', flowsBound],
      ['one flow among many: UDP 64 B packet rate', 'datagrams', 'UDP 64 B', flowsBound],
      ['one flow among many: TCP stream', 'stream', 'TCP stream ×1', flowsBound],
    ]),
  ),
  ...aims('new-flows', { candidate: besideName('ripstop'), baseline: 'ripstop' }, [
    ['TCP stream beside new flows', 'stream', 'TCP stream ×1', { atLeast: 0.9 }],
  ]),
  ...aims('epoch', moving, [
    ['epoch moving: TCP RR, p50', 'round-trip', 'TCP RR ×1', { atMost: 1.02 }],
    ['epoch moving: TCP stream', 'stream', 'TCP stream ×1', { atLeast: 0.98 }],
  ]),
  ...(['TCP RR ×1', 'TCP stream ×1'] as const).map((name): ContrastTarget => ({
    figure: `epoch moving: sent again during ${name}`,
    contrast: 'epoch',
    question: 'retransmissions',
    name,
    ...moving,
    bound: { atMost: 1 },
  })),
  ...contrastOf('bare-host').pairs.flatMap((pair) =>
    aims('bare-host', pair, [
      ['against a host without rules: TCP RR, p50', 'round-trip', 'TCP RR ×1', { atMost: 1.08 }],
      ['against a host without rules: UDP RR ×32', 'transactions', 'UDP RR ×32', { atLeast: 0.9 }],
      ['against a host without rules: UDP 64 B packet rate', 'datagrams', 'UDP 64 B', { atLeast: 0.9 }],
      ['against a host without rules: TCP stream', 'stream', 'TCP stream ×1', { atLeast: 0.9 }],
    ]),
  ),
  ...contrastOf('boost').pairs.flatMap((pair) =>
    aims('boost', pair, [
      ['boosted pods: TCP RR, p50', 'round-trip', 'TCP RR ×1', { atMost: 1.03 }],
      ['boosted pods: UDP RR ×32', 'transactions', 'UDP RR ×32', { atLeast: 0.97 }],
      ['boosted pods: UDP 64 B packet rate', 'datagrams', 'UDP 64 B', { atLeast: 0.97 }],
      ['boosted pods: TCP stream', 'stream', 'TCP stream ×1', { atLeast: 0.97 }],
    ]),
  ),
];

/** Host-network round trips with ripstop attached, ÷ not attached. */
const bystanderBound: Bound = { atMost: 1.01 };
/** Any number with the most peers, ÷ with the fewest. */
const scaleBound: Bound = { atLeast: 0.98, atMost: 1.02 };
/** ns, without the cost of counting, for packets that are not super-packets. */
const programBounds = [
  { figure: 'encapsulate: from_pod', program: 'from_pod', bound: { atMost: 300 } },
  { figure: 'decapsulate: from_wire', program: 'from_wire', bound: { atMost: 130 } },
] as const;
/** The load for the programs' targets: every run handles one small packet. */
const JUDGED_LOAD = 'UDP 64 B';

/**
 * Judged by the median. It has a question mark when its interval includes the bound, so that more rounds might change
 * it.
 */
export type Verdict = 'met' | 'met?' | 'not met?' | 'not met' | 'not measured';

export interface Judgement {
  readonly figure: string;
  /** The name of the value, e.g. `ripstop ÷ host`. */
  readonly of: string;
  readonly bound: Bound;
  /** Undefined if the run has not measured it. */
  readonly value: { readonly median: number; readonly low: number; readonly high: number } | undefined;
  readonly verdict: Verdict;
}

/** The parts of a run that have targets. */
export interface Judged {
  readonly meta: { readonly seed: number; readonly services: number };
  readonly planes: Comparison;
  readonly contrasts: Partial<Record<ContrastId, Comparison>>;
  readonly bystanders: Comparison;
  readonly peers: Comparison;
  readonly programs: readonly (ProgramCost & { readonly load: string })[];
  /** ns; undefined if not measured. */
  readonly countingNs: number | undefined;
}

/**
 * Candidate over baseline, of the rounds that measured both; undefined without two such rounds, or for an arm itself.
 */
export function ratioOf(
  { samples }: Pick<Samples, 'samples'>,
  baseline: string,
  candidate: string,
  seed: number,
): Ratio | undefined {
  if (baseline === candidate) return undefined;
  const pairs = (samples[baseline] ?? [])
    .map((base, round) => [base, samples[candidate]?.[round]] as const)
    // Zero cannot be a baseline: e.g. no loss, or CPU time below the clock's resolution.
    .filter((pair): pair is readonly [number, number] => pair.every((value) => value != null && value > 0));
  if (pairs.length < 2) return undefined;
  return pairedRatio(
    pairs.map(([base]) => base),
    pairs.map(([, value]) => value),
    { seed },
  );
}

export function verdictOn(
  value: { median: number; low: number; high: number } | undefined,
  { atLeast = -Infinity, atMost = Infinity }: Bound,
): Verdict {
  if (!value) return 'not measured';
  const met = value.median >= atLeast && value.median <= atMost;
  const inside = value.low >= atLeast && value.high <= atMost;
  const outside = value.high < atLeast || value.low > atMost;
  const open = met ? !inside : !outside;
  return `${met ? 'met' : 'not met'}${open ? '?' : ''}`;
}

/** `≤ 1.02`, `0.98 … 1.02`. */
export function formatBound({ atLeast, atMost }: Bound): string {
  const text = (value: number): string => String(Number(value.toFixed(3)));
  if (atLeast !== undefined && atMost !== undefined) return `${text(atLeast)} … ${text(atMost)}`;
  return atLeast !== undefined ? `≥ ${text(atLeast)}` : `≤ ${text(atMost ?? Infinity)}`;
}

/**
 * Loss at full speed shows only how much faster the sender is than the receiver, so it has no target; and the other data
 * planes have no fast path.
 */
const unjudged: readonly QuestionId[] = ['loss', 'fast-path'];

/**
 * The bound for ripstop ÷ another data plane: a target, or not to be worse than flannel. Where hosts have no rules
 * (`services` is 0), only the contrast with the bare host has targets for ripstop ÷ host.
 */
export function boundsOf(
  samples: Omit<Samples, 'samples'>,
  services: number,
): { host?: Bound; flannel?: Bound } {
  if (unjudged.includes(samples.question)) return {};
  const own = targets.find(
    ({ question, name, where, detail }) =>
      question === samples.question &&
      name === samples.name &&
      where === samples.where &&
      detail === samples.detail,
  );
  const noWorse: Bound = questionOf(samples.question).better === 'more' ? { atLeast: 1 } : { atMost: 1 };
  return {
    flannel: noWorse,
    ...(own?.host && services > 0 && { host: own.host }),
    ...(own?.flannel && { flannel: own.flannel }),
  };
}

/** All targets in order, whether they were measured or not. */
export function judge(run: Judged): Judgement[] {
  return [
    ...targets.flatMap((target) => judgePlanes(run, target)),
    ...contrastTargets.map((target) => judgeContrast(run, target)),
    judgeWorst(run),
    ...['TCP RR ×1', 'UDP RR ×1'].map((name) => judgeBystanders(run, name)),
    ...judgeScale(run),
    ...programBounds.map((target) => judgeProgram(run, target)),
  ];
}

function judgement(figure: string, of: string, bound: Bound, value: Judgement['value']): Judgement {
  return { figure, of, bound, value, verdict: verdictOn(value, bound) };
}

function judgePlanes({ planes, meta }: Judged, target: Target): Judgement[] {
  const samples = planes.measured.find(
    ({ question, name, where, detail }) =>
      question === target.question &&
      name === target.name &&
      where === target.where &&
      detail === target.detail,
  );
  return (['host', 'flannel'] as const).flatMap((base) => {
    const bound = base === 'host' && meta.services === 0 ? undefined : target[base];
    const ratio = samples && ratioOf(samples, base, 'ripstop', meta.seed);
    return bound ? [judgement(target.figure, `ripstop ÷ ${base}`, bound, ratio)] : [];
  });
}

function judgeContrast(run: Judged, target: ContrastTarget): Judgement {
  const { figure, candidate, baseline, bound } = target;
  const of = `${candidate} ${isCount(target) ? '−' : '÷'} ${baseline}`;
  return judgement(figure, of, bound, contrastValue(run, target));
}

function judgeWorst({ planes, meta }: Judged): Judgement {
  const cells = planes.measured.flatMap((samples) => {
    const ratio = ratioOf(samples, 'flannel', 'ripstop', meta.seed);
    if (!ratio || unjudged.includes(samples.question)) return [];
    const better = questionOf(samples.question).better === 'more' ? ratio : inverse(ratio);
    return [{ ...better, label: titleOf(samples) }];
  });
  const worst = cells.toSorted((a, b) => a.median - b.median)[0];
  const figure = `no cell below flannel's; worst of ${cells.length}: ${worst?.label ?? 'none'}`;
  return judgement(figure, 'times better than flannel', { atLeast: 1 }, worst);
}

function judgeBystanders({ bystanders, meta }: Judged, name: string): Judgement {
  const samples = bystanders.measured.find((one) => one.question === 'round-trip' && one.name === name);
  const [without, attached] = bystanders.arms;
  return judgement(
    `bystanders: ${name} of the host network`,
    'attached ÷ not attached',
    bystanderBound,
    samples && ratioOf(samples, without!, attached!, meta.seed),
  );
}

function judgeScale({ peers, meta }: Judged): Judgement[] {
  const [few, many] = [peers.arms[0], peers.arms.at(-1)];
  const scale = peers.measured
    .filter(({ question }) => ['round-trip', 'datagrams', 'stream'].includes(question))
    .map((samples) =>
      judgement(
        `${samples.name}, as the cluster grows`,
        `${many} ÷ ${few}`,
        scaleBound,
        ratioOf(samples, few!, many!, meta.seed),
      ),
    );
  if (scale.length > 0) return scale;
  return [judgement('as the cluster grows', '10,000 peers ÷ 10 peers', scaleBound, undefined)];
}

function judgeProgram(run: Judged, { figure, program, bound }: (typeof programBounds)[number]): Judgement {
  const cost = run.programs.find((one) => one.program === program && one.load === JUDGED_LOAD);
  const ns = cost && run.countingNs !== undefined ? cost.nsPerRun - run.countingNs : undefined;
  const value = ns === undefined ? undefined : { median: ns, low: ns, high: ns };
  return judgement(figure, 'ns, counting deducted', bound, value);
}

/** Whether arms differ by a number of events, which is often zero, so that there is no ratio. */
function isCount({ question }: Pick<ContrastTarget, 'question'>): boolean {
  return question === 'retransmissions';
}

function contrastValue({ contrasts, meta }: Judged, target: ContrastTarget): Judgement['value'] {
  const { contrast, question, name, candidate, baseline } = target;
  const samples = contrasts[contrast]?.measured.find((one) => one.question === question && one.name === name);
  if (!samples) return undefined;
  if (!isCount(target)) return ratioOf(samples, baseline, candidate, meta.seed);
  const means = [candidate, baseline].map((arm) => meanOf(samples.samples[arm] ?? []));
  const [more, less] = means;
  if (more === undefined || less === undefined) return undefined;
  return { median: more - less, low: more - less, high: more - less };
}

/** A median would hide what happens in few rounds only. */
function meanOf(samples: readonly (number | null)[]): number | undefined {
  const values = samples.filter((value) => value !== null);
  return values.length > 0 ? values.reduce((sum, value) => sum + value) / values.length : undefined;
}

function inverse({ median, low, high }: Ratio): { median: number; low: number; high: number } {
  return { median: 1 / median, low: 1 / high, high: 1 / low };
}
