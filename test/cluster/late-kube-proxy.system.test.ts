// SPDX-License-Identifier: Apache-2.0
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { load } from 'js-yaml';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Status } from '../../src/cli/status.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { gatewayAddress, KUBERNETES_SERVICE_IP } from '../../src/lab/addresses.ts';
import { nodeDir, type NodeState, stopAgent } from '../../src/lab/index.ts';
import { ripstopCommand } from '../../src/lab/ripstop.ts';
import { type Background, startIn } from '../../src/lab/lab.support.ts';
import { cniStatus, inNetns, missingHere, ripstopJson, timeUntil, useLab } from './support.ts';

/** A pending connection may have to time out first (3 s), and the first pass takes a while on a busy machine. */
const A_FEW_SECONDS_MS = 8_000;

describe.skipIf(missingHere())('an agent in a pod that starts before kube-proxy', () => {
  const cluster = useLab('late', { nodes: 2, pods: 1 });
  const node = (): NodeState => cluster.nodes[0]!;
  const lastKnown = (): string => join(nodeDir(cluster.lab, node()), 'state/last-known.json');
  let agent: Background | undefined;
  /** The files of a pod below /run/secrets/kubernetes.io. */
  let account: string;

  beforeAll(async () => {
    await stopAgent(cluster.lab, node());
    account = join(cluster.lab.dir, 'serviceaccount');
    mkdirSync(account);
    const { clusters, users } = load(readFileSync(join(cluster.lab.dir, 'node.kubeconfig'), 'utf8')) as {
      clusters: [{ cluster: Record<string, string> }];
      users: [{ user: { token: string } }];
    };
    const ca = Buffer.from(clusters[0].cluster['certificate-authority-data']!, 'base64');
    writeFileSync(join(account, 'ca.crt'), ca);
    writeFileSync(join(account, 'token'), users[0].user.token);
  });

  afterEach(async () => {
    await agent?.stop();
    agent = undefined;
    await tryRun('nft', ['delete table ip kube-proxy'], inNetns(node()));
  });

  /** Start an agent with the service account and the environment of a pod, and no kubeconfig. */
  function startInPod(): Background {
    const [program, ...args] = ripstopCommand(cluster.lab, node(), 'agent');
    args.splice(args.indexOf('--kubeconfig'), 2);
    // Its own /run, with what the agent needs of the host's.
    const inPod = [
      'set -e; old=$(mktemp -d); mount --rbind /run $old; mount -t tmpfs none /run',
      'mkdir -p /run/netns /run/ripstop-lab /run/secrets/kubernetes.io/serviceaccount',
      'for one in netns ripstop-lab; do mount --rbind $old/$one /run/$one; done',
      `cp ${account}/* /run/secrets/kubernetes.io/serviceaccount`,
      'umount -l $old; rmdir $old',
      `export KUBERNETES_SERVICE_HOST=${KUBERNETES_SERVICE_IP} KUBERNETES_SERVICE_PORT=443; exec "$@"`,
    ].join('\n');
    const apart = ['--mount', '--propagation', 'private', 'sh', '-c', inPod, 'sh'];
    return startIn(node().netns, 'unshare', ...apart, program, ...args);
  }

  async function startKubeProxy(): Promise<void> {
    const gateway = gatewayAddress(cluster.lab.state.options.underlay);
    const rules = `table ip kube-proxy { chain out { type nat hook output priority -100;
      ip daddr ${KUBERNETES_SERVICE_IP} tcp dport 443 dnat to ${gateway}:6443; }; }`;
    await run('nft', [rules], inNetns(node()));
  }

  const apiOf = async (): Promise<NonNullable<Status['agent']>['api']> =>
    (await ripstopJson<{ agent: NonNullable<Status['agent']> }>(cluster.lab, node(), 'status')).agent.api;

  /** On a busy machine it takes seconds to start, and three more until a connection times out. */
  const says = async (pattern: RegExp): Promise<void> =>
    expect.poll(() => agent?.output(), { timeout: 30_000 }).toMatch(pattern);

  const WHY = /10\.43\.0\.1.* no connection within 3 s; .*kube-proxy/;

  it('on its first start says what it waits for, and is ready a few seconds after kube-proxy', async () => {
    rmSync(lastKnown(), { force: true });
    agent = startInPod();
    await says(/cannot read our own Node yet/);
    await says(WHY);
    await expect.poll(() => cniStatus(cluster.lab, node())).toMatch(WHY);
    const { agent: status } = await ripstopJson<Status>(cluster.lab, node(), 'status');
    expect(status).toMatchObject({ ready: false, notReady: expect.stringMatching(WHY) });

    await new Promise((resolve) => setTimeout(resolve, 5_000));
    await startKubeProxy();
    const ms = await timeUntil(async () => (await cniStatus(cluster.lab, node())) === undefined);
    console.log(`ready ${ms} ms after kube-proxy`);
    expect(ms).toBeLessThan(A_FEW_SECONDS_MS);
    expect(agent.output().match(/cannot read our own Node yet/g)).toHaveLength(1);
    // For the next test.
    await expect.poll(() => existsSync(lastKnown())).toBe(true);
  });

  it('after a reboot runs on the last-known state, says why it has no connection, and soon connects', async () => {
    agent = startInPod();
    await says(/going on with the last-known state/);
    await expect.poll(() => cniStatus(cluster.lab, node())).toBe(undefined);
    await expect
      .poll(apiOf)
      .toMatchObject({ connected: false, synced: false, lastError: expect.stringMatching(WHY) });

    await new Promise((resolve) => setTimeout(resolve, 5_000));
    await startKubeProxy();
    const ms = await timeUntil(async () => (await apiOf()).synced);
    console.log(`in touch ${ms} ms after kube-proxy`);
    expect(ms).toBeLessThan(A_FEW_SECONDS_MS);
  });
});
