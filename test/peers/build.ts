// SPDX-License-Identifier: Apache-2.0
/**
 * The real peers, built from their Go modules with the machine's own `go`: nothing of them is in this repository but the
 * names and versions below. Built once for each set of versions, cached outside of the checkout.
 */
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { errorText } from '../../src/errors.ts';
import { run } from '../../src/host/run.ts';

/** One program of a Go module. */
interface Program {
  readonly module: string;
  readonly version: string;
  /** Import path of its `main`. */
  readonly main: string;
  /** Variables of the program that its own release process sets: import path and name → value. */
  readonly variables?: Readonly<Record<string, string>>;
  /**
   * The version of the modules that live in the module's own repository: its go.mod replaces them by folders there, which
   * only hold for the main module.
   */
  readonly staging?: string;
  /** Packages that `main` imports only for their side effects, and that are left out. */
  readonly leftOut?: readonly string[];
}

const KUBERNETES = '1.36.3';

export const programs = {
  etcd: {
    // The release that this kube-apiserver's go.mod has the client of. (With Debian 12's 3.4 watches with
    // sendInitialEvents fail: it cannot be asked how far it is.)
    module: 'go.etcd.io/etcd/server/v3',
    version: 'v3.6.8',
    main: 'go.etcd.io/etcd/server/v3',
  },
  flannel: {
    // The plugin as it last was among the reference plugins; it moved into a repository of its own afterwards.
    module: 'github.com/containernetworking/plugins',
    version: 'v0.9.1',
    main: 'github.com/containernetworking/plugins/plugins/meta/flannel',
  },
  flanneld: {
    module: 'github.com/flannel-io/flannel',
    version: 'v0.28.4',
    main: 'github.com/flannel-io/flannel',
    variables: { 'github.com/flannel-io/flannel/pkg/version.Version': 'v0.28.4' },
    // A backend for one cloud, whose SDK not every module proxy has, and one that is partly written in C.
    leftOut: [
      'github.com/flannel-io/flannel/pkg/backend/tencentvpc',
      'github.com/flannel-io/flannel/pkg/backend/udp',
    ],
  },
  'kube-apiserver': {
    module: 'k8s.io/kubernetes',
    version: `v${KUBERNETES}`,
    main: 'k8s.io/kubernetes/cmd/kube-apiserver',
    variables: {
      'k8s.io/component-base/version.gitVersion': `v${KUBERNETES}`,
      'k8s.io/component-base/version.gitMajor': KUBERNETES.split('.')[0]!,
      'k8s.io/component-base/version.gitMinor': KUBERNETES.split('.')[1]!,
    },
    staging: `v0.${KUBERNETES.slice(2)}`,
  },
} as const satisfies Record<string, Program>;

export type ProgramName = keyof typeof programs;

/** A cold build of kube-apiserver on a loaded machine. */
const BUILD_TIMEOUT_MS = 60 * 60_000;

/** Where the programs are, or will be once {@link buildPeers} has built them. */
export function peerPath(name: ProgramName): string {
  return join(cacheDir(), 'bin', name);
}

/** Part of its name is a hash of what is built and how. */
function cacheDir(): string {
  const hash = createHash('sha256')
    .update(JSON.stringify([programs, goFlags]))
    .digest('hex')
    .slice(0, 12);
  return join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'ripstop', 'peers', hash);
}

/** Why the peers cannot be had here: one line, or undefined when they can, or are there already. */
export async function missingForPeers(): Promise<string | undefined> {
  const wanted = allNames().filter((name) => !existsSync(peerPath(name)));
  if (wanted.length === 0) return undefined;
  try {
    await go('/', ['version']);
  } catch (error) {
    return `there is no Go toolchain to build ${wanted.join(', ')} with: ${errorText(error)}`;
  }
  for (const name of wanted) {
    try {
      await fetchModule(programs[name]);
    } catch (error) {
      return `the sources of ${name} cannot be had: ${errorText(error)}`;
    }
  }
  return undefined;
}

