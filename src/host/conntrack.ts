// SPDX-License-Identifier: Apache-2.0
import { existsSync, readFileSync } from 'node:fs';
import { isOpenTcp, listConnections, makeLiberal, NetlinkSocket } from '#netlink';
import { errorText, RipstopError } from '../errors.ts';
import { noFailures, type Target } from '../reconcile/target.ts';
import { run } from './run.ts';

export const CONNTRACK_MODULE = 'nf_conntrack';
/** This file exists in every network namespace once nf_conntrack is loaded. */
const MAX_SETTING = '/proc/sys/net/netfilter/nf_conntrack_max';
const COUNT = '/proc/sys/net/netfilter/nf_conntrack_count';

/**
 * Load nf_conntrack, whose kfuncs the programs call. On a node without masquerading and kube-proxy nothing else loads
 * it. An nft rule that uses conntrack is added and deleted in one transaction, and for that the kernel loads the module
 * itself: a container may have neither modprobe nor the modules.
 * @returns whether this call loaded it.
 * @throws RipstopError when the kernel does not have the module.
 */
async function ensureConntrack(): Promise<boolean> {
  if (existsSync(MAX_SETTING)) return false;
  const table = 'inet ripstop-conntrack';
  const transaction = [
    `add table ${table}`,
    `add chain ${table} none`,
    `add rule ${table} none ct state new`,
    `delete table ${table}`,
  ];
  const why = await run('nft', ['-f', '-'], { stdin: `${transaction.join('\n')}\n` }).then(
    () => '',
    (error: unknown) => ` (${errorText(error)})`,
  );
  if (!existsSync(MAX_SETTING)) {
    throw new RipstopError(
      `the kernel module nf_conntrack cannot be loaded${why}; run "modprobe nf_conntrack"`,
    );
  }
  return true;
}

/** How full the table of conntrack is in this network namespace; undefined where conntrack is not loaded. */
export function conntrackUse(): { entries: number; maxEntries: number } | undefined {
  if (!existsSync(MAX_SETTING)) return undefined;
  const read = (file: string): number => Number(readFileSync(file, 'utf8'));
  return { entries: read(COUNT), maxEntries: read(MAX_SETTING) };
}

/** The kernel modules that the programs need: `nf_conntrack`. */
export function kernelModulesTarget(): Target<true> {
  return {
    name: 'kernel-modules',
    list: async () => new Map(existsSync(MAX_SETTING) ? [[CONNTRACK_MODULE, true]] : []),
    upsert: async () => {
      await ensureConntrack();
      return noFailures;
    },
    remove: async () => noFailures,
  };
}

/**
 * Let all open TCP connections be liberal, each for itself. Conntrack has not seen the windows of those that the fast path
 * has carried, so without the setting for all it would call the rest of their packets INVALID.
 */
export function keepConnectionsLiberal(): void {
  using socket = NetlinkSocket.open('netfilter');
  const open = ([4, 6] as const).flatMap((family) => listConnections(socket, family)).filter(isOpenTcp);
  for (const error of socket.writeAll(open.map(makeLiberal)))
    if (error && error.code !== 'ENOENT') throw error;
}
