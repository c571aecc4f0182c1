// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { dump } from 'js-yaml';
import { run, type RunResult, tryRun } from '../../src/host/run.ts';
import { isAlive, netnsPath, processesIn, commandLine, signalProcess } from '../../src/lab/netns.ts';
import { debianProgram } from '../support/debian-programs.ts';
import { peerPath } from '../support/peer-programs.ts';
import { images } from '../support/versions.ts';
import { enterGroup, makeGroup, removeGroup } from './cgroups.ts';
import { buildProbe } from './programs.ts';
import {
  caFile,
  type Cluster,
  type ClusterNode,
  DNS_SERVICE,
  groupOf,
  kubeconfigOf,
  POD_NETWORKS,
  type ProxyMode,
  saveCluster,
  underlayAddresses,
} from './state.ts';
import { plugNodeIn, unplugNode } from './underlay.ts';
import { until } from './until.ts';

/**
 * A node: containerd, kubelet and kube-proxy in network, mount, UTS and PID namespaces of their own, with a disk that
 * survives a power cut. node-init.sh is its PID 1.
 */

export type Service = 'containerd' | 'kubelet' | 'kube-proxy';

/** Options of a node's boot. */
export interface BootOptions {
  /** Whether the host has mounted a BPF file system, as systemd does. Default true. */
  readonly bpffs?: boolean;
  /** Whether mounts below /run propagate into containers, as with systemd. Default true. */
  readonly sharedRun?: boolean;
  /** Services that are not started until {@link resumeService}. */
  readonly off?: readonly Service[];
}

/** Start a node that has a cable. Resolves when its containerd answers. */
export async function bootNode(
  cluster: Cluster,
  node: ClusterNode,
  options: BootOptions = {},
): Promise<void> {
  const { name } = cluster.options;
  const disk = node.disk;
  mkdirSync(join(disk, 'config'), { recursive: true });
  await writePrograms(node);
  writeConfiguration(cluster, node, options);
  makeGroup(groupOf(name, node.name));
  makeGroup(groupOf(name, `${node.name}-services`));
  const script = [
    enterGroup(groupOf(name, `${node.name}-services`)),
    `exec nsenter --net=${netnsPath(node.netns)} unshare --mount --uts --pid --fork --kill-child --propagation private "$@"`,
  ].join(' && ');
  const init = join(import.meta.dirname, 'node-init.sh');
  const log = openSync(join(disk, 'init.log'), 'a');
  const child = spawn('bash', ['-c', script, 'bash', init, disk], {
    detached: true,
    stdio: ['ignore', log, log],
  });
  child.unref();
  closeSync(log);
  node.initPid = await until(`${node.name} has a PID 1`, 10_000, () => initOf(node, init), {
    intervalMs: 20,
  });
  saveCluster(cluster);
  await until(`containerd of ${node.name} answers`, 30_000, () => inNode(node, 'ctr', 'version'), {
    hint: () => readFileSync(join(disk, 'init.log'), 'utf8').slice(-2000),
  });
}

/** The node's PID 1: of the processes that run its script, the one in a PID namespace of its own. */
function initOf(node: ClusterNode, init: string): number | false {
  const pids = processesIn([node.netns]).filter((pid) => commandLine(pid).includes(init));
  const inner = pids.find((pid) => /^NSpid:\t\d+\t1$/m.test(readFileSync(`/proc/${pid}/status`, 'utf8')));
  return inner ?? false;
}

/** Put the programs of a node into one folder: as hard links if the cache is on the same file system. */
async function writePrograms(node: ClusterNode): Promise<void> {
  const folder = programsOf(node);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const runtime = (['containerd', 'containerd-shim-runc-v2', 'ctr'] as const).map((name) =>
    node.containerd === 'debian' ? ([name, debianProgram(name)] as const) : ([name, peerPath(name)] as const),
  );
  const sources = [
    ...runtime,
    ['runc', debianProgram('runc')],
    ['kubelet', peerPath('kubelet')],
    ['kube-proxy', peerPath('kube-proxy')],
    ['probe', await buildProbe()],
    ...(node.containerd === 'debian' ? [] : [['portmap', peerPath('portmap')] as const]),
  ] as const;
  for (const [name, source] of sources) {
    try {
      linkSync(source, join(folder, name));
    } catch {
      copyFileSync(source, join(folder, name));
    }
  }
}

