// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { canonicalAddress } from '../net/ip.ts';
import { line } from './ip.ts';
import type { RouteRow } from './routes.ts';
import { tryRun, type RunOptions } from './run.ts';

/** The kernel's way to an address. */
export interface NextHop {
  dev: string;
  /** The neighbour that gets the frame: the gateway, or the address itself on the same L2. */
  ip: string;
  /** Reached without a gateway: on the same L2 as we are. */
  onLink: boolean;
  /** The source address that the kernel would choose. */
  source: string | undefined;
}

/**
 * Ask the kernel's own routing (rules, tables and metrics included) for the way to each address, all in one process.
 * An address without a way, or one of our own, is absent from the answer.
 * @throws RipstopError when an entry is no address or `ip` cannot run.
 */
export async function lookupNextHops(
  addresses: readonly string[],
  options: RunOptions = {},
): Promise<Map<string, NextHop>> {
  const wanted = new Map(addresses.map((address) => [canonicalAddress(address), address]));
  if (wanted.size === 0) return new Map();
  const { code, stdout, stderr } = await tryRun('ip', ['-json', '-details', '-force', '-batch', '-'], {
    ...options,
    stdin: [...wanted.keys()].map((address) => `${line`route get ${address}`}\n`).join(''),
  });
  // Unreachable addresses make it exit non-zero; without -force's complaint it did not get as far as asking.
  if (code !== 0 && !stderr.includes('Command failed -:')) {
    throw new RipstopError(`ip route get failed: ${stderr.trim().split('\n').at(-1) ?? `exit code ${code}`}`);
  }
  const hops = new Map<string, NextHop>();
  // Each answer is a JSON array on a line of its own.
  for (const answer of stdout.split('\n')) {
    if (answer.trim() === '') continue;
    for (const row of JSON.parse(answer) as RouteRow[]) {
      const address = wanted.get(row.dst);
      if (address === undefined || row.type !== 'unicast' || row.dev === undefined) continue;
      const gateway = row.gateway ?? row.via?.host;
      hops.set(address, {
        dev: row.dev,
        ip: gateway ?? row.dst,
        onLink: gateway === undefined,
        source: row.prefsrc,
      });
    }
  }
  return hops;
}

/** Whether a peer that this way leads to is on the uplink's own L2: DirectRouting then sends its pods' packets bare. */
export function isOnSameL2(hop: NextHop | undefined, uplink: string): boolean {
  return hop !== undefined && hop.onLink && hop.dev === uplink;
}
