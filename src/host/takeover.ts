// SPDX-License-Identifier: Apache-2.0
import { listRoutes, type NewRoute, replaceRoute, type Route, RTPROT } from '#netlink';
import { noFailures, type Target } from '../reconcile/target.ts';
import { openNetlink, type Where, writeEach } from './netlink.ts';
import { ROUTE_PROTOCOL } from './routes.ts';

/*
 * What a flanneld that ran here before us leaves behind, beyond what is the same for both: its device, neighbours and FDB
 * entries are adopted where they are.
 */

/** Routes that put flannel's to peers in our name; those that are ours already need none. Pure. */
export function planAdoption(
  routes: readonly Pick<Route, 'dst' | 'gateway' | 'ifindex' | 'protocol'>[],
): NewRoute[] {
  return routes
    .filter(
      // flannel's own shape: to a podCIDR via its base.
      ({ dst, gateway, protocol }) =>
        protocol !== ROUTE_PROTOCOL && gateway !== undefined && dst.startsWith(`${gateway}/`),
    )
    .map(({ dst, gateway, ifindex }) => ({ dst, gateway, ifindex, onlink: true, protocol: ROUTE_PROTOCOL }));
}

/**
 * flannel's routes over these devices as a target of which nothing is desired: to remove one is to make it ours. Ours are
 * also those to peers that are gone; the first complete sync removes these, and only those that are ours.
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
