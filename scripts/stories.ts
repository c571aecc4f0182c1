// SPDX-License-Identifier: Apache-2.0
/** Runs stories with vitest, each kind by a configuration of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';

const ROOT = join(import.meta.dirname, '..');

/** A child that gets a signal when this process does. On Ctrl-C it has got that already, and cleans up. */
function passSignals(child: ChildProcess): void {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => child.kill(signal));
}

/**
 * Run stories on this terminal.
 * @param config,files paths from the root
 * @param onStart is given vitest's process; by default that gets the signals that end this one
 * @returns vitest's exit code
 */
export async function runStories(
  config: string,
  files: readonly string[],
  {
    env = process.env,
    onStart = passSignals,
  }: { env?: NodeJS.ProcessEnv; onStart?: typeof passSignals } = {},
): Promise<number> {
  const vitest = join(ROOT, 'node_modules/vitest/vitest.mjs');
  const argv = [vitest, 'run', '--config', join(ROOT, config), ...files];
  const child = spawn(process.execPath, argv, { cwd: ROOT, stdio: 'inherit', env });
  onStart(child);
  return new Promise<number>((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', (code) => resolve(code ?? 1));
  });
}
