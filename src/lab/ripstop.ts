// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { deferredDir } from '../cni/deferred.ts';
import { RipstopError, errorText } from '../errors.ts';
import { run } from '../host/run.ts';
import { type CniPlugin, callCni } from './cni.ts';
import { commandLine, isAlive, netnsPath, signalProcess } from './netns.ts';
import { kubeconfigOf, type Lab, type NodeState, nodeDir, saveLab } from './state.ts';

const ROOT = join(import.meta.dirname, '../..');
const COMMAND = join(ROOT, 'src/cli/main.ts');
/** As the image has it: little room for new objects; glibc gives back what is freed, and all threads share one heap. */
const NODE_OPTIONS = '--max-semi-space-size=4';
const AGENT_ENV = {
  MALLOC_ARENA_MAX: '1',
  MALLOC_MMAP_THRESHOLD_: '131072',
  MALLOC_TRIM_THRESHOLD_: '131072',
};
const PLUGIN = join(ROOT, 'build/ripstop-cni');

/** How long an agent may take from its start until its CNI socket answers STATUS. */
const READY_TIMEOUT_MS = 30_000;

/** Give the node its own bpffs and start its agent. Resolves when the agent can serve pods. */
export async function setUpRipstop(lab: Lab, node: NodeState): Promise<void> {
  if (!existsSync(PLUGIN))
    throw new RipstopError('build/ripstop-cni is missing; build it with: npm run setup');
  const bpffs = bpffsOf(lab, node);
  mkdirSync(bpffs, { recursive: true });
  await run('mount', ['-t', 'bpf', '-o', 'mode=0700', 'bpf', bpffs]);
  await startAgent(lab, node);
}

/** `ripstop agent` or `ripstop uninstall` with the flags that say where this node has its things. */
export function ripstopCommand(
  lab: Lab,
  node: NodeState,
  command: 'agent' | 'uninstall',
): [string, ...string[]] {
  const dir = nodeDir(lab, node);
  const flags = {
    'node-name': node.name,
    kubeconfig: kubeconfigOf(lab, node),
    'net-conf': join(lab.dir, 'net-conf.json'),
    bpffs: bpffsOf(lab, node),
    'run-dir': join(dir, 'run'),
    'subnet-file': join(dir, 'subnet.env'),
    'ipam-dir': join(dir, 'ipam'),
    'state-dir': join(dir, 'state'),
    ...(command === 'uninstall' && {
      'cni-conf-dir': join(dir, 'net.d'),
      'cni-bin-dir': join(dir, 'cni-bin'),
    }),
  };
  const argv = Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, value]);
  // The sources, or what scripts/build-agent.ts has made of them.
  return [process.execPath, process.env['RIPSTOP_LAB_COMMAND'] ?? COMMAND, command, ...argv];
}

/** Start the node's agent, detached, its output appended to agent.log. Resolves when it is ready. */
export async function startAgent(lab: Lab, node: NodeState): Promise<void> {
  const dir = nodeDir(lab, node);
  const log = openSync(join(dir, 'agent.log'), 'a', 0o600);
  const agent = [...ripstopCommand(lab, node, 'agent'), '--mode', 'cni', '--metrics-addr', '127.0.0.1:9480'];
  // nsenter without --fork becomes the agent: the child's id is the agent's.
  const child = spawn('nsenter', [`--net=${netnsPath(node.netns)}`, '--', ...agent], {
    detached: true,
    stdio: ['ignore', log, log],
    env: {
      ...process.env,
      ...AGENT_ENV,
      NODE_OPTIONS: `${process.env['NODE_OPTIONS'] ?? ''} ${NODE_OPTIONS}`,
    },
  });
  closeSync(log);
  const failed = new Promise<never>((_, reject) => child.once('error', reject));
  child.unref();
  if (child.pid === undefined) return failed;
  node.agentPid = child.pid;
  saveLab(lab);
  await waitUntilReady(lab, node);
}

/**
 * Send the agent a signal, wait for its end and start it anew. Resolves when the new one is ready.
 * @throws RipstopError when the old one does not end within 10 s.
 */
