// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { RipstopError } from '../../src/errors.ts';
import { tryRun } from '../../src/host/run.ts';
import { deleteNetns, isAlive, listNetns, netnsPath } from '../../src/lab/netns.ts';
import { groupTraces, removeGroup } from './cgroups.ts';
import { createCredentials, startControlPlane } from './control-plane.ts';
import { keepFirstDump } from './dump.ts';
import { imageNames } from './images.ts';
import { get, kubectl, kubectlCommand } from './kubectl.ts';
import { bootNode, type BootOptions, cutPower, feedNode, inNode } from './node.ts';
import {
  type Cluster,
  clusterDir,
  clusterNames,
  type ClusterNode,
  type ClusterOptions,
  groupOf,
  netnsOf,
  type NodeImage,
  openCluster,
  type ProxyMode,
  saveCluster,
  underlayAddresses,
} from './state.ts';
import { createUnderlay, plugNodeIn, routeToPods } from './underlay.ts';
import { until } from './until.ts';

type Note = (line: string) => void;

/**
 * Raise a cluster without a network: control plane, nodes with their kubelets and kube-proxies, images. After a failure
 * call {@link clusterDown}.
 */
export async function clusterUp(
  options: ClusterOptions,
  images: readonly NodeImage[],
  note: Note,
): Promise<Cluster> {
  const dir = clusterDir(options.name);
  if (clusterNames().includes(options.name)) {
    throw new RipstopError(
      `there is a cluster ${options.name} already; take it down, or choose another name`,
    );
  }
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const cluster: Cluster = { options, dir, owner: process.pid, nodes: [], images };
  saveCluster(cluster);
  note('underlay, credentials, control plane');
  await createCredentials(cluster);
  await createUnderlay(cluster);
  await startControlPlane(cluster);
  writeKubectl(cluster);
  note(`${options.nodes} nodes`);
  const indices = Array.from({ length: options.nodes }, (_, i) => i + 1);
  const nodes = await Promise.all(indices.map((index) => addNode(cluster, { index })));
  await Promise.all(nodes.map((node) => keepFirstDump(cluster, node)));
  return cluster;
}

/** Write a program `kubectl` for people, which runs in the control plane's namespace. */
function writeKubectl(cluster: Cluster): void {
  const command = kubectlCommand(cluster).join(' ');
  const text = `#!/bin/sh\nexec nsenter --net=${netnsPath(netnsOf(cluster, 'cp'))} -- ${command} "$@"\n`;
  writeFileSync(join(cluster.dir, 'kubectl'), text, { mode: 0o755 });
}

interface NodeFlags {
  readonly index: number;
  readonly proxyMode?: ProxyMode;
  readonly containerd?: ClusterNode['containerd'];
  readonly boot?: BootOptions;
}

/** Add a node. Resolves when it has registered itself, and has podCIDRs and its images. */
export async function addNode(
  cluster: Cluster,
  { index, proxyMode = cluster.options.proxyMode, containerd = 'debian', boot }: NodeFlags,
): Promise<ClusterNode> {
  const name = `node${index}`;
  const ips = underlayAddresses(index, cluster.options);
  const disk = join(cluster.dir, 'nodes', name);
  const node: ClusterNode = { name, index, netns: netnsOf(cluster, name), disk, ips, proxyMode, containerd };
  cluster.nodes.push(node);
  saveCluster(cluster);
  await plugNodeIn(cluster, node);
  await bootNode(cluster, node, boot);
  await Promise.all([importImages(node, cluster.images), podCidrsOf(cluster, node)]);
  await routeToPods(cluster, node, await podCidrsOf(cluster, node));
  return node;
}

/** Import images on a node. Existing ones are replaced. */
export async function importImages(node: ClusterNode, images: readonly NodeImage[]): Promise<void> {
  for (const { archive, names } of images) {
    await feedNode(node, archive, 'ctr', '-n', 'k8s.io', 'images', 'import', '-');
    const [first, ...others] = names;
    for (const name of others)
      await inNode(node, 'ctr', '-n', 'k8s.io', 'images', 'tag', '--force', first!, name);
  }
}

