// SPDX-License-Identifier: Apache-2.0
/** The measurements, as data: the questions of a report, and the works that answer them. */
import type { Wire } from '../src/lab/index.ts';
import type { ClientOptions, Results, Side } from './netbench.ts';

export interface Question {
  readonly id: QuestionId;
  /** The question: the title of its chart. */
  readonly title: string;
  readonly unit: string;
  readonly better: 'more' | 'less';
}

export type QuestionId =
  | 'stream'
  | 'transactions'
  | 'round-trip'
  | 'datagrams'
  | 'loss'
  | 'latency'
  | 'softirq-per-gb'
  | 'cpu-per-gb'
  | 'cpu-per-transaction'
  | 'retransmissions'
  | 'fast-path';

export const questions: readonly Question[] = [
  { id: 'stream', title: 'How much does a TCP stream carry?', unit: 'Gbit/s', better: 'more' },
  { id: 'transactions', title: 'How many requests are answered?', unit: 'thousand/s', better: 'more' },
  { id: 'round-trip', title: 'How long does a request take, one at a time?', unit: 'µs', better: 'less' },
  { id: 'datagrams', title: 'How many UDP datagrams get through?', unit: 'thousand/s', better: 'more' },
  { id: 'loss', title: 'How many UDP datagrams are lost at full speed?', unit: '%', better: 'less' },
  { id: 'latency', title: 'How long does a request take at a fixed load?', unit: 'µs', better: 'less' },
  {
    id: 'softirq-per-gb',
    title: 'How much softirq time does a gigabyte take?',
    unit: 'softirq s/GB',
    better: 'less',
  },
  { id: 'cpu-per-gb', title: 'How much CPU time does a gigabyte take?', unit: 'CPU s/GB', better: 'less' },
  {
    id: 'cpu-per-transaction',
    title: 'How much CPU time does a request take?',
    unit: 'CPU µs',
    better: 'less',
  },
  {
    id: 'retransmissions',
    title: 'How much is sent again when the epoch moves?',
    unit: 'segments a move',
    better: 'less',
  },
  {
    id: 'fast-path',
    title: 'Which share of the packets took the fast path?',
    unit: '% on the fast path',
    better: 'more',
  },
];

export function questionOf(id: QuestionId): Question {
  return questions.find((question) => question.id === id)!;
}

/**
 * The places of client and server: pods on two nodes, the same two with the server behind a ClusterIP, two pods on the
 * first node, or processes of two nodes.
 */
export type Place = 'across nodes' | 'through a ClusterIP' | 'one node' | 'host network';
/**
 * Whether client and server share CPU 1, so that the cost of the path decides, or run where the scheduler puts them.
 */
export type Cpus = 'one core' | 'free';

/** One number of one measurement. `detail` distinguishes numbers for the same question, such as `p99`. */
export interface Figure {
  readonly question: QuestionId;
  readonly detail?: string;
  readonly value: number;
}

/** One test that every arm runs once in each round. */
export interface Work {
  /** Its name, e.g. `TCP RR ×8`. */
  readonly name: string;
  /** Its circumstances, e.g. `across nodes, one core, GSO wire`. */
  readonly where: string;
  readonly command: keyof Results;
  readonly options: Omit<ClientOptions, 'host' | 'port'>;
  readonly wire: Wire;
  readonly place: Place;
  readonly cpus: Cpus;
  /** The factor by which it is measured longer than others. */
  readonly stretch: number;
  /** Part of `--quick`. */
  readonly quick: boolean;
}

/** Its full, unique name: `TCP RR ×8, across nodes, one core, GSO wire`. */
export function labelOf({ name, where }: Pick<Work, 'name' | 'where'>): string {
  return `${name}, ${where}`;
}

/** The name of one number of a work, unique within its question: `TCP at 5000/s, p99, across nodes, …`. */
export function titleOf({ name, detail, where }: Pick<Work, 'name' | 'where'> & { detail?: string }): string {
  return [name, ...(detail ? [detail] : []), where].join(', ');
}

type Kind = Pick<Work, 'name' | 'command' | 'options'> & { readonly stretch?: number };

/** Requests per second of the fixed load: well below the capacity of every arm, so that nothing queues for long. */
const FIXED_RATE = 5000;

const streams = [1, 8].map((connections): Kind => ({
  name: `TCP stream ×${connections}`,
  command: 'tcp-stream',
  options: { connections },
}));
const requests = [
  ['TCP RR', 'tcp-rr'],
  ['UDP RR', 'udp-rr'],
] as const;
const roundTrips = requests.flatMap(([name, command]) =>
  [1, 8, 32].map((connections): Kind => ({
    name: `${name} ×${connections}`,
    command,
    options: { connections, size: 64 },
  })),
);
/** Closed as most clients close, and reset: that takes fewer packets, of which the kernel path must see more. */
const connects: Kind[] = [
  { name: 'TCP connect-request-response', command: 'tcp-crr', options: { size: 64 } },
  { name: 'TCP connect-request-reset', command: 'tcp-crr', options: { size: 64, end: 'rst' } },
];
const datagrams = [64, 512, 1400].map((size): Kind => ({
  name: `UDP ${size} B`,
  command: 'udp-rate',
  options: { size },
}));
const fixedLoads = (['tcp', 'udp'] as const).map((proto): Kind => ({
  name: `${proto.toUpperCase()} at ${FIXED_RATE}/s`,
  command: 'fixed-load',
  options: { proto, rate: FIXED_RATE, size: 64 },
  // One request in a thousand exceeds p99.9, so thousands are needed.
  stretch: 3,
}));
const kinds = [...streams, ...roundTrips, ...connects, ...datagrams, ...fixedLoads];

