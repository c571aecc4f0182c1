// SPDX-License-Identifier: Apache-2.0
import { type ChildProcess, spawn } from 'node:child_process';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { commandIn } from '../../src/host/run.ts';
import { issueCertificates, kubeconfigText } from '../../src/lab/apiserver/index.ts';
import { commandLine, netnsPath, processesIn, signalProcess } from '../../src/lab/netns.ts';
import { peerPath } from '../support/peer-programs.ts';
import { enterGroup, makeGroup } from './cgroups.ts';
import { kubectl } from './kubectl.ts';
import {
  API_SERVICE,
  caFile,
  type Cluster,
  groupOf,
  kubeconfigOf,
  netnsOf,
  pki,
  POD_NETWORKS,
  SERVICE_NETWORKS,
  underlayAddresses,
} from './state.ts';
import { until } from './until.ts';

/** etcd, kube-apiserver, controller manager and scheduler, in a namespace beside the nodes'. */

const PORT = 6443;
/** The largest number of nodes, whose tokens must be known before the API server starts. */
const MAX_NODES = 5;

export type ControlPlanePart = 'etcd' | 'kube-apiserver' | 'kube-controller-manager' | 'kube-scheduler';

/** The clients of the API server: user and group by the name of the kubeconfig. */
const USERS: Readonly<Record<string, readonly [user: string, group: string]>> = {
  admin: ['admin', 'system:masters'],
  'kube-controller-manager': ['system:kube-controller-manager', ''],
  'kube-scheduler': ['system:kube-scheduler', ''],
  'kube-proxy': ['system:kube-proxy', ''],
  ...Object.fromEntries(
    Array.from({ length: MAX_NODES }, (_, i): [string, [string, string]] => [
      `node${i + 1}`,
      [`system:node:node${i + 1}`, 'system:nodes'],
    ]),
  ),
};

