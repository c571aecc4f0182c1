// SPDX-License-Identifier: Apache-2.0
import { afterAll, describe, expect, it } from 'vitest';
import { rebootNode, resumeService, setProxyMode, tryInNode } from '../node.ts';
import { type ClusterNode, PROXY_MODES, type ProxyMode } from '../state.ts';
import { storyCluster } from '../story.ts';
import { at, probeFrom, UNHARMED } from '../traffic.ts';
import { until } from '../until.ts';
import { agentReady, clusterIpOf, nodesReady, podsOf, rolledOut } from '../workload.ts';

/** kube-proxy beside ripstop: in each of its modes, and started before or after it. */

const cluster = storyCluster();
const [node1, node2] = cluster.nodes as [ClusterNode, ClusterNode];
const { proxyMode } = cluster.options;
const other: ProxyMode = PROXY_MODES.find((mode) => mode !== proxyMode)!;

/** The log of the agent's newest container, from the runtime's file: there is no network to ask kubelet. */
const NEWEST_LOG = 'cat "$(ls -t /var/log/pods/kube-ripstop_*/ripstop/*.log | head -n 1)"';

/** Check that every node's pod reaches the Service by all its addresses, and DNS. */
async function servicesAnswer(): Promise<void> {
  const clients = await podsOf(cluster, 'client');
  const service = at(await clusterIpOf(cluster, 'echo'), 70);
  for (const node of [node1, node2]) {
    const client = clients.get(node.name)!;
    const ways = [
      ['connect', service],
      ['udp', service],
      ['connect', at(node1.ips[0]!, 30007)],
      ['udp', at(node2.ips[0]!, 30008)],
      ['connect', at(node2.ips[0]!, 7007)],
      ['connect', 'echo.default.svc.cluster.local:70'],
    ] as const;
    const reports = await Promise.all(
      ways.map(([kind, address]) => probeFrom(cluster, client, kind, address, 20)),
    );
    expect(reports).toMatchObject(ways.map(() => ({ ...UNHARMED, sent: 20 })));
  }
}

describe.each([other, proxyMode])('kube-proxy in mode %s', (mode) => {
  it('takes over from the other mode, and all services answer', async () => {
    for (const node of [node1, node2]) await setProxyMode(cluster, node, mode);
    await until('the services answer', 30_000, async () => {
      await servicesAnswer();
    });
  });
});

describe('a node whose kube-proxy starts after ripstop', () => {
  afterAll(() => resumeService(node2, 'kube-proxy'));

  it('has no network until kube-proxy runs, and the agent says so', async () => {
    await rebootNode(cluster, node2, { off: ['kube-proxy'] });
    const said = await until('the agent tells what it waits for', 120_000, async () => {
      const { stdout } = await tryInNode(node2, 'sh', '-c', NEWEST_LOG);
      return /KUBERNETES_SERVICE_HOST/.test(stdout) && stdout;
    });
    expect(said).toMatch(/https:\/\/10\.96\.0\.1.* cannot be reached.*kube-proxy/);
  });

  it('is ready some seconds after kube-proxy has started', async () => {
    const begun = performance.now();
    await resumeService(node2, 'kube-proxy');
    await agentReady(node2, 60_000);
    expect(performance.now() - begun).toBeLessThan(20_000);
    await nodesReady(cluster);
    for (const name of ['echo', 'client']) await rolledOut(cluster, `daemonset/${name}`);
    await until('the services answer', 60_000, servicesAnswer);
  });
});
