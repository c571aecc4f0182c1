#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * What other people's tools make of ripstop's files and pages: fetches or builds the tools the first time, and runs the
 * stories of test/tools. A tool that cannot be had skips its stories with the reason.
 *
 *   sudo npm run test:tools [-- NAME ...]
 */
import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { fetchTools } from '../test/tools/tools.ts';
import { reportFailure } from './failure.ts';

const ROOT = join(import.meta.dirname, '..');

async function main(stories: readonly string[]): Promise<number> {
  await fetchTools((line) => console.log(`test-tools: ${line}`));
  const vitest = join(ROOT, 'node_modules/vitest/vitest.mjs');
  const files = stories.map((story) => `test/tools/${story}`);
  const argv = [vitest, 'run', '--config', join(ROOT, 'test/tools/vitest.config.ts'), ...files];
  const child = spawn(process.execPath, argv, { cwd: ROOT, stdio: 'inherit' });
  // The child gets Ctrl-C too, and cleans up.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => child.kill(signal));
  return new Promise<number>((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', (code) => resolve(code ?? 1));
  });
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  reportFailure('test-tools', error);
}
