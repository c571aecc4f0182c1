// SPDX-License-Identifier: Apache-2.0
/**
 * The first figures: host network, flannel's kernel path and ripstop side by side in one run. Every round runs every arm
 * once, in a new order, and ratios are taken within rounds, because absolute figures drift on any machine.
 *
 *   npm run bench [-- --rounds 7 --seconds 1]
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
  },
});
const rounds = Number(flags.rounds);
const seconds = Number(flags.seconds);
const seed = Number(flags.seed);

/** One question: what is measured, and whether more or less of it is better. */
interface Work {
  readonly name: string;
  readonly unit: string;
  readonly better: 'more' | 'less';
  /** Client and server share one CPU, so the result is the path's cost and not the scheduler's luck. */
  readonly pinned: boolean;
  readonly measure: (arm: Arm, cpu: number | undefined) => Promise<number>;
}

const timing = (cpu: number | undefined) => ({ seconds, warmup: 0.2, ...(cpu !== undefined && { cpu }) });

const works: Work[] = [
  {
    name: 'TCP RR 64 B, p50, one core',
    unit: 'µs',
    better: 'less',
    pinned: true,
    measure: async (arm, cpu) => (await arm.run('tcp-rr', { size: 64, ...timing(cpu) })).latencyUs.p50,
  },
  {
    name: 'UDP 64 B, received, one core',
    unit: 'kpps',
    better: 'more',
    pinned: true,
    measure: async (arm, cpu) => (await arm.run('udp-rate', { size: 64, ...timing(cpu) })).receivedPps / 1000,
  },
  {
    name: 'TCP stream, GSO wire, free',
    unit: 'Gbit/s',
    better: 'more',
    pinned: false,
    measure: async (arm, cpu) => (await arm.run('tcp-stream', timing(cpu))).gbitPerSecond,
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

for (const pinned of [true, false]) {
  const cpu = pinned ? 1 : undefined;
  say(`raising three labs (${pinned ? 'pinned to CPU 1' : 'free'})`);
  await using stack = new AsyncDisposableStack();
  const arms: Arm[] = [];
  for (const datapath of ['host', 'flannel', 'ripstop'] as const) {
    arms.push(stack.use(await raiseArm(datapath, { program, ...(pinned && { serverCpu: 1 }) })));
  }
  for (const work of works.filter((one) => one.pinned === pinned)) {
    const results: Record<string, number[]> = Object.fromEntries(arms.map(({ name }) => [name, []]));
    for (const [round, order] of interleave(arms, rounds, seed).entries()) {
      for (const arm of order) results[arm.name]!.push(await work.measure(arm, cpu));
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
  `${JSON.stringify({ rounds, seconds, seed, raw }, undefined, 2)}\n`,
);
