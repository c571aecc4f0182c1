// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { Turn } from './turn.ts';

it('runs for the first caller at once, and once more for all later callers', async () => {
  const log: string[] = [];
  const turn = new Turn(async () => {
    log.push('begin');
    await sleep(10);
    log.push('end');
  });
  const first = turn.run();
  await sleep(2);
  await Promise.all([first, turn.run(), turn.run(), turn.run()]);
  expect(log).toEqual(['begin', 'end', 'begin', 'end']);
});
