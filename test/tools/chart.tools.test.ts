// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type * as k8s from '@kubernetes/client-node';
import { load, loadAll } from 'js-yaml';
import { describe, expect, it } from 'vitest';
import { parseNetConf } from '../../src/cluster/net-conf.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { formatCidr } from '../../src/net/ip.ts';
import { fetchModule, missingForPrograms } from '../support/go-programs.ts';
import { peerPath, programs } from '../support/peer-programs.ts';
import { boostManifest, manifest, readme, rendered, shapes, unboostManifest } from '../support/manifest.ts';

/** What the real helm makes of the chart. */

const CHART = join(import.meta.dirname, '../../deploy/chart/ripstop');
const missing = await missingForPrograms([programs.helm]);

interface Document {
  kind: string;
  metadata: { name: string; namespace?: string };
}

/** Documents by what they are, for a difference that names the one that differs. */
function byName(text: string): Record<string, Document> {
  const documents = (loadAll(text) as (Document | null)[]).filter((one) => one !== null);
  return Object.fromEntries(
    documents.map((one) => [`${one.kind} ${one.metadata.namespace ?? ''}/${one.metadata.name}`, one]),
  );
}

const template = (...flags: string[]): Promise<string> =>
  run(peerPath('helm'), ['template', 'ripstop', CHART, ...flags]);

/** What helm says of wrong values. */
const refusal = async (...flags: string[]): Promise<string> => {
  const { code, stderr } = await tryRun(peerPath('helm'), ['template', 'ripstop', CHART, ...flags]);
  expect(code, stderr).not.toBe(0);
  return stderr;
};

const sets = (...values: string[]): string[] => values.flatMap((value) => ['--set', value]);

function podOf(text: string): k8s.V1PodSpec {
  const found = Object.values(byName(text)).find(({ kind }) => kind === 'DaemonSet') as k8s.V1DaemonSet;
  return found.spec!.template.spec!;
}

const agentOf = (text: string): k8s.V1Container | undefined =>
  podOf(text).containers.find(({ name }) => name === 'ripstop');

/** The objects that values change. */
async function release(...values: string[]) {
  const text = await template(...sets(...values));
  const config = byName(text)['ConfigMap kube-ripstop/kube-ripstop-cfg'] as k8s.V1ConfigMap | undefined;
  const [pod, agent] = [podOf(text), agentOf(text)];
  const containers = [...(pod.initContainers ?? []), ...pod.containers];
  const env = new Map((agent?.env ?? []).map(({ name, value }) => [name, value]));
  return { pod, agent, containers, env, config };
}

/** net-conf.json of a release, as its text and as the agent reads it. */
async function netConf(...values: string[]) {
  const { config } = await release(...values);
  const text = config!.data!['net-conf.json']!;
  return { json: JSON.parse(text) as object, read: parseNetConf(text) };
}

describe.skipIf(missing)(`the chart${missing ? ` (skipped: ${missing})` : ''}`, () => {
  it('has nothing that helm lint complains about', async () => {
    const said = await run(peerPath('helm'), ['lint', '--strict', CHART]);
    expect(said).toContain('1 chart(s) linted, 0 chart(s) failed');
    expect(said).not.toMatch(/\[(?:WARNING|ERROR)\]/);
  });

  it('is ripstop.yml by default, and boost.yml with mode: boost', async () => {
    expect(byName(await template())).toEqual(byName(manifest));
    expect(byName(await template(...sets('mode=boost')))).toEqual(byName(boostManifest));
  });

  it('is boost.yml after unboost.yml with mode: unboost', async () => {
    expect(byName(await template(...sets('mode=unboost')))).toEqual({
      ...byName(boostManifest),
      ...byName(unboostManifest),
    });
  });

  it.each(shapes.flatMap(({ edit, values }) => values.map((file) => [basename(file), file, edit] as const)))(
    'is with %s what the edit of deploy/README.md makes of ripstop.yml',
    async (_, file, edit) => {
      expect(byName(await template('--values', file))).toEqual(byName(await rendered(edit)));
    },
  );

  it('leaves a namespace alone that the release itself is kept in', async () => {
    const kinds = loadAll(await template('--namespace', 'kube-ripstop')) as (Document | null)[];
    expect(kinds.filter((one) => one?.kind === 'Namespace')).toEqual([]);
  });
});

