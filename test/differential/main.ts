// SPDX-License-Identifier: Apache-2.0
/**
 * `npm run differential [-- --cases 100000 --seed N --first N]` compares what ripstop and flannel deliver. Case n of a
 * seed is always the same, so a difference is reported as a command that reproduces it. The exit code is 1 when a
 * difference is unexplained.
 */
import { parseArgs } from 'node:util';
import { missingForLab } from '../../src/lab/lab.support.ts';
import { describeFaults, describeSummary } from './describe.ts';
import { compareLabs, openLabs } from './differential.ts';

const { values } = parseArgs({
  options: {
    cases: { type: 'string', default: '100000' },
    seed: { type: 'string', default: String(Date.now() % 2 ** 31) },
    first: { type: 'string', default: '0' },
  },
});
const [count, seed, first] = [values.cases, values.seed, values.first].map(Number) as [
  number,
  number,
  number,
];
const missing = missingForLab('nft', 'ethtool', 'conntrack');
if (![count, seed, first].every(Number.isSafeInteger) || count < 1 || first < 0) {
  console.error('usage: npm run differential [-- --cases N --seed N --first N], whole numbers');
  process.exitCode = 2;
} else if (missing) {
  console.error(`differential: ${missing}`);
  process.exitCode = 1;
} else {
  console.log(`${count} cases of seed ${seed}, from number ${first}`);
  const started = performance.now();
  await using labs = await openLabs(`d${process.pid}`);
  const report = await compareLabs(labs, { seed, first, count }, (done) => {
    if (process.stdout.isTTY) process.stdout.write(`\r${done} of ${count} `);
  });
  const faults = describeFaults(report, seed);
  console.log(`\r${describeSummary(report)}\nin ${((performance.now() - started) / 1000).toFixed(1)} s`);
  if (faults !== '') console.log(`\n${faults}`);
  process.exitCode = faults === '' ? 0 : 1;
}
