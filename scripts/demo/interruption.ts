// SPDX-License-Identifier: Apache-2.0
import { constants } from 'node:os';
import { RipstopError } from '../../src/errors.ts';

const controller = new AbortController();

/** Aborted when the demo is interrupted. The reason has the exit code that a shell expects. */
export const interruption = controller.signal;

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () =>
    controller.abort(
      new RipstopError(`interrupted by ${signal}`, { exitCode: 128 + constants.signals[signal] }),
    ),
  );
}
process.stdout.on('error', () => controller.abort(new RipstopError('its output is closed')));

const interrupted = new Promise<never>((_, reject) => {
  interruption.addEventListener('abort', () => reject(interruption.reason as RipstopError));
});
interrupted.catch(() => {}); // Perhaps nobody awaits it.

/** Wait for the work, or for an interruption. @throws the reason of the interruption. */
export function unlessInterrupted<T>(work: Promise<T>): Promise<T> {
  return Promise.race([work, interrupted]);
}
