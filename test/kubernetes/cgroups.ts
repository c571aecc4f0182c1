// SPDX-License-Identifier: Apache-2.0
import { existsSync, mkdirSync, readFileSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { signalProcess } from '../../src/lab/netns.ts';

/**
 * Control groups of a cluster: one tree in each hierarchy of the machine, `ripstop-NAME/GROUP`. They set no limits.
 * kubelet needs a root of its own for pods, and all processes of a node can be found there and killed.
 */

/**
 * The mount points of hierarchies: one for each controller with cgroup v1, a single one with v2; on some machines both.
 */
function mountPoints(type: 'cgroup' | 'cgroup2'): string[] {
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => line.split(' '))
    // proc_pid_mountinfo(5): the type follows the separator "-", the mount point is the fifth field.
    .filter((fields) => fields[fields.indexOf('-', 6) + 1] === type);
  return [...new Set(mounts.map((fields) => fields[4]!))];
}

/** The hierarchies that kubelet uses: those of v1, if there are any. */
export function hierarchies(): string[] {
  const v1 = mountPoints('cgroup');
  return v1.length > 0 ? v1 : mountPoints('cgroup2');
}

/** The directories of a group, in all hierarchies: runc also uses v2's if it is mounted beside v1's. */
export function groupTraces(path: string): string[] {
  const roots = [...mountPoints('cgroup'), ...mountPoints('cgroup2')];
  return roots.map((root) => join(root, path)).filter((directory) => existsSync(directory));
}

/** Make a group in every hierarchy, ready for processes. */
export function makeGroup(path: string): void {
  const names = path.split('/');
  for (const root of hierarchies()) {
    for (const depth of names.keys()) {
      const parent = join(root, ...names.slice(0, depth));
      const directory = join(parent, names[depth]!);
      if (depth > 0) handControllersOn(parent);
      mkdirSync(directory, { recursive: true });
      inheritCpuset(parent, directory);
    }
  }
}

/** With cgroup v1 a new group has no CPUs and no memory until it is given some. */
function inheritCpuset(parent: string, directory: string): void {
  for (const file of ['cpuset.cpus', 'cpuset.mems']) {
    const [from, to] = [join(parent, file), join(directory, file)];
    if (existsSync(from) && existsSync(to)) writeFileSync(to, readFileSync(from));
  }
}

/** With cgroup v2 a group must enable controllers for its children. */
function handControllersOn(parent: string): void {
  const available = join(parent, 'cgroup.controllers');
  if (!existsSync(available)) return;
  const names = readFileSync(available, 'utf8').trim().split(' ').filter(Boolean);
  writeFileSync(join(parent, 'cgroup.subtree_control'), names.map((name) => `+${name}`).join(' '));
}

/** The beginning of a shell command that moves the shell into the group. */
export const enterGroup = (path: string): string =>
  hierarchies()
    .map((root) => `echo $$ > ${join(root, path)}/cgroup.procs`)
    .join(' && ');

/** Kill everything in a group, and remove it, if it exists. */
export async function removeGroup(path: string): Promise<void> {
  const deadline = performance.now() + 20_000;
  for (;;) {
    const directories = groupTraces(path);
    for (const pid of new Set(directories.flatMap(processesBelow))) signalProcess(pid, 'SIGKILL');
    if (directories.every(removeTree)) return;
    if (performance.now() > deadline) throw new Error(`the control group ${path} cannot be removed`);
    await sleep(50);
  }
}

function processesBelow(directory: string): number[] {
  try {
    const own = readFileSync(join(directory, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number);
    return [...own, ...subgroups(directory).flatMap(processesBelow)];
  } catch {
    return []; // it has been removed meanwhile
  }
}

/** Whether the group is gone, with all groups below it. */
function removeTree(directory: string): boolean {
  try {
    if (!subgroups(directory).every(removeTree)) return false;
    rmdirSync(directory);
    return true;
  } catch {
    return !existsSync(directory);
  }
}

function subgroups(directory: string): string[] {
  return readdirSync(directory, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => join(directory, name));
}
