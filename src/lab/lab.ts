// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { RipstopError } from '../errors.ts';
import { run, tryRun } from '../host/run.ts';
import { apiServerProcesses, startApiServer } from './apiserver-process.ts';
import { syncFlannel } from './flannel-peers.ts';
import { deleteNetns, killAll, listNetns, netnsPath, processesIn } from './netns.ts';
import { setUpNode, settleAll } from './nodes.ts';
import type { LabOptions } from './options.ts';
import {
  type Lab,
  type LabStatus,
  type NodeState,
  createLab,
  findNode,
  isLabNetns,
  labDir,
  nodeDir,
  openLab,
  statusOf,
  underlayNetns,
} from './state.ts';
import { createUnderlay } from './underlay.ts';

/** The progress of one step of `labUp`; its title is one of {@link labSteps}. */
export interface LabStep {
  title: string;
  state: 'begun' | 'done' | 'failed';
}

export type Progress = (step: LabStep) => void;

/** How long nodes may take to reach each other after the last of them is ready. */
const REACH_TIMEOUT_MS = 15_000;

const UNDERLAY = 'underlay';
const API_SERVER = 'API server';
const REACH = 'nodes reach each other';

/** The titles of `labUp`'s steps, in order. The nodes are set up at the same time. */
export function labSteps(options: LabOptions): string[] {
  return [UNDERLAY, API_SERVER, ...options.datapaths.map((_, i) => nodeStep(options, i)), REACH];
}

function nodeStep({ datapaths, pods }: LabOptions, i: number): string {
  const datapath = datapaths[i]!;
  return `node${i + 1}: ${datapath}${datapath === 'host' ? '' : `, ${pods} pod${pods === 1 ? '' : 's'}`}`;
}

/**
 * Bring a lab up. Resolves when every node (or its first pod, if it has pods) reaches every other.
 * @throws RipstopError when a lab of that name exists, or a step fails. A failed lab stays until {@link labDown}, so
 * that its logs can be read.
 */
export async function labUp(options: LabOptions, progress: Progress = () => {}): Promise<LabStatus> {
  requireRoot();
  const lab = createLab(options);
  const step = async (title: string, work: () => Promise<unknown>): Promise<void> => {
    progress({ title, state: 'begun' });
    try {
      await work();
    } catch (error) {
      progress({ title, state: 'failed' });
      throw error;
    }
    progress({ title, state: 'done' });
  };
  await step(UNDERLAY, () => createUnderlay(lab));
  await step(API_SERVER, () => startApiServer(lab));
  await settleAll(
    options.datapaths.map((datapath, i) =>
      step(nodeStep(options, i), () => setUpNode(lab, datapath, options.pods)),
    ),
  );
  await step(REACH, async () => {
    await syncFlannel(lab);
    await waitUntilReachable(lab);
  });
  return statusOf(openLab(lab.name));
}

/**
 * Take a lab down, whatever state it is in: it looks for namespaces, processes, mounts and files, and does not rely on
 * the recorded state. Resolves with false when there was nothing.
 * @throws RipstopError when something cannot be removed
 */
export async function labDown(name: string): Promise<boolean> {
  requireRoot();
  // A killed `lab up` leaves children that may still create things, so repeat until there is nothing left.
  for (let pass = 0; pass < 10; pass++) {
    const dir = labDir(name);
    const namespaces = listNetns().filter((netns) => isLabNetns(name, netns));
    const find = () => [...processesIn(namespaces), ...apiServerProcesses(dir)];
    if (namespaces.length === 0 && find().length === 0 && !existsSync(dir)) return pass > 0;
    await killAll(find);
    for (const mount of mountsUnder(dir)) await run('umount', [mount]);
    await deleteNetns(...namespaces);
    rmSync(dir, { recursive: true, force: true });
  }
  throw new RipstopError(
    `lab "${name}" does not go down: something keeps creating it again; is a "lab up" still running?`,
  );
}

/** @throws RipstopError when no lab of that name is up. */
export function labStatus(name: string): LabStatus {
  return statusOf(openLab(name));
}

/**
 * Run a command inside a node, a pod (`node1-pod1` or `node1/pod1`) or the `underlay`, on this terminal.
 * Resolves with its exit code; 128 + n when signal n ended it.
 */