const programsOf = (node: ClusterNode): string => join(node.disk, 'bin');

function writeConfiguration(cluster: Cluster, node: ClusterNode, options: BootOptions): void {
  const config = join(node.disk, 'config');
  const variables = {
    NAME: node.name,
    NODE_IPS: node.ips.join(','),
    PROGRAMS: programsOf(node),
    BPFFS: options.bpffs === false ? 'no' : 'yes',
    SHARED_RUN: options.sharedRun === false ? 'no' : 'yes',
    OFF: (options.off ?? []).join(' '),
  };
  const files = {
    env: Object.entries(variables)
      .map(([name, value]) => `${name}='${value}'\n`)
      .join(''),
    hosts: `127.0.0.1 localhost\n${node.ips.map((ip) => `${ip} ${node.name}\n`).join('')}`,
    // Nothing answers there: names outside the cluster are not resolved.
    'resolv.conf': `nameserver ${underlayAddresses('underlay', cluster.options)[0]}\n`,
    'kubelet.yaml': dump(kubeletConfiguration(cluster, node)),
    'kubelet.kubeconfig': readFileSync(kubeconfigOf(cluster, node.name), 'utf8'),
    'kube-proxy.yaml': dump(proxyConfiguration(cluster, node)),
    'kube-proxy.kubeconfig': readFileSync(kubeconfigOf(cluster, 'kube-proxy'), 'utf8'),
    'ca.pem': readFileSync(caFile(cluster), 'utf8'),
    'containerd.toml': CONTAINERD_CONFIGURATION,
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(config, name), text, { mode: 0o600 });
}

function kubeletConfiguration(cluster: Cluster, node: ClusterNode): object {
  const config = join(node.disk, 'config');
  return {
    apiVersion: 'kubelet.config.k8s.io/v1beta1',
    kind: 'KubeletConfiguration',
    authentication: {
      x509: { clientCAFile: join(config, 'ca.pem') },
      webhook: { enabled: true },
      anonymous: { enabled: false },
    },
    authorization: { mode: 'Webhook' },
    clusterDNS: [DNS_SERVICE],
    clusterDomain: 'cluster.local',
    cgroupDriver: 'cgroupfs',
    cgroupRoot: `/${groupOf(cluster.options.name, node.name)}`,
    failCgroupV1: false,
    failSwapOn: false,
    containerRuntimeEndpoint: 'unix:///run/containerd/containerd.sock',
    resolvConf: '/etc/resolv.conf',
    // The disk is the machine's, so kubelet must not remove images to free space.
    evictionHard: { 'memory.available': '100Mi', 'nodefs.available': '1%', 'imagefs.available': '1%' },
    imageGCHighThresholdPercent: 100,
    maxPods: 110,
    nodeStatusUpdateFrequency: '5s',
    syncFrequency: '30s',
  };
}

function proxyConfiguration(cluster: Cluster, node: ClusterNode): object {
  const { dualStack } = cluster.options;
  return {
    apiVersion: 'kubeproxy.config.k8s.io/v1alpha1',
    kind: 'KubeProxyConfiguration',
    clientConnection: { kubeconfig: join(node.disk, 'config/kube-proxy.kubeconfig') },
    clusterCIDR: POD_NETWORKS.slice(0, dualStack ? 2 : 1).join(','),
    mode: node.proxyMode,
    hostnameOverride: node.name,
    // These settings belong to the whole machine.
    conntrack: { maxPerCore: 0, min: 0 },
  };
}

