// SPDX-License-Identifier: Apache-2.0
/**
 * A check in a cluster: a namespace with pods of its own, in which probers are started by exec. That takes the way of
 * `kubectl exec`, through API server and kubelet, so it works where the pods' network does not.
 */
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { KubeConfig } from '@kubernetes/client-node';
import { z } from 'zod';
import { ApiClient, ApiError } from '../cluster/api-client.ts';
import { errorText, RipstopError } from '../errors.ts';
import type { CheckNode, Place, Skipped } from './plan.ts';
import { PORT } from './prober.ts';
import type { Unready } from './report.ts';
import type { Site } from './run.ts';
import type { ProberProcess } from './session.ts';

export interface ClusterFlags {
  readonly kubeconfig?: string;
  readonly context?: string;
  readonly namespace: string;
  readonly image?: string;
}

/** The label of all that a check creates. Only a namespace that has it is removed. */
const OURS = { 'app.kubernetes.io/managed-by': 'ripstop-check' } as const;
/** Its value is the number of the node whose Service selects the pod. */
const BACKEND = 'ripstop.io/check-backend';
const CONTAINER = 'check';
/** Pods that nobody removes end by themselves. */
const LIFETIME_SECONDS = 1800;
const START_MS = 120_000;
const GONE_MS = 120_000;
/** kube-proxy brings its rules up to date once a second, or at most every 10 s on large clusters. */
const PATIENCE_MS = 15_000;
const POLL_MS = 500;
const RIGHTS =
  'your rights to create and delete namespaces, to create pods and services and exec into pods, and to list nodes and daemonsets';

const nodeList = z.object({
  items: z.array(
    z.object({
      metadata: z.object({ name: z.string(), labels: z.record(z.string(), z.string()).default({}) }),
      status: z.object({
        addresses: z.array(z.object({ type: z.string(), address: z.string() })).default([]),
        conditions: z.array(z.object({ type: z.string(), status: z.string() })).default([]),
      }),
    }),
  ),
});

const podList = z.object({
  items: z.array(
    z.object({
      metadata: z.object({ name: z.string() }),
      status: z.object({
        phase: z.string().default('Pending'),
        reason: z.string().optional(),
        podIPs: z.array(z.object({ ip: z.string() })).default([]),
        containerStatuses: z
          .array(
            z.object({
              state: z.object({
                waiting: z
                  .object({ reason: z.string().optional(), message: z.string().optional() })
                  .optional(),
                running: z.object({}).optional(),
              }),
            }),
          )
          .default([]),
      }),
    }),
  ),
});
type PodStatus = z.infer<typeof podList>['items'][number]['status'];

const daemonSets = z.object({
  items: z.array(
    z.object({
      spec: z.object({
        template: z.object({
          spec: z.object({ containers: z.array(z.object({ name: z.string(), image: z.string() })) }),
        }),
      }),
    }),
  ),
});

const namespaceObject = z.object({
  metadata: z.object({ labels: z.record(z.string(), z.string()).default({}) }),
});
const serviceObject = z.object({ spec: z.object({ clusterIPs: z.array(z.string()).default([]) }) });
const anyList = z.object({ items: z.array(z.unknown()) });

interface Observed {
  readonly name: string;
  readonly addresses: readonly string[];
  readonly ready: boolean;
}

/** A cluster, and what a check needs to know of it before it changes anything. */
export class Cluster {
  readonly config: KubeConfig;
  readonly client: ApiClient;
  readonly flags: ClusterFlags;
  readonly nodes: readonly Observed[];
  readonly image: string;

  constructor(
    config: KubeConfig,
    client: ApiClient,
    flags: ClusterFlags,
    observed: { nodes: readonly Observed[]; image: string },
  ) {
    this.config = config;
    this.client = client;
    this.flags = flags;
    this.nodes = observed.nodes;
    this.image = observed.image;
  }

  /** Of the nodes that are ready. */
  get nodeNames(): string[] {
    return this.nodes.filter(({ ready }) => ready).map(({ name }) => name);
  }

  /** A path of the API below the check's namespace. */
  path(rest = ''): string {
    return `/api/v1/namespaces/${this.flags.namespace}${rest}`;
  }

  /** @returns undefined when there is no such object. */
  async find<T>(path: string, schema: z.ZodType<T>): Promise<T | undefined> {
    try {
      return schema.parse(await this.client.request('GET', path));
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) return undefined;
      throw error;
    }
  }

  /** `create` of an object. What it needs may not be there yet: a new namespace gets its service account after a moment. */
  async create(path: string, object: object): Promise<unknown> {
    for (const deadline = performance.now() + 15_000; ; await sleep(POLL_MS)) {
      try {
        return await this.client.request('POST', path, { body: object });
      } catch (error) {
        const isEarly = error instanceof ApiError && /serviceaccount .* not found/.test(error.message);
        if (!isEarly || performance.now() > deadline) throw error;
      }
    }
  }
}

