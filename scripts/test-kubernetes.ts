#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * ripstop on a real Kubernetes: raises a cluster (see test/kubernetes/README.md), installs the shipped manifest, and
 * runs the stories of test/kubernetes. Needs root, control groups, and the first time Go. With --only it also runs
 * Kubernetes' own network tests, each suite on a cluster of its own.
 *
 *   sudo npm run test:kubernetes [-- --only paths,rolling] [--keep] [--proxy nftables]
 *   sudo npm run test:kubernetes -- --only e2e    all of Kubernetes' network tests; or e2e-iptables, e2e-dual-stack ...
 *   sudo npm run test:kubernetes -- --down        takes down what --keep has kept
 */
import type { ChildProcess } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { styleText } from 'node:util';
import { Command, Option } from 'commander';
import { RipstopError } from '../src/errors.ts';
import { hierarchies } from '../test/kubernetes/cgroups.ts';
import {
  clusterDown,
  clusterUp,
  keepCluster,
  nodeImages,
  sweepClusters,
  tracesOf,
} from '../test/kubernetes/cluster.ts';
import { runSuite } from '../test/kubernetes/e2e/run.ts';
import { type Suite, suites } from '../test/kubernetes/e2e/suites.ts';
import { buildImages } from '../test/kubernetes/images.ts';
import { debianOfCluster, programsOfCluster, programsOfE2e } from '../test/kubernetes/programs.ts';
import { previousRelease } from '../test/kubernetes/previous.ts';
import { type Cluster, type NodeImage, PROXY_MODES, type ProxyMode } from '../test/kubernetes/state.ts';
import { installRipstop, installWorkload } from '../test/kubernetes/workload.ts';
import { fetchDebianPrograms } from '../test/support/debian-programs.ts';
import { buildPrograms, missingForPrograms, type Program } from '../test/support/go-programs.ts';
import { reportFailure } from './failure.ts';
import { buildImage } from './image.ts';
import { runStories } from './stories.ts';

const ROOT = join(import.meta.dirname, '..');
const STORIES = join(ROOT, 'test/kubernetes/stories');
const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string };

/** The stories, in order. Each leaves the cluster as it found it, except for the last ones, which take it apart. */
const stories = readdirSync(STORIES)
  .filter((file) => file.endsWith('.story.ts'))
  .map((file) => file.replace('.story.ts', ''))
  .toSorted();

const PARTS = [...stories, 'e2e', ...suites.map(({ name }) => name)].join(', ');

interface Flags {
  readonly only?: string;
  readonly keep?: boolean;
  readonly down?: boolean;
  readonly proxy: ProxyMode;
}

const begun = performance.now();
function note(line: string): void {
  const seconds = `${((performance.now() - begun) / 1000).toFixed(0)} s`;
  console.log(styleText('dim', `test-kubernetes: ${seconds.padStart(6)}  ${line}`));
}

/** Why it cannot run here, in one line; undefined when it can. */
async function missing(programs: readonly Program[]): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return 'a cluster needs root';
  if (hierarchies().length === 0) return 'a cluster needs control groups, and none are mounted';
  if (!existsSync('/usr/lib/cni/loopback'))
    return 'a cluster needs the CNI plugins (containernetworking-plugins)';
  return missingForPrograms(programs);
}

/** Run stories on the cluster. @returns whether all have passed */
async function tell(cluster: Cluster, chosen: readonly string[]): Promise<boolean> {
  const files = chosen.map((story) => join(STORIES, `${story}.story.ts`));
  const env = { ...process.env, RIPSTOP_KUBERNETES: cluster.options.name };
  const onStart = (child: ChildProcess): void => void (stop = (signal) => child.kill(signal));
  const code = await runStories('test/kubernetes/vitest.config.ts', files, { env, onStart });
  return code === 0;
}

/** The effect of a signal: to end at once, until there is something to take down. */
let stop: (signal: NodeJS.Signals) => unknown = () => process.exit(1);
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => stop(signal));

