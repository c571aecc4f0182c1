// SPDX-License-Identifier: Apache-2.0
/**
 * Programs that run with another root. Mounts are made in a mount namespace of their own, and programs run in a PID
 * namespace: both end with the programs, so nothing stays on the machine.
 */
import { randomBytes } from 'node:crypto';
import { mkdir, rm, rmdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { quote } from 'zx';
import { RipstopError } from '../../src/errors.ts';
import { run } from '../../src/host/run.ts';
import type { Arch } from './oci.ts';

/** A root of layers in an overlay file system. */
export interface Root {
  /** The lowest first. Without layers the root is empty. */
  readonly layers: readonly string[];
  /** The folder for changes. Without it the root is read-only. */
  readonly upper?: string;
}

/** The architecture of the programs. */
export const hostArch: Arch = process.arch === 'arm64' ? 'arm64' : 'amd64';

/** Half an hour, for npm or an emulated compiler on a loaded machine. */
const TIMEOUT_MS = 30 * 60_000;

/** The mounts that a program of the image finds, as in a container. */
const SURROUNDINGS = `
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
`;

/**
 * Run a program in a root, as `RUN` does: with the machine's network, resolver, proxies and certificates.
 * @returns its output. @throws RipstopError with its output in `details` when it fails.
 */
export async function runInside(
  arch: Arch,
  root: Root,
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
  options: { network?: boolean } = {},
): Promise<string> {
  const lines = [SURROUNDINGS];
  const variables = { ...env };
  if (options.network ?? true) {
    lines.push('[ ! -e "$root/etc/resolv.conf" ] || mount --bind /etc/resolv.conf "$root/etc/resolv.conf"');
    const certificates = process.env['NODE_EXTRA_CA_CERTS'];
    if (certificates) {
      lines.push(
        'touch "$root/run/certificates"',
        `mount --bind ${quote(certificates)} "$root/run/certificates"`,
      );
      variables['NODE_EXTRA_CA_CERTS'] = '/run/certificates';
    }
    for (const name of ['http_proxy', 'https_proxy', 'no_proxy']) {
      const value = process.env[name] ?? process.env[name.toUpperCase()];
      if (value) variables[name] = value;
    }
  } else lines.push('ip link set lo up');
  const words = Object.entries(variables).map(([name, value]) => `${name}=${value}`);
  lines.push(`exec chroot "$root" env -i ${[...words, ...argv].map((word) => quote(word)).join(' ')}`);
  return runBeside(arch, { root }, lines.join('\n'), options);
}

/** Run lines of bash outside, with roots mounted for them: each at the folder in the variable of its name. */
export async function runBeside(
  arch: Arch,
  roots: Readonly<Record<string, Root>>,
  script: string,
  options: { network?: boolean } = {},
): Promise<string> {
  const place = join(tmpdir(), `ripstop-image-${randomBytes(6).toString('hex')}`);
  const works: string[] = [];
  const lines = Object.entries(roots).flatMap(([name, root]) => {
    const work = root.upper === undefined ? '' : `${root.upper}.work`;
    if (work) works.push(work);
    return [`${name}="$place/${name}"`, `mkdir "$${name}"`, ...mountLines(name, root, work, arch)];
  });
  await mkdir(place);
  for (const work of works) await mkdir(work);
  try {
    const emulated = arch !== hostArch;
    const begin = [`place=${quote(place)}`, 'mount -t tmpfs tmpfs "$place"'];
    if (emulated) begin.push(emulation(arch));
    const text = [...begin, ...lines, script].join('\n');
    const unshare = ['unshare', '--mount', '--pid', '--fork', '--kill-child'];
    if (options.network === false) unshare.push('--net');
    const argv = [...unshare, 'bash', '-euc', text];
    const command = emulated ? ['bash', '-euc', OWN_USER_NAMESPACE, 'bash', ...argv] : argv;
    return await run(command[0]!, command.slice(1), { timeoutMs: TIMEOUT_MS });
  } finally {
    for (const work of works) await rm(work, { recursive: true, force: true });
    await rmdir(place);
  }
}

/**
 * Run `"$@"` as root of a user namespace that has every user of the machine. The interpreter for other architectures is
 * registered only in this namespace, so the machine's own registrations stay as they are.
 */
const OWN_USER_NAMESPACE = `
unshare --user sleep 10 & holder=$!
until echo 0 0 4294967295 2>/dev/null >"/proc/$holder/uid_map"; do sleep 0.01; done
echo 0 0 4294967295 >"/proc/$holder/gid_map"
exec nsenter --user="/proc/$holder/ns/user" "$@"
`;

/** From Debian's package qemu-user-static. */
const QEMU = '/usr/bin/qemu-aarch64-static';

/** Lines that make the kernel run programs of another architecture with qemu. */
function emulation(arch: Arch): string {
  if (arch !== 'arm64') {
    throw new RipstopError(
      `an image for ${arch} cannot be built on ${hostArch}; build it on a machine of its own`,
    );
  }
  const header = String.raw`\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00`;
  const mask = String.raw`\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff`;
  return [
    'mkdir "$place/binfmt"',
    'mount -t binfmt_misc binfmt_misc "$place/binfmt"',
    // F: the kernel opens qemu now, since the roots do not contain it.
    `printf %s ${quote(`:qemu-aarch64:M::${header}:${mask}:${QEMU}:F`)} >"$place/binfmt/register"`,
  ].join('\n');
}

/** Lines that mount a root at the folder in this variable. */
function mountLines(variable: string, { layers, upper }: Root, work: string, arch: Arch): string[] {
  const at = `"$${variable}"`;
  if (upper !== undefined && layers.length === 0) return [`mount --bind ${quote(upper)} ${at}`];
  if (upper === undefined && layers.length === 1) {
    return [`mount --bind ${quote(layers[0]!)} ${at}`, `mount -o remount,bind,ro ${at}`];
  }
  const options = [
    // In a user namespace overlayfs may not use trusted attributes.
    ...(arch === hostArch ? [] : ['userxattr']),
    `lowerdir=${layers.toReversed().join(':')}`,
    ...(upper === undefined ? [] : [`upperdir=${upper}`, `workdir=${work}`]),
  ];
  return [`mount -t overlay -o ${quote(options.join(','))} overlay ${at}`];
}
