// SPDX-License-Identifier: Apache-2.0
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { run } from '../../src/host/run.ts';
import { buildOwnProgram, cacheDir } from '../support/go-programs.ts';
import { programs } from '../support/peer-programs.ts';

/** The programs of a cluster, those that build quickly first. */
export const programsOfCluster = [
  programs.etcd,
  programs['kube-apiserver'],
  programs['kube-controller-manager'],
  programs['kube-scheduler'],
  programs.kubelet,
  programs['kube-proxy'],
  programs.kubectl,
  programs.coredns,
  programs.flannel,
  programs.flanneld,
  programs.containerd,
  programs['containerd-shim-runc-v2'],
  programs.ctr,
];

/** The programs that Kubernetes' own tests need in addition. */
export const programsOfE2e = [
  programs.agnhost,
  programs['regression-issue-74839'],
  programs['e2e.test'],
  programs.ginkgo,
  programs['kube-router'],
  programs['kube-network-policies'],
];

/** Programs from Debian's packages. They are unpacked, not installed, since the packages would start servers. */
const debian = {
  containerd: ['containerd', 'usr/bin/containerd'],
  'containerd-shim-runc-v2': ['containerd', 'usr/bin/containerd-shim-runc-v2'],
  ctr: ['containerd', 'usr/bin/ctr'],
  runc: ['runc', 'usr/sbin/runc'],
  busybox: ['busybox-static', 'bin/busybox'],
} as const;

/** The path of a program of Debian, once {@link fetchDebianPrograms} has fetched it. */
export function debianProgram(name: keyof typeof debian): string {
  const [packageName, path] = debian[name];
  return join(cacheDir('debian'), packageName, path);
}

/** Fetch Debian's packages that are missing. @throws RipstopError when apt fails. */
export async function fetchDebianPrograms(note: (line: string) => void): Promise<void> {
  const absent = new Set(
    Object.entries(debian)
      .filter(([name]) => !existsSync(debianProgram(name as keyof typeof debian)))
      .map(([, [packageName]]) => packageName),
  );
  if (absent.size === 0) return;
  note(`fetching ${[...absent].join(', ')} from Debian`);
  await run('apt-get', ['-q', 'update'], { timeoutMs: 120_000 });
  for (const packageName of absent) await unpack(packageName);
}

async function unpack(packageName: string): Promise<void> {
  const target = join(cacheDir('debian'), packageName);
  mkdirSync(dirname(target), { recursive: true });
  const dir = mkdtempSync(`${target}-`);
  try {
    await run('env', ['-C', dir, 'apt-get', '-q', 'download', packageName], { timeoutMs: 120_000 });
    await run('sh', ['-c', 'dpkg-deb -x "$1"/*.deb "$1/root"', 'sh', dir]);
    renameSync(join(dir, 'root'), target);
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** Build `probe`, which counts lost messages, from its source beside this file. @returns its path. */
export function buildProbe(): Promise<string> {
  return buildOwnProgram('probe', join(import.meta.dirname, 'probe'));
}
