// SPDX-License-Identifier: Apache-2.0
import { dirname, join } from 'node:path';
import { run, type RunResult, tryRun } from '../../src/host/run.ts';
import { netnsPath } from '../../src/lab/netns.ts';
import { peerPath } from '../support/peer-programs.ts';
import { type Cluster, kubeconfigOf, netnsOf } from './state.ts';

/** The argument vector of the real kubectl, as the cluster's administrator. */
export function kubectlCommand(cluster: Cluster, ...args: string[]): [string, ...string[]] {
  return [peerPath('kubectl'), `--kubeconfig=${kubeconfigOf(cluster, 'admin')}`, ...args];
}

const inControlPlane = (cluster: Cluster) => ({
  netns: netnsPath(netnsOf(cluster, 'cp')),
  timeoutMs: 15 * 60_000,
});

/** Its standard output, without the newline at the end. @throws RipstopError when it fails. */
export async function kubectl(cluster: Cluster, ...args: string[]): Promise<string> {
  const [program, ...argv] = kubectlCommand(cluster, ...args);
  return (await run(program, argv, inControlPlane(cluster))).trimEnd();
}

/** The same for what may fail. */
export function tryKubectl(cluster: Cluster, ...args: string[]): Promise<RunResult> {
  const [program, ...argv] = kubectlCommand(cluster, ...args);
  return tryRun(program, argv, inControlPlane(cluster));
}

/** `kubectl ripstop …`: the plugin, with the same kubectl. */
export function kubectlRipstop(cluster: Cluster, ...args: string[]): Promise<string> {
  const plugin = join(import.meta.dirname, '../../deploy/kubectl/kubectl-ripstop');
  const PATH = `${dirname(peerPath('kubectl'))}:${process.env['PATH']}`;
  const env = { ...process.env, PATH, KUBECONFIG: kubeconfigOf(cluster, 'admin') };
  return run(plugin, args, { ...inControlPlane(cluster), env });
}

/** `kubectl apply` of a manifest's text, or of objects. */
export async function apply(cluster: Cluster, manifest: string | readonly object[]): Promise<string> {
  const [program, ...argv] = kubectlCommand(cluster, 'apply', '-f', '-');
  const stdin =
    typeof manifest === 'string'
      ? manifest
      : JSON.stringify({ apiVersion: 'v1', kind: 'List', items: manifest });
  return run(program, argv, { ...inControlPlane(cluster), stdin });
}

/** The object, or list of objects, that `kubectl get … -o json` prints. */
export async function get<T>(cluster: Cluster, ...args: string[]): Promise<T> {
  return JSON.parse(await kubectl(cluster, 'get', '-o', 'json', ...args)) as T;
}
