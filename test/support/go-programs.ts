// SPDX-License-Identifier: Apache-2.0
/**
 * Real programs for the tests, built from their Go modules with the machine's own `go`. This repository has only their
 * names and versions. Each is built once for its version and flags, and cached outside the checkout.
 */
import { createHash } from 'node:crypto';
import {
  cpSync,
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
import { dirname, join } from 'node:path';
import { errorText } from '../../src/errors.ts';
import { run } from '../../src/host/run.ts';

/** One program of a Go module. */
export interface Program {
  /** The name of the executable. */
  readonly name: string;
  readonly module: string;
  readonly version: string;
  /** Import path of its `main`, or of the tested package when `test` is set. */
  readonly main: string;
  /** The program is the package's test binary (`go test -c`). */
  readonly test?: boolean;
  /** Variables that its own release process sets: values by import path and name. */
  readonly variables?: Readonly<Record<string, string>>;
  readonly tags?: string;
  /**
   * The version of the modules in the module's own repository. Its go.mod replaces them by folders, which
   * applies only to the main module.
   */
  readonly staging?: string;
  /** Packages to leave out, which `main` imports only for their side effects. */
  readonly leftOut?: readonly string[];
}

/** Enough for a cold build of kube-apiserver on a loaded machine. */
const BUILD_TIMEOUT_MS = 60 * 60_000;

const goFlags = ['-buildvcs=false', '-mod=mod', '-trimpath', '-p=2'];

/** The cache for what is costly to make, outside the checkout: `${XDG_CACHE_HOME:-~/.cache}/ripstop/PART`. */
export function cacheDir(part: string): string {
  return join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'ripstop', part);
}

/**
 * The path of a program, once {@link buildPrograms} has built it. Its folder is named for a hash of its source and
 * flags.
 */
export function programPath(program: Program): string {
  const hash = createHash('sha256')
    .update(JSON.stringify([program, goFlags]))
    .digest('hex')
    .slice(0, 12);
  return join(cacheDir('programs'), `${program.name}-${hash}`, program.name);
}

/** Why the programs cannot be built here, in one line; undefined when they can, or exist already. */
export async function missingForPrograms(programs: readonly Program[]): Promise<string | undefined> {
  const absent = programs.filter((program) => !existsSync(programPath(program)));
  if (absent.length === 0) return undefined;
  try {
    await go('/', ['version']);
  } catch (error) {
    const names = absent.map(({ name }) => name).join(', ');
    return `there is no Go toolchain to build ${names} with: ${errorText(error)}`;
  }
  for (const program of absent) {
    try {
      await fetchModule(program);
    } catch (error) {
      return `the sources of ${program.name} cannot be had: ${errorText(error)}`;
    }
  }
  return undefined;
}

/**
 * Build the programs that do not exist yet, in this order.
 * @param note gets a line for each program
 * @throws RipstopError when a module cannot be fetched or built
 */
export async function buildPrograms(
  programs: readonly Program[],
  note: (line: string) => void,
): Promise<void> {
  const absent = programs.filter((program) => !existsSync(programPath(program)));
  for (const [index, program] of absent.entries()) {
    const begun = performance.now();
    note(`building ${program.name} ${program.version} (${index + 1} of ${absent.length})`);
    await build(program);
    note(`built ${program.name} in ${((performance.now() - begun) / 1000).toFixed(0)} s`);
  }
}

async function build(program: Program): Promise<void> {
  const { name, module, version, variables = {}, tags } = program;
  mkdirSync(cacheDir('programs'), { recursive: true });
  // Build in another folder and rename: two processes may build at once, and nobody sees an incomplete program.
  const dir = mkdtempSync(join(cacheDir('programs'), 'building-'));
  try {
    const fetched = await fetchModule(program);
    const require = [`module ripstop/test/${name}`, '', 'go 1.26.0', '', `require ${module} ${version}`];
    const replace = await stagingReplacements(program, fetched);
    writeFileSync(join(dir, 'go.mod'), `${[...require, ...replace].join('\n')}\n`);
    const main = mainPackage(program, fetched, dir);
    const set = Object.entries(variables).map(([variable, value]) => `-X ${variable}=${value}`);
    const flags = [
      ...goFlags,
      `-ldflags=${['-s', '-w', ...set].join(' ')}`,
      ...(tags ? [`-tags=${tags}`] : []),
    ];
    // Without vet: for all that e2e.test imports it takes longer than the build.
    const verb = program.test ? ['test', '-c', '-vet=off'] : ['build'];
    await go(dir, [...verb, ...flags, '-o', join(dir, 'built'), main]);
    keep(join(dir, 'built'), programPath(program));
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/**
 * Build a program of this repository, which needs only Go's standard library, if its source has changed.
 * @param source the folder with its go.mod. @returns the path of the program.
 */
export async function buildOwnProgram(name: string, source: string): Promise<string> {
  const text = readdirSync(source).map((file) => readFileSync(join(source, file), 'utf8'));
  const hash = createHash('sha256').update(JSON.stringify(text)).digest('hex').slice(0, 12);
  const target = join(cacheDir('programs'), `${name}-${hash}`, name);
  if (existsSync(target)) return target;
  mkdirSync(cacheDir('programs'), { recursive: true });
  const dir = mkdtempSync(join(cacheDir('programs'), 'building-'));
  try {
    cpSync(source, dir, { recursive: true });
    await go(dir, ['build', ...goFlags, '-ldflags=-s -w', '-o', join(dir, 'built'), '.']);
    keep(join(dir, 'built'), target);
    return target;
  } finally {
    rmSync(dir, { recursive: true });
  }
}

function keep(built: string, target: string): void {
  mkdirSync(dirname(target), { recursive: true });
  renameSync(built, target);
}

/** Go's files for a module: its sources and its go.mod. */
interface Fetched {
  readonly Dir: string;
  readonly GoMod: string;
}

/** A module's sources, from Go's cache or its proxy. @throws RipstopError when it cannot be fetched. */
export async function fetchModule({
  module,
  version,
}: Pick<Program, 'module' | 'version'>): Promise<Fetched> {
  const text = await go('/', ['mod', 'download', '-json', `${module}@${version}`]);
  return JSON.parse(text) as Fetched;
}

/** `replace` lines for the modules that the module's go.mod replaces by folders beside it. */
async function stagingReplacements({ staging }: Program, { GoMod }: Fetched): Promise<string[]> {
  if (staging === undefined) return [];
  const { Replace = [] } = JSON.parse(await go('/', ['mod', 'edit', '-json', GoMod])) as {
    Replace?: { Old: { Path: string }; New: { Path: string } }[];
  };
  return Replace.filter(({ New }) => New.Path.startsWith('./')).map(
    ({ Old }) => `replace ${Old.Path} => ${Old.Path} ${staging}`,
  );
}

/** The package to build: the module's own main, or a copy of it in `dir` without the imports to leave out. */
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
