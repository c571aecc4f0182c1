// SPDX-License-Identifier: Apache-2.0
import { basename, join } from 'node:path';
import type * as k8s from '@kubernetes/client-node';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseNetConf } from '../../src/cluster/net-conf.ts';
import { run } from '../../src/host/run.ts';
import type { TestClient } from '../../src/lab/apiserver/client.support.ts';
import { type Lab, labDown } from '../../src/lab/index.ts';
import { formatCidr } from '../../src/net/ip.ts';
import { commandsOf } from '../support/commands.ts';
import { shapes } from '../support/manifest.ts';
import { peerPath } from '../support/peer-programs.ts';
import { clientOf, labNameFor, realLab } from './support.ts';

/** The real helm installs the chart in the real API server, by the commands of the documents. No kubelet runs pods. */

const ROOT = join(import.meta.dirname, '../..');

let lab: Lab;
let admin: TestClient;

beforeAll(async () => {
  // Its server has got deploy/ripstop.yml already, as by `kubectl apply`.
  lab = await realLab('helm', []);
  admin = clientOf(lab);
});

afterAll(async () => {
  admin?.close();
  await labDown(labNameFor('helm'));
});

/** Run a document's command at the repository's root. */
function type(command: string): Promise<string> {
  expect(command).toMatch(/^helm /);
  const script = `cd "$0" && helm() { "$HELM" "$@"; } && ${command}`;
  const env = {
    PATH: process.env['PATH'] ?? '',
    HOME: lab.dir,
    HELM: peerPath('helm'),
    KUBECONFIG: join(lab.dir, 'kubeconfig'),
  };
  return run('bash', ['-c', script, ROOT], { env });
}

async function daemonSet(namespace: string, name: string): Promise<k8s.V1DaemonSet | undefined> {
  const { code, body } = await admin.get(`/apis/apps/v1/namespaces/${namespace}/daemonsets/${name}`);
  return code === 200 ? (body as unknown as k8s.V1DaemonSet) : undefined;
}

const images = ({ spec }: k8s.V1DaemonSet) => {
  const { initContainers = [], containers } = spec!.template.spec!;
  return [...initContainers, ...containers].map(({ name }) => name);
};

describe('deploy/BOOST-K3S.md, with helm', () => {
  const boosted = () => daemonSet('kube-ripstop-boost', 'kube-ripstop-boost');
  const [install, ...back] = [
    ...commandsOf('Or with helm', 'BOOST-K3S.md'),
    ...commandsOf('installed it with helm', 'BOOST-K3S.md'),
  ].filter((command) => command.startsWith('helm'));

  it('installs the agents', async () => {
    await type(install!);
    expect(images((await boosted())!)).toEqual(['prepare-node', 'ripstop']);
  });

  it('lets uninstall take their place, and takes the rest away', async () => {
    const [unboost, uninstall] = back as [string, string];
    await type(unboost);
    expect(images((await boosted())!)).toEqual(['uninstall', 'done']);
    await type(uninstall);
    expect(await boosted()).toBeUndefined();
    expect((await admin.get('/apis/rbac.authorization.k8s.io/v1/clusterroles/ripstop-boost')).code).toBe(404);
  });
});

describe('deploy/README.md, "With helm"', () => {
  const [install] = commandsOf('## With helm') as [string];
  const netConf = async () => {
    const path = '/api/v1/namespaces/kube-ripstop/configmaps/kube-ripstop-cfg';
    const { data } = (await admin.get(path)).body as unknown as k8s.V1ConfigMap;
    return parseNetConf(data!['net-conf.json']!);
  };

  it('takes over what kubectl has applied, if it is told to', async () => {
    await expect(type(install)).rejects.toThrow(/ownership|exists/);
    await type(`${install} --take-ownership --force-conflicts`);
    expect(formatCidr((await netConf()).network!)).toBe('10.42.0.0/16');
  });

  it.each(
    shapes.flatMap(({ values, ...shape }) =>
      values.map((file) => ({ file, name: basename(file), ...shape })),
    ),
  )('has values in $name that the API server accepts', async ({ file, network, confDir, binDir }) => {
    await type(`helm upgrade ripstop deploy/chart/ripstop --values ${file} --force-conflicts`);
    expect(formatCidr((await netConf()).network!)).toBe(network);
    const { spec } = (await daemonSet('kube-ripstop', 'kube-ripstop-ds'))!;
    const paths = spec!.template.spec!.volumes!.map(({ hostPath }) => hostPath?.path);
    expect(paths).toEqual(expect.arrayContaining([confDir, binDir]));
  });
});