export async function restartAgent(
  lab: Lab,
  node: NodeState,
  signal: NodeJS.Signals = 'SIGTERM',
): Promise<void> {
  await stopAgent(lab, node, signal);
  await startAgent(lab, node);
}

/** Send the agent a signal and wait for its end; pins and programs stay. No agent: nothing happens. */
export async function stopAgent(
  lab: Lab,
  node: NodeState,
  signal: NodeJS.Signals = 'SIGTERM',
): Promise<void> {
  const pid = node.agentPid;
  if (pid === undefined) return;
  const deadline = performance.now() + 10_000;
  if (agentRuns(node)) signalProcess(pid, signal);
  while (agentRuns(node)) {
    if (performance.now() > deadline) {
      throw new RipstopError(
        `the agent of ${node.name} (process ${pid}) does not end after ${signal}; see its agent.log`,
      );
    }
    await sleep(10);
  }
  delete node.agentPid;
  saveLab(lab);
}

/**
 * Take ripstop's data plane off the node: stop the agent and unpin everything, which detaches the programs. The kernel
 * path must carry the traffic from here on.
 */
export async function unboost(lab: Lab, node: NodeState): Promise<void> {
  await stopAgent(lab, node);
  rmSync(join(bpffsOf(lab, node), 'ripstop'), { recursive: true, force: true });
}

/** ripstop's CNI plugin, pointed at this node's agent and files instead of those at their usual places. */
export function ripstopPlugin(lab: Lab, node: NodeState): CniPlugin {
  const dir = nodeDir(lab, node);
  return {
    plugin: PLUGIN,
    config: { cniVersion: '1.0.0', name: 'cbr0', type: 'ripstop-cni' },
    env: {
      RIPSTOP_CNI_SOCKET: socketOf(lab, node),
      RIPSTOP_CNI_DEFERRED: deferredDir(join(dir, 'state')),
      RIPSTOP_CNI_LEASES: join(dir, 'ipam'),
    },
  };
}

/** Unmount the node's bpffs, which forgets every pin in it. Other datapaths have none. */
export async function removeBpffs(lab: Lab, node: NodeState): Promise<void> {
  if (node.datapath === 'ripstop') await run('umount', [bpffsOf(lab, node)]);
}

function bpffsOf(lab: Lab, node: NodeState): string {
  return join(nodeDir(lab, node), 'bpf');
}

function socketOf(lab: Lab, node: NodeState): string {
  return join(nodeDir(lab, node), 'run/cni.sock');
}

/** Poll as a runtime would: the node is ready when the plugin's STATUS says so (STATUS came with CNI 1.1). */
async function waitUntilReady(lab: Lab, node: NodeState): Promise<void> {
  const { config, ...plugin } = ripstopPlugin(lab, node);
  const status = { ...config, cniVersion: '1.1.0' };
  let last = 'it has no CNI socket yet';
  for (const deadline = performance.now() + READY_TIMEOUT_MS; performance.now() < deadline; await sleep(20)) {
    if (!agentRuns(node)) throw notReady(lab, node, 'it ended');
    if (!existsSync(socketOf(lab, node))) continue;
    try {
      await callCni({ ...plugin, config: status, command: 'STATUS', hostNetns: node.netns });
      return;
    } catch (error) {
      last = errorText(error);
    }
  }
  throw notReady(lab, node, last);
}

/** Whether the recorded process still is this node's agent (a process id may have passed to another). */
function agentRuns({ agentPid, name }: NodeState): boolean {
  if (agentPid === undefined || !isAlive(agentPid)) return false;
  const argv = commandLine(agentPid);
  return argv.length === 0 || argv.includes(name);
}

function notReady(lab: Lab, node: NodeState, why: string): RipstopError {
  const log = join(nodeDir(lab, node), 'agent.log');
  const lines = readFileSync(log, 'utf8').trimEnd().split('\n').slice(-40);
  return new RipstopError(
    `the agent of ${node.name} is not ready: ${why}; its log ${log} ends: ${lines.at(-1)}`,
    {
      details: lines.join('\n'),
    },
  );
}
