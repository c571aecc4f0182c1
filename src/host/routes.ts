// SPDX-License-Identifier: Apache-2.0
import { listRoutes, type Route, type RouteFilter } from '#netlink';
import { linkNames, openNetlink, type Where } from './netlink.ts';

/**
 * The route protocol number (`rtm_protocol` of rtnetlink, 0x52 = "R") that marks a route as ours, so that ripstop finds
 * its own routes and leaves all others alone. Neither rtnetlink.h nor iproute2's rt_protos uses it.
 */
export const ROUTE_PROTOCOL = 0x52;

/**
 * Call `found` for each of our routes in the main table, both families.
 * @param filter `gateway`: only routes with one, or only routes without.
 * @param found gets a route and the name of its device.
 */
export function eachOwnRoute(
  where: Where,
  filter: Pick<RouteFilter, 'gateway'>,
  found: (route: Route, dev: string | undefined) => void,
): void {
  using socket = openNetlink(where);
  const names = linkNames(socket);
  for (const family of [4, 6] as const) {
    for (const route of listRoutes(socket, { family, protocol: ROUTE_PROTOCOL, ...filter })) {
      found(route, route.ifindex === undefined ? undefined : names.get(route.ifindex));
    }
  }
}
