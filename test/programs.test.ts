// SPDX-License-Identifier: Apache-2.0
/** Every program that is executed must exist on a machine where only set-up has run. */
import { execFileSync, spawnSync } from 'node:child_process';
import { globSync, readFileSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { parseAst } from 'rolldown/parseAst';
import { describe, expect, it } from 'vitest';

const ROOT = join(import.meta.dirname, '..');

/** Functions that execute a program, with the index of the argument that names it. */
const EXECUTING: Readonly<Record<string, number>> = {
  run: 0,
  tryRun: 0,
  commandIn: 1,
  runIn: 1,
  startIn: 1,
  which: 0,
  execFile: 0,
  execFileSync: 0,
  spawn: 0,
  spawnSync: 0,
};

/** Programs that set-up does not install, and why that is all right. */
const OPTIONAL: Readonly<Record<string, string>> = {
  'apt-get': 'test:kernels says that it needs Debian or Ubuntu',
  'apt-config': 'test:fresh says that it needs Debian',
  npm: 'who runs set-up has it',
  git: 'who has a checkout has it; without the history a test skips',
  'qemu-system-x86_64': 'test:kernels installs it',
  ipset: 'test:kernels fetches it for its machines',
  ipvsadm: 'test:kernels fetches it for its machines',
  cc: 'compiles where there is no clang-19',
  clang: 'compiles where there is no clang-19',
};

interface AstNode {
  readonly type: string;
  readonly [key: string]: unknown;
}

function visit(value: unknown, see: (node: AstNode) => void): void {
  if (typeof value !== 'object' || value === null) return;
  if ('type' in value) see(value as AstNode);
  for (const child of Object.values(value)) visit(child, see);
}

/** The programs that a source executes by a literal name. */
function programsIn(source: string): string[] {
  const imported = new Set<unknown>();
  const programs: string[] = [];
  // A method of TestNetns has this name too.
  const hasMethod = source.includes('netns.support.ts');
  visit(parseAst(source, { lang: 'ts' }), (node) => {
    if (node.type === 'ImportSpecifier') imported.add((node['local'] as AstNode)['name']);
    if (node.type !== 'CallExpression') return;
    const callee = node['callee'] as AstNode;
    const method = callee.type === 'MemberExpression' && (callee['property'] as AstNode)['name'];
    const name = method || callee['name'];
    if (typeof name !== 'string' || !(method ? hasMethod && method === 'run' : imported.has(name))) return;
    const program = (node['arguments'] as AstNode[])[EXECUTING[name] ?? -1];
    if (program?.type === 'Literal' && typeof program['value'] === 'string') programs.push(program['value']);
  });
  return programs;
}

function everyProgram(): Map<string, string> {
  const found = new Map<string, string>();
  for (const file of globSync('{src,scripts,bench,test}/**/*.ts', { cwd: ROOT }).toSorted())
    for (const program of programsIn(readFileSync(join(ROOT, file), 'utf8'))) found.set(program, file);
  return found;
}

/** The packages that set-up installs, and those of every Debian. */
function broughtPackages(): Set<string> {
  const listed = /^packages="([^"]*)"/m.exec(readFileSync(join(ROOT, 'scripts/setup.sh'), 'utf8'))![1]!;
  const format = '${Package} ${Essential} ${Priority}\\n';
  const base = execFileSync('dpkg-query', ['-W', '-f', format], { encoding: 'utf8' })
    .split('\n')
    .flatMap((line) => {
      const [name = '', essential, priority] = line.split(' ');
      return essential === 'yes' || priority === 'required' ? [name] : [];
    });
  return new Set([...listed.split(/\s+/), ...base]);
}

const DIRECTORIES = ['/usr/bin', '/usr/sbin', '/bin', '/sbin'];

function pathsOf(program: string): string[] {
  const paths = program.startsWith('/') ? [program] : DIRECTORIES.map((dir) => join(dir, program));
  return paths.flatMap((path) => {
    try {
      return [path, realpathSync(path)]; // An alternative (iptables) is owned under its real name.
    } catch {
      return [path];
    }
  });
}

/** The packages that own each path. */
function ownersOf(paths: readonly string[]): Map<string, string[]> {
  // It fails when no package owns a path, but names the others.
  const { stdout } = spawnSync('dpkg-query', ['-S', ...paths], { encoding: 'utf8' });
  const owners = new Map<string, string[]>();
  for (const line of stdout.split('\n')) {
    const [, packages, path] = /^([^ ]+(?:, [^ ]+)*): (\/.*)$/.exec(line) ?? [];
    if (path)
      owners.set(
        path,
        packages!.split(', ').map((name) => name.replace(/:.*/, '')),
      );
  }
  return owners;
}

const missing = spawnSync('dpkg-query', ['--version']).error ? 'needs dpkg-query' : undefined;
if (missing) console.log(`skipped: ${missing}`);

describe('the programs that are executed', () => {
  it('are found in a source', () => {
    const source = `
      import { run, tryRun as attempt } from './run.ts';
      import { testNode } from './netns.support.ts';
      const local = (name: string): void => {};
      local('not-this'); other.walk('nor-this');
      void run('one', []); void attempt('by-another-name', []);
      const node = await testNode(); await node.run('two', '-x'); run(\`not-told\`, []);`;
    expect(programsIn(source)).toEqual(['one', 'two']);
  });

  it.skipIf(missing)('are installed by set-up, or are optional', { timeout: 30_000 }, () => {
    const programs = everyProgram();
    expect([...programs.keys()]).toEqual(expect.arrayContaining(['ip', 'nft', 'conntrack', 'ping']));
    const brought = broughtPackages();
    const owners = ownersOf([...programs.keys()].flatMap(pathsOf));
    const absent = [...programs].flatMap(([program, file]) => {
      if (program in OPTIONAL) return [];
      const packages = [...new Set(pathsOf(program).flatMap((path) => owners.get(path) ?? []))];
      if (packages.some((name) => brought.has(name))) return [];
      return [`${program} (${file}) comes with ${packages.join(', ') || 'nothing that is installed'}`];
    });
    expect(absent).toEqual([]);
    for (const program of Object.keys(OPTIONAL)) expect([...programs.keys()]).toContain(program);
  });
});
