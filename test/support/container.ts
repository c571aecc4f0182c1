// SPDX-License-Identifier: Apache-2.0
import { join } from 'node:path';
import type * as k8s from '@kubernetes/client-node';

const ROOT = join(import.meta.dirname, '../..');

/** A container of the manifest, and the sources of its volumes on this machine. */
export interface Contained {
  readonly container: k8s.V1Container;
  /** Directories and files by the names of the volumes; a volume that is left out is not mounted. */
  readonly volumes: Readonly<Record<string, string>>;
  readonly env?: Readonly<Record<string, string>>;
  /** An empty directory for the container's root. */
  readonly scratch: string;
}

/**
 * A command that runs the container like a container runtime: with its capabilities, a root of its own (this machine's
 * programs, and ripstop's as in the image), its volumes with their propagation, and /proc and /sys as runtimes mount
 * them. Run it in the host's namespaces, with the host's network; the process becomes the container's. There is no
 * seccomp, AppArmor or SELinux.
 */
export function inContainer({ container, volumes, env = {}, scratch }: Contained): [string, ...string[]] {
  const { securityContext = {}, volumeMounts = [], command = [], args = [] } = container;
  const root = `${scratch}/root`;
  const privileged = securityContext.privileged === true;
  const mounts = volumeMounts.flatMap(({ name, mountPath, mountPropagation, readOnly }) => {
    const source = volumes[name];
    const target = `${root}${mountPath}`;
    if (source === undefined) return [];
    return [
      `mkdir -p "$(dirname ${target})"; if [ -d ${source} ]; then mkdir -p ${target}; else touch ${target}; fi`,
      `mount --rbind ${source} ${target}`,
      `mount --make-r${mountPropagation === 'HostToContainer' ? 'slave' : 'private'} ${target}`,
      ...(readOnly ? [`mount -o remount,bind,ro ${target}`] : []),
    ];
  });
  const script = [
    'set -eu',
    `mount -t tmpfs tmpfs ${scratch}`,
    `mkdir ${scratch}/upper ${scratch}/work ${root}`,
    `mount -t overlay overlay -o lowerdir=/,upperdir=${scratch}/upper,workdir=${scratch}/work ${root}`,
    `mkdir -p ${root}/opt/ripstop; mount --bind ${ROOT} ${root}/opt/ripstop`,
    `ln -sf /opt/ripstop/scripts/ripstop ${root}/usr/local/bin/ripstop`,
    // Empty, as in the image.
    ...volumeMounts.map(({ mountPath }) => `rm -rf ${root}${mountPath}`),
    `mount -t tmpfs tmpfs ${root}/run`,
    `mount -t proc proc ${root}/proc`,
    `mount -t sysfs ${privileged ? '' : '-o ro'} sysfs ${root}/sys`,
    `mount --rbind /dev ${root}/dev`,
    ...(privileged
      ? []
      : [`mount --bind ${root}/proc/sys ${root}/proc/sys; mount -o remount,bind,ro ${root}/proc/sys`]),
    ...mounts,
    ...(securityContext.readOnlyRootFilesystem
      ? [`mount -o remount,ro ${root}; mount -o remount,ro ${root}/run`]
      : []),
    `exec chroot ${root} "$@"`,
  ];
  const capabilities = (securityContext.capabilities?.add ?? []).map((name) => `,+${name.toLowerCase()}`);
  const confined = privileged
    ? []
    : ['setpriv', `--bounding-set=-all${capabilities.join('')}`, '--inh-caps=-all', '--'];
  const plain = (container.env ?? []).flatMap(({ name, value }) =>
    value === undefined ? [] : [`${name}=${value}`],
  );
  // With `env` the last assignment counts.
  const variables = [...plain, ...Object.entries(env).map(([name, value]) => `${name}=${value}`)];
  return [
    'unshare',
    '--mount',
    // A slave: mounts in here are not visible outside, and later mounts of the host are visible here.
    '--propagation=slave',
    '--',
    'sh',
    '-c',
    script.join('\n'),
    'sh',
    'env',
    ...variables,
    ...confined,
    ...command,
    ...args,
  ];
}
