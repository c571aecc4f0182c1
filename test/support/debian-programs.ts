// SPDX-License-Identifier: Apache-2.0
/** Programs from Debian's packages. They are unpacked, not installed, since some packages would start servers. */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { run } from '../../src/host/run.ts';
import { cacheDir } from './go-programs.ts';

/** The packages of each program, of which the first gives the folder its name, and its path in them. */
const debian = {
  containerd: [['containerd'], 'usr/bin/containerd'],
  'containerd-shim-runc-v2': [['containerd'], 'usr/bin/containerd-shim-runc-v2'],
  ctr: [['containerd'], 'usr/bin/ctr'],
  runc: [['runc'], 'usr/sbin/runc'],
  busybox: [['busybox-static'], 'bin/busybox'],
  ipset: [['ipset', 'libipset13'], 'usr/sbin/ipset'],
  prometheus: [['prometheus'], 'usr/bin/prometheus'],
  promtool: [['prometheus'], 'usr/bin/promtool'],
} as const;

export type DebianProgram = keyof typeof debian;

const folderOf = (name: DebianProgram): string => join(cacheDir('debian'), debian[name][0][0]);

/** The path of a program of Debian, once {@link fetchDebianPrograms} has fetched it. */
export const debianProgram = (name: DebianProgram): string => join(folderOf(name), debian[name][1]);

/** The environment with which a program finds this one of Debian, and that one its libraries. */
export function withDebianProgram(name: DebianProgram): NodeJS.ProcessEnv {
  const libraries = join(folderOf(name), 'usr/lib');
  return {
    ...process.env,
    PATH: `${dirname(debianProgram(name))}:${process.env['PATH'] ?? ''}`,
    LD_LIBRARY_PATH: readdirSync(libraries)
      .map((triplet) => join(libraries, triplet))
      .join(':'),
  };
}

/** Fetch those that are missing. @throws RipstopError when apt fails. */
export async function fetchDebianPrograms(
  names: readonly DebianProgram[],
  note: (line: string) => void,
): Promise<void> {
  const absent = names.filter((name) => !existsSync(debianProgram(name)));
  if (absent.length === 0) return;
  note(`fetching ${absent.join(', ')} from Debian`);
  await run('apt-get', ['-q', 'update'], { timeoutMs: 120_000 });
  for (const name of absent) if (!existsSync(debianProgram(name))) await unpack(name);
}

async function unpack(name: DebianProgram): Promise<void> {
  const target = folderOf(name);
  mkdirSync(dirname(target), { recursive: true });
  const dir = mkdtempSync(`${target}-`);
  try {
    const download = ['-C', dir, 'apt-get', '-q', 'download', ...debian[name][0]];
    await run('env', download, { timeoutMs: 120_000 });
    await run('sh', ['-c', 'for deb in "$1"/*.deb; do dpkg-deb -x "$deb" "$1/root"; done', 'sh', dir]);
    renameSync(join(dir, 'root'), target);
  } finally {
    rmSync(dir, { recursive: true });
  }
}
