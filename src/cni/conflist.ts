// SPDX-License-Identifier: Apache-2.0
import { readdir, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { Logger } from 'pino';
import { z } from 'zod';
import { RipstopError } from '../errors.ts';
import { readIfThere, writeAtomically, writeIfDifferent } from '../host/files.ts';
import { LogOnce } from '../log-once.ts';

/*
 * The network configuration of the container runtime. ripstop's has the file name of flannel's, so that the node has
 * one network at any time. The previous file is kept beside it, under a name that runtimes ignore. ripstop's is
 * installed only when pods can be added, since a kubelet reports its node ready as soon as the runtime has a
 * configuration.
 */

/** The file name of flannel's configuration, and of ours. */
const NAME = '10-flannel.conflist';

/** The suffix of a kept configuration's file name. */
const SAVED = '.ripstop-saved';

const Conflist = z.looseObject({
  name: z.string(),
  plugins: z.array(z.looseObject({ type: z.string() })),
});
export type Conflist = z.infer<typeof Conflist>;

/** Parse a configuration that runs ripstop's plugin; undefined when the text is something else. */
export function parseOurs(text: string): Conflist | undefined {
  try {
    const conflist = Conflist.parse(JSON.parse(text));
    return conflist.plugins.some(({ type }) => type === 'ripstop-cni') ? conflist : undefined;
  } catch {
    return undefined;
  }
}

/** The same network with flannel's plugin, configured as in kube-flannel.yml; the plugins after it stay. */
function flannelInstead(ours: Conflist): Conflist {
  const flannel = { type: 'flannel', delegate: { hairpinMode: true, isDefaultGateway: true } };
  return { ...ours, plugins: ours.plugins.map((one) => (one.type === 'ripstop-cni' ? flannel : one)) };
}

/** Our configurations in this directory. */
async function listOurConflists(dir: string): Promise<{ file: string; conflist: Conflist }[]> {
  const names = (await readdir(dir).catch(() => [])).filter((name) => name.endsWith('.conflist')).sort();
  const read = names.map(async (name) => {
    const conflist = parseOurs((await readIfThere(join(dir, name))) ?? '');
    return conflist ? [{ file: join(dir, name), conflist }] : [];
  });
  return (await Promise.all(read)).flat();
}

/**
 * Install our configuration. If the file there is not ours, it is kept beside it.
 * @param source the file that holds our configuration.
 * @returns whether anything was written.
 * @throws RipstopError when `source` does not run ripstop-cni.
 */
export async function installConflist(source: string, dir: string): Promise<boolean> {
  const text = (await readIfThere(source)) ?? '';
  if (!parseOurs(text)) {
    throw new RipstopError(
      `${source} is not a CNI configuration with the plugin ripstop-cni; correct it (deploy/ripstop.yml has one)`,
    );
  }
  const target = join(dir, NAME);
  const before = await readIfThere(target);
  if (before !== undefined && !parseOurs(before)) await writeAtomically(`${target}${SAVED}`, before);
  return writeIfDifferent(target, text);
}

/** Installs our configuration once. A failure is logged once, and retried at the next call. */
export class ConflistInstaller {
  readonly #files: { readonly source: string; readonly dir: string } | undefined;
  readonly #log: Logger;
  readonly #failure: LogOnce;
  #isInstalled = false;

  /** @param files undefined: another program installs it. */
  constructor(files: { readonly source: string; readonly dir: string } | undefined, log: Logger) {
    this.#files = files;
    this.#log = log;
    this.#failure = new LogOnce(log, 'the CNI configuration is not in place; retrying', 'error');
  }

  /** Call it when an ADD would succeed. Never throws. */
  async install(): Promise<void> {
    if (!this.#files || this.#isInstalled) return;
    const { source, dir } = this.#files;
    try {
      const isWritten = await installConflist(source, dir);
      this.#isInstalled = true;
      if (isWritten) this.#log.info({ dir }, 'pods can be added: the CNI configuration is in place');
      this.#failure.over();
    } catch (error) {
      this.#failure.met(error);
    }
  }
}

/** Remove our configurations; kept configurations stay where they are. @returns what was done. */
export async function removeConflists(dir: string): Promise<string[]> {
  const ours = await listOurConflists(dir);
  for (const { file } of ours) await rm(file);
  return ours.map(({ file }) => `removed ${file}`);
}

/**
 * Restore the configurations that ours replaced; where none is kept, write one as in flannel's manifest.
 * @returns what was done.
 */
export async function restoreConflists(dir: string): Promise<string[]> {
  const done: string[] = [];
  for (const { file, conflist } of await listOurConflists(dir)) {
    const saved = `${file}${SAVED}`;
    if ((await readIfThere(saved)) !== undefined) {
      await rename(saved, file);
      done.push(`put back ${file}, from ${basename(saved)}`);
    } else {
      await writeIfDifferent(file, `${JSON.stringify(flannelInstead(conflist), undefined, 2)}\n`);
      done.push(`wrote ${file} for flannel's plugin: none was kept`);
    }
  }
  return done;
}

/**
 * The file that flannel's plugin keeps for each of its pods, `/var/lib/cni/flannel/<containerID>`: the configuration of
 * the plugin that it delegated to. Its DEL calls that plugin again, and does nothing without the file: the address of a
 * pod that ripstop attached would stay leased for ever.
 */
export function flannelDelegate(given: {
  network: string;
  podCidrs: readonly string[];
  clusterNetworks: readonly string[];
  mtu: number;
  ipMasq: boolean;
  dataDir: string;
}): string {
  return JSON.stringify({
    // As in flannel's manifest: every version of the plugins supports it.
    cniVersion: '0.3.1',
    hairpinMode: true,
    ipMasq: !given.ipMasq,
    ipam: {
      type: 'host-local',
      ranges: given.podCidrs.map((subnet) => [{ subnet }]),
      routes: given.clusterNetworks.map((dst) => ({ dst })),
      dataDir: given.dataDir,
    },
    isDefaultGateway: true,
    isGateway: true,
    mtu: given.mtu,
    name: given.network,
    type: 'bridge',
  });
}

/** The directory of those files, beside host-local's leases. */
export function flannelDataDir(ipamDir: string): string {
  return join(ipamDir, '../flannel');
}
