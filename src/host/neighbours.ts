// SPDX-License-Identifier: Apache-2.0
import { lookUpRoutes, NetlinkError } from '#netlink';
import { linkNames, openNetlink, type Where } from './netlink.ts';

/** The kernel's way to an address. */
export interface NextHop {
  readonly dev: string;
  /** The neighbour that gets the frame; undefined: the address itself, which is on the same L2 as we are. */
  readonly gateway: string | undefined;
}

/**
 * Ask the kernel's own routing (rules, tables and metrics included) for the way to each address. An address without a way, or
 * one of our own, is absent from the answer. Ways that are the same are one object: nearly all peers' are.
 * @throws RipstopError when an entry is no address.
 */
export async function lookupNextHops(
  addresses: readonly string[],
  where: Where = {},
): Promise<Map<string, NextHop>> {
  const hops = new Map<string, NextHop>();
  const known = new Map<string, NextHop>();
  if (addresses.length === 0) return hops;
  using socket = openNetlink(where);
  const names = linkNames(socket);
  for (const [i, route] of lookUpRoutes(socket, addresses).entries()) {
    if (route instanceof NetlinkError || route.type !== 'unicast' || route.ifindex === undefined) continue;
    const { gateway } = route;
    const dev = names.get(route.ifindex);
    if (dev === undefined) continue;
    const key = `${dev} ${gateway}`;
    const hop = known.get(key) ?? { dev, gateway };
    known.set(key, hop);
    hops.set(addresses[i]!, hop);
  }
  return hops;
}
