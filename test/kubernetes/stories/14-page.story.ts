// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../../src/host/run.ts';
import { type Background, startIn } from '../../../src/lab/lab.support.ts';
import { netnsPath } from '../../../src/lab/netns.ts';
import { kubectl, kubectlCommand } from '../kubectl.ts';
import { netnsOf } from '../state.ts';
import { storyCluster } from '../story.ts';
import { podsOf } from '../workload.ts';

/** The agent's page, as deploy/README.md says how to look at it. */

const cluster = storyCluster();
const [node] = cluster.nodes;
const netns = netnsOf(cluster, 'cp');

describe("the page of a node's agent", () => {
  let forward: Background;

  beforeAll(async () => {
    const ofNode = ['-l', 'app=ripstop', '--field-selector', `spec.nodeName=${node!.name}`, '-o', 'name'];
    const agent = await kubectl(cluster, '-n', 'kube-ripstop', 'get', 'pod', ...ofNode);
    const [program, ...argv] = kubectlCommand(cluster, '-n', 'kube-ripstop', 'port-forward', agent, '9480');
    forward = startIn(netns, program, ...argv);
    await forward.prints(/Forwarding from 127\.0\.0\.1:9480/);
  });
  afterAll(async () => void (await forward?.stop()));

  const get = (path: string): Promise<string> => {
    const script = `const r = await fetch('http://127.0.0.1:9480${path}'); process.stdout.write(await r.text())`;
    return run(process.execPath, ['--input-type=module', '-e', script], { netns: netnsPath(netns) });
  };

  it('comes through kubectl port-forward, and with it what it shows', async () => {
    expect(await get('/')).toMatch(/^<!doctype html>[^]*fetch\('overview\.json'/);
    const client = (await podsOf(cluster, 'client')).get(node!.name)!;
    const pods: unknown = expect.objectContaining({ total: expect.any(Number) as unknown });
    const overview: unknown = JSON.parse(await get('/overview.json'));
    expect(overview).toMatchObject({ node: node!.name, mode: 'cni', ready: true, pods });
    expect(JSON.stringify(overview)).toContain(`default/${client.name}`);
  });
});
