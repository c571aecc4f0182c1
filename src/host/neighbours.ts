// SPDX-License-Identifier: Apache-2.0
import { canonicalAddress } from '../net/ip.ts';
import { routesTo } from './netlink.ts';
import type { RunOptions } from './run.ts';

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
 * Ask the kernel's own routing (rules, tables and metrics included) for the way to each address. An address without a way, or
 * one of our own, is absent from the answer.
 * @throws RipstopError when an entry is no address.
 */
export async function lookupNextHops(
  addresses: readonly string[],
  options: RunOptions = {},
): Promise<Map<string, NextHop>> {
  const hops = new Map<string, NextHop>();
  for (const [i, route] of routesTo(addresses, options).entries()) {
    if (route?.type !== 'unicast' || route.dev === undefined) continue;
    const { dev, gateway, source } = route;
    const address = addresses[i]!;
    hops.set(address, {
      dev,
      ip: gateway ?? canonicalAddress(address),
      onLink: gateway === undefined,
      source,
    });
  }
  return hops;
}
