// SPDX-License-Identifier: Apache-2.0
/**
 * The programs do what the specification says: a model, written independently, predicts the result for every packet.
 */
import { expect, it } from 'vitest';
import { missing } from '../bpf/node.ts';
import { describeDisagreement, openComparison, unmet } from './compare.ts';
import { generate } from './generate.ts';

const PACKETS = 10_000;
/** `npm run fuzz` uses other seeds. */
const SEED = 0x7eed;

it.skipIf(missing)(
  `model and programs agree on ${PACKETS} packets of seed ${SEED}, and meet every reason${missing ? ` (skipped: ${missing})` : ''}`,
  () => {
    using comparison = openComparison();
    for (let number = 0; number < PACKETS; number++) {
      const found = comparison.check(generate(SEED, number));
      if (!found) continue;
      const again = `npm run fuzz -- --seed ${SEED} --first ${number} --packets 1`;
      expect.fail(`packet ${number} of seed ${SEED} (${again})\n${describeDisagreement(found)}`);
    }
    expect(comparison.strays(), 'counters that moved without a packet').toEqual([]);
    expect(unmet(comparison.coverage), 'reasons that no packet met').toEqual([]);
  },
);
