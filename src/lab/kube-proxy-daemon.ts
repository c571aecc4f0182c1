// SPDX-License-Identifier: Apache-2.0
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { RipstopError } from '../errors.ts';
import { tryRun } from '../host/run.ts';
import { clusterNetwork, familiesOf } from './addresses.ts';
import { startDaemon } from './daemon.ts';
import { commandLine, killAll, netnsPath, processesIn } from './netns.ts';
import type { KubeProxyMode } from './options.ts';
import { type Lab, type NodeState, nodeDir } from './state.ts';

/*
 * The real kube-proxy on a node, where a test provides it (`LabOptions.real`). It reads its Services from the API
 * server.
 */

/** Start the node's kube-proxy. Resolves when it has written its rules. */
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
    // The size of the conntrack table is the whole machine's, so kube-proxy must leave it alone.
    conntrack: { maxPerCore: 0, min: 0 },
  };
  const configFile = join(dir, 'kube-proxy.json');
  writeFileSync(configFile, JSON.stringify(config));
  await startDaemon({
    name: `kube-proxy of ${node.name}`,
    argv: ['nsenter', `--net=${netnsPath(node.netns)}`, '--', programOf(lab), `--config=${configFile}`],
    logFile: join(dir, 'kube-proxy.log'),
    notReady: async () => ((await hasRules(lab, node, mode)) ? undefined : 'it has not written its rules'),
  });
}

/** Stop the node's kube-proxy, if there is one. Its rules stay. */
export async function stopKubeProxyDaemon(lab: Lab, node: NodeState): Promise<void> {
  const program = programOf(lab);
  await killAll(() => processesIn([node.netns]).filter((pid) => commandLine(pid)[0] === program));
}

/**
 * Whether the last rule of each family's table exists. kube-proxy writes a table as a whole, one family after the
 * other.
 */
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
