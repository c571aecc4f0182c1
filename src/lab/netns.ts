// SPDX-License-Identifier: Apache-2.0
import { readFileSync, readdirSync, readlinkSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { RipstopError } from '../errors.ts';
import { ipBatch } from './ip.ts';
import { run } from '../host/run.ts';

/** Where `ip netns` keeps its names. */
const NETNS_DIR = '/run/netns';

export function netnsPath(name: string): string {
  return `${NETNS_DIR}/${name}`;
}

/** The named network namespaces of this machine. */
export function listNetns(): string[] {
  try {
    return readdirSync(NETNS_DIR);
  } catch {
    return []; // The first namespace creates the directory.
  }
}

/** Create namespaces with their loopback up. */
export async function addNetns(...names: string[]): Promise<void> {
  await ipBatch(names.map((name) => `netns add ${name}`));
  await Promise.all(names.map((name) => run('ip', ['-n', name, 'link', 'set', 'lo', 'up'])));
}

/** Delete namespaces, and with them their links. Names without a namespace are ignored. */
export async function deleteNetns(...names: string[]): Promise<void> {
  const present = new Set(listNetns());
  await ipBatch(
    names.filter((name) => present.has(name)).map((name) => `netns del ${name}`),
    { force: true },
  );
}

/** Set `net.*` sysctls inside a namespace. (All others are the whole machine's, which the lab leaves alone.) */
export async function setSysctls(netns: string, settings: Record<string, number | string>): Promise<void> {
  const assignments = Object.entries(settings).map(([key, value]) => `net.${key}=${value}`);
  await run('sysctl', ['-q', '-w', ...assignments], { netns: netnsPath(netns) });
}

/** Whether the process exists and is not a zombie. */
export function isAlive(pid: number): boolean {
  try {
    // The state follows the program's name, which is in parentheses and may contain any character (proc(5)).
    return !/^\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*(?=\) )/s, ''));
  } catch {
    return false;
  }
}

/** The arguments of a process. Empty when there is no such process, for a zombie, and for a moment during execve. */
export function commandLine(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1);
  } catch {
    return [];
  }
}

/** The ids of all other processes. */
export function listProcesses(): number[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)
    .filter((pid) => pid !== process.pid);
}

/** The processes in any of these namespaces. It reads /proc once, where `ip netns pids` reads it for each namespace. */
export function processesIn(names: readonly string[]): number[] {
  const inodes = new Set(
    names.flatMap((name) => {
      const inode = statSync(netnsPath(name), { throwIfNoEntry: false })?.ino;
      return inode === undefined ? [] : [`net:[${inode}]`];
    }),
  );
  if (inodes.size === 0) return [];
  return listProcesses().filter((pid) => {
    try {
      return inodes.has(readlinkSync(`/proc/${pid}/ns/net`));
    } catch {
      return false; // It has ended.
    }
  });
}

/**
 * Kill the processes that `find` returns, until it returns none.
 * @throws RipstopError naming the processes that are still there after 5 s.
 */
export async function killAll(find: () => number[]): Promise<void> {
  for (const deadline = performance.now() + 5000; ; await sleep(5)) {
    const pids = find();
    if (pids.length === 0) return;
    if (performance.now() > deadline) {
      throw new RipstopError(`processes ${pids.join(', ')} do not end; look at them with ps and try again`);
    }
    for (const pid of pids) signalProcess(pid, 'SIGKILL');
  }
}

/** Send a signal, unless the process has ended. */
export function signalProcess(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
