// SPDX-License-Identifier: Apache-2.0
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { RipstopError } from '../../../src/errors.ts';
import { cacheDir } from '../../support/go-programs.ts';
import { peerPath } from '../../support/peer-programs.ts';
import { clusterDown, clusterUp, nodeImages } from '../cluster.ts';
import { spawnInControlPlane } from '../control-plane.ts';
import { installFlannel } from '../flannel.ts';
import { buildImages } from '../images.ts';
import { get, kubectl } from '../kubectl.ts';
import { type Cluster, kubeconfigOf, type Network, type NodeImage } from '../state.ts';
import { installDns, installRipstop } from '../workload.ts';
import { explanationOf } from './explanations.ts';
import { installEngine, missingForEngine } from './policies.ts';
import { onlySpec, readReport, type Spec } from './report.ts';
import { type Environment, type Failure, withOutcome } from './results.ts';
import type { Suite } from './suites.ts';

/** Runs Kubernetes' own network tests, and writes the results into RESULTS.md. */

type Note = (line: string) => void;

const PACKAGE = join(import.meta.dirname, '../../../package.json');
const RESULTS = join(import.meta.dirname, '../RESULTS.md');
const IMAGES = ['pause', 'tools', 'coredns', 'agnhost', 'regression-issue-74839'] as const;
/** The number of specs in parallel. They mostly wait, so this keeps two cores busy. */
const SIDE_BY_SIDE = 4;
/** As many nodes as zones: some specs need three of each. */
const NODES = 3;

/**
 * Run a suite on a cluster that is raised for it.
 * @param ripstop the image under test. @returns whether every failure occurs with flannel too.
 */
export async function runSuite(suite: Suite, ripstop: NodeImage, note: Note): Promise<boolean> {
  const missing = suite.engine && (await missingForEngine(suite.engine));
  if (missing !== undefined) {
    note(`${suite.name}: skipped: ${missing}`);
    return true;
  }
  rmSync(reportsOf(suite), { recursive: true, force: true });
  const first = await onCluster(suite, 'ripstop', [ripstop], note, async (cluster) => {
    const all = { round: 'ripstop', focus: [suite.focus], procs: SIDE_BY_SIDE };
    const specs = await runSpecs(cluster, suite, all, note);
    const failed = namesOf(specs, 'failed').map(onlySpec);
    const again = await runSpecs(cluster, suite, { round: 'again', focus: failed, procs: 1 }, note);
    return { specs, again, environment: await environmentOf(cluster) };
  });
  const passedAgain = namesOf(first.again, 'passed');
  const failed = first.specs.filter(({ name, state }) => state === 'failed' && !passedAgain.includes(name));
  const failures = await onFlannel(suite, failed, note);
  const before = existsSync(RESULTS) ? readFileSync(RESULTS, 'utf8') : '';
  writeFileSync(RESULTS, withOutcome(before, { suite, ...first, passedAgain, failures }));
  note(
    `${suite.name}: ${failures.length} specs failed; the table is ${RESULTS}, all that was said is in ${reportsOf(suite)}`,
  );
  return failures.every(({ withFlannel }) => withFlannel === 'failed');
}

const reportsOf = (suite: Suite): string => join(cacheDir('kubernetes/e2e'), suite.name);
const namesOf = (specs: readonly Spec[], state: Spec['state']): string[] =>
  specs.filter((spec) => spec.state === state).map(({ name }) => name);

/** Raise a cluster of the suite's kind, and take it down afterwards. */
async function onCluster<T>(
  { proxyMode, dualStack, engine }: Suite,
  network: Network,
  images: readonly NodeImage[],
  note: Note,
  work: (cluster: Cluster) => Promise<T>,
): Promise<T> {
  const name = `e${process.pid}`;
  const own = network === 'flannel' ? (['flannel'] as const) : [];
  const names = [...IMAGES, ...own, ...(engine ? [engine] : [])];
  const all = [...nodeImages(await buildImages(names, note)), ...images];
  try {
    const cluster = await clusterUp({ name, nodes: NODES, proxyMode, network, dualStack }, all, note);
    for (const [index, node] of cluster.nodes.entries())
      await kubectl(cluster, 'label', 'node', node.name, `topology.kubernetes.io/zone=zone${index + 1}`);
    note(network);
    await (network === 'ripstop' ? installRipstop(cluster) : installFlannel(cluster));
    await installDns(cluster);
    if (engine) await installEngine(cluster, engine);
    return await work(cluster);
  } finally {
    await clusterDown(name);
  }
}

