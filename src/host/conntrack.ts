// SPDX-License-Identifier: Apache-2.0
import { existsSync } from 'node:fs';
import { errorText, RipstopError } from '../errors.ts';
import { noFailures, type Target } from '../reconcile/target.ts';
import { run } from './run.ts';

export const CONNTRACK_MODULE = 'nf_conntrack';
/** There in every network namespace as soon as nf_conntrack is in the kernel. */
const SIGN = '/proc/sys/net/netfilter/nf_conntrack_max';

/**
 * Have nf_conntrack in the kernel, whose functions the programs call: on a node without masquerading and kube-proxy
 * nothing else asks for it. It is loaded by a rule that comes and goes in one transaction, since the kernel then finds
 * the module by itself; a container may have neither modprobe nor the modules.
 * @returns whether it was loaded now.
 * @throws RipstopError when the kernel has none.
 */
export async function ensureConntrack(): Promise<boolean> {
  if (existsSync(SIGN)) return false;
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
  if (!existsSync(SIGN)) {
    throw new RipstopError(
      `the kernel module nf_conntrack cannot be loaded${why}; run "modprobe nf_conntrack"`,
    );
  }
  return true;
}

/** The kernel modules that the programs need: `nf_conntrack`. */
export function kernelModulesTarget(): Target<true> {
  return {
    name: 'kernel-modules',
    list: async () => new Map(existsSync(SIGN) ? [[CONNTRACK_MODULE, true]] : []),
    upsert: async () => {
      await ensureConntrack();
      return noFailures;
    },
    remove: async () => noFailures,
  };
}
