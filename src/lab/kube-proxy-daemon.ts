// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { RipstopError } from '../errors.ts';
import { tryRun } from '../host/run.ts';
import { clusterNetwork, familiesOf } from './addresses.ts';
import { commandLine, killAll, netnsPath, processesIn } from './netns.ts';
import type { KubeProxyMode } from './options.ts';
import { type Lab, type NodeState, nodeDir } from './state.ts';

/*
 * The real kube-proxy on a node, where a test brings it along (`LabOptions.real`). It has its Services from the API server.
 */

const READY_TIMEOUT_MS = 30_000;

/** Start the node's kube-proxy, detached, its output appended to kube-proxy.log. Resolves when it has written its rules. */
export async function startKubeProxyDaemon(
  lab: Lab,
  node: NodeState,
  mode: Exclude<KubeProxyMode, 'none'>,
): Promise<void> {
  const { options } = lab.state;
  const dir = nodeDir(lab, node);
  const config = {
    apiVersion: 'kubeproxy.config.k8s.io/v1alpha1',
    kind: 'KubeProxyConfiguration',
    clientConnection: { kubeconfig: join(lab.dir, 'kube-proxy.kubeconfig') },
    clusterCIDR: familiesOf(options)
      .map((family) => clusterNetwork(options, family))
      .join(),
    mode,
    hostnameOverride: node.name,
    // The size of the table is the machine's.
    conntrack: { maxPerCore: 0, min: 0 },
  };
  const configFile = join(dir, 'kube-proxy.json');
  writeFileSync(configFile, JSON.stringify(config));
  const logFile = join(dir, 'kube-proxy.log');
  const log = openSync(logFile, 'a', 0o600);
  const argv = [`--net=${netnsPath(node.netns)}`, '--', programOf(lab), `--config=${configFile}`];
  const child = spawn('nsenter', argv, { detached: true, stdio: ['ignore', log, log] });
  closeSync(log);
  let ended: string | undefined;
  child.on('error', (error) => (ended = error.message));
  child.on('exit', (code, signal) => (ended = `it ended with ${signal ?? `exit code ${code}`}`));
  child.unref();
  const deadline = performance.now() + READY_TIMEOUT_MS;
  while (!(await hasRules(lab, node, mode))) {
    if (performance.now() > deadline) ended ??= `it wrote no rules in ${READY_TIMEOUT_MS / 1000} s`;
    if (ended !== undefined) {
      throw new RipstopError(`kube-proxy of ${node.name} is not ready: ${ended}; its log is ${logFile}`, {
        details: readFileSync(logFile, 'utf8'),
      });
    }
    await sleep(50);
  }
}

/** End the node's kube-proxy, if there is one. What it built stays, as it always does. */
export async function stopKubeProxyDaemon(lab: Lab, node: NodeState): Promise<void> {
  const program = programOf(lab);
  await killAll(() => processesIn([node.netns]).filter((pid) => commandLine(pid)[0] === program));
}

/** Whether the last rule of each family's table is there: kube-proxy writes a table at once, one family after the other. */
async function hasRules(lab: Lab, node: NodeState, mode: Exclude<KubeProxyMode, 'none'>): Promise<boolean> {
  const shown = await Promise.all(
    familiesOf(lab.state.options).map((family) => {
      const netns = netnsPath(node.netns);
      return mode === 'iptables'
        ? tryRun(family === 4 ? 'iptables' : 'ip6tables', ['-t', 'nat', '-S', 'KUBE-SERVICES'], { netns })
        : tryRun('nft', ['list', 'chain', family === 4 ? 'ip' : 'ip6', 'kube-proxy', 'services'], { netns });
    }),
  );
  return shown.every(({ stdout }) => /KUBE-NODEPORTS|@service-nodeports/.test(stdout));
}

function programOf(lab: Lab): string {
  const program = lab.state.options.real?.kubeProxy;
  if (program !== undefined) return program;
  throw new RipstopError(`lab "${lab.name}" was brought up without a real kube-proxy`);
}