describe.skipIf(missing)('a value', () => {
  it('podCidr, podCidrv6: the cluster networks', async () => {
    const dual = await netConf('podCidr=10.9.0.0/16', 'podCidrv6=fd00:9::/48');
    expect(formatCidr(dual.read.network!)).toBe('10.9.0.0/16');
    expect(formatCidr(dual.read.ipv6Network!)).toBe('fd00:9::/48');
    const v6 = await netConf('podCidr=', 'podCidrv6=fd00:9::/48');
    expect(v6.read).toMatchObject({ enableIpv4: false, enableIpv6: true });
    expect(await refusal(...sets('podCidr='))).toContain('podCidr and podCidrv6 are both empty');
  });

  it('flannel.backend, backendPort, vni, mtu, directRouting: the backend', async () => {
    const { read } = await netConf(
      'flannel.backendPort=4789',
      'flannel.vni=4096',
      'flannel.mtu=1400',
      'flannel.directRouting=true',
    );
    expect(read.backend).toEqual({ type: 'vxlan', vni: 4096, port: 4789, mtu: 1400, directRouting: true });
    expect((await netConf('flannel.backend=host-gw')).json).toMatchObject({ Backend: { Type: 'host-gw' } });
    expect((await netConf('flannel.backend=alloc')).read.backend).toEqual({ type: 'alloc' });
  });

  it('flannel.enableNFTables: the form of the rules that flannel gets back', async () => {
    expect((await netConf('flannel.enableNFTables=true')).json).toMatchObject({ EnableNFTables: true });
  });

  it('flannel.cniBinDir, cniConfDir: the directories of the runtime', async () => {
    const { pod } = await release('flannel.cniBinDir=/a/bin', 'flannel.cniConfDir=/a/net.d');
    const paths = new Map(pod.volumes!.map(({ name, hostPath }) => [name, hostPath?.path]));
    expect([paths.get('cni-bin'), paths.get('cni-conf')]).toEqual(['/a/bin', '/a/net.d']);
  });

  it('flannel.cniConf: what the agent installs there', async () => {
    const conf = join(CHART, 'values.yaml');
    const { flannel } = load(readFileSync(conf, 'utf8')) as { flannel: { cniConf: string } };
    const changed = flannel.cniConf.replace('cbr0', 'cbr1');
    const documents = byName(await template('--set-json', `flannel.cniConf=${JSON.stringify(changed)}`));
    const config = documents['ConfigMap kube-ripstop/kube-ripstop-cfg'] as k8s.V1ConfigMap;
    expect(JSON.parse(config.data!['cni-conf.json']!)).toMatchObject({ name: 'cbr1' });
    expect(await refusal(...sets('flannel.cniConf=flannel'))).toContain('/flannel/cniConf');
  });

  it('flannel.skipCNIConfigInstallation: the agent installs no configuration, and the plugin is there', async () => {
    const { env, pod } = await release('flannel.skipCNIConfigInstallation=true');
    expect([...env.keys()]).toEqual(['RIPSTOP_NODE_NAME', 'RIPSTOP_MODE']);
    expect(pod.initContainers!.map(({ name }) => name)).toContain('install-cni');
  });

  it('image and global.imagePullSecrets: of every container, in every mode', async () => {
    for (const mode of ['cni', 'boost', 'unboost']) {
      const { containers, pod } = await release(
        `mode=${mode}`,
        'image.repository=registry.example/ripstop',
        'image.tag=v1',
        'image.pullPolicy=Always',
        'global.imagePullSecrets[0].name=key',
      );
      const images = containers.map(({ image, imagePullPolicy }) => `${image} ${imagePullPolicy}`);
      expect(new Set(images)).toEqual(new Set(['registry.example/ripstop:v1 Always']));
      expect(pod.imagePullSecrets).toEqual([{ name: 'key' }]);
    }
  });

  it.each(['cni', 'boost'])('flannel.args: flags of the agent, word for word (%s)', async (mode) => {
    const args = ['--iface=eth1', `--iface-regex=^e'n $HOME; "#`];
    const text = await template(
      ...sets(`mode=${mode}`),
      '--set-json',
      `flannel.args=${JSON.stringify(args)}`,
    );
    const [script] = agentOf(text)!.args!;
    const begin = 'mount -o remount,bind,rw /proc/sys; exec ripstop agent';
    expect(script!.startsWith(begin)).toBe(true);
    const seen = await run('sh', ['-c', `printf '%s\\n'${script!.slice(begin.length)}`]);
    expect(seen.trimEnd().split('\n')).toEqual(args);
  });

  it.each(['cni', 'boost'])(
    'flannel.healthz: a port for probes that ask as flannel’s do (%s)',
    async (mode) => {
      const { env, agent } = await release(
        `mode=${mode}`,
        'flannel.healthz.port=8081',
        'flannel.healthz.livenessProbe.periodSeconds=30',
        'flannel.healthz.readinessProbe.initialDelaySeconds=5',
      );
      expect(env.get('RIPSTOP_HEALTHZ_ADDR')).toBe(':8081');
      expect(agent!.livenessProbe).toMatchObject({ periodSeconds: 30, timeoutSeconds: 5 });
      expect(agent!.readinessProbe).toMatchObject({ initialDelaySeconds: 5, httpGet: { port: 9480 } });
    },
  );

  it.each(['cni', 'boost', 'unboost'])(
    'flannel.tolerations, nodeSelector: where pods run (%s)',
    async (mode) => {
      const { pod } = await release(
        `mode=${mode}`,
        'flannel.nodeSelector.network=ripstop',
        'flannel.tolerations[0].effect=NoExecute',
        'flannel.tolerations[0].operator=Exists',
      );
      expect(pod.nodeSelector).toEqual({ 'kubernetes.io/os': 'linux', network: 'ripstop' });
      expect(pod.tolerations).toEqual([{ effect: 'NoExecute', operator: 'Exists' }]);
    },
  );

  it.each(['cni', 'boost'])('flannel.resources: of the agent (%s)', async (mode) => {
    const { agent } = await release(`mode=${mode}`, 'flannel.resources.requests.memory=50Mi');
    expect(agent!.resources).toEqual({
      requests: { cpu: '100m', memory: '50Mi' },
      limits: { memory: '512Mi' },
    });
  });

  it.each([
    ['podCIDR=10.0.0.0/8', "'podCIDR'"],
    ['flannel.backendport=1', "'backendport'"],
    ['flannel.GBP=true', "'GBP'"],
    ['flannel.psk=0', "'psk'"],
    ['flannel.image.tag=v0.28.4', "'image'"],
    ['netpol.enabled=true', "'netpol'"],
    ['flannel.backend=wireguard', "'/flannel/backend'"],
    ['mode=bost', "'/mode'"],
    ['flannel.vni=16777216', "'/flannel/vni'"],
    ['podCidr=everything', "'/podCidr'"],
  ])('that is wrong is refused, and named: %s', async (value, named) => {
    expect(await refusal(...sets(value))).toContain(named);
  });
});

