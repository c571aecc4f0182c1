// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { errorText } from '../../src/errors.ts';
import { manifest as ripstopManifest } from '../support/manifest.ts';
import { images } from '../support/versions.ts';
import { podCidrsOf } from './cluster.ts';
import { apply, get, kubectl, tryKubectl } from './kubectl.ts';
import { inNode, tryInNode } from './node.ts';
import { POD_NETWORKS, type Cluster, type ClusterNode } from './state.ts';
import { until } from './until.ts';

/** The workload of a cluster: ripstop, CoreDNS, and pods that talk. */

const READY_TIMEOUT = '180s';

const text = (name: string): string => readFileSync(join(import.meta.dirname, 'manifests', name), 'utf8');

/** The shipped manifest. In a cluster with IPv6 its net-conf.json is edited as deploy/README.md says. */
export function manifestFor({ options }: Cluster, manifest = ripstopManifest): string {
  if (!options.dualStack) return manifest;
  return manifest.replace(
    `"Network": "${POD_NETWORKS[0]}",`,
    `"Network": "${POD_NETWORKS[0]}", "EnableIPv6": true, "IPv6Network": "${POD_NETWORKS[1]}",`,
  );
}

/** `kubectl apply -f deploy/ripstop.yml`, and wait until each node's agent is ready. */
export async function installRipstop(cluster: Cluster, manifest = ripstopManifest): Promise<void> {
  await apply(cluster, manifestFor(cluster, manifest));
  await rolledOut(cluster, 'daemonset/kube-ripstop-ds', 'kube-ripstop');
}

/** Resolves when all pods of a workload are of its newest template, and ready. */
export async function rolledOut(cluster: Cluster, workload: string, namespace = 'default'): Promise<void> {
  await kubectl(cluster, '-n', namespace, 'rollout', 'status', workload, `--timeout=${READY_TIMEOUT}`);
}

/** The cluster's DNS. */
export async function installDns(cluster: Cluster): Promise<void> {
  await apply(cluster, text('coredns.yml'));
  await rolledOut(cluster, 'deployment/coredns', 'kube-system');
}

/** CoreDNS, and the pods and services of manifests/workload.yml. */
export async function installWorkload(cluster: Cluster): Promise<void> {
  await apply(cluster, text('workload.yml'));
  await installDns(cluster);
  for (const name of ['echo', 'client']) await rolledOut(cluster, `daemonset/${name}`);
}

/** Remove what {@link installWorkload} has created. Resolves when no pod of it is left. */
export async function removeWorkload(cluster: Cluster): Promise<void> {
  for (const name of ['workload.yml', 'coredns.yml'])
    await kubectl(cluster, 'delete', '-f', join(import.meta.dirname, 'manifests', name));
  for (const app of ['echo', 'client', 'coredns']) await podsGone(cluster, `app=${app}`);
}

export interface Pod {
  readonly name: string;
  readonly namespace: string;
  readonly node: string;
  /** Its addresses, IPv4 first. */
  readonly ips: readonly string[];
}

interface PodObject {
  metadata: { name: string; namespace: string; deletionTimestamp?: string };
  spec: { nodeName?: string };
  status: { podIPs?: { ip: string }[] };
}

/** The pods with a label, without those that are being deleted. */
export async function listPods(cluster: Cluster, app: string, namespace = 'default'): Promise<Pod[]> {
  const { items } = await get<{ items: PodObject[] }>(cluster, '-n', namespace, 'pods', '-l', `app=${app}`);
  return items.filter(({ metadata }) => metadata.deletionTimestamp === undefined).map(toPod);
}

/** The same for a workload with one pod on each node, by node. */
export async function podsOf(
  cluster: Cluster,
  app: string,
  namespace = 'default',
): Promise<Map<string, Pod>> {
  return new Map((await listPods(cluster, app, namespace)).map((pod) => [pod.node, pod]));
}

function toPod({ metadata, spec, status }: PodObject): Pod {
  const ips = (status.podIPs ?? []).map(({ ip }) => ip);
  return { name: metadata.name, namespace: metadata.namespace, node: spec.nodeName ?? '', ips };
}

/** Run a program in a pod. Returns its standard output. @throws RipstopError when it fails. */
export function inPod(cluster: Cluster, pod: Pod, ...argv: string[]): Promise<string> {
  return kubectl(cluster, '-n', pod.namespace, 'exec', pod.name, '--', ...argv);
}