/** Read what there is; nothing is changed. @throws RipstopError */
export async function openCluster(flags: ClusterFlags): Promise<Cluster> {
  const config = await loadConfig(flags);
  const client = await ApiClient.open({ config, needs: RIGHTS });
  const { items } = nodeList.parse(await client.request('GET', '/api/v1/nodes'));
  const nodes = items
    .filter(({ metadata }) => (metadata.labels['kubernetes.io/os'] ?? 'linux') === 'linux')
    .map(({ metadata, status }) => ({
      name: metadata.name,
      addresses: status.addresses.filter(({ type }) => type === 'InternalIP').map(({ address }) => address),
      ready: status.conditions.some(({ type, status }) => type === 'Ready' && status === 'True'),
    }));
  return new Cluster(config, client, flags, { nodes, image: flags.image ?? (await imageOf(client)) });
}

/** As kubectl finds its configuration. */
async function loadConfig({ kubeconfig, context }: ClusterFlags): Promise<KubeConfig> {
  const { KubeConfig } = await import('@kubernetes/client-node');
  const config = new KubeConfig();
  const found =
    kubeconfig !== undefined ||
    [process.env['KUBECONFIG'], process.env['KUBERNETES_SERVICE_HOST']].some(Boolean) ||
    existsSync(join(homedir(), '.kube/config'));
  if (!found) {
    throw new RipstopError(
      'there is no lab and no kubeconfig: give --lab, or --kubeconfig and --context as for kubectl',
    );
  }
  try {
    if (kubeconfig === undefined) config.loadFromDefault();
    else config.loadFromFile(kubeconfig);
  } catch (cause) {
    throw new RipstopError(`cannot read the kubeconfig: ${errorText(cause)}; check --kubeconfig`, { cause });
  }
  if (context !== undefined) config.setCurrentContext(context);
  if (config.getCurrentCluster()) return config;
  const known =
    config
      .getContexts()
      .map(({ name }) => name)
      .join(', ') || 'none';
  throw new RipstopError(
    `the kubeconfig has no context ${JSON.stringify(config.getCurrentContext())}; it has: ${known}`,
  );
}

/** The image of ripstop's own DaemonSet. */
async function imageOf(client: ApiClient): Promise<string> {
  const answer = await client.request('GET', '/apis/apps/v1/daemonsets', {
    query: { labelSelector: 'app=ripstop' },
  });
  const containers = daemonSets.parse(answer).items.flatMap(({ spec }) => spec.template.spec.containers);
  const image = containers.find(({ name }) => name === 'ripstop')?.image;
  if (image !== undefined) return image;
  throw new RipstopError(
    'no DaemonSet of ripstop runs in this cluster; name the image of the test pods with --image',
  );
}

/**
 * Create the namespace, two pods and a host-network pod on each of these nodes, and a Service for each. Resolves when the
 * pods run; a node on which they do not start is left out, and named.
 * @throws RipstopError after the namespace has been removed again
 */
export async function prepareCluster(
  cluster: Cluster,
  chosen: readonly string[],
  signal: AbortSignal,
): Promise<Site & { notReady: Unready[] }> {
  await makeNamespace(cluster, signal);
  try {
    const nodes = cluster.nodes.filter(({ name }) => chosen.includes(name));
    const pods = nodes.flatMap((node, i) => podsOn(node.name, i, cluster.image));
    await Promise.all(pods.map((pod) => cluster.create(cluster.path('/pods'), pod)));
    const services = await Promise.all(
      nodes.map(
        async (_, i) =>
          serviceObject.parse(await cluster.create(cluster.path('/services'), serviceTo(i))).spec.clusterIPs,
      ),
    );
    const statuses = await waitForPods(cluster, pods.length, signal);
    const { ready, notReady } = sortOut(nodes, services, statuses);
    return {
      name: `context ${cluster.config.getCurrentContext()}`,
      nodes: ready,
      notReady: [...unreadyNodes(cluster), ...notReady],
      skipped: await skippedIn(cluster),
      start: (place) => startProber(cluster, place),
      isLearned: () => Promise.resolve(false),
      patienceMs: PATIENCE_MS,
      next: ({ lookAt }) => `kubectl ripstop --node ${lookAt} doctor`,
      close: () => removeNamespace(cluster),
    };
  } catch (error) {
    await removeNamespace(cluster);
    throw error;
  }
}

