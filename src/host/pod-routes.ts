// SPDX-License-Identifier: Apache-2.0
import { deleteRoute, replaceRoute } from '#netlink';
import type { Target } from '../reconcile/target.ts';
import { removeEach, type Where, writeEach } from './netlink.ts';
import { eachOwnRoute, ROUTE_PROTOCOL } from './routes.ts';

/**
 * The route of a local prefix: to a pod's host veth, or `unreachable`. The latter is for the node's whole podCIDR:
 * without a bridge no other route covers it, and a packet to a deleted pod would leave by the default route.
 */
export type PodRoute = { dev: string } | { unreachable: true };

/**
 * The node's routes to its own pods, both families: `10.42.1.5/32` or `fd00:0:0:1::5/128` → the veth. Ours have our
 * route protocol and no gateway (those with a gateway lead to peers, see vxlan-target.ts).
 */
export function podRouteTarget(where: Where = {}): Target<PodRoute> {
  return {
    name: 'pod-routes',
    list: async () => {
      const routes = new Map<string, PodRoute>();
      eachOwnRoute(where, { gateway: false }, ({ dst, type }, dev) => {
        if (type === 'unreachable') routes.set(dst, { unreachable: true });
        else if (dev !== undefined) routes.set(dst, { dev });
      });
      return routes;
    },
    upsert: (entries) =>
      writeEach(where, entries, (dst, route, ifindexOf) => {
        if ('unreachable' in route)
          return [replaceRoute({ dst, protocol: ROUTE_PROTOCOL, type: 'unreachable' })];
        return [
          replaceRoute({ dst, protocol: ROUTE_PROTOCOL, scope: 'link', ifindex: ifindexOf(route.dev) }),
        ];
      }),
    // The device is not part of the request, since it may be gone. The type is: the podCIDR may belong to a peer by
    // now.
    remove: (entries) =>
      removeEach(where, entries, (dst, route) => {
        if (!('unreachable' in route)) return [deleteRoute({ dst, protocol: ROUTE_PROTOCOL })];
        // The kernel selects IPv4 routes by type; IPv6 routes without a destination are on the loopback device.
        const kind = dst.includes(':') ? { ifindex: LOOPBACK } : { type: 'unreachable' as const };
        return [deleteRoute({ dst, protocol: ROUTE_PROTOCOL, ...kind })];
      }),
  };
}

/** The index of the loopback device, in every network namespace. */
const LOOPBACK = 1;
