// SPDX-License-Identifier: Apache-2.0
/** ripstop delivers what flannel delivers: the same packets are sent through both, and compared where they arrive. */
import { expect, it } from 'vitest';
import { missingForLab } from '../../src/lab/lab.support.ts';
import { describeFaults, describeSummary } from './describe.ts';
import { compareLabs, openLabs } from './differential.ts';
import { rules } from './rules.ts';

const CASES = 6_000;
/** `npm run differential` uses other seeds. */
const SEED = 7;

const missing = missingForLab('nft', 'ethtool', 'conntrack');

it.skipIf(missing)(
  `ripstop and flannel deliver the same of ${CASES} cases of seed ${SEED}, for all that is not explained${missing ? ` (skipped: ${missing})` : ''}`,
  { timeout: 180_000 },
  async () => {
    await using labs = await openLabs(`t${process.pid}`);
    const report = await compareLabs(labs, { seed: SEED, count: CASES });
    console.log(describeSummary(report));
    expect.soft(describeFaults(report, SEED)).toBe('');
    // Otherwise flannel's kernel path would be compared with itself.
    for (const way of ['from_pod fast_local', 'from_pod fast_encap', 'from_wire fast_decap'])
      expect.soft(report.carried.get(way), way).toBeGreaterThan(CASES / 60);
    const idle = rules
      .filter(({ name, rare }) => !rare && !report.explained.has(name))
      .map(({ name }) => name);
    expect(idle, 'rules that explain nothing any more').toEqual([]);
  },
);

/** Of pods on bridges in both labs, little is left to explain. */
const BOOSTED_CASES = 1000;

it.skipIf(missing)(
  `a boosted flannel delivers the same as flannel alone of ${BOOSTED_CASES} cases of seed ${SEED}${missing ? ` (skipped: ${missing})` : ''}`,
  { timeout: 180_000 },
  async () => {
    await using labs = await openLabs(`b${process.pid}`, 'boost');
    const report = await compareLabs(labs, { seed: SEED, count: BOOSTED_CASES });
    expect.soft(describeFaults(report, SEED)).toBe('');
    for (const way of ['from_pod fast_local', 'from_pod fast_encap', 'from_wire fast_decap'])
      expect.soft(report.carried.get(way), way).toBeGreaterThan(BOOSTED_CASES / 60);
  },
);
