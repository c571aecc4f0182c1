// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { errorText } from '../../src/errors.ts';

/**
 * Try until it neither throws nor returns false. @returns its result.
 * @param what the subject of the error "… did not come true"
 * @param hint a help for finding the reason, for the error
 * @throws Error after `timeoutMs`, with the last reason
 */
export async function until<T>(
  what: string,
  timeoutMs: number,
  attempt: () => Promise<T> | T,
  { intervalMs = 200, hint }: { intervalMs?: number; hint?: () => string } = {},
): Promise<Exclude<T, false>> {
  const deadline = performance.now() + timeoutMs;
  let last = 'it is not so yet';
  for (;;) {
    try {
      const answer = await attempt();
      if (answer !== false) return answer as Exclude<T, false>;
    } catch (error) {
      last = errorText(error);
    }
    if (performance.now() > deadline) {
      throw new Error(`${what}: not within ${timeoutMs / 1000} s: ${last}${hint ? `\n${hint()}` : ''}`);
    }
    await sleep(intervalMs);
  }
}