export async function labExec(name: string, target: string, argv: readonly string[]): Promise<number> {
  if (argv.length === 0)
    throw new RipstopError('give a command after "--", e.g. -- ip route', { exitCode: 2 });
  const lab = openLab(name);
  const { program, args, env } = labCommand(lab, target, argv);
  requireRoot();
  // Ctrl-C is meant for the command, which has the same terminal; this process waits for its end.
  const ignore = () => {};
  process.on('SIGINT', ignore);
  try {
    return await new Promise<number>((resolve, reject) => {
      const child = spawn(program, args, { stdio: 'inherit', env });
      child.on('error', reject);
      child.on('exit', (code, signal) => resolve(code ?? 128 + (signal ? constants.signals[signal] : 0)));
    });
  } finally {
    process.off('SIGINT', ignore);
  }
}

/** What to start, to run a command inside a node, a pod or the `underlay`. @throws RipstopError for an unknown target. */
export function labCommand(
  lab: Lab,
  target: string,
  argv: readonly string[],
): { program: string; args: string[]; env: NodeJS.ProcessEnv } {
  const args = [`--net=${netnsPath(targetNetns(lab, target))}`, '--', ...argv];
  return { program: 'nsenter', args, env: labExecEnvironment(lab, target) };
}

/** There `ripstop` is this checkout's, and on a node it finds that node's pins and agent without flags. */
export function labExecEnvironment(lab: Lab, target: string): NodeJS.ProcessEnv {
  const node = lab.state.nodes.find(({ name }) => name === target);
  return {
    ...process.env,
    PATH: `${join(import.meta.dirname, '../../scripts')}:${process.env['PATH'] ?? ''}`,
    RIPSTOP_LAB: lab.name,
    ...(node?.datapath === 'ripstop' && {
      RIPSTOP_BPFFS: join(nodeDir(lab, node), 'bpf'),
      RIPSTOP_RUN_DIR: join(nodeDir(lab, node), 'run'),
      RIPSTOP_SUBNET_FILE: join(nodeDir(lab, node), 'subnet.env'),
      RIPSTOP_IPAM_DIR: join(nodeDir(lab, node), 'ipam'),
    }),
  };
}

function targetNetns(lab: Lab, target: string): string {
  if (target === 'underlay') return underlayNetns(lab.name);
  const [nodeName = '', podName, ...more] = target.split(/[/-]/);
  const node = findNode(lab, nodeName);
  if (podName === undefined) return node.netns;
  const pod = node.pods.find((one) => one.name === podName);
  if (pod && more.length === 0) return pod.netns;
  const names = node.pods.map((one) => `${nodeName}-${one.name}`).join(', ') || 'none';
  throw new RipstopError(`there is no pod "${target}"; ${nodeName} has: ${names}`, { exitCode: 2 });
}

/** Ping from every node to every other until each has answered. @throws RipstopError naming a pair that does not. */
async function waitUntilReachable(lab: Lab): Promise<void> {
  const deadline = performance.now() + REACH_TIMEOUT_MS;
  const { nodes } = lab.state;
  await settleAll(
    nodes.map(async (from) => {
      for (const to of nodes) {
        if (to === from) continue;
        for (const address of addressesFor(lab, from, to)) await waitForAnswer(from, to, address, deadline);
      }
    }),
  );
}

/** The addresses by which one node must reach another: those of its first pod, or its own, in each family. */
function addressesFor({ state: { options } }: Lab, from: NodeState, to: NodeState): string[] {
  // A plain host has no routes to pods, and with `alloc` no node has, until a test adds them.
  const routed = from.datapath !== 'host' && options.backend !== 'alloc';
  const { ip, ip6 } = (routed ? to.pods[0] : undefined) ?? to;
  return ip6 === undefined ? [ip] : [ip, ip6];
}

async function waitForAnswer(
  from: NodeState,
  to: NodeState,
  address: string,
  deadline: number,
): Promise<void> {
  const netns = from.pods[0]?.netns ?? from.netns;
  for (;;) {
    const { code, stdout } = await tryRun('ping', ['-n', '-c', '1', '-W', '0.3', address], {
      netns: netnsPath(netns),
    });
    if (code === 0) return;
    if (performance.now() > deadline) {
      throw new RipstopError(
        `${netns} does not reach ${address} on ${to.name} within ${REACH_TIMEOUT_MS / 1000} s; ` +
          'look for the reason with: lab exec',
        { details: stdout },
      );
    }
    await sleep(50);
  }
}

/** Mount points in the directory, innermost first. */
function mountsUnder(dir: string): string[] {
  return readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((path) => path.startsWith(`${dir}/`))
    .toReversed();
}

function requireRoot(): void {
  if (process.getuid?.() === 0) return;
  throw new RipstopError('the lab makes network namespaces and needs root; run it with sudo');
}