function unreadyNodes({ nodes }: Cluster): Unready[] {
  return nodes
    .filter(({ ready }) => !ready)
    .map(({ name }) => ({ node: name, why: 'the node is not ready; see kubectl describe node' }));
}

/** @throws RipstopError when there is one of this name that no check has made. */
async function makeNamespace(cluster: Cluster, signal: AbortSignal): Promise<void> {
  const { namespace } = cluster.flags;
  const found = await cluster.find(cluster.path(), namespaceObject);
  if (found && !isOurs(found)) {
    throw new RipstopError(
      `there is a namespace ${namespace} that ripstop check has not made, so it is left alone; give another --namespace`,
    );
  }
  // An earlier check was killed, or told to keep it.
  if (found) await removeNamespace(cluster);
  signal.throwIfAborted();
  await cluster.create('/api/v1/namespaces', namespaceNamed(namespace));
}

export function namespaceNamed(name: string): object {
  // Pods on the host's network are for privileged namespaces only (Pod Security Standards).
  const labels = { ...OURS, 'pod-security.kubernetes.io/enforce': 'privileged' };
  return { apiVersion: 'v1', kind: 'Namespace', metadata: { name, labels } };
}

function isOurs({ metadata }: z.infer<typeof namespaceObject>): boolean {
  return Object.entries(OURS).every(([key, value]) => metadata.labels[key] === value);
}

/** Resolves when it is gone, with all that is in it. */
async function removeNamespace(cluster: Cluster): Promise<void> {
  const { namespace } = cluster.flags;
  for (const deadline = performance.now() + GONE_MS; ; await sleep(POLL_MS)) {
    const found = await cluster.find(cluster.path(), namespaceObject);
    if (!found) return;
    if (!isOurs(found)) return;
    await cluster.client.request('DELETE', cluster.path()).catch((error: unknown) => {
      // 409: it is being removed.
      if (!(error instanceof ApiError) || ![404, 409].includes(error.status ?? 0)) throw error;
    });
    if (performance.now() > deadline) {
      throw new RipstopError(
        `the namespace ${namespace} is not gone after ${GONE_MS / 1000} s; see: kubectl describe namespace ${namespace}`,
      );
    }
  }
}

const podNames = (node: string) => ({ first: `${node}-pod1`, second: `${node}-pod2`, host: `${node}-host` });

/** The pods of one node. They are bound to it, so that a check of some nodes starts no pods on others. */
export function podsOn(node: string, index: number, image: string): object[] {
  const { first, second, host } = podNames(node);
  const pod = (name: string, labels: object, hostNetwork: boolean): object => ({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, labels: { ...OURS, ...labels } },
    spec: {
      nodeName: node,
      hostNetwork,
      restartPolicy: 'Never',
      activeDeadlineSeconds: LIFETIME_SECONDS,
      terminationGracePeriodSeconds: 1,
      automountServiceAccountToken: false,
      enableServiceLinks: false,
      tolerations: [{ operator: 'Exists' }],
      containers: [
        {
          name: CONTAINER,
          image,
          imagePullPolicy: 'IfNotPresent',
          command: ['sleep', String(LIFETIME_SECONDS)],
          securityContext: {
            allowPrivilegeEscalation: false,
            readOnlyRootFilesystem: true,
            // NET_RAW: to send ICMP.
            capabilities: { drop: ['ALL'], add: ['NET_RAW'] },
            seccompProfile: { type: 'RuntimeDefault' },
          },
          resources: { requests: { cpu: '10m', memory: '64Mi' } },
        },
      ],
    },
  });
  return [pod(first, { [BACKEND]: String(index) }, false), pod(second, {}, false), pod(host, {}, true)];
}

/** The Service whose only backend is the first pod of a node. */
export function serviceTo(index: number): object {
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { name: `backend${index}`, labels: OURS },
    spec: {
      selector: { [BACKEND]: String(index) },
      ipFamilyPolicy: 'PreferDualStack',
      ports: ['TCP', 'UDP'].map((protocol) => ({ name: protocol.toLowerCase(), protocol, port: PORT })),
    },
  };
}

const isRunning = ({ phase, podIPs }: PodStatus): boolean => phase === 'Running' && podIPs.length > 0;
/** Kubernetes' reasons why a container does not start, and will not soon. */
const HOPELESS = [
  'ErrImagePull',
  'ImagePullBackOff',
  'ErrImageNeverPull',
  'InvalidImageName',
  'CreateContainerConfigError',
];
const hasEnded = ({ phase, containerStatuses }: PodStatus): boolean =>
  phase === 'Failed' ||
  phase === 'Succeeded' ||
  containerStatuses.some(({ state }) => HOPELESS.includes(state.waiting?.reason ?? ''));

