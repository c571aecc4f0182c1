// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { RipstopError } from '../errors.ts';
import { run } from '../host/run.ts';
import { CNI_PLUGINS, type CniPlugin } from './cni.ts';
import { commandLine, netnsPath, processesIn, setSysctls, signalProcess } from './netns.ts';
import { kubeconfigOf, type Lab, type NodeState, nodeDir } from './state.ts';

/*
 * The real flanneld on a node, where a test brings it along (`LabOptions.real`).
 */

/** flanneld lists the nodes and creates its device first. */
const READY_TIMEOUT_MS = 30_000;

/** The node as flanneld wants it, and its flanneld. Resolves when the CNI plugin can serve pods. */
export async function setUpFlanneld(lab: Lab, node: NodeState): Promise<void> {
  const netns = netnsPath(node.netns);
  const { ipv6 } = lab.state.options;
  await setSysctls(node.netns, {
    'bridge.bridge-nf-call-iptables': 1,
    ...(ipv6 && { 'bridge.bridge-nf-call-ip6tables': 1 }),
  });
  // As Docker and hardened hosts have it.
  for (const iptables of ['iptables', ...(ipv6 ? ['ip6tables'] : [])])
    await run(iptables, ['-w', '-P', 'FORWARD', 'DROP'], { netns });
  await startFlanneld(lab, node);
}

/** Start the node's flanneld, detached, its output appended to flanneld.log. Resolves when it has written subnet.env. */
export async function startFlanneld(lab: Lab, node: NodeState): Promise<void> {
  const { daemon } = realFlannel(lab);
  const logFile = join(nodeDir(lab, node), 'flanneld.log');
  const log = openSync(logFile, 'a', 0o600);
  const flags = {
    'kube-subnet-mgr': 'true',
    'kubeconfig-file': kubeconfigOf(lab, node),
    'net-config-path': join(lab.dir, 'net-conf.json'),
    'subnet-file': subnetFile(lab, node),
    'ip-masq': 'true',
    iface: 'eth0',
  };
  const argv = Object.entries(flags).map(([flag, value]) => `--${flag}=${value}`);
  const before = writtenAt(lab, node);
  const child = spawn('nsenter', [`--net=${netnsPath(node.netns)}`, '--', daemon, ...argv], {
    detached: true,
    stdio: ['ignore', log, log],
    env: { ...process.env, NODE_NAME: node.name },
  });
  closeSync(log);
  let ended: string | undefined;
  child.on('error', (error) => (ended = error.message));
  child.on('exit', (code, signal) => (ended = `it ended with ${signal ?? `exit code ${code}`}`));
  child.unref();
  const deadline = performance.now() + READY_TIMEOUT_MS;
  while (writtenAt(lab, node) === before) {
    if (performance.now() > deadline) ended ??= `it wrote no subnet.env in ${READY_TIMEOUT_MS / 1000} s`;
    if (ended !== undefined) {
      throw new RipstopError(`flanneld of ${node.name} is not ready: ${ended}; its log is ${logFile}`, {
        details: readFileSync(logFile, 'utf8'),
      });
    }
    await sleep(20);
  }
}

/** Ask the node's flanneld to end and wait until it has. What it built stays, as it always does. */
export async function stopFlanneld(lab: Lab, node: NodeState): Promise<void> {
  const { daemon } = realFlannel(lab);
  const find = () => processesIn([node.netns]).filter((pid) => commandLine(pid)[0] === daemon);
  for (const pid of find()) signalProcess(pid, 'SIGTERM');
  const deadline = performance.now() + 10_000;
  while (find().length > 0) {
    if (performance.now() > deadline)
      throw new RipstopError(`flanneld of ${node.name} does not end after SIGTERM; see its flanneld.log`);
    await sleep(10);
  }
}

/** flannel's CNI plugin with the configuration that flannel's manifest installs, its files kept in the node's directory. */
export function flanneldPlugin(lab: Lab, node: NodeState): CniPlugin {
  const dir = nodeDir(lab, node);
  return {
    plugin: realFlannel(lab).plugin,
    config: {
      name: 'cbr0',
      cniVersion: '0.3.1',
      type: 'flannel',
      subnetFile: subnetFile(lab, node),
      dataDir: join(dir, 'flannel'),
      ipam: { dataDir: join(dir, 'ipam') },
      delegate: { hairpinMode: true, isDefaultGateway: true },
    },
    env: { CNI_PATH: CNI_PLUGINS },
  };
}

function realFlannel(lab: Lab): { daemon: string; plugin: string } {
  const { real } = lab.state.options;
  if (real?.flannel) return real.flannel;
  throw new RipstopError(`lab "${lab.name}" was brought up without a real flanneld`);
}

function subnetFile(lab: Lab, node: NodeState): string {
  return join(nodeDir(lab, node), 'subnet.env');
}

/** When subnet.env was last put in its place; undefined when there is none. */
function writtenAt(lab: Lab, node: NodeState): number | undefined {
  return statSync(subnetFile(lab, node), { throwIfNoEntry: false })?.ctimeMs;
}
