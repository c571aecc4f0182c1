// SPDX-License-Identifier: Apache-2.0
import { errorText, RipstopError } from '../src/errors.ts';

/** Tell what ended a script, and have its process end with that error's exit code. */
export function reportFailure(script: string, error: unknown): void {
  console.error(`${script}: ${errorText(error)}`);
  if (error instanceof RipstopError && error.details) console.error(error.details);
  process.exitCode = error instanceof RipstopError ? error.exitCode : 1;
}