const oneCore = 'across nodes, one core, GSO wire';

/** These are part of `--quick`, by label. */
const quick = new Set([
  `TCP stream ×1, ${oneCore}`,
  'TCP stream ×8, across nodes, free, GSO wire',
  `TCP RR ×1, ${oneCore}`,
  `UDP RR ×32, ${oneCore}`,
  `TCP connect-request-response, ${oneCore}`,
  `UDP 64 B, ${oneCore}`,
  `TCP at ${FIXED_RATE}/s, ${oneCore}`,
  'TCP RR ×1, one node, one core, GSO wire',
  'UDP 64 B, one node, one core, GSO wire',
  'TCP stream ×1, across nodes, one core, MTU wire',
]);

function worksOf(some: readonly Kind[], wire: Wire, place: Place, cpus: Cpus): Work[] {
  const where = `${place}, ${cpus}, ${wire.toUpperCase()} wire`;
  return some.map((kind) => {
    const work = { stretch: 1, ...kind, where, wire, place, cpus };
    return { ...work, quick: quick.has(labelOf(work)) };
  });
}

/** The works by which all data planes are compared. */
export const works: readonly Work[] = [
  ...worksOf(kinds, 'gso', 'across nodes', 'one core'),
  ...worksOf(kinds, 'gso', 'across nodes', 'free'),
  ...worksOf(kinds, 'gso', 'one node', 'one core'),
  // The wire's MTU changes only in how many packets a stream crosses the path; the others fit a packet anyway.
  ...worksOf(streams, 'mtu', 'across nodes', 'one core'),
  ...worksOf(streams, 'mtu', 'across nodes', 'free'),
];

/** A work like those of {@link works}, across nodes, on one core and the GSO wire. */
export function typical(name: string): Work {
  return works.find((work) => work.name === name && work.where === oneCore)!;
}

/**
 * The network performance of a node's own processes while ripstop's programs are on the uplink that they share with
 * pods.
 */
export const bystanderWorks: readonly Work[] = worksOf(
  roundTrips.filter(({ options }) => options.connections === 1),
  'gso',
  'host network',
  'one core',
);

/**
 * A work of each kind that depends on the path: it must not change as the cluster grows, and its programs are timed.
 */
export const scaleWorks: readonly Work[] = ['TCP RR ×1', 'UDP 64 B', 'TCP stream ×1'].map(typical);

/** The control: two labs of one data plane must not differ, or differences between the others mean nothing. */
export const controlWorks: readonly Work[] = [
  ...scaleWorks,
  typical(`TCP at ${FIXED_RATE}/s`),
  bystanderWorks[0]!,
];

/** CPU time of the machine while both sides were measured. A CPU that both share, or the whole machine, counts once. */
export function cpuSeconds(client: Side, server: Side): { softirq: number; busy: number } {
  const sides = client.cpu === null || client.cpu === server.cpu ? [client] : [client, server];
  const sum = (field: 'softirqSeconds' | 'busySeconds'): number =>
    sides.reduce((total, { machine }) => total + machine[field], 0);
  return { softirq: sum('softirqSeconds'), busy: sum('busySeconds') };
}

/** The answers in netbench's document. Without bytes or transactions there is no cost per byte or transaction. */
export function figuresOf(result: Results[keyof Results]): Figure[] {
  const { retransmittedPerMove } = result;
  return [
    ...figuresOfTest(result),
    ...(retransmittedPerMove === undefined
      ? []
      : [{ question: 'retransmissions', value: retransmittedPerMove } as const]),
  ];
}

function figuresOfTest(result: Results[keyof Results]): Figure[] {
  const cpu = cpuSeconds(result.client, result.server);
  if ('gbitPerSecond' in result) {
    const gigabytes = result.receivedBytes / 1e9;
    return [
      { question: 'stream', value: result.gbitPerSecond },
      { question: 'softirq-per-gb', value: cpu.softirq / gigabytes },
      { question: 'cpu-per-gb', value: cpu.busy / gigabytes },
    ];
  }
  if ('receivedPps' in result) {
    return [
      { question: 'datagrams', value: result.receivedPps / 1000 },
      { question: 'loss', value: result.loss * 100 },
    ];
  }
  if ('flows' in result) return [{ question: 'transactions', value: result.rate / 1000 }];
  if ('targetRate' in result) {
    const { p50, p99, p999 } = result.latencyUs;
    return [
      { question: 'latency', detail: 'p50', value: p50 },
      { question: 'latency', detail: 'p99', value: p99 },
      { question: 'latency', detail: 'p99.9', value: p999 },
    ];
  }
  return [
    { question: 'transactions', value: result.rate / 1000 },
    ...(result.connections === 1 ? [{ question: 'round-trip', value: result.latencyUs.p50 } as const] : []),
    { question: 'cpu-per-transaction', value: (cpu.busy * 1e6) / result.transactions },
  ];
}