const withoutNumber = (story: string): string => story.replace(/^\d+-/, '');

/**
 * The parts that `--only` names: a story with or without its number, a suite, or `e2e` for all suites. By default all
 * stories.
 * @throws RipstopError for an unknown name
 */
function choose(only: string | undefined): { chosen: readonly string[]; run: readonly Suite[] } {
  if (only === undefined) return { chosen: stories, run: [] };
  const names = only.split(',');
  const known = [...stories, ...stories.map(withoutNumber), 'e2e', ...suites.map(({ name }) => name)];
  const unknown = names.filter((name) => !known.includes(name));
  if (unknown.length > 0) {
    throw new RipstopError(`there is no part ${unknown.join(', ')}; there are ${PARTS}`, { exitCode: 2 });
  }
  return {
    chosen: stories.filter((story) => names.includes(story) || names.includes(withoutNumber(story))),
    run: suites.filter(({ name }) => names.includes(name) || names.includes('e2e')),
  };
}

/** Raise a cluster and run stories on it. @returns whether all have passed */
async function onCluster(chosen: readonly string[], ripstop: NodeImage, flags: Flags): Promise<boolean> {
  if (chosen.includes('20-rolling')) await previousRelease(note);
  const images = [...nodeImages(await buildImages(['pause', 'tools', 'coredns', 'flannel'], note)), ripstop];
  const name = `t${process.pid}`;
  stop = () => clusterDown(name).finally(() => process.exit(1));
  try {
    const options = { name, nodes: 2, proxyMode: flags.proxy, network: 'ripstop', dualStack: false } as const;
    const cluster = await clusterUp(options, images, note);
    note('ripstop by its manifest');
    await installRipstop(cluster);
    note('CoreDNS and pods that talk');
    await installWorkload(cluster);
    note(`the cluster is up; its kubectl is ${cluster.dir}/kubectl`);
    const passed = await tell(cluster, chosen);
    if (flags.keep) {
      keepCluster(cluster);
      note(`kept: ${cluster.dir}/kubectl get pods -A; take it down with --down`);
    }
    return passed;
  } finally {
    if (!flags.keep) await takeDown(name);
  }
}

/** @throws RipstopError when the cluster has left something on the machine */
async function takeDown(name: string): Promise<void> {
  await clusterDown(name);
  const traces = await tracesOf(name);
  if (traces.length === 0) return;
  throw new RipstopError(`the cluster ${name} left ${traces.length} things behind; remove them by hand`, {
    details: traces.join('\n'),
  });
}

async function main(flags: Flags): Promise<number> {
  const { chosen, run } = choose(flags.only);
  const programs = [...programsOfCluster, ...(run.length > 0 ? programsOfE2e : [])];
  const why = await missing(programs);
  if (why !== undefined) {
    console.log(`test-kubernetes: skipped: ${why}`);
    return 0;
  }
  await sweepClusters({ kept: flags.down === true });
  if (flags.down) return 0;
  await fetchDebianPrograms(debianOfCluster, note);
  await buildPrograms(programs, note);
  const ripstop = { archive: await buildImage({ note }), names: [`docker.io/library/ripstop:${version}`] };
  let passed = chosen.length === 0 || (await onCluster(chosen, ripstop, flags));
  for (const suite of run) {
    passed = (await runSuite(suite, ripstop, note)) && passed;
  }
  note(passed ? 'done' : 'failed');
  return passed ? 0 : 1;
}

const command = new Command('test:kubernetes')
  .option('--only <parts>', `some of: ${PARTS}; by default the stories`)
  .option('--keep', 'leave the cluster up, to look around')
  .option('--down', 'take down the clusters that were kept')
  .addOption(new Option('--proxy <mode>', "kube-proxy's mode").choices(PROXY_MODES).default('iptables'));
try {
  process.exitCode = await main(command.parse().opts<Flags>());
} catch (error) {
  reportFailure('test-kubernetes', error);
}
