// SPDX-License-Identifier: Apache-2.0
/**
 * The virtual machine's file system, as the cpio archive that Linux unpacks at boot: programs of this machine with
 * their libraries, Node, this repository's sources and objects, and a kernel's modules.
 */
import { closeSync, existsSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { which } from 'zx';
import { RipstopError } from '../../src/errors.ts';
import { run } from '../../src/host/run.ts';
import { cacheDir } from '../../test/support/go-programs.ts';
import { peerPath } from '../../test/support/peer-programs.ts';
import type { Kernel } from './debian.ts';

const root = join(import.meta.dirname, '../..');

/** The programs that the data plane, the story and the machine's start call. */
const programs =
  'dash mount mkdir unshare ip bridge tc nft nsenter ping kmod sync ethtool iptables-legacy iptables-legacy-restore iptables-legacy-save conntrack'.split(
    ' ',
  );
/** The parts of iptables for each match and target. */
const iptablesParts = '/usr/lib/x86_64-linux-gnu/xtables';
/** The packages that the data plane and the lab's API server import. */
const nodeModules = withDependencies([
  'ipaddr.js',
  'koffi',
  '@koromix/koffi-linux-x64',
  'zod',
  '@peculiar/x509',
  'reflect-metadata',
]);
/** The driver, and modules that the kernel loads by itself when a device, a qdisc, a rule or a family needs them. */
const kernelModules =
  'virtio_pci virtio_net veth bridge vxlan 8021q bonding sch_ingress cls_bpf cls_matchall act_vlan nf_conntrack nfnetlink nf_tables nft_ct nft_fib nft_fib_ipv4 nft_fib_ipv6 nft_fib_inet nft_chain_nat nft_nat nft_masq nft_queue nfnetlink_queue'.split(
    ' ',
  );
/** What kube-proxy needs in IPVS mode. */
const ipvsModules =
  'dummy ip_vs ip_vs_rr ip_set_hash_ipport ip_set_hash_ipportip xt_set ip_tables iptable_filter iptable_nat xt_comment xt_mark xt_conntrack xt_addrtype xt_MASQUERADE ipt_REJECT nf_conntrack_netlink'.split(
    ' ',
  );

/** These packages, and those that they import. */
function withDependencies(names: readonly string[]): string[] {
  const found = new Set(names);
  for (const name of found) {
    const text = readFileSync(join(root, 'node_modules', name, 'package.json'), 'utf8');
    const { dependencies = {} } = JSON.parse(text) as { dependencies?: Record<string, string> };
    for (const one of Object.keys(dependencies)) found.add(one);
  }
  return [...found];
}

/** The sources of files, by their path in the archive. */
type Files = Map<string, string>;

/** Write the archive for this kernel. @param ipvs the directory of the programs for IPVS, if there is one. */
export async function writeInitramfs(archive: string, kernel: Kernel, ipvs?: string): Promise<void> {
  const programsOfIpvs = ipvs === undefined ? [] : filesIn(ipvs);
  writeCpio(archive, new Map([...(await userFiles()), ...moduleFiles(kernel), ...programsOfIpvs]));
}

/** All files of a directory, without documentation. */
function filesIn(directory: string): Files {
  const files: Files = new Map();
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (!entry.isDirectory() && !path.includes('/share/')) files.set(relative(directory, path), path);
  }
  return files;
}

