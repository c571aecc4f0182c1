#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * ripstop among real peers: builds kube-apiserver with etcd, kube-proxy, flanneld, flannel's CNI plugin and two engines of
 * NetworkPolicies from their Go modules the first time (see test/peers/README.md), and runs the stories of test/peers.
 * Needs root, and the first time Go.
 *
 *   sudo npm run test:peers [-- exchanges | cluster | flannel ...]
 */
import { existsSync, readdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { labDir, labDown } from '../src/lab/index.ts';
import { isAlive } from '../src/lab/netns.ts';
import { missingForLab } from '../src/lab/lab.support.ts';
import { fetchDebianPrograms } from '../test/support/debian-programs.ts';
import { buildPrograms, missingForPrograms } from '../test/support/go-programs.ts';
import { peersOfLab } from '../test/support/peer-programs.ts';
import { reportFailure } from './failure.ts';
import { runStories } from './stories.ts';

/** Take down the labs of runs that did not end properly. Their names end in the process id of their run. */
async function sweep(): Promise<void> {
  const labs = dirname(labDir('any'));
  for (const name of existsSync(labs) ? readdirSync(labs) : []) {
    const pid = /^peers-[a-z]+-(\d+)$/.exec(name)?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) await labDown(name);
  }
}

async function main(stories: readonly string[]): Promise<number> {
  const missing = missingForLab('nft', 'bridge') ?? (await missingForPrograms(peersOfLab));
  if (missing !== undefined) {
    console.log(`test-peers: skipped: ${missing}`);
    return 0;
  }
  await sweep();
  const note = (line: string): void => console.log(`test-peers: ${line}`);
  await fetchDebianPrograms(['ipset'], note);
  await buildPrograms(peersOfLab, note);
  const files = stories.map((story) => `test/peers/${story}`);
  const exitCode = await runStories('test/peers/vitest.config.ts', files);
  await sweep();
  return exitCode;
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  reportFailure('test-peers', error);
}
