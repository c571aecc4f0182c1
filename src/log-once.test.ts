// SPDX-License-Identifier: Apache-2.0
import { pino } from 'pino';
import { expect, it } from 'vitest';
import { LogOnce } from './log-once.ts';

it('logs a failure once for each reason, and again when it comes back', () => {
  const lines: string[] = [];
  const log = pino({}, { write: (line) => void lines.push(line) });
  const failure = new LogOnce(log, 'cannot publish; retrying');
  for (const why of [new Error('no route'), new Error('no route'), new Error('refused'), 'refused'])
    failure.met(why, { attempt: 1 });
  expect(failure.reason).toBe('refused');
  failure.over('published');
  failure.over('published');
  expect(failure.reason).toBeUndefined();
  failure.met('refused');
  expect(lines.map((line) => JSON.parse(line))).toMatchObject([
    { level: 40, why: 'no route', attempt: 1, msg: 'cannot publish; retrying' },
    { level: 40, why: 'refused', attempt: 1, msg: 'cannot publish; retrying' },
    { level: 30, msg: 'published' },
    { level: 40, why: 'refused', msg: 'cannot publish; retrying' },
  ]);
});
