// SPDX-License-Identifier: Apache-2.0
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { askAgent } from '../cli/ask-agent.ts';
import { deferredDir } from '../cni/deferred.ts';
import { RipstopError, errorText } from '../errors.ts';
import { run } from '../host/run.ts';
import { type CniPlugin, callCni } from './cni.ts';
import { startDaemon } from './daemon.ts';
import { commandLine, isAlive, netnsPath, signalProcess } from './netns.ts';
import { kubeconfigOf, type Lab, type NodeState, nodeDir, saveLab } from './state.ts';

const ROOT = join(import.meta.dirname, '../..');
const COMMAND = join(ROOT, 'src/cli/main.ts');
/**
 * Memory settings as in the image: little room for new objects, one heap for all threads, and freed memory is returned.
 */
const NODE_OPTIONS = '--max-semi-space-size=4';
const AGENT_ENV = {
  UV_THREADPOOL_SIZE: '16',
  MALLOC_ARENA_MAX: '1',
  MALLOC_MMAP_THRESHOLD_: '131072',
  MALLOC_TRIM_THRESHOLD_: '131072',
};
const PLUGIN = join(ROOT, 'build/ripstop-cni');

/** Give the node its own bpffs and start its agent. Resolves when the agent can serve pods. */
export async function setUpRipstop(lab: Lab, node: NodeState): Promise<void> {
  if (!existsSync(PLUGIN))
    throw new RipstopError('build/ripstop-cni is missing; build it with: npm run setup');
  const bpffs = bpffsOf(lab, node);
  mkdirSync(bpffs, { recursive: true });
  await run('mount', ['-t', 'bpf', '-o', 'mode=0700', 'bpf', bpffs]);
  await startAgent(lab, node);
}

/** `ripstop agent` or `ripstop uninstall` with flags for this node's files. */
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
  // The sources, or the bundle of scripts/build-agent.ts.
  return [process.execPath, process.env['RIPSTOP_LAB_COMMAND'] ?? COMMAND, command, ...argv];
}

/** Start the node's agent. Resolves when it is ready. */
export async function startAgent(lab: Lab, node: NodeState): Promise<void> {
  const agent = [
    ...ripstopCommand(lab, node, 'agent'),
    '--mode',
    node.boosted ? 'boost' : 'cni',
    '--metrics-addr',
    '127.0.0.1:9480',
  ];
  await startDaemon({
    name: `the agent of ${node.name}`,
    argv: ['nsenter', `--net=${netnsPath(node.netns)}`, '--', ...agent],
    logFile: join(nodeDir(lab, node), 'agent.log'),
    env: {
      ...process.env,
      ...AGENT_ENV,
      NODE_OPTIONS: `${process.env['NODE_OPTIONS'] ?? ''} ${NODE_OPTIONS}`,
    },
    // nsenter without --fork becomes the agent, so this is the agent's process id.
    onStart: (pid) => {
      node.agentPid = pid;
      saveLab(lab);
    },
    notReady: () => whyNotReady(lab, node),
  });
}

/**
 * Send the agent a signal, wait for its end, and start a new one. Resolves when the new one is ready.
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

/** Send the agent a signal and wait for its end. Pins and programs stay. Does nothing when there is no agent. */
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
        `the agent of ${node.name} (process ${pid}) does not end on ${signal}; see its agent.log`,
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
export async function removePrograms(lab: Lab, node: NodeState): Promise<void> {
  await stopAgent(lab, node);
  rmSync(join(bpffsOf(lab, node), 'ripstop'), { recursive: true, force: true });
}

/** ripstop's CNI plugin, with this node's agent and files in place of the usual ones. */
export function ripstopPlugin(lab: Lab, node: NodeState): CniPlugin {
  const dir = nodeDir(lab, node);
  return {
    plugin: PLUGIN,
    config: { cniVersion: '1.0.0', name: 'cbr0', type: 'ripstop-cni' },
    env: {
      RIPSTOP_CNI_SOCKET: socketOf(lab, node),
      RIPSTOP_CNI_DEFERRED: deferredDir(join(dir, 'state')),
      RIPSTOP_CNI_LEASES: join(dir, 'ipam'),
      RIPSTOP_CNI_PATIENCE_MS: '0',
    },
  };
}

/** Unmount the node's bpffs, and so remove every pin in it. Other datapaths have no bpffs. */
export async function removeBpffs(lab: Lab, node: NodeState): Promise<void> {
  if (node.datapath === 'ripstop') await run('umount', [bpffsOf(lab, node)]);
}

function bpffsOf(lab: Lab, node: NodeState): string {
  return join(nodeDir(lab, node), 'bpf');
}

function socketOf(lab: Lab, node: NodeState): string {
  return join(nodeDir(lab, node), 'run/cni.sock');
}

/** Ask the plugin for its STATUS (which is of CNI 1.1), as a runtime does; in boost mode, the agent for its status. */
async function whyNotReady(lab: Lab, node: NodeState): Promise<string | undefined> {
  if (node.boosted) {
    const status = await askAgent(join(nodeDir(lab, node), 'run'));
    return status ? status.notReady : 'it does not answer yet';
  }
  if (!existsSync(socketOf(lab, node))) return 'it has no CNI socket yet';
  const { config, ...plugin } = ripstopPlugin(lab, node);
  const status = { ...config, cniVersion: '1.1.0' };
  try {
    await callCni({ ...plugin, config: status, command: 'STATUS', hostNetns: node.netns });
    return undefined;
  } catch (error) {
    return errorText(error);
  }
}

/** Whether the recorded process is still this node's agent: the process id may have been reused. */
function agentRuns({ agentPid, name }: NodeState): boolean {
  if (agentPid === undefined || !isAlive(agentPid)) return false;
  const argv = commandLine(agentPid);
  return argv.length === 0 || argv.includes(name);
}