/** Debian's 1.6 and the current release both read version 2 of the format. */
const CONTAINERD_CONFIGURATION = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "${images.pause}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "runc"
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
`;

// ---- what happens to a node
// ------------------------------------------------------------------------------------------

/** Cut the power: all processes of the node end at once, with its mounts, its /run and all pins in its bpffs. */
export async function cutPower(cluster: Cluster, node: ClusterNode): Promise<void> {
  if (node.initPid !== undefined) signalProcess(node.initPid, 'SIGKILL');
  delete node.initPid;
  saveCluster(cluster);
  const { name } = cluster.options;
  for (const part of [node.name, `${node.name}-services`]) await removeGroup(groupOf(name, part));
  await unplugNode(cluster, node);
}

/** Cut the power and boot: with a new network stack, an empty /run, and the same disk. */
export async function rebootNode(
  cluster: Cluster,
  node: ClusterNode,
  options: BootOptions = {},
): Promise<void> {
  await cutPower(cluster, node);
  await plugNodeIn(cluster, node);
  await bootNode(cluster, node, options);
}

/** The arguments that run a program on a node, as in a shell there. */
function commandInNode(node: ClusterNode, argv: readonly string[]): string[] {
  if (node.initPid === undefined || !isAlive(node.initPid)) throw new Error(`${node.name} is down`);
  return ['-t', String(node.initPid), '-m', '-u', '-p', '-n', '--', ...argv];
}

/** Run a program on a node. Returns its standard output. @throws RipstopError when it fails. */
export function inNode(node: ClusterNode, ...argv: string[]): Promise<string> {
  return run('nsenter', commandInNode(node, argv), withPath(node));
}

/** The same with a file of this machine as its standard input. */
export function feedNode(node: ClusterNode, file: string, ...argv: string[]): Promise<string> {
  return run('sh', ['-c', 'exec nsenter "$@" < "$0"', file, ...commandInNode(node, argv)], withPath(node));
}

export function tryInNode(node: ClusterNode, ...argv: string[]): Promise<RunResult> {
  return tryRun('nsenter', commandInNode(node, argv), withPath(node));
}

/** nsenter looks programs up in the node's root, where their folder has the same path as here. */
function withPath(node: ClusterNode): { env: NodeJS.ProcessEnv; timeoutMs: number } {
  const PATH = `${programsOf(node)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin`;
  return { env: { ...process.env, PATH }, timeoutMs: 120_000 };
}

const servicePid = async (node: ClusterNode, service: Service): Promise<number> =>
  Number(await inNode(node, 'cat', `/run/services/${service}.pid`));

/** Kill a service's process. It is restarted after a second, as by systemd. */
export async function killService(node: ClusterNode, service: Service): Promise<void> {
  // It may end by itself at this moment: kube-proxy does when its Node changes.
  await until(`${service} of ${node.name} can be killed`, 10_000, async () =>
    inNode(node, 'kill', '-KILL', String(await servicePid(node, service))),
  );
}

/** Stop a service until {@link resumeService}. */
export async function stopService(node: ClusterNode, service: Service): Promise<void> {
  await inNode(node, 'touch', `/run/services/${service}.off`);
  await tryInNode(node, 'kill', String(await servicePid(node, service)));
}

export async function resumeService(node: ClusterNode, service: Service): Promise<void> {
  await inNode(node, 'rm', '-f', `/run/services/${service}.off`);
}

/** Change the mode of kube-proxy, as an operator does: with a new configuration, and a restart. */
export async function setProxyMode(cluster: Cluster, node: ClusterNode, mode: ProxyMode): Promise<void> {
  node.proxyMode = mode;
  saveCluster(cluster);
  const text = dump(proxyConfiguration(cluster, node));
  writeFileSync(join(node.disk, 'config/kube-proxy.yaml'), text, { mode: 0o600 });
  await killService(node, 'kube-proxy');
  const has = mode === 'nftables' ? 'nft list table ip kube-proxy' : 'iptables -t nat -L KUBE-SERVICES -n';
  const not = mode === 'nftables' ? 'iptables -t nat -L KUBE-SERVICES -n' : 'nft list table ip kube-proxy';
  await until(`kube-proxy of ${node.name} works in mode ${mode}`, 60_000, async () => {
    const [there, gone] = await Promise.all(
      [has, not].map((command) => tryInNode(node, ...command.split(' '))),
    );
    return there!.code === 0 && gone!.code !== 0;
  });
}
