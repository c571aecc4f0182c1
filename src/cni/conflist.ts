// SPDX-License-Identifier: Apache-2.0
import { statSync } from 'node:fs';
import { readdir, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { Logger } from 'pino';
import { z } from 'zod';
import { RipstopError } from '../errors.ts';
import { readIfThere, writeAtomically, writeIfDifferent } from '../host/files.ts';
import { tryRun } from '../host/run.ts';
import { LogOnce } from '../log-once.ts';

/*
 * The network configuration of the container runtime. ripstop's has the file name of flannel's, so that the node has
 * one network at any time. The previous file is kept beside it, under a name that runtimes ignore. ripstop's is
 * installed only when pods can be added, since a kubelet reports its node ready as soon as the runtime has a
 * configuration.
 *
 * The file is not ripstop's alone: service meshes (istio-cni, linkerd-cni) append a plugin of theirs, watch the file, and
 * append it anew when it is gone. So a plugin that somebody has added stays, also when an agent of another release or
 * with another ConfigMap installs its configuration; and while an agent runs, it puts nothing back that others change.
 *
 * The runtime chooses the version of the protocol: libcni from 1.2.0 on takes the highest of `cniVersions` that it
 * supports, an older one takes `cniVersion`. It does not ask the plugins, so a version that one of them lacks must not be
 * in the list: the runtime would call it in that version, and no pod would start.
 */

/** The file name of flannel's configuration, and of ours. */
const NAME = '10-flannel.conflist';

/** The suffix of a kept configuration's file name. */
const SAVED = '.ripstop-saved';

const Conflist = z.looseObject({
  name: z.string(),
  /** Of the versions beside `cniVersion` that the runtime may choose. */
  cniVersions: z.array(z.string()).optional(),
  plugins: z.array(z.looseObject({ type: z.string() })),
});
export type Conflist = z.infer<typeof Conflist>;

/** Parse a configuration that runs ripstop's plugin; undefined when the text is something else. */
export function parseOurs(text: string): Conflist | undefined {
  const conflist = parse(text);
  return conflist && hasPlugin(conflist, 'ripstop-cni') ? conflist : undefined;
}

function parse(text: string): Conflist | undefined {
  try {
    return Conflist.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

function hasPlugin({ plugins }: Conflist, type: string): boolean {
  return plugins.some((one) => one.type === type);
}

/** The same network with flannel's plugin, configured as in kube-flannel.yml; the plugins after it stay. */
function flannelInstead(ours: Conflist): Conflist {
  const flannel = { type: 'flannel', delegate: { hairpinMode: true, isDefaultGateway: true } };
  const plugins = ours.plugins.map((one) => (one.type === 'ripstop-cni' ? flannel : one));
  // flannel's plugin may lack the other versions.
  return { ...ours, cniVersions: undefined, plugins };
}

/**
 * The plugins that somebody has added to a configuration.
 * @param base the configuration as it was installed; undefined when that is not known: then all plugins count.
 */
function addedTo({ plugins }: Conflist, base: Conflist | undefined): Conflist['plugins'] {
  return plugins.filter(({ type }) => type !== 'ripstop-cni' && !(base && hasPlugin(base, type)));
}

/** The configuration with plugins at its end that it does not have yet; the same object when it has all. */
function withPlugins(conflist: Conflist, added: Conflist['plugins']): Conflist {
  const missing = added.filter(({ type }) => !hasPlugin(conflist, type));
  return missing.length === 0 ? conflist : { ...conflist, plugins: [...conflist.plugins, ...missing] };
}

const VersionAnswer = z.object({ supportedVersions: z.array(z.string()) });

/**
 * The versions that a plugin supports, as it says itself (VERSION); none when it cannot be asked.
 * @param dir of the runtime's plugins; undefined: it is not known.
 */
async function versionsOf(type: string, dir: string | undefined): Promise<readonly string[]> {
  if (dir === undefined || basename(type) !== type) return [];
  try {
    const { stdout } = await tryRun(join(dir, type), [], {
      env: { CNI_COMMAND: 'VERSION', CNI_PATH: dir },
      stdin: '{"cniVersion":"1.0.0"}',
      timeoutMs: 5000,
    });
    return VersionAnswer.parse(JSON.parse(stdout)).supportedVersions;
  } catch {
    return [];
  }
}

/** The configuration without the `cniVersions` that a plugin of it lacks; the same object when there are none. */
async function withoutLacking(conflist: Conflist, pluginDir: string | undefined): Promise<Conflist> {
  const { cniVersions: before, ...rest } = conflist;
  if (!before) return conflist;
  const others = conflist.plugins.map(({ type }) => type).filter((type) => type !== 'ripstop-cni');
  const supported = await Promise.all(others.map((type) => versionsOf(type, pluginDir)));
  const cniVersions = before.filter((version) => supported.every((all) => all.includes(version)));
  if (cniVersions.length === before.length) return conflist;
  return cniVersions.length === 0 ? rest : { ...rest, cniVersions };
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

/** Where the agent's configuration comes from and goes to. */
export interface ConflistFiles {
  /** The file that holds our configuration. */
  readonly source: string;
  /** The runtime's configurations. */
  readonly dir: string;
  /** A copy of what was installed last, which tells what others have added since. */
  readonly installed: string;
  /** The runtime's plugins, if they can be seen from here. */
  readonly pluginDir?: string | undefined;
}

/**
 * Install our configuration, with the plugins that others have added to the one that is there. If the file there is not
 * ours, it is kept beside it.
 * @returns whether anything was written.
 * @throws RipstopError when `source` does not run ripstop-cni.
 */
export async function installConflist(files: ConflistFiles): Promise<boolean> {
  const { source, dir, installed, pluginDir } = files;
  const text = (await readIfThere(source)) ?? '';
  const given = parseOurs(text);
  if (!given) {
    throw new RipstopError(
      `${source} is not a CNI configuration with the plugin ripstop-cni; correct it (deploy/ripstop.yml has one)`,
    );
  }
  const target = join(dir, NAME);
  const before = await readIfThere(target);
  const present = parse(before ?? '');
  const isOurs = present !== undefined && hasPlugin(present, 'ripstop-cni');
  // What was added to flannel's configuration is added to the network, whoever carries its packets.
  const base = isOurs ? parse((await readIfThere(installed)) ?? '') : FLANNELS;
  const isExtended = isOurs || (present !== undefined && hasPlugin(present, 'flannel'));
  const added = isExtended ? addedTo(present, base) : [];
  const desired = await withoutLacking(withPlugins(given, added), pluginDir);
  if (before !== undefined && !isOurs) await writeAtomically(`${target}${SAVED}`, before);
  const isThere = isDeepStrictEqual(present, desired);
  if (!isThere) await writeAtomically(target, desired === given ? text : encode(desired));
  await writeIfDifferent(installed, text);
  return !isThere;
}

/** The plugins of flannel's manifest. */
const FLANNELS: Conflist = { name: 'cbr0', plugins: [{ type: 'flannel' }, { type: 'portmap' }] };

const encode = (conflist: Conflist): string => `${JSON.stringify(conflist, undefined, 2)}\n`;

/**
 * Installs our configuration once. After that the file is others' to change: it is read again when it has changed, and
 * written only to leave out versions that a plugin lacks that somebody has added. A failure is logged once, and retried
 * at the next call.
 */
export class ConflistInstaller {
  readonly #files: ConflistFiles | undefined;
  readonly #log: Logger;
  readonly #failure: LogOnce;
  /** Of the file, when it was last read or written. */
  #stamp: string | undefined;

  /** @param files undefined: another program installs it. */
  constructor(files: ConflistFiles | undefined, log: Logger) {
    this.#files = files;
    this.#log = log;
    this.#failure = new LogOnce(log, 'the CNI configuration is not in place; retrying', 'error');
  }

  /** Call it when an ADD would succeed. Never throws. */
  async install(): Promise<void> {
    const files = this.#files;
    if (!files || (this.#stamp !== undefined && this.#stamp === stampOf(files))) return;
    try {
      const isFirst = this.#stamp === undefined;
      const isWritten = await (isFirst ? installConflist(files) : this.#follow(files));
      if (isWritten && isFirst)
        this.#log.info({ dir: files.dir }, 'pods can be added: the CNI configuration is in place');
      this.#stamp = stampOf(files);
      this.#failure.over();
    } catch (error) {
      this.#failure.met(error);
    }
  }

  /** Somebody has changed the file. @returns whether it was written. */
  async #follow({ dir, pluginDir }: ConflistFiles): Promise<boolean> {
    const target = join(dir, NAME);
    const present = parseOurs((await readIfThere(target)) ?? '');
    if (!present) {
      this.#log.warn(
        { file: target },
        "the CNI configuration is not ripstop's any more: new pods are not either; restart the agent to install it again",
      );
      return false;
    }
    const plugins = present.plugins.map(({ type }) => type);
    this.#log.info({ file: target, plugins }, 'somebody has changed the CNI configuration; it stays so');
    const desired = await withoutLacking(present, pluginDir);
    if (desired === present) return false;
    await writeAtomically(target, encode(desired));
    return true;
  }
}

/** Differs when the file was changed or replaced. */
function stampOf({ dir }: ConflistFiles): string {
  const stats = statSync(join(dir, NAME), { throwIfNoEntry: false });
  return stats ? `${stats.ino} ${stats.mtimeMs} ${stats.size}` : 'none';
}

/** Remove our configurations; kept configurations stay where they are. @returns what was done. */
export async function removeConflists(dir: string): Promise<string[]> {
  const ours = await listOurConflists(dir);
  for (const { file } of ours) await rm(file);
  return ours.map(({ file }) => `removed ${file}`);
}

/**
 * Restore the configurations that ours replaced, with the plugins that others have added to ours since; where none is
 * kept, write one as in flannel's manifest.
 * @param installed the copy of what was installed last. @returns what was done.
 */
export async function restoreConflists(dir: string, installed: string): Promise<string[]> {
  const done: string[] = [];
  const base = parse((await readIfThere(installed)) ?? '');
  for (const { file, conflist } of await listOurConflists(dir)) {
    const saved = `${file}${SAVED}`;
    const text = await readIfThere(saved);
    if (text === undefined) {
      await writeIfDifferent(file, encode(flannelInstead(conflist)));
      done.push(`wrote ${file} for flannel's plugin: none was kept`);
      continue;
    }
    const kept = parse(text);
    const extended = kept && base && withPlugins(kept, addedTo(conflist, base));
    if (extended && extended !== kept) await writeAtomically(saved, encode(extended));
    await rename(saved, file);
    done.push(`put back ${file}, from ${basename(saved)}`);
  }
  return done;
}

/** The copy of what was installed last, in the agent's directory for what must outlive a reboot. */
export const installedConflist = (stateDir: string): string => join(stateDir, 'cni-conf.json');

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
