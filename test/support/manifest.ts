// SPDX-License-Identifier: Apache-2.0
/** deploy/ripstop.yml with an operator's edits, and its effect on a node. */
import { globSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type * as k8s from '@kubernetes/client-node';
import { loadAll } from 'js-yaml';
import { installConflist } from '../../src/cni/conflist.ts';
import { run } from '../../src/host/run.ts';

const DEPLOY = join(import.meta.dirname, '../../deploy');

export const manifest = readFileSync(join(DEPLOY, 'ripstop.yml'), 'utf8');
/** Install ripstop beside a running flannel, and take it off again. */
export const boostManifest = readFileSync(join(DEPLOY, 'boost.yml'), 'utf8');
export const unboostManifest = readFileSync(join(DEPLOY, 'unboost.yml'), 'utf8');
export const readme = readFileSync(join(DEPLOY, 'README.md'), 'utf8');

export interface Manifest {
  namespace: k8s.V1Namespace;
  account: k8s.V1ServiceAccount;
  role: k8s.V1ClusterRole;
  binding: k8s.V1ClusterRoleBinding;
  /** Policies for an agent's changes, each with its binding. */
  policies: [
    node: k8s.V1ValidatingAdmissionPolicy,
    nodeBinding: k8s.V1ValidatingAdmissionPolicyBinding,
    events: k8s.V1ValidatingAdmissionPolicy,
    eventsBinding: k8s.V1ValidatingAdmissionPolicyBinding,
  ];
  config: k8s.V1ConfigMap;
  daemonSet: k8s.V1DaemonSet;
}

/** @throws Error when its documents are not these, in this order. */
export function parseManifest(text: string): Manifest {
  const documents = loadAll(text) as { kind: string }[];
  const kinds = documents.map(({ kind }) => kind).join(' ');
  const policy = 'ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding';
  if (
    kinds !==
    `Namespace ServiceAccount ClusterRole ClusterRoleBinding ${policy} ${policy} ConfigMap DaemonSet`
  )
    throw new Error(`the manifest consists of ${kinds}`);
  const [namespace, account, role, binding] = documents;
  const [config, daemonSet] = documents.slice(-2);
  const policies = documents.slice(4, -2);
  return { namespace, account, role, binding, policies, config, daemonSet } as Manifest;
}

/** The arguments of each `sed` in the README that edits the manifest before kubectl. */
const edits: readonly (readonly string[])[] = [
  ...readme.matchAll(/^ *sed ((?:-e '[^']+'[\s\\]*)+)deploy\/ripstop\.yml \| kubectl/gm),
].map((match) => [...(match[1] ?? '').matchAll(/'([^']+)'/g)].flatMap((edit) => ['-e', edit[1] ?? '']));

const rollsBack = (edit: readonly string[]): boolean => edit.some((one) => one.includes('uninstall'));
/** The edits for a kind of cluster. */
export const readmeEdits = edits.filter((edit) => !rollsBack(edit));
/** The edit that restores flannel. */
export const rollBackEdit = edits.find(rollsBack) ?? [];

/** The manifest, optionally after an edit of the README. */
export function rendered(edit: readonly string[] = []): Promise<string> {
  return run('sed', edit.length > 0 ? edit : ['-n', 'p'], { stdin: manifest });
}

/** A kind of cluster in the README's table. */
export interface Shape {
  cluster: string;
  network: string;
  confDir: string;
  binDir: string;
  /** The files of values for the chart that are for it, by their paths. */
  values: readonly string[];
  /** Its edit of the manifest. */
  edit: readonly string[];
}

/** The rows of the README's table, in the order of the edits. */
export const shapes: readonly Shape[] = [
  ...readme.matchAll(/^\| ([^|]+) \| (\d[\d./]+) \| (\/[^|]+) \| (\/[^|]+) \| (`[^|]+`) \|$/gm),
].map(([, cluster = '', network = '', confDir = '', binDir = '', values = ''], i) => ({
  cluster,
  network,
  confDir,
  binDir,
  values: [...values.matchAll(/`([^`]+)`/g)].map(([, name]) => join(DEPLOY, 'overlays', name!)),
  edit: [[], ...readmeEdits][i] ?? [],
}));

/**
 * Do what the init container `install-cni` does, to a host with its root at `root`, with `image` as the image's
 * directory of built files; and what the agent does to the runtime's configuration. Resolves with the resulting files
 * and their modes.
 */
export async function installInto(
  root: string,
  { config, daemonSet }: Manifest,
  image: string,
): Promise<string[]> {
  const pod = daemonSet.spec!.template.spec!;
  const installer = pod.initContainers!.find(({ name }) => name === 'install-cni')!;
  const configMap = join(root, '.config');
  mkdirSync(configMap, { recursive: true });
  for (const [key, text] of Object.entries(config.data!)) writeFileSync(join(configMap, key), text);
  let script = installer.args!.join('\n').replaceAll('/opt/ripstop/build', image);
  for (const { name, mountPath } of installer.volumeMounts!) {
    const volume = pod.volumes!.find((one) => one.name === name)!;
    const source = volume.hostPath ? join(root, volume.hostPath.path) : configMap;
    if (volume.hostPath?.type === 'DirectoryOrCreate') mkdirSync(source, { recursive: true });
    script = script.replaceAll(mountPath, source);
  }
  await run('sh', ['-c', script], { env: { PATH: process.env['PATH'] ?? '' } });
  const given = pod.containers[0]!.env!.find(({ name }) => name === 'RIPSTOP_CNI_CONF')!.value!;
  const confDir = pod.volumes!.find(({ name }) => name === 'cni-conf')!.hostPath!.path;
  await installConflist({
    source: join(configMap, basename(given)),
    dir: join(root, confDir),
    installed: join(root, '.config/installed'),
    pluginDir: join(root, pod.volumes!.find(({ name }) => name === 'cni-bin')!.hostPath!.path),
  });
  return globSync('**/*', { cwd: root })
    .filter((file) => statSync(join(root, file)).isFile() && !file.startsWith('.config'))
    .map((file) => `/${file} ${(statSync(join(root, file)).mode & 0o777).toString(8)}`)
    .toSorted();
}
