// SPDX-License-Identifier: Apache-2.0
import { listRoutes, type Route, type RouteFilter } from '#netlink';
import { linkNames, openNetlink, type Where } from './netlink.ts';

/**
 * The route protocol number (rtnetlink's `rtm_protocol`, 0x52 = "R") that marks a route as ours. It is unused by
 * rtnetlink.h and iproute2's rt_protos, and it is how we find exactly our own routes and touch nobody else's.
 */
export const ROUTE_PROTOCOL = 0x52;

/** A route, with the name of its device. */
export interface KernelRoute extends Route {
  readonly dev: string | undefined;
}

/**
 * Our routes in the main table, both families.
 * @param filter `gateway`: only those with one, or only those without.
 */
export function listOwnRoutes(where: Where = {}, filter: Pick<RouteFilter, 'gateway'> = {}): KernelRoute[] {
  using socket = openNetlink(where);
  const names = linkNames(socket);
  return ([4, 6] as const).flatMap((family) =>
    listRoutes(socket, { family, protocol: ROUTE_PROTOCOL, ...filter }).map((route) => ({
      ...route,
      dev: route.ifindex === undefined ? undefined : names.get(route.ifindex),
    })),
  );
}
