// SPDX-License-Identifier: Apache-2.0
/** The image `debian:bookworm-slim`: Debian's required packages and apt, without manuals and translations. */
import { quote } from 'zx';
import { RipstopError } from '../../src/errors.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { debianSources } from '../kernels/debian.ts';
import { hostArch, runBeside, type Surroundings } from './chroot.ts';
import type { Arch } from './oci.ts';

export const SLIM_IMAGE = 'debian:bookworm-slim';

const SLIM = [
  ...['man', 'doc', 'groff', 'info', 'lintian', 'linda'].map((name) => `path-exclude=/usr/share/${name}/*`),
  'path-include=/usr/share/doc/*/copyright',
  'path-exclude=/usr/share/locale/*',
  'path-include=/usr/share/locale/locale.alias',
];

/** Install the packages that building images needs. @throws RipstopError when the machine cannot build images. */
export async function ensureTools(arch: Arch, note: (line: string) => void): Promise<void> {
  if (process.getuid?.() !== 0) throw new RipstopError('building an image needs root: use sudo');
  const packages = ['mmdebstrap', ...(arch === hostArch ? [] : ['qemu-user-static'])];
  const missing: string[] = [];
  for (const name of packages) {
    const { stdout } = await tryRun('dpkg-query', ['-W', '-f', '${db:Status-Status}', name]);
    if (stdout !== 'installed') missing.push(name);
  }
  if (missing.length === 0) return;
  note(`installing ${missing.join(', ')}`);
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' } as Record<string, string>;
  await run('apt-get', ['-q', 'update'], { env, timeoutMs: 120_000 });
  const install = ['-q', '-y', '--no-install-recommends', 'install', ...missing];
  await run('apt-get', install, { env, timeoutMs: 300_000 });
}

/** Make the base in `target`, an empty folder. Its packages come from the Debian mirror that this machine uses. */
export async function makeBase(arch: Arch, target: string, options: Surroundings = {}): Promise<void> {
  const sources = await debianSources(arch);
  const flags = [
    '--mode=root',
    '--variant=minbase',
    `--architectures=${arch}`,
    ...SLIM.map((line) => `--dpkgopt=${line}`),
    // Makes /bin a link to /usr/bin without the package usrmerge, which needs Perl.
    '--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr',
    // The kernel can already run them.
    '--skip=check/qemu',
  ];
  const words = [...flags, '', target, '-'].map((word) => quote(word)).join(' ');
  await runBeside(arch, {}, `mmdebstrap ${words} <<'END'\n${sources}END`, options);
}
