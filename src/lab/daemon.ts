// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { RipstopError } from '../errors.ts';

export interface Daemon {
  /** Its name in errors: `flanneld of node1`. */
  readonly name: string;
  readonly argv: readonly [string, ...string[]];
  /** Its output is appended to this file. */
  readonly logFile: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly timeoutMs?: number;
  /** Called once the process runs, before it is ready. */
  readonly onStart?: (pid: number) => void;
  /** Why it is not ready yet; undefined once it is. */
  readonly notReady: () => string | undefined | Promise<string | undefined>;
}

/** Lines of the log that an error shows. */
const LOG_LINES = 40;

/**
 * Start a process that outlives this one. Resolves when it is ready.
 * @throws RipstopError with the end of its log when it ends first, or is not ready in time
 */
export async function startDaemon({
  name,
  argv: [program, ...args],
  logFile,
  env = process.env,
  timeoutMs = 30_000,
  onStart,
  notReady,
}: Daemon): Promise<void> {
  const log = openSync(logFile, 'a', 0o600);
  const child = spawn(program, args, { detached: true, stdio: ['ignore', log, log], env });
  closeSync(log);
  let ended: string | undefined;
  child.on('error', (error) => (ended = error.message));
  child.on('exit', (code, signal) => (ended = `it ended with ${signal ?? `exit code ${code}`}`));
  child.unref();
  if (child.pid !== undefined) onStart?.(child.pid);
  for (const deadline = performance.now() + timeoutMs; ; await sleep(20)) {
    const why = ended ?? (await notReady());
    if (why === undefined) return;
    if (ended === undefined && performance.now() < deadline) continue;
    const lines = readFileSync(logFile, 'utf8').trimEnd().split('\n').slice(-LOG_LINES);
    throw new RipstopError(
      `${name} is not ready: ${ended ?? why}; its log ${logFile} ends: ${lines.at(-1)}`,
      {
        details: lines.join('\n'),
      },
    );
  }
}
