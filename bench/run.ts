// SPDX-License-Identifier: Apache-2.0
/**
 * Compares host network, flannel's kernel path, ripstop, and ripstop limited to the kernel path in one run. Every round
 * runs every arm once, in a new order, and ratios are taken within rounds, because absolute figures drift on any
 * machine. An A/A control comes first. See README.md for the flags and how to read the results.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { renderTable } from '../src/cli/table.ts';
import { errorText, RipstopError } from '../src/errors.ts';
import type { Wire } from '../src/lab/index.ts';
import { armSpecs, buildDir, type ClusterSize } from './arms.ts';
import { renderSvg, writePng } from './charts.ts';
import type { Comparison } from './compare.ts';
import { type Contrast, contrastLabel, contrasts } from './contrasts.ts';
import { buildNetbench, findClang } from './netbench.ts';
import { axis, Bench, nothing, ownArms } from './parts.ts';
import { type PartCost, partCosts } from './program-cost.ts';
import {
  chartsOf,
  judgementColumns,
  MIN_ROUNDS,
  planeColumns,
  renderReport,
  rowsOf,
  type RunResult,
  warningsOf,
} from './report.ts';
import { judge } from './targets.ts';
import { labelOf, type Work, works } from './works.ts';

const { values: flags } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    scale: { type: 'boolean', default: false },
    only: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    wire: { type: 'string', default: 'both' },
    services: { type: 'string', default: '100' },
    seed: { type: 'string', default: '1' },
  },
});

function number(name: string, text: string, least: number): number {
  const value = Number(text);
  if (text.trim() !== '' && Number.isFinite(value) && value >= least) return value;
  throw new RipstopError(`--${name} ${text} is no number from ${least} on; give one`);
}

/** A line of progress, with the time since the start. */
function say(text: string): void {
  const seconds = Math.round(performance.now() / 1000);
  process.stderr.write(
    `bench ${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}  ${text}\n`,
  );
}

/** The CPU that client and server of a pinned work share. */
const PINNED_CPU = 1;

/** The axes of the scale, from their common end. A quick run has only the most peers. */
const smallest: ClusterSize = { peers: 10, endpoints: 1 };
const larger = {
  peers: { all: [100, 1000, 10_000], end: [10_000] },
  endpoints: { all: [10, 50, 250], end: [] },
};

async function main(): Promise<void> {
  const rounds = number('rounds', flags.rounds ?? (flags.quick ? '5' : '7'), 1);
  const seconds = number('seconds', flags.seconds ?? (flags.quick ? '0.2' : '0.5'), 0.05);
  const services = number('services', flags.services, 0);
  const seed = number('seed', flags.seed, 0);
  const only = flags.only === undefined ? undefined : new RegExp(flags.only, 'i');
  if (!['gso', 'mtu', 'both'].includes(flags.wire))
    throw new RipstopError(`--wire ${flags.wire} is none of gso, mtu and both`);
  const chosen = works.filter(
    (work) =>
      !flags.scale &&
      (only?.test(labelOf(work)) ?? true) &&
      (work.quick || !flags.quick) &&
      (flags.wire === 'both' || flags.wire === work.wire),
  );
  const contrasted = flags.scale ? [] : chosenContrasts(only, services, flags.wire);
  if (chosen.length === 0 && contrasted.length === 0 && !flags.scale)
    throw new RipstopError('no work is left to do; see --only, --wire and --quick');
  if (rounds < MIN_ROUNDS) say(`${rounds} rounds are too few for intervals; use at least ${MIN_ROUNDS}`);

  // Ctrl-C ends the current test; then the labs are taken down.
  const interruption = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => interruption.abort());
  const begun = new Date();
  mkdirSync(buildDir, { recursive: true });
  const compiler = await findClang();
  const program = await buildNetbench(buildDir, compiler);
  const timing = { seconds, warmup: seconds / 4 };
  const settings = { rounds, seed, timing, cpu: PINNED_CPU, signal: interruption.signal, say };
  const bench = new Bench(settings, { program, services, serverCpu: PINNED_CPU });

  const { control, bystanders } = await bench.part('A/A control and bystanders', () => bench.control(), {
    control: nothing,
    bystanders: nothing,
  });
  const [counting, ...parts] = await bench.part<PartCost[]>(
    'what counting and the parts of programs cost',
    () => partCosts(buildDir, compiler),
    [],
  );
  const planes = await measurePlanes(bench, chosen, contrasted);
  const steps = flags.quick ? 'end' : 'all';
  const onPeers = [smallest, ...larger.peers[steps].map((peers) => ({ ...smallest, peers }))];
  const onEndpoints = [smallest, ...larger.endpoints[steps].map((endpoints) => ({ ...smallest, endpoints }))];
  const sizes = [...onPeers, ...onEndpoints.slice(1)];
  const scale = only ? nothing : await bench.part('scale', () => bench.sizes(sizes), nothing);

  report({
    meta: { ...machine(), date: begun.toISOString(), rounds, seconds, services, seed },
    control,
    planes,
    bystanders,
    peers: axis(scale, onPeers, ({ peers }) => `${peers.toLocaleString('en')} peers`),
    endpoints: axis(scale, onEndpoints, ({ endpoints }) => `${endpoints} pod${endpoints === 1 ? '' : 's'}`),
    contrasts: bench.contrasts,
    programs: bench.programs,
    countingNs: counting?.ns,
    parts,
    failures: bench.failures,
  });
}

