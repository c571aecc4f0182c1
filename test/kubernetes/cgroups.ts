// SPDX-License-Identifier: Apache-2.0
import { existsSync, mkdirSync, readFileSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { signalProcess } from '../../src/lab/netns.ts';

/**
 * Control groups of a cluster: one tree for it in each hierarchy of the machine, `ripstop-NAME/GROUP`. They bound nothing.
 * A kubelet wants a root of its own to put pods into, and all that a node has started can be found there and ended.
 */

/** Where the machine's hierarchies are mounted: one for each controller with cgroup v1, a single one with v2. */
export function hierarchies(): string[] {
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => {
      // proc_pid_mountinfo(5): the mount point is the fifth field, the type follows the separator "-".
      const fields = line.split(' ');
      return { mountPoint: fields[4]!, type: fields[fields.indexOf('-', 6) + 1] };
    });
  const v1 = mounts.filter(({ type }) => type === 'cgroup');
  const used = v1.length > 0 ? v1 : mounts.filter(({ type }) => type === 'cgroup2');
  return [...new Set(used.map(({ mountPoint }) => mountPoint))];
}

/** The directories of a group, one for each hierarchy. @param path e.g. `ripstop-k8s-4711/node1`. */
export const groupDirectories = (path: string): string[] => hierarchies().map((root) => join(root, path));

/** Make a group in every hierarchy, ready to take processes. */
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

/** With cgroup v2 a group's children have the controllers that it hands on. */
function handControllersOn(parent: string): void {
  const available = join(parent, 'cgroup.controllers');
  if (!existsSync(available)) return;
  const names = readFileSync(available, 'utf8').trim().split(' ').filter(Boolean);
  writeFileSync(join(parent, 'cgroup.subtree_control'), names.map((name) => `+${name}`).join(' '));
}

/** A shell command's beginning that moves the shell into the group. */
export const enterGroup = (path: string): string =>
  groupDirectories(path)
    .map((directory) => `echo $$ > ${directory}/cgroup.procs`)
    .join(' && ');

/** End everything in a group, and remove it. A group that is not there is no error. */
export async function removeGroup(path: string): Promise<void> {
  const deadline = performance.now() + 20_000;
  for (;;) {
    const directories = groupDirectories(path).filter((directory) => existsSync(directory));
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
    return []; // It went away meanwhile.
  }
}

/** Whether the group is gone, with all below it. */
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
