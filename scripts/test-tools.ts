#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * Other people's tools (helm, Prometheus, Chromium) read ripstop's files and pages: fetches or builds the tools the first
 * time, and runs the stories of test/tools. A tool that cannot be had skips its stories with the reason.
 *
 *   sudo npm run test:tools [-- NAME ...]
 */
import { fetchTools } from '../test/tools/tools.ts';
import { reportFailure } from './failure.ts';
import { runStories } from './stories.ts';

async function main(stories: readonly string[]): Promise<number> {
  await fetchTools((line) => console.log(`test-tools: ${line}`));
  const files = stories.map((story) => `test/tools/${story}`);
  return runStories('test/tools/vitest.config.ts', files);
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  reportFailure('test-tools', error);
}
