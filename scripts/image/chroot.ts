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

/** Time for npm, or for a compiler that is emulated, on a loaded machine. */
const runForHalfAnHour: Execute = (program, args) => run(program, args, { timeoutMs: 30 * 60_000 });

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

/** Runs a program to its end. @returns what it printed. @throws RipstopError when it fails. */
export type Execute = (program: string, args: readonly string[]) => Promise<string>;

export interface Surroundings {
  /** `false`: a network namespace of its own, without a way out. */
  readonly network?: boolean;
  /** Default: as src/host/run.ts does, for half an hour at most. */
  readonly execute?: Execute;
}

/**
 * Run a program in a root, as `RUN` does: with the machine's network, resolver, proxies and certificates.
 * @returns its output. @throws RipstopError with its output in `details` when it fails.
 */
export async function runInside(
  arch: Arch,
  root: Root,
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
  options: Surroundings = {},
): Promise<string> {
  const network = options.network ?? true;
  const { lines, variables } = network ? connection() : { lines: ['ip link set lo up'], variables: {} };
  const command = `exec chroot "$root" ${commandLine(argv, { ...env, ...variables })}`;
  return runBeside(arch, { root }, [SURROUNDINGS, ...lines, command].join('\n'), options);
}

/** What a program finds on a machine of its own that has this machine's kernel, devices and network. */
const MACHINE = `
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
modules="/lib/modules/$(uname -r)"
if [ -d "$modules" ]; then
  mkdir -p "$root$modules"
  mount --bind -o ro "$modules" "$root$modules"
fi
`;

/** The machine's own root is out of reach then, for programs that change their mount namespace, too. */
const PIVOT = `
mkdir "$root/run/outside"
cd /
pivot_root "$root" "$root/run/outside"
umount --lazy /run/outside
rmdir /run/outside
`;

/**
 * Run a program in a writable folder as on a machine of its own that was made of it: it may mount, make namespaces and
 * load BPF programs. What it mounts, pins and leaves running ends with it.
 * @returns what it printed. @throws RipstopError with its output in `details` when it fails.
 */
export async function runOnMachine(
  folder: string,
  argv: readonly string[],
  env: Readonly<Record<string, string>>,
  options: Surroundings = {},
): Promise<string> {
  const { lines, variables } = connection();
  // The shell stays: processes whose parent has gone need one that waits for them.
  const command = `${commandLine(argv, { ...env, ...variables })} || exit $?`;
  const script = [MACHINE, ...lines, PIVOT, command].join('\n');
  return runBeside(hostArch, { root: { layers: [], upper: folder } }, script, options);
}

const commandLine = (argv: readonly string[], env: Readonly<Record<string, string>>): string =>
  ['env', '-i', ...Object.entries(env).map(([name, value]) => `${name}=${value}`), ...argv]
    .map((word) => quote(word))
    .join(' ');

/** Lines that bring the machine's resolver and certificates into `$root`, and the variables to run a program with. */
function connection(): { lines: string[]; variables: Record<string, string> } {
  const lines = ['[ ! -e "$root/etc/resolv.conf" ] || mount --bind /etc/resolv.conf "$root/etc/resolv.conf"'];
  const variables: Record<string, string> = {};
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
  return { lines, variables };
}

/** Run lines of bash outside, with roots mounted for them: each at the folder in the variable of its name. */
export async function runBeside(
  arch: Arch,
  roots: Readonly<Record<string, Root>>,
  script: string,
  { network = true, execute = runForHalfAnHour }: Surroundings = {},
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
    if (!network) unshare.push('--net');
    const argv = [...unshare, 'bash', '-euc', text];
    const command = emulated ? ['bash', '-euc', OWN_USER_NAMESPACE, 'bash', ...argv] : argv;
    return await execute(command[0]!, command.slice(1));
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
