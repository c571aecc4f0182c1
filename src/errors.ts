// SPDX-License-Identifier: Apache-2.0

/**
 * An error meant for the person at the terminal: one line that says what failed, why, and what to do.
 * Long material (a verifier log, a command's output) goes into `details`, shown with `--verbose` or in the log.
 */
export class RipstopError extends Error {
  override readonly name = 'RipstopError';
  /** Everything too long for one line; undefined when there is no more to tell. */
  readonly details: string | undefined;
  /** The process's exit code when this error ends it: 1 failed, 2 wrong usage. */
  readonly exitCode: number;

  constructor(message: string, options: { cause?: unknown; details?: string; exitCode?: number } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.details = options.details;
    this.exitCode = options.exitCode ?? 1;
  }
}

/** The text of anything that was thrown, on one line. */
export function errorText(thrown: unknown): string {
  const text = thrown instanceof Error ? thrown.message : String(thrown);
  return text.replaceAll(/\s*\n\s*/g, ' · ');
}

/** Text of others for an error or a log line: quoted, escaped, and cut to 80 characters. */
export function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}