function machine(): Pick<RunResult['meta'], 'kernel' | 'cpu' | 'cpus'> {
  return { kernel: release(), cpu: cpus()[0]?.model ?? 'unknown CPU', cpus: cpus().length };
}

/** Compare the data planes on each wire, and with the labs of one of them the contrasts. */
async function measurePlanes(
  bench: Bench,
  chosen: readonly Work[],
  contrasted: readonly Contrast[],
): Promise<Comparison> {
  const planes: Comparison[] = [];
  for (const wire of ['gso', 'mtu'] satisfies Wire[]) {
    const own = chosen.filter((work) => work.wire === wire);
    const others = wire === 'gso' ? contrasted.filter(({ id }) => !ownArms[id]) : [];
    if (own.length + others.length === 0) continue;
    planes.push(
      await bench.part(
        `data planes, ${wire.toUpperCase()} wire`,
        () => bench.planes(wire, own, others),
        nothing,
      ),
    );
  }
  for (const contrast of contrasted) {
    const arms = ownArms[contrast.id];
    if (arms) await bench.part(`the labs of ${contrast.id}`, () => bench.apart(contrast, arms), undefined);
  }
  return { arms: armSpecs.map(({ name }) => name), measured: planes.flatMap(({ measured }) => measured) };
}

/** The contrasts with the works that the flags leave. Without kube-proxy there is no ClusterIP. */
function chosenContrasts(only: RegExp | undefined, services: number, wire: string): Contrast[] {
  if (wire === 'mtu') return [];
  return contrasts
    .filter(({ id }) => services > 0 || id !== 'services')
    .map((contrast) => ({
      ...contrast,
      works: contrast.works.filter(
        (work) => (only?.test(contrastLabel(contrast, work)) ?? true) && (work.quick || !flags.quick),
      ),
    }))
    .filter(({ works }) => works.length > 0);
}

/** Print tables on the terminal, and write everything into a directory. */
function report(result: RunResult): void {
  const { date, seed, services } = result.meta;
  const { planes } = result;
  const tables = [
    renderTable(planeColumns(planes.arms, services, false), rowsOf(planes, seed)),
    renderTable(judgementColumns, judge(result)),
  ];
  process.stdout.write(`\n${tables.join('\n')}\n`);
  for (const warning of warningsOf(result)) say(warning);

  const directory = join(import.meta.dirname, 'results', date.replaceAll(/[:.]/g, '-'));
  mkdirSync(directory, { recursive: true });
  writeFileSync(join(directory, 'results.json'), `${JSON.stringify(result, undefined, 2)}\n`);
  for (const chart of chartsOf(result)) {
    const svg = renderSvg(chart);
    writeFileSync(join(directory, `${chart.name}.svg`), svg);
    writePng(svg, join(directory, `${chart.name}.png`));
  }
  writeFileSync(join(directory, 'report.md'), renderReport(result));
  say(`${((Date.now() - Date.parse(date)) / 1000).toFixed(0)} s; see ${join(directory, 'report.md')}`);
}

try {
  await main();
} catch (error) {
  say(errorText(error));
  process.exitCode = 1;
}