interface KubeNode {
  spec: { podCIDRs?: string[] };
  status: { conditions?: { type: string; status: string }[] };
}

/** A node's podCIDRs, IPv4 first, once the controller manager has assigned them. */
export function podCidrsOf(cluster: Cluster, node: ClusterNode): Promise<string[]> {
  return until(`${node.name} has podCIDRs`, 180_000, async () => {
    const { spec } = await get<KubeNode>(cluster, 'node', node.name);
    return spec.podCIDRs ?? false;
  });
}

/** Remove a node for good: its Node object, its processes and its cable. */
export async function removeNode(cluster: Cluster, node: ClusterNode): Promise<void> {
  await cutPower(cluster, node);
  await kubectl(cluster, 'delete', 'node', node.name, '--ignore-not-found');
  cluster.nodes = cluster.nodes.filter((one) => one !== node);
  saveCluster(cluster);
}

export async function isReady(cluster: Cluster, node: ClusterNode): Promise<boolean> {
  const { status } = await get<KubeNode>(cluster, 'node', node.name);
  return status.conditions?.some(({ type, status }) => type === 'Ready' && status === 'True') ?? false;
}

/** The images of these names, for {@link clusterUp}. */
export function nodeImages(archives: Partial<Record<keyof typeof imageNames, string>>): NodeImage[] {
  return Object.entries(archives).map(([name, archive]) => ({
    archive,
    names: imageNames[name as keyof typeof imageNames],
  }));
}

/**
 * Take a cluster down: processes, control groups, namespaces, and its folder. It is idempotent, and finds everything by
 * name, also after a crash.
 * @param keepLogs keep its folder, without the nodes' disks
 */
export async function clusterDown(name: string, { keepLogs = false } = {}): Promise<void> {
  await removeGroup(groupOf(name));
  const prefix = netnsOf({ options: { name } as ClusterOptions }, '');
  await deleteNetns(...listNetns().filter((netns) => netns.startsWith(prefix)));
  const dir = clusterDir(name);
  if (!keepLogs) rmSync(dir, { recursive: true, force: true });
  else for (const part of ['nodes', 'etcd']) rmSync(join(dir, part), { recursive: true, force: true });
}

/** Everything on this machine that a cluster has left behind, found by other means than {@link clusterDown} uses. */
export async function tracesOf(name: string): Promise<string[]> {
  const commands = {
    namespace: ['ls', '/run/netns'],
    mount: ['cat', '/proc/self/mountinfo'],
    process: ['ps', '-eo', 'pid,args'],
    folder: ['ls', clusterDir('')],
  };
  const marks = [netnsOf({ options: { name } as ClusterOptions }, ''), groupOf(name), clusterDir(name)];
  const found = Object.entries(commands).map(async ([kind, [program, ...argv]]) => {
    const lines = (await tryRun(program!, argv)).stdout.split('\n');
    const ours = lines.filter((line) => marks.some((mark) => line.includes(mark)) || line === name);
    return ours.map((line) => `${kind} ${line.trim()}`);
  });
  const groups = groupTraces(groupOf(name)).map((directory) => `control group ${directory}`);
  return [...groups, ...(await Promise.all(found)).flat()];
}

/** Keep a cluster for inspection. */
export function keepCluster(cluster: Cluster): void {
  saveCluster({ ...cluster, kept: true });
}

/** Take down the clusters whose owner has ended. Kept ones are taken down only if `kept` is set. */
export async function sweepClusters({ kept }: { kept: boolean }): Promise<void> {
  for (const name of clusterNames()) {
    if (!inUse(name, kept)) await clusterDown(name);
  }
}

function inUse(name: string, evenKept: boolean): boolean {
  try {
    const { owner, kept } = openCluster(name);
    return (kept === true && !evenKept) || isAlive(owner);
  } catch {
    return false; // it crashed before its first write
  }
}
