// SPDX-License-Identifier: Apache-2.0
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type TestNetns, testNode } from '../host/netns.support.ts';
import { run } from '../host/run.ts';

const missing = process.getuid?.() === 0 ? undefined : 'needs root';
if (missing) console.log(`skipped: ${missing}`);

const CLUSTER_IP = '10.43.0.1';
const CHILD = join(import.meta.dirname, 'connecting.support.ts');

interface Report {
  ms: number;
  message: string;
  reason: string;
  nobodyThere: boolean;
  faults: Record<string, number>;
}

describe.skipIf(missing)('a client whose packets reach nobody', () => {
  let dir: string;
  let node: TestNetns;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'ripstop-connecting-'));
    const account = join(dir, 'var/run/secrets/kubernetes.io/serviceaccount');
    await mkdir(account, { recursive: true });
    for (const name of ['token', 'ca.crt']) await writeFile(join(account, name), 'x');
    const kubeconfig = [
      'current-context: c',
      'contexts: [{name: c, context: {cluster: c, user: u}}]',
      'users: [{name: u, user: {token: x}}]',
      `clusters: [{name: c, cluster: {server: "https://${CLUSTER_IP}", insecure-skip-tls-verify: true}}]`,
    ];
    await writeFile(join(dir, 'kubeconfig'), kubeconfig.join('\n'));
    node = await testNode();
  });

  afterAll(async () => {
    await node?.[Symbol.asyncDispose]();
    await rm(dir, { recursive: true });
  });

  async function ask(env: Record<string, string>): Promise<Report> {
    const { PATH = '' } = process.env;
    return JSON.parse(
      await run(process.execPath, [CHILD], { ...node.options, env: { PATH, ...env } }),
    ) as Report;
  }

  const inPod = () => ({
    ROOT: dir,
    KUBERNETES_SERVICE_HOST: CLUSTER_IP,
    KUBERNETES_SERVICE_PORT: '443',
  });

  it('gives a connection 3 s, and says in a pod that kube-proxy may be missing', async () => {
    // The gateway has an address of the link layer, and answers nothing.
    await node.ip('neigh replace 192.168.9.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent');
    const { ms, message, reason } = await ask(inPod());
    expect(ms).toBeGreaterThan(2900);
    expect(ms).toBeLessThan(4500);
    expect(reason).toBe('NoConnection');
    expect(message).toBe(
      `GET /api/v1/nodes/a: https://${CLUSTER_IP} cannot be reached: no connection within 3 s; ` +
        'this is KUBERNETES_SERVICE_HOST, which kube-proxy serves on this node: it may not run yet',
    );
  });

  it('says nothing of kube-proxy where a kubeconfig names the address', async () => {
    const { message } = await ask({ KUBECONFIG: join(dir, 'kubeconfig') });
    expect(message).toMatch(/no connection within 3 s; is the API server up and reachable from this node\?$/);
  });

  it('is told at once where there is no route, and tries again soon as long as it has seen nothing', async () => {
    await node.ip('route del default');
    const { ms, message, nobodyThere, faults } = await ask({ ...inPod(), WATCH_MS: '2000' });
    expect(ms).toBeLessThan(1000);
    expect({ nobodyThere, message }).toEqual({
      nobodyThere: true,
      message: expect.stringMatching(/ENETUNREACH.*kube-proxy/),
    });
    // Doubling from 20 ms on there would be seven.
    expect(faults['unreachable']).toBeGreaterThan(15);
  });
});
