// SPDX-License-Identifier: Apache-2.0
/** On hosts with rules of their own, ripstop delivers what flannel delivers, flow by flow. */
import { expect, it } from 'vitest';
import { missingForLab } from '../../src/lab/lab.support.ts';
import { openBoth } from './differential.ts';
import { compareHosts } from './hosts/compare.ts';
import { describeHostFaults, describeHosts } from './hosts/describe.ts';
import { HostLab } from './hosts/labs.ts';

const CONFIGURATIONS = 1;
/** `npm run differential -- --hosts N` uses other seeds. */
const SEED = 4;

const missing = missingForLab('nft', 'ethtool', 'conntrack', 'tc');

it.skipIf(missing)(
  `ripstop and flannel deliver the same on ${CONFIGURATIONS} random hosts of seed ${SEED}${missing ? ` (skipped: ${missing})` : ''}`,
  { timeout: 180_000 },
  async () => {
    await using labs = await openBoth(`t${process.pid}`, (name, datapath) => HostLab.open(name, datapath));
    const report = await compareHosts(labs, { seed: SEED, count: CONFIGURATIONS });
    console.log(describeHosts(report));
    expect(describeHostFaults(report, SEED)).toBe('');
    // Otherwise flannel's kernel path would be compared with itself, or without anything in the way.
    const { plainShare, flows } = report;
    expect(plainShare.fast / plainShare.all).toBeGreaterThan(0.6);
    expect(flows.whole).toBeGreaterThan(20 * CONFIGURATIONS);
    expect(flows.hindered).toBeGreaterThan(2 * CONFIGURATIONS);
  },
);
