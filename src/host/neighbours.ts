// SPDX-License-Identifier: Apache-2.0
import { lookUpRoutes, NetlinkError } from '#netlink';
import type { PerFamily } from '../net/ip.ts';
import { linkNames, openNetlink, type Where } from './netlink.ts';

/** The kernel's next hop to an address. */
export interface NextHop {
  readonly dev: string;
  /** The neighbour that gets the frame; undefined: the address itself, which is on our own L2. */
  readonly gateway: string | undefined;
  /** The MTU of the route, or what was learned of the path; undefined: the device's. In bytes. */
  readonly mtu?: number | undefined;
}

/**
 * Ask the kernel for the next hop to each address, by all its routing rules, tables and metrics. An address without a
 * route, or one of this node's own, is missing from the answer. Equal next hops are one object, since nearly all peers
 * share one.
 * @param sources the source addresses of the packets, by which rules may select tables; undefined: the kernel's choice.
 * @throws RipstopError when an entry is not an address.
 */
export async function lookupNextHops(
  addresses: readonly string[],
  sources: PerFamily<string> = {},
  where: Where = {},
): Promise<Map<string, NextHop>> {
  const found = new Map<string, NextHop>();
  const known = new Map<string, NextHop>();
  if (addresses.length === 0) return found;
  using socket = openNetlink(where);
  const names = linkNames(socket);
  for (const [i, route] of lookUpRoutes(socket, addresses, sources).entries()) {
    if (route instanceof NetlinkError || route.type !== 'unicast' || route.ifindex === undefined) continue;
    const { gateway, mtu } = route;
    const dev = names.get(route.ifindex);
    if (dev === undefined) continue;
    const key = `${dev} ${gateway} ${mtu}`;
    const nextHop = known.get(key) ?? { dev, gateway, mtu };
    known.set(key, nextHop);
    found.set(addresses[i]!, nextHop);
  }
  return found;
}
