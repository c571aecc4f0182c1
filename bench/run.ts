// SPDX-License-Identifier: Apache-2.0
/**
 * The first figures: host network, flannel's kernel path and ripstop side by side in one run. Every round runs every arm
 * once, in a new order, and ratios are taken within rounds, because absolute figures drift on any machine.
 *
 * Every node of every arm has kube-proxy's rules for 100 services, as a node of a cluster has (--services 0: none).
 *
 *   npm run bench [-- --rounds 7 --seconds 1 --services 100]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { renderTable } from '../src/cli/table.ts';
import { type Arm, buildDir, raiseArm } from './arms.ts';
import { buildNetbench } from './netbench.ts';
import { interleave, median, pairedRatio } from './stats.ts';

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string', default: '7' },
    seconds: { type: 'string', default: '1' },
    seed: { type: 'string', default: '1' },
    services: { type: 'string', default: '100' },
  },
});
const rounds = Number(flags.rounds);
const seconds = Number(flags.seconds);
const seed = Number(flags.seed);
const services = Number(flags.services);

/** One question: what is measured, and whether more or less of it is better. */
interface Work {
  readonly name: string;
  readonly unit: string;
  readonly better: 'more' | 'less';
  readonly measure: (arm: Arm) => Promise<number>;
}

/** The servers' CPU. A client that shares it shows the path's cost, not the scheduler's luck; one beside it, throughput. */
const serverCpu = 1;
const shared = { seconds, warmup: 0.2, cpu: serverCpu };
const beside = { ...shared, cpu: 0 };

const works: Work[] = [
  {
    name: 'TCP RR 64 B, p50, one core',
    unit: 'µs',
    better: 'less',
    measure: async (arm) => (await arm.run('tcp-rr', { size: 64, ...shared })).latencyUs.p50,
  },
  {
    name: 'UDP 64 B, received, one core',
    unit: 'kpps',
    better: 'more',
    measure: async (arm) => (await arm.run('udp-rate', { size: 64, ...shared })).receivedPps / 1000,
  },
  {
    name: 'TCP stream, GSO wire, one core',
    unit: 'Gbit/s',
    better: 'more',
    measure: async (arm) => (await arm.run('tcp-stream', shared)).gbitPerSecond,
  },
  {
    name: 'TCP stream, GSO wire, two cores',
    unit: 'Gbit/s',
    better: 'more',
    measure: async (arm) => (await arm.run('tcp-stream', beside)).gbitPerSecond,
  },
];

mkdirSync(buildDir, { recursive: true });
const program = await buildNetbench(buildDir);
const say = (text: string): void => void process.stderr.write(`bench: ${text}\n`);

interface Row {
  work: string;
  unit: string;
  arm: string;
  median: number;
  vsHost: string;
  vsFlannel: string;
}

const rows: Row[] = [];
const raw: Record<string, Record<string, number[]>> = {};

say('raising three labs');
await using stack = new AsyncDisposableStack();
const arms: Arm[] = [];
for (const datapath of ['host', 'flannel', 'ripstop'] as const) {
  arms.push(stack.use(await raiseArm(datapath, { program, services, serverCpu })));
}
for (const work of works) {
  const results: Record<string, number[]> = Object.fromEntries(arms.map(({ name }) => [name, []]));
  for (const [round, order] of interleave(arms, rounds, seed).entries()) {
    for (const arm of order) results[arm.name]!.push(await work.measure(arm));
    const now = arms.map(({ name }) => `${name} ${results[name]!.at(-1)!.toFixed(1)}`).join(', ');
    say(`${work.name}: round ${round + 1}/${rounds}: ${now} ${work.unit}`);
  }
  raw[work.name] = results;
  for (const { name } of arms) {
    const against = (base: string): string => {
      if (base === name) return '-';
      const ratio = pairedRatio(results[base]!, results[name]!, { seed });
      return `${ratio.median.toFixed(2)} (${ratio.low.toFixed(2)}–${ratio.high.toFixed(2)})`;
    };
    rows.push({
      work: work.name,
      unit: `${work.unit}, ${work.better} is better`,
      arm: name,
      median: median(results[name]!),
      vsHost: against('host'),
      vsFlannel: against('flannel'),
    });
  }
}

process.stdout.write(
  renderTable<Row>(
    [
      { title: 'WORK', value: (row) => row.work },
      { title: 'ARM', value: (row) => row.arm },
      { title: 'MEDIAN', align: 'right', value: (row) => row.median.toFixed(1) },
      { title: 'UNIT', value: (row) => row.unit },
      { title: '× HOST (95 %)', align: 'right', value: (row) => row.vsHost },
      { title: '× FLANNEL (95 %)', align: 'right', value: (row) => row.vsFlannel },
    ],
    rows,
  ),
);
const results = join(import.meta.dirname, 'results');
mkdirSync(results, { recursive: true });
writeFileSync(
  join(results, 'first-figures.json'),
  `${JSON.stringify({ rounds, seconds, seed, services, raw }, undefined, 2)}\n`,
);