async function userFiles(): Promise<Files> {
  const files: Files = new Map([
    ['init', join(root, 'test/kernels/init.sh')],
    ['ripstop/package.json', join(root, 'package.json')],
    ['bin/node', process.execPath],
  ]);
  const engine = peerPath('kube-network-policies');
  if (existsSync(engine))
    files.set(join('cache/ripstop/programs', relative(cacheDir('programs'), engine)), engine);
  const found = await Promise.all(programs.map((name) => which(name)));
  for (const path of found) files.set(`bin/${basename(path)}`, path);
  if (existsSync(iptablesParts))
    for (const [name, path] of filesIn(iptablesParts)) files.set(join(iptablesParts.slice(1), name), path);
  files.set('bin/sh', files.get('bin/dash')!);
  files.set('sbin/modprobe', files.get('bin/kmod')!); // where the kernel looks for it

  // libbpf is loaded by name at run time, so ldd does not list it.
  const libbpf = / (\/\S+\/libbpf\.so\.1)$/m.exec(await run('ldconfig', ['-p']))?.[1];
  if (libbpf === undefined) throw new RipstopError('there is no libbpf.so.1; install libbpf1');
  const linked = await run('ldd', [...found, process.execPath, libbpf]);
  for (const [, path] of linked.matchAll(/(\/\S+) \(0x/g)) files.set(path!.slice(1), path!);
  files.set(libbpf.slice(1), libbpf);

  for (const folder of ['src', 'build', 'test', ...nodeModules.map((name) => `node_modules/${name}`)]) {
    for (const entry of readdirSync(join(root, folder), { recursive: true, withFileTypes: true })) {
      const path = join(entry.parentPath, entry.name);
      if (entry.isFile() && /\.(ts|js|cjs|json|node|o)$/.test(path) && !/\.(d|test)\.ts$/.test(path)) {
        files.set(`ripstop/${relative(root, path)}`, path);
      }
    }
  }
  return files;
}

/** The modules with their dependencies, and modprobe's index files. */
function moduleFiles({ root: unpacked, release }: Kernel): Files {
  const folder = `lib/modules/${release}`;
  const files: Files = new Map();
  const add = (path: string): void => void files.set(`${folder}/${path}`, join(unpacked, folder, path));
  for (const name of readdirSync(join(unpacked, folder))) if (name.startsWith('modules.')) add(name);

  const dependencies = new Map<string, string[]>();
  const paths = new Map<string, string>();
  for (const line of readFileSync(join(unpacked, folder, 'modules.dep'), 'utf8').split('\n')) {
    const [path = '', needs = ''] = line.split(':');
    dependencies.set(path, needs.split(' ').filter(Boolean));
    paths.set(
      basename(path)
        .replace(/\.ko.*$/, '')
        .replaceAll('-', '_'),
      path,
    );
  }
  for (const name of [...kernelModules, ...ipvsModules]) {
    const path = paths.get(name);
    if (path !== undefined) [path, ...dependencies.get(path)!].forEach(add); // else it is built in
  }
  return files;
}

const DIRECTORY = 0o040_755;
const PROGRAM = 0o100_755;

/** The `newc` format of Documentation/driver-api/early-userspace/buffer-format.rst. */
function writeCpio(archive: string, files: Files): void {
  const out = openSync(archive, 'w');
  const made = new Set<string>();
  const pad = (length: number) => Buffer.alloc(-length & 3);
  const add = (name: string, mode: number, data: Buffer): void => {
    const path = Buffer.from(`${name}\0`);
    const numbers = [made.size, mode, 0, 0, 1, 0, data.length, 0, 0, 0, 0, path.length, 0];
    const header = `070701${numbers.map((n) => n.toString(16).padStart(8, '0')).join('')}`;
    for (const part of [
      Buffer.from(header),
      path,
      pad(header.length + path.length),
      data,
      pad(data.length),
    ]) {
      writeSync(out, part);
    }
    made.add(name);
  };
  const addDirectory = (name: string): void => {
    if (name === '.' || made.has(name)) return;
    addDirectory(dirname(name));
    add(name, DIRECTORY, Buffer.alloc(0));
  };
  try {
    ['proc', 'sys', 'dev', 'run', 'tmp'].forEach(addDirectory);
    for (const [name, source] of files) {
      addDirectory(dirname(name));
      add(name, PROGRAM, readFileSync(source));
    }
    add('TRAILER!!!', 0, Buffer.alloc(0));
  } finally {
    closeSync(out);
  }
}
