// SPDX-License-Identifier: Apache-2.0
/**
 * `npm run differential [-- --cases 100000 --seed N --first N]` compares what ripstop and flannel deliver of single packets,
 * and `npm run differential -- --hosts 100` what they deliver of flows on hosts with rules of their own; with `--mode boost`
 * ripstop beside a flannel of its own. Case or
 * configuration n of a seed is always the same, so a difference is reported as a command that reproduces it. The exit code
 * is 1 when a difference is unexplained.
 */
import { parseArgs } from 'node:util';
import { missingForLab } from '../../src/lab/lab.support.ts';
import { describeFaults, describeSummary } from './describe.ts';
import { compareLabs, openBoth, openLabs } from './differential.ts';
import { compareHosts } from './hosts/compare.ts';
import { describeHostFaults, describeHosts } from './hosts/describe.ts';
import { HostLab } from './hosts/labs.ts';

interface Range {
  readonly seed: number;
  readonly first: number;
  readonly count: number;
}

interface Told {
  readonly summary: string;
  readonly faults: string;
}

const { values } = parseArgs({
  options: {
    cases: { type: 'string', default: '100000' },
    hosts: { type: 'string' },
    mode: { type: 'string', default: 'cni' },
    seed: { type: 'string', default: String(Date.now() % 2 ** 31) },
    first: { type: 'string', default: '0' },
  },
});
const [count, seed, first] = [values.hosts ?? values.cases, values.seed, values.first].map(Number) as [
  number,
  number,
  number,
];
const missing = missingForLab('nft', 'ethtool', 'conntrack', 'tc');
const mode = (['cni', 'boost'] as const).find((one) => one === values.mode);
if (![count, seed, first].every(Number.isSafeInteger) || count < 1 || first < 0 || !mode) {
  console.error(
    'usage: npm run differential [-- [--cases N | --hosts N] --seed N --first N --mode cni|boost], whole numbers',
  );
  process.exitCode = 2;
} else if (missing) {
  console.error(`differential: ${missing}`);
  process.exitCode = 1;
} else {
  const what = values.hosts === undefined ? 'cases' : 'host configurations';
  console.log(`${count} ${what} of seed ${seed}, from number ${first}`);
  const started = performance.now();
  const compare = values.hosts === undefined ? casesOf : hostsOf;
  const { summary, faults } = await compare({ seed, first, count }, (done) => {
    if (process.stdout.isTTY) process.stdout.write(`\r${done} of ${count} `);
  });
  console.log(`\r${summary}\nin ${((performance.now() - started) / 1000).toFixed(1)} s`);
  if (faults !== '') console.log(`\n${faults}`);
  process.exitCode = faults === '' ? 0 : 1;
}

async function casesOf(range: Range, onProgress: (done: number) => void): Promise<Told> {
  await using labs = await openLabs(`d${process.pid}`, mode);
  const report = await compareLabs(labs, range, onProgress);
  return { summary: describeSummary(report), faults: describeFaults(report, range.seed) };
}

async function hostsOf(range: Range, onProgress: (done: number) => void): Promise<Told> {
  await using labs = await openBoth(`h${process.pid}`, (name, datapath) =>
    HostLab.open(name, datapath, mode),
  );
  const report = await compareHosts(labs, range, onProgress);
  return { summary: describeHosts(report), faults: describeHostFaults(report, range.seed) };
}