/**
 * Build what is not there yet, the quick ones first.
 * @param note is told in one line what is done.
 * @throws RipstopError when a module cannot be had or does not build.
 */
export async function buildPeers(note: (line: string) => void): Promise<void> {
  mkdirSync(join(cacheDir(), 'bin'), { recursive: true });
  for (const name of allNames()) {
    if (existsSync(peerPath(name))) continue;
    const begun = performance.now();
    note(`building ${name} ${programs[name].version}`);
    await build(name);
    note(`built ${name} in ${((performance.now() - begun) / 1000).toFixed(0)} s`);
  }
}

function allNames(): ProgramName[] {
  return Object.keys(programs) as ProgramName[];
}

const goFlags = ['-buildvcs=false', '-mod=mod', '-trimpath', '-p=2'];

async function build(name: ProgramName): Promise<void> {
  const program: Program = programs[name];
  const { module, version, variables = {} } = program;
  // A folder of its own, and a rename: of two that build at once, each finishes, and nobody sees half a program.
  const dir = mkdtempSync(join(cacheDir(), `${name}-`));
  try {
    const fetched = await fetchModule(program);
    const require = [
      `module ripstop/test/peers/${name}`,
      '',
      'go 1.26.0',
      '',
      `require ${module} ${version}`,
    ];
    const replace = await stagingReplacements(program, fetched);
    writeFileSync(join(dir, 'go.mod'), `${[...require, ...replace].join('\n')}\n`);
    const main = mainPackage(program, fetched, dir);
    const set = Object.entries(variables).map(([variable, value]) => `-X ${variable}=${value}`);
    const ldflags = ['-s', '-w', ...set].join(' ');
    await go(dir, ['build', ...goFlags, `-ldflags=${ldflags}`, '-o', join(dir, name), main]);
    renameSync(join(dir, name), peerPath(name));
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** Where Go keeps a module: its sources and its go.mod. */
interface Fetched {
  readonly Dir: string;
  readonly GoMod: string;
}

async function fetchModule({ module, version }: Program): Promise<Fetched> {
  return JSON.parse(await go('/', ['mod', 'download', '-json', `${module}@${version}`])) as Fetched;
}

/** `replace` lines for the modules that the module's own go.mod takes from folders beside it. */
async function stagingReplacements({ staging }: Program, { GoMod }: Fetched): Promise<string[]> {
  if (staging === undefined) return [];
  const { Replace = [] } = JSON.parse(await go('/', ['mod', 'edit', '-json', GoMod])) as {
    Replace?: { Old: { Path: string }; New: { Path: string } }[];
  };
  return Replace.filter(({ New }) => New.Path.startsWith('./')).map(
    ({ Old }) => `replace ${Old.Path} => ${Old.Path} ${staging}`,
  );
}

/** What to build: the module's own main, or, where something is left out, a copy of it in `dir` without those imports. */
function mainPackage({ main, module, leftOut }: Program, { Dir }: Fetched, dir: string): string {
  if (leftOut === undefined) return main;
  const folder = join(Dir, main.slice(module.length));
  for (const file of readdirSync(folder).filter((one) => one.endsWith('.go') && !one.endsWith('_test.go'))) {
    const lines = readFileSync(join(folder, file), 'utf8').split('\n');
    const kept = lines.filter((line) => !leftOut.some((path) => line.trim() === `_ "${path}"`));
    writeFileSync(join(dir, file), kept.join('\n'));
  }
  return '.';
}

async function go(dir: string, args: readonly string[]): Promise<string> {
  return run('nice', ['env', '-C', dir, 'go', ...args], {
    env: { ...process.env, CGO_ENABLED: '0', GOFLAGS: '', GOWORK: 'off' },
    timeoutMs: BUILD_TIMEOUT_MS,
  });
}