/** Wait until so many pods run, or some have had their time. @returns their status, by name */
async function waitForPods(
  cluster: Cluster,
  count: number,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, PodStatus>> {
  for (const deadline = performance.now() + START_MS; ; await sleep(POLL_MS)) {
    signal.throwIfAborted();
    const { items } = podList.parse(await cluster.client.request('GET', cluster.path('/pods')));
    const statuses = items.map(({ status }) => status);
    const isSettled = statuses.length >= count && statuses.every((one) => isRunning(one) || hasEnded(one));
    if (isSettled || performance.now() > deadline)
      return new Map(items.map(({ metadata, status }) => [metadata.name, status]));
  }
}

function sortOut(
  nodes: readonly Observed[],
  services: readonly string[][],
  statuses: ReadonlyMap<string, PodStatus>,
): { ready: CheckNode[]; notReady: Unready[] } {
  const ready: CheckNode[] = [];
  const notReady: Unready[] = [];
  for (const [i, { name, addresses }] of nodes.entries()) {
    const { first, second, host } = podNames(name);
    const idle = [first, second, host].find((pod) => !isRunning(statuses.get(pod) ?? NO_STATUS));
    if (idle !== undefined) {
      notReady.push({ node: name, why: `the pod ${idle} does not start: ${whyIdle(statuses.get(idle))}` });
      continue;
    }
    const placeOf = (pod: string): Place => ({
      name: pod,
      node: name,
      addresses: statuses.get(pod)!.podIPs.map(({ ip }) => ip),
    });
    ready.push({
      name,
      node: name,
      addresses,
      pods: [placeOf(first), placeOf(second)],
      clusterIps: services[i] ?? [],
      hasServices: true,
      ripstop: false,
    });
  }
  return { ready, notReady };
}

const NO_STATUS: PodStatus = { phase: 'Pending', podIPs: [], containerStatuses: [] };

function whyIdle({ phase, reason, containerStatuses }: PodStatus = NO_STATUS): string {
  const waiting = containerStatuses.flatMap(({ state }) => state.waiting ?? [])[0];
  if (waiting?.message) return waiting.message;
  const state = waiting?.reason ?? reason ?? phase;
  return `it is ${state} after ${START_MS / 1000} s; why tells kubectl describe pod, with --keep`;
}

async function skippedIn(cluster: Cluster): Promise<Skipped[]> {
  const query = { labelSelector: 'k8s-app=kube-dns' };
  // Who may not look there finds out by trying.
  const dns = await cluster.client
    .request('GET', '/api/v1/namespaces/kube-system/services', { query })
    .then((answer) => anyList.parse(answer).items.length > 0)
    .catch(() => true);
  return [
    { kind: 'fast-path', why: 'in a cluster its agents tell: kubectl ripstop --node NODE status' },
    ...(dns
      ? []
      : [{ kind: 'dns' as const, why: 'kube-system has no Service with the label k8s-app=kube-dns' }]),
  ];
}

/** Start a prober by exec. */
async function startProber({ config, flags }: Cluster, place: Place): Promise<ProberProcess> {
  // Only what exec needs: the package as a whole brings all models of the API into the agent's bundle.
  const { Exec } = await import('@kubernetes/client-node/dist/exec.js');
  const isHost = place.name === place.node;
  const pod = isHost ? podNames(place.node).host : place.name;
  const command = ['ripstop', 'check-prober', ...(isHost ? [] : ['--serve', String(PORT)])];
  const [stdin, stdout, stderr] = [new PassThrough(), new PassThrough(), new PassThrough()];
  let said = '';
  stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
  const { promise: ended, resolve } = Promise.withResolvers<string>();
  const socket = await new Exec(config)
    .exec(flags.namespace, pod, CONTAINER, command, stdout, stderr, stdin, false, (status) =>
      resolve(said || (status.message ?? '')),
    )
    .catch((cause: unknown) => {
      // A failed handshake is an event, not an Error.
      const { message } = cause as { message?: string };
      throw new RipstopError(
        `cannot exec into the pod ${pod}: ${message ?? String(cause)}; it takes ${RIGHTS}`,
        {
          cause,
        },
      );
    });
  socket.on('close', () => resolve(said));
  socket.on('error', (error: unknown) => resolve(errorText(error)));
  return { stdin, stdout, ended };
}