describe.skipIf(missing)("the values of flannel's own chart", () => {
  /** Those that deploy/README.md says not to carry over. */
  const without = [...readme.matchAll(/^\| ((?:`[\w.]+`(?:, )?)+) \| .*\|$/gm)].flatMap(([, cell]) =>
    [...cell!.matchAll(/`((?:flannel|netpol)[\w.]*)`/g)].map(([, name]) => name!),
  );

  it('are taken over, but for those that deploy/README.md names', async () => {
    const { Dir } = await fetchModule(programs.flanneld);
    const text = readFileSync(join(Dir, 'chart/kube-flannel/values.yaml'), 'utf8');
    // Also those that it only has in comments, such as "# GBP: false".
    const shown = text.replaceAll(/^ {2}# ?(\w+: \S+)$/gm, '  $1');
    const { flannel, ...others } = load(shown) as Record<string, Record<string, unknown>>;
    const values = [
      ...Object.entries(others),
      ...Object.entries(flannel!).map(([name, value]) => [`flannel.${name}`, value] as const),
    ];
    const refused: string[] = [];
    for (const [name, value] of values) {
      const json = `${name}=${JSON.stringify(value)}`;
      const { code } = await tryRun(peerPath('helm'), ['template', 'r', CHART, '--set-json', json]);
      if (code !== 0) refused.push(name);
    }
    expect(values.map(([name]) => name)).toContain('flannel.GBP');
    expect(refused.toSorted()).toEqual(without.toSorted());
  });
});
