// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, describe, expect, it } from 'vitest';
import type { Report } from '../../../src/check/report.ts';
import { commandIn, run, tryRun } from '../../../src/host/run.ts';
import { netnsPath } from '../../../src/lab/netns.ts';
import { apply, kubectl, tryKubectl } from '../kubectl.ts';
import { type ClusterNode, kubeconfigOf, netnsOf } from '../state.ts';
import { storyCluster } from '../story.ts';
import { until } from '../until.ts';

/** `ripstop check` on a cluster, by its administrator, from a host that is no node. */

const cluster = storyCluster();
const [node1, node2] = cluster.nodes as [ClusterNode, ClusterNode];
const CLI = join(import.meta.dirname, '../../../src/cli/main.ts');
const underlay = { netns: netnsPath(netnsOf(cluster, 'underlay')) };

const command = (...args: string[]) =>
  commandIn(netnsPath(netnsOf(cluster, 'cp')), process.execPath, [
    CLI,
    'check',
    '--kubeconfig',
    kubeconfigOf(cluster, 'admin'),
    ...args,
  ]);

async function check(...args: string[]): Promise<{ code: number; report: Report; stderr: string }> {
  const [program, ...argv] = command('-o', 'json', ...args);
  const { code, stdout, stderr } = await tryRun(program, argv, { timeoutMs: 280_000 });
  return { code, stderr, report: JSON.parse(stdout || '{}') as Report };
}

/** What checks have left in the cluster. */
function left(): Promise<string> {
  const ours = '--selector=app.kubernetes.io/managed-by=ripstop-check';
  return kubectl(cluster, 'get', 'namespaces,pods,services', '--all-namespaces', ours, '-o', 'name');
}

describe('ripstop check', () => {
  const ok = { node1: 'ok', node2: 'ok', dns: 'ok' };

  it('finds nothing where all is right, and leaves nothing behind', async () => {
    const { code, report, stderr } = await check();
    expect({ code, stderr, matrix: report.matrix, failures: report.failures }).toEqual({
      code: 0,
      stderr: '',
      matrix: { node1: ok, node2: ok },
      failures: [],
    });
    const kinds = Map.groupBy(report.results, (one) => (one as { kind: string }).kind);
    expect(Object.fromEntries([...kinds].map(([kind, all]) => [kind, all.length]))).toEqual({
      'pod-to-pod': 12,
      'pod-to-node': 4,
      'node-to-pod': 12,
      service: 8,
      dns: 2,
      mtu: 4,
    });
    expect(await left()).toBe('');
  });

  it('removes everything when it is interrupted', async () => {
    const [program, ...argv] = command();
    const interrupted = spawn(program, argv, { stdio: ['ignore', 'ignore', 'pipe'] });
    const said = text(interrupted.stderr);
    const ended = once(interrupted, 'exit');
    await until('the check has created pods', 60_000, async () => /pod\//.test(await left()));
    interrupted.kill('SIGINT');
    expect([await ended, await said]).toEqual([[130, null], 'ripstop: interrupted by SIGINT\n']);
    expect(await left()).toBe('');
  });

  it('leaves a namespace alone that it has not made', async () => {
    await apply(cluster, [{ apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'somebodys' } }]);
    const { code, stderr } = await check('--namespace', 'somebodys');
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr:
        'ripstop: there is a namespace somebodys that ripstop check has not made, so it is left alone; give another --namespace\n',
    });
    expect((await tryKubectl(cluster, 'delete', 'namespace', 'somebodys')).code).toBe(0);
  });
});

describe('a tunnel that works one way only', () => {
  afterAll(() => run('nft', ['delete', 'table', 'bridge', 'check'], underlay));

  it('is named in its cell, with what to look at next', async () => {
    const drop = `ip saddr ${node1.ips[0]} ip daddr ${node2.ips[0]} udp dport 8472 drop`;
    const table = `table bridge check {\nchain c {\ntype filter hook forward priority 0;\n${drop}\n}\n}\n`;
    await run('nft', ['-f', '-'], { ...underlay, stdin: table });
    const { code, report } = await check('--only', 'pod-to-pod,pod-to-node,mtu');
    expect({ code, matrix: report.matrix }).toEqual({
      code: 3,
      matrix: { node1: { node1: 'ok', node2: 'pod-to-pod' }, node2: { node1: 'answers lost', node2: 'ok' } },
    });
    const [first] = report.failures;
    expect(first).toMatchObject({
      from: 'node1-pod1',
      to: 'node2-pod1',
      cause: expect.stringMatching(/^node1 reaches node2, but its tunnel does not/) as unknown,
      next: 'kubectl ripstop --node node1 doctor',
    });
    expect(await left()).toBe('');
  });
});
