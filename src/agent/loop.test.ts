// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { Loop } from './loop.ts';

/** A loop with slow passes, and a log of when they ran. */
function running(options: { passMs?: number; dueMs?: number } = {}) {
  const log: string[] = [];
  const stop = new AbortController();
  const loop = new Loop(
    async () => {
      log.push('begin');
      await sleep(options.passMs ?? 1);
      log.push('end');
      return options.dueMs ?? 60_000;
    },
    { settleMs: 5 },
  );
  const ended = loop.run(stop.signal);
  return {
    log,
    loop,
    passes: () => log.filter((line) => line === 'begin').length,
    stop: async () => {
      stop.abort();
      await ended;
    },
  };
}

describe('the loop', () => {
  it('runs a pass at once, and then rests', async () => {
    const { passes, stop } = running();
    await sleep(40);
    expect(passes()).toBe(1);
    await stop();
  });

  it('knows how long a pass has been running', async () => {
    const { loop, stop } = running({ passMs: 80 });
    await sleep(40);
    expect(loop.underWayMs).toBeGreaterThan(20);
    await expect.poll(() => loop.underWayMs).toBe(0);
    await stop();
  });

  it('runs one pass for many events', async () => {
    const { loop, passes, stop } = running();
    await sleep(20);
    for (let i = 0; i < 1000; i++) loop.trigger();
    await sleep(40);
    expect(passes()).toBe(2);
    await stop();
  });

  it('does not lose an event that comes during a pass', async () => {
    const { loop, log, passes, stop } = running({ passMs: 20 });
    await sleep(5);
    expect(log).toEqual(['begin']);
    loop.trigger();
    await sleep(70);
    expect(passes()).toBe(2);
    await stop();
  });

  it('runs a pass without any event when one is due', async () => {
    const { passes, stop } = running({ dueMs: 10 });
    await sleep(100);
    expect(passes()).toBeGreaterThan(2);
    await stop();
  });
});