export async function clusterIpOf(cluster: Cluster, service: string): Promise<string> {
  return kubectl(cluster, 'get', 'service', service, '-o', 'jsonpath={.spec.clusterIP}');
}

/** Kill a node's agent, as the kernel does when memory runs out. kubelet restarts its container. */
export async function killAgent(node: ClusterNode): Promise<void> {
  await inNode(node, 'pkill', '-KILL', '-f', 'main.js agent');
}

/** Resolves when a node's agent is ready. */
export async function agentReady(node: ClusterNode, timeoutMs = 120_000): Promise<void> {
  await until(`the agent of ${node.name} is ready`, timeoutMs, async () => {
    const { code } = await tryInNode(node, 'probe', 'get', 'http://127.0.0.1:9480/readyz');
    return code === 0;
  });
}

/** Create a pod of the tools' image on a node. Resolves when it is ready. */
export async function runPod(
  cluster: Cluster,
  name: string,
  node: ClusterNode,
  command: readonly string[],
): Promise<Pod> {
  await apply(cluster, [podObject(name, node, command)]);
  return podReady(cluster, name);
}

/** The object of {@link runPod}'s pod. */
export function podObject(name: string, node: ClusterNode, command: readonly string[]): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, labels: { app: name } },
    spec: {
      nodeName: node.name,
      // With 0 the object would be deleted before the pod has ended.
      terminationGracePeriodSeconds: 1,
      containers: [{ name: 'main', image: images.busybox, command }],
    },
  };
}

/**
 * Create a Deployment of pods that echo, all on one node if it is given.
 * @param graceSeconds how long a pod continues to answer after its deletion
 */
export function deploymentObject(
  name: string,
  replicas: number,
  { node, graceSeconds = 1 }: { node?: ClusterNode; graceSeconds?: number } = {},
): object {
  const labels = { app: name };
  const container = {
    name: 'echo',
    image: images.busybox,
    command: ['probe', 'echo', ':7'],
    ports: [{ containerPort: 7 }],
    readinessProbe: { tcpSocket: { port: 7 }, periodSeconds: 1 },
  };
  const spec = {
    terminationGracePeriodSeconds: graceSeconds,
    containers: [container],
    ...(node && { nodeSelector: { 'kubernetes.io/hostname': node.name } }),
  };
  return {
    apiVersion: 'apps/v1',
    kind: 'Deployment',
    metadata: { name },
    spec: { replicas, selector: { matchLabels: labels }, template: { metadata: { labels }, spec } },
  };
}

/** Resolves when a pod is ready. @throws Error with the pod's description when it does not become ready. */
export async function podReady(cluster: Cluster, name: string): Promise<Pod> {
  try {
    await kubectl(cluster, 'wait', '--for=condition=Ready', `pod/${name}`, `--timeout=${READY_TIMEOUT}`);
  } catch (error) {
    const { stdout } = await tryKubectl(cluster, 'describe', 'pod', name);
    throw new Error(`${errorText(error)}\n${stdout.slice(-1500)}`, { cause: error });
  }
  return toPod(await get<PodObject>(cluster, 'pod', name));
}

/** Delete a pod. Resolves when it is gone. */
export async function deletePod(cluster: Cluster, name: string, timeout = '60s'): Promise<void> {
  await kubectl(cluster, 'delete', 'pod', name, '--wait=true', `--timeout=${timeout}`);
}

/** Resolves when every node is ready and has its podCIDRs. */
export async function nodesReady(cluster: Cluster, timeout = READY_TIMEOUT): Promise<void> {
  await kubectl(cluster, 'wait', '--for=condition=Ready', 'nodes', '--all', `--timeout=${timeout}`);
  for (const node of cluster.nodes) await podCidrsOf(cluster, node);
}

/** Resolves when no pod of these labels is left, terminating ones included. */
export async function podsGone(cluster: Cluster, selector: string, timeoutMs = 120_000): Promise<void> {
  await until(`no pod ${selector} is left`, timeoutMs, async () => {
    const { items } = await get<{ items: PodObject[] }>(cluster, 'pods', '-A', '-l', selector);
    return items.length === 0;
  });
}