/** The results of these specs with flannel. */
async function onFlannel(suite: Suite, failed: readonly Spec[], note: Note): Promise<Failure[]> {
  if (failed.length === 0) return [];
  const focus = failed.map(({ name }) => onlySpec(name));
  const round = { round: 'flannel', focus, procs: 1 };
  const specs = await onCluster(suite, 'flannel', [], note, (cluster) =>
    runSpecs(cluster, suite, round, note),
  );
  const states = new Map(specs.map(({ name, state }) => [name, state]));
  return failed.map((spec) => {
    const state = states.get(spec.name) ?? 'left out';
    const explanation = explanationOf(spec);
    return {
      ...spec,
      withFlannel: state === 'left out' ? 'not run' : state,
      ...(explanation && { explanation }),
    };
  });
}

interface Round {
  /** The name of the folder of its reports. */
  readonly round: string;
  /** Regular expressions. Specs that match one of them are run. */
  readonly focus: readonly string[];
  readonly procs: number;
}

/**
 * Run e2e.test under Ginkgo, in the control plane's namespace. @returns all specs of the program; none without a focus.
 */
async function runSpecs(
  cluster: Cluster,
  suite: Suite,
  { round, focus, procs }: Round,
  note: Note,
): Promise<Spec[]> {
  if (focus.length === 0) return [];
  const dir = join(reportsOf(suite), round);
  const log = join(dir, 'log');
  mkdirSync(dir, { recursive: true });
  note(`${suite.name}, ${round}: the specs' log is ${log}`);
  const ginkgo = [
    `--procs=${procs}`,
    ...focus.map((pattern) => `--focus=${pattern}`),
    ...suite.leftOut.map(({ pattern }) => `--skip=${pattern}`),
    '--timeout=4h',
    '--no-color',
    '--silence-skips',
  ];
  const e2e = [
    '--provider=skeleton',
    `--num-nodes=${cluster.nodes.length}`,
    `--kubeconfig=${kubeconfigOf(cluster, 'admin')}`,
    `--kubectl-path=${peerPath('kubectl')}`,
    `--report-dir=${dir}`,
    '--report-complete-ginkgo',
  ];
  const argv = [peerPath('ginkgo'), ...ginkgo, peerPath('e2e.test'), '--', ...e2e];
  await endOf(spawnInControlPlane(cluster, log, 'nice', '-n', '5', ...argv), () =>
    note(`${suite.name}, ${round}: ${progress(log)}`),
  );
  const report = join(dir, 'ginkgo/report.json');
  if (!existsSync(report))
    throw new Error(`Ginkgo wrote no report:\n${readFileSync(log, 'utf8').slice(-2000)}`);
  return readReport(readFileSync(report, 'utf8'));
}

/** Resolves when the program has ended. @throws RipstopError when this process is told to end. */
async function endOf(child: ChildProcess, everyMinute: () => void): Promise<void> {
  let stoppedBy: string | undefined;
  const stop = (signal: NodeJS.Signals): void => {
    stoppedBy = signal;
    child.kill(signal);
  };
  const signals = ['SIGINT', 'SIGTERM'] as const;
  for (const signal of signals) process.on(signal, stop);
  const timer = setInterval(everyMinute, 60_000);
  await once(child, 'exit');
  clearInterval(timer);
  for (const signal of signals) process.off(signal, stop);
  if (stoppedBy !== undefined) throw new RipstopError(`stopped by ${stoppedBy}; RESULTS.md is as it was`);
}

/** Ginkgo prints the number of specs that it will run, and a dot for each that has ended. */
function progress(log: string): string {
  const text = readFileSync(log, 'utf8');
  const all = /^Will run (\d+) of/m.exec(text)?.[1] ?? '?';
  const count = (pattern: RegExp): number => text.match(pattern)?.length ?? 0;
  return `${count(/•/g)} of ${all} specs done, ${count(/^• \[FAILED\]/gm)} failed`;
}

interface NodeInfo {
  status: { nodeInfo: { kubeletVersion: string; containerRuntimeVersion: string; kernelVersion: string } };
}

async function environmentOf(cluster: Cluster): Promise<Environment> {
  const { status } = await get<NodeInfo>(cluster, 'node', cluster.nodes[0]!.name);
  const { kubeletVersion, containerRuntimeVersion, kernelVersion } = status.nodeInfo;
  const numbers = (version: string): string => /\d+(\.\d+)*/.exec(version)?.[0] ?? version;
  const { version } = JSON.parse(readFileSync(PACKAGE, 'utf8')) as { version: string };
  return {
    kubernetes: numbers(kubeletVersion),
    containerd: numbers(containerRuntimeVersion),
    kernel: numbers(kernelVersion),
    ripstop: version,
    nodes: cluster.nodes.length,
    date: new Date().toISOString().slice(0, 10),
  };
}
