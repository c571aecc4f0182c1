// SPDX-License-Identifier: Apache-2.0
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { RipstopError } from '../errors.ts';
import { run } from '../host/run.ts';
import { CNI_PLUGINS, type CniPlugin } from './cni.ts';
import { startDaemon } from './daemon.ts';
import { commandLine, netnsPath, processesIn, setSysctls, signalProcess } from './netns.ts';
import { kubeconfigOf, type Lab, type NodeState, nodeDir } from './state.ts';

/*
 * The real flanneld on a node, where a test provides it (`LabOptions.real`).
 */

/** Prepare the node for flanneld, and start it. Resolves when the CNI plugin can serve pods. */
export async function setUpFlanneld(lab: Lab, node: NodeState): Promise<void> {
  const netns = netnsPath(node.netns);
  const { ipv6 } = lab.state.options;
  await setSysctls(node.netns, {
    'bridge.bridge-nf-call-iptables': 1,
    ...(ipv6 && { 'bridge.bridge-nf-call-ip6tables': 1 }),
  });
  // Docker and hardened hosts set this policy.
  for (const iptables of ['iptables', ...(ipv6 ? ['ip6tables'] : [])])
    await run(iptables, ['-w', '-P', 'FORWARD', 'DROP'], { netns });
  await startFlanneld(lab, node);
}

/** Start the node's flanneld. Resolves when it has written subnet.env. */
export async function startFlanneld(lab: Lab, node: NodeState): Promise<void> {
  const { daemon } = realFlannel(lab);
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
  await startDaemon({
    name: `flanneld of ${node.name}`,
    argv: ['nsenter', `--net=${netnsPath(node.netns)}`, '--', daemon, ...argv],
    logFile: join(nodeDir(lab, node), 'flanneld.log'),
    env: { ...process.env, NODE_NAME: node.name },
    notReady: () => (writtenAt(lab, node) === before ? 'it has not written subnet.env' : undefined),
  });
}

/** Stop the node's flanneld, and wait for its end. Its device, routes and rules stay. */
export async function stopFlanneld(lab: Lab, node: NodeState): Promise<void> {
  const { daemon } = realFlannel(lab);
  const find = () => processesIn([node.netns]).filter((pid) => commandLine(pid)[0] === daemon);
  for (const pid of find()) signalProcess(pid, 'SIGTERM');
  const deadline = performance.now() + 10_000;
  while (find().length > 0) {
    if (performance.now() > deadline)
      throw new RipstopError(`flanneld of ${node.name} does not end on SIGTERM; see its flanneld.log`);
    await sleep(10);
  }
}

/** flannel's CNI plugin with the configuration of flannel's manifest; its files are in the node's directory. */
export function flanneldPlugin(
  lab: Lab,
  node: NodeState,
  plugin: string = realFlannel(lab).plugin,
): CniPlugin {
  const dir = nodeDir(lab, node);
  return {
    plugin,
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

/** When subnet.env was last written; undefined when there is none. */
function writtenAt(lab: Lab, node: NodeState): number | undefined {
  return statSync(subnetFile(lab, node), { throwIfNoEntry: false })?.ctimeMs;
}
