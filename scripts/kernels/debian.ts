// SPDX-License-Identifier: Apache-2.0
/**
 * Debian's cloud kernels, fetched with apt from this machine's mirror, with separate sources, lists and cache: the
 * machine's configuration stays as it is, and nothing is installed.
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { errorText, RipstopError } from '../../src/errors.ts';
import { run } from '../../src/host/run.ts';

export interface Kernel {
  /** The output of `uname -r`, e.g. `6.1.0-56-cloud-amd64`. */
  readonly release: string;
  /** The unpacked package, with `boot/vmlinuz-<release>` and `lib/modules/<release>`. */
  readonly root: string;
}

/** Debian 12 has two kernels for clouds, its own and Debian 13's. These packages depend on the newest build. */
const metaPackages = { '6.1': 'linux-image-cloud-amd64', '6.12': 'linux-image-6.12-cloud-amd64' } as const;
export type Series = keyof typeof metaPackages;
export const allSeries = Object.keys(metaPackages) as Series[];

/** The suite that has them, by the repository's label for apt. */
const suites: Readonly<Record<string, string>> = {
  Debian: 'bookworm',
  'Debian-Security': 'bookworm-security',
};
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';
const WEEK_MS = 7 * 86_400_000;

/**
 * The newest kernel of this series. A fetched kernel is used for a week, and longer when no mirror answers.
 * @param note gets a line for everything that takes time
 * @throws RipstopError when there is none, with the reason
 */
export async function fetchKernel(
  series: Series,
  cacheDir: string,
  note: (line: string) => void,
): Promise<Kernel> {
  const dir = join(cacheDir, series);
  mkdirSync(dir, { recursive: true });
  const cached = cachedKernel(dir);
  if (cached && Date.now() - statSync(cached.root).mtimeMs < WEEK_MS) return cached;
  try {
    const archives = join(cacheDir, 'apt');
    const apt = await openApt(archives);
    const release = await newestRelease(apt, series);
    if (cached?.release === release) utimesSync(cached.root, new Date(), new Date());
    else {
      note(`fetching Linux ${release}`);
      await unpack(apt, archives, release, dir);
      if (cached) rmSync(cached.root, { recursive: true });
    }
    return { release, root: join(dir, release) };
  } catch (error) {
    if (!cached) throw error;
    note(`cannot fetch a newer Linux ${series} (${errorText(error)})`);
    return cached;
  }
}

function cachedKernel(dir: string): Kernel | undefined {
  const release = readdirSync(dir).find((name) => !name.endsWith('.new'));
  return release === undefined ? undefined : { release, root: join(dir, release) };
}

type Apt = (program: 'apt-get' | 'apt-cache', ...args: string[]) => Promise<string>;
let opened: Promise<Apt> | undefined;

/** apt with its files in this directory. The lists are updated once in a run, for all kernels. */
function openApt(dir: string): Promise<Apt> {
  opened ??= (async () => {
    for (const part of ['lists/partial', 'archives/partial']) mkdirSync(join(dir, part), { recursive: true });
    const sources = join(dir, 'sources.list');
    writeFileSync(sources, await debianSources('amd64'));
    const options = [
      `Dir::Etc::sourcelist=${sources}`,
      'Dir::Etc::sourceparts=-',
      `Dir::State::lists=${join(dir, 'lists')}`,
      `Dir::Cache=${dir}`,
      // Otherwise apt downloads as its own user, who may not write here.
      'APT::Sandbox::User=root',
    ].flatMap((option) => ['-o', option]);
    const apt: Apt = (program, ...args) =>
      run('env', [`--chdir=${dir}`, program, '-q', ...options, ...args], { timeoutMs: 300_000 });
    await apt('apt-get', '--error-on=any', 'update').catch((cause: unknown) => {
      throw new RipstopError("apt cannot fetch its lists from this machine's Debian mirror", { cause });
    });
    return apt;
  })();
  return opened;
}

/** A sources.list with Debian 12 at this machine's mirror. */
export async function debianSources(arch: 'amd64' | 'arm64'): Promise<string> {
  const format = ['--format', '$(LABEL) $(REPO_URI)'];
  const listing = await run(
    'apt-get',
    ['indextargets', ...format, 'Created-By: Packages', 'Origin: Debian'],
    {
      timeoutMs: 300_000,
    },
  );
  const lines = listing.split('\n').flatMap((line) => {
    const [label = '', uri = ''] = line.split(' ');
    const suite = suites[label];
    return suite === undefined ? [] : [`deb [arch=${arch} signed-by=${KEYRING}] ${uri} ${suite} main\n`];
  });
  if (lines.length === 0) {
    throw new RipstopError(
      'apt knows no Debian mirror here; add one to its sources and run `apt-get update`',
    );
  }
  return [...new Set(lines)].join('');
}

async function newestRelease(apt: Apt, series: Series): Promise<string> {
  const text = await apt('apt-cache', 'depends', '--important', metaPackages[series]);
  const release = /Depends: linux-image-(\S+)/.exec(text)?.[1];
  if (release === undefined) throw new RipstopError(`the mirror has no package ${metaPackages[series]}`);
  return release;
}

/** Download and unpack into `dir/<release>`. A failure leaves nothing there. */
async function unpack(apt: Apt, archives: string, release: string, dir: string): Promise<void> {
  const fresh = join(dir, `${release}.new`);
  rmSync(fresh, { recursive: true, force: true });
  await unpackPackage(apt, archives, `linux-image-${release}`, fresh);
  await run('depmod', ['-b', fresh, release]);
  renameSync(fresh, join(dir, release));
}

/** Download a package, and unpack it into this directory. */
async function unpackPackage(apt: Apt, archives: string, name: string, into: string): Promise<void> {
  await apt('apt-get', 'download', name);
  const archive = readdirSync(archives).find((file) => file.startsWith(`${name}_`));
  if (archive === undefined) throw new RipstopError(`apt-get succeeded, but has not downloaded ${name}`);
  await run('dpkg-deb', ['-x', join(archives, archive), into]);
  rmSync(join(archives, archive));
}

/** What kube-proxy calls in IPVS mode, and their libraries. */
const ipvsPackages = 'ipvsadm libnl-3-200 libnl-genl-3-200 libpopt0 ipset libipset13 libmnl0'.split(' ');

/**
 * The programs for IPVS, unpacked: nothing is installed.
 * @param note gets a line for everything that takes time
 * @returns the directory that has them below `usr/sbin` and `lib`.
 * @throws RipstopError when they cannot be fetched.
 */
export async function fetchIpvsPrograms(cacheDir: string, note: (line: string) => void): Promise<string> {
  const dir = join(cacheDir, 'ipvs');
  if (existsSync(dir)) return dir;
  note('fetching ipvsadm and ipset');
  const archives = join(cacheDir, 'apt');
  const apt = await openApt(archives);
  const fresh = `${dir}.new`;
  rmSync(fresh, { recursive: true, force: true });
  for (const name of ipvsPackages) await unpackPackage(apt, archives, name, fresh);
  renameSync(fresh, dir);
  return dir;
}
