// SPDX-License-Identifier: Apache-2.0
import { listRoutes, type NewRoute, replaceRoute, type Route, RTPROT } from '#netlink';
import { noFailures, type Target } from '../reconcile/target.ts';
import { openNetlink, type Where, writeEach } from './netlink.ts';
import { ROUTE_PROTOCOL } from './routes.ts';

/*
 * Taking over the routes that a previous flanneld left on the node. Its device, neighbours and FDB entries equal ours,
 * so they need no takeover.
 */

/** Our routes that replace flannel's routes to peers; our own routes need no replacement. Pure. */
export function planAdoption(
  routes: readonly Pick<Route, 'dst' | 'gateway' | 'ifindex' | 'protocol'>[],
): NewRoute[] {
  return routes
    .filter(
      // flannel's routes lead to a podCIDR via its base.
      ({ dst, gateway, protocol }) =>
        protocol !== ROUTE_PROTOCOL && gateway !== undefined && dst.startsWith(`${gateway}/`),
    )
    .map(({ dst, gateway, ifindex }) => ({ dst, gateway, ifindex, onlink: true, protocol: ROUTE_PROTOCOL }));
}

/**
 * flannel's routes over these devices, as a target without desired entries. To remove one means to replace it by a
 * route of ours, even if it leads to a peer that is gone: the first complete sync removes it then, as it does only with
 * our routes.
 */
export function flannelRoutesTarget(devices: readonly string[], where: Where = {}): Target<NewRoute> {
  return {
    name: 'flannel-routes',
    list: async () => {
      using socket = openNetlink(where);
      const routes = devices.flatMap((device) => {
        const ifindex = socket.indexOf(device);
        if (ifindex === undefined) return [];
        return ([4, 6] as const).flatMap((family) =>
          listRoutes(socket, { family, ifindex, protocol: RTPROT.boot, gateway: true }),
        );
      });
      return new Map(planAdoption(routes).map((route) => [route.dst, route]));
    },
    upsert: async () => noFailures,
    remove: (entries) => writeEach(where, entries, (_, route) => [replaceRoute(route)]),
  };
}