export async function createCredentials(cluster: Cluster): Promise<void> {
  mkdirSync(join(cluster.dir, 'pki'), { mode: 0o700 });
  const addresses = underlayAddresses('cp', cluster.options);
  const sans = ['kubernetes', 'kubernetes.default', 'kubernetes.default.svc', 'localhost'];
  const server = await issueCertificates([...sans, '127.0.0.1', API_SERVICE, ...addresses]);
  const kubeletClient = await server.issueClient('kube-apiserver-kubelet-client', ['system:masters']);
  const proxyClient = await server.issueClient('front-proxy-client');
  const accounts = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const tokens = Object.entries(USERS).map(([name, [user, group]]) => ({
    name,
    user,
    group,
    token: randomUUID(),
  }));
  const files = {
    'ca.pem': server.caPem,
    'server.pem': server.certPem,
    'server.key': server.keyPem,
    'kubelet-client.pem': kubeletClient.certPem,
    'kubelet-client.key': kubeletClient.keyPem,
    'proxy-client.pem': proxyClient.certPem,
    'proxy-client.key': proxyClient.keyPem,
    'accounts.key': accounts.privateKey.export({ type: 'pkcs8', format: 'pem' }),
    'accounts.pub': accounts.publicKey.export({ type: 'spki', format: 'pem' }),
    'tokens.csv': tokens.map(({ user, group, token }) => `${token},${user},${user},"${group}"\n`).join(''),
    ...Object.fromEntries(
      tokens.map(({ name, token }) => [
        `${name}.kubeconfig`,
        kubeconfigText(`https://${addresses[0]}:${PORT}`, server.caPem, token),
      ]),
    ),
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(pki(cluster, name), text, { mode: 0o600 });
}

const servicesOf = ({ options }: Cluster): string =>
  SERVICE_NETWORKS.slice(0, options.dualStack ? 2 : 1).join(',');

/** The credentials of a client of the API server that also serves metrics. */
function asClient(cluster: Cluster, part: ControlPlanePart): Record<string, string> {
  const kubeconfig = kubeconfigOf(cluster, part);
  return {
    kubeconfig,
    'authentication-kubeconfig': kubeconfig,
    'authorization-kubeconfig': kubeconfig,
    'leader-elect': 'false',
  };
}

const flagsOf: Record<ControlPlanePart, (cluster: Cluster) => Record<string, string>> = {
  etcd: (cluster) => ({
    'data-dir': join(cluster.dir, 'etcd'),
    'listen-client-urls': 'http://127.0.0.1:2379',
    'advertise-client-urls': 'http://127.0.0.1:2379',
    'listen-peer-urls': 'http://127.0.0.1:2380',
    'log-level': 'warn',
    // Nothing here must survive a crash of the machine.
    'unsafe-no-fsync': 'true',
  }),
  'kube-apiserver': (cluster) => ({
    'etcd-servers': 'http://127.0.0.1:2379',
    'advertise-address': underlayAddresses('cp', cluster.options)[0]!,
    'secure-port': String(PORT),
    'service-cluster-ip-range': servicesOf(cluster),
    'client-ca-file': caFile(cluster),
    'tls-cert-file': pki(cluster, 'server.pem'),
    'tls-private-key-file': pki(cluster, 'server.key'),
    'token-auth-file': pki(cluster, 'tokens.csv'),
    'service-account-issuer': 'https://kubernetes.default.svc.cluster.local',
    'service-account-key-file': pki(cluster, 'accounts.pub'),
    'service-account-signing-key-file': pki(cluster, 'accounts.key'),
    'kubelet-client-certificate': pki(cluster, 'kubelet-client.pem'),
    'kubelet-client-key': pki(cluster, 'kubelet-client.key'),
    'kubelet-preferred-address-types': 'InternalIP',
    'requestheader-client-ca-file': caFile(cluster),
    'requestheader-allowed-names': 'front-proxy-client',
    'requestheader-username-headers': 'X-Remote-User',
    'requestheader-group-headers': 'X-Remote-Group',
    'requestheader-extra-headers-prefix': 'X-Remote-Extra-',
    'proxy-client-cert-file': pki(cluster, 'proxy-client.pem'),
    'proxy-client-key-file': pki(cluster, 'proxy-client.key'),
    'authorization-mode': 'Node,RBAC',
    'enable-admission-plugins': 'NodeRestriction',
    'allow-privileged': 'true',
    profiling: 'false',
  }),
  'kube-controller-manager': (cluster) => ({
    ...asClient(cluster, 'kube-controller-manager'),
    'allocate-node-cidrs': 'true',
    'cluster-cidr': POD_NETWORKS.slice(0, cluster.options.dualStack ? 2 : 1).join(','),
    'service-cluster-ip-range': servicesOf(cluster),
    'service-account-private-key-file': pki(cluster, 'accounts.key'),
    'root-ca-file': caFile(cluster),
    'use-service-account-credentials': 'true',
  }),
  'kube-scheduler': (cluster) => asClient(cluster, 'kube-scheduler'),
};

/** Start the whole control plane. Resolves when the API server is ready. */
export async function startControlPlane(cluster: Cluster): Promise<void> {
  makeGroup(groupOf(cluster.options.name, 'cp'));
  startPart(cluster, 'etcd');
  startPart(cluster, 'kube-apiserver');
  await apiServerReady(cluster);
  startPart(cluster, 'kube-controller-manager');
  startPart(cluster, 'kube-scheduler');
}

/** Resolves when the API server answers that it is ready. */
export async function apiServerReady(cluster: Cluster): Promise<void> {
  await until('the API server is ready', 120_000, () => kubectl(cluster, 'get', '--raw', '/readyz'), {
    hint: () => readFileSync(logOf(cluster, 'kube-apiserver'), 'utf8').slice(-2000),
  });
}

/** Start one part, in the background. */
export function startPart(cluster: Cluster, part: ControlPlanePart): void {
  const flags = Object.entries(flagsOf[part](cluster)).map(([flag, value]) => `--${flag}=${value}`);
  mkdirSync(join(cluster.dir, 'logs'), { recursive: true });
  spawnInControlPlane(cluster, logOf(cluster, part), peerPath(part), ...flags).unref();
}

/**
 * Start a program in the control plane's namespace and the cluster's control group, so that it ends with the cluster.
 */
export function spawnInControlPlane(
  cluster: Cluster,
  logFile: string,
  program: string,
  ...args: readonly string[]
): ChildProcess {
  const inGroup = `${enterGroup(groupOf(cluster.options.name, 'cp'))} && exec "$@"`;
  const netns = netnsPath(netnsOf(cluster, 'cp'));
  const log = openSync(logFile, 'a');
  try {
    return spawn('sh', ['-c', inGroup, 'sh', ...commandIn(netns, program, args)], {
      detached: true,
      stdio: ['ignore', log, log],
    });
  } finally {
    closeSync(log);
  }
}

/** Kill one part, as if its process had crashed. */
export function killPart(cluster: Cluster, part: ControlPlanePart): void {
  const pids = processesIn([netnsOf(cluster, 'cp')]).filter((pid) => commandLine(pid)[0] === peerPath(part));
  if (pids.length === 0) throw new Error(`${part} does not run`);
  for (const pid of pids) signalProcess(pid, 'SIGKILL');
}

const logOf = (cluster: Cluster, part: ControlPlanePart): string => join(cluster.dir, 'logs', `${part}.log`);

/**
 * The command that runs one of a node's programs in the control plane's namespace, a host outside the cluster without
 * Services.
 * @returns the arguments of `run`
 */
export function commandInControlPlane(
  cluster: Cluster,
  name: string,
  ...argv: string[]
): [program: string, argv: string[], options: { netns: string }] {
  return [join(cluster.nodes[0]!.disk, 'bin', name), argv, { netns: netnsPath(netnsOf(cluster, 'cp')) }];
}
