// SPDX-License-Identifier: Apache-2.0
/** The cluster network is where pods are; nodes may lie inside it, and LANs may speak through a node. */
import { beforeAll, describe, expect, it, vi } from 'vitest';
import { run } from '../../src/host/run.ts';
import { restartAgent, startKubeProxy, underlayNetns } from '../../src/lab/index.ts';
import { inNetns, missingHere, ping, podOf, serveIn, talkBoth, useLab } from './support.ts';
import { inUnderlay } from './underlay.ts';

describe.skipIf(missingHere())('a cluster network that contains the nodes (row 81)', () => {
  const cluster = useLab('network', { nodes: 2, pods: 1, network: '172.16.0.0/12' });
  const one = () => cluster.nodes[0]!;
  const two = () => cluster.nodes[1]!;

  it.each([
    ['pods', () => [podOf(one()), podOf(two()).ip] as const],
    ['a pod and another node', () => [podOf(one()), two().ip] as const],
    ['a node and its own pod', () => [one(), podOf(one()).ip] as const],
    ["a node and another's pod", () => [one(), podOf(two()).ip] as const],
  ])('lets %s talk, in one piece or in fragments', async (_, between) => {
    const [from, to] = between();
    await ping(from, to);
    await run('ping', ['-n', '-c', '2', '-i', '.1', '-W', '1', '-s', '3000', to], inNetns(from));
  });

  describe('without masquerading, and with a LAN behind a node (row 80)', () => {
    beforeAll(async () => {
      vi.stubEnv('RIPSTOP_IP_MASQ', 'false');
      for (const node of cluster.nodes) await restartAgent(cluster.lab, node);
      vi.unstubAllEnvs();
      // What the LAN sends goes through node 1; the answers do not. kube-proxy's rules drop such TCP as INVALID.
      for (const node of cluster.nodes) await startKubeProxy(cluster.lab, node, 'none');
      await run('ip', ['route', 'add', '172.16.0.0/22', 'via', one().ip], inUnderlay(cluster.lab));
    });

    it('lets the LAN reach the pods of all nodes', async () => {
      for (const node of cluster.nodes) {
        expect(await run('nft', ['list', 'table', 'inet', 'ripstop'], inNetns(node))).not.toContain(
          'masquerade',
        );
        const args = ['-n', '-c', '3', '-i', '.1', '-W', '1', podOf(node).ip];
        expect(await run('ping', args, inUnderlay(cluster.lab))).toContain(' 3 received');
        await serveIn(podOf(node));
        await talkBoth({ netns: underlayNetns(cluster.lab.name) }, podOf(node).ip);
      }
    });
  });
});
