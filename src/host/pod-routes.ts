// SPDX-License-Identifier: Apache-2.0
import { deleteRoute, replaceRoute } from '#netlink';
import type { Target } from '../reconcile/target.ts';
import { removeEach, type Where, writeEach } from './netlink.ts';
import { eachOwnRoute, ROUTE_PROTOCOL } from './routes.ts';

/**
 * Where a local prefix leads: to a pod's host veth, or nowhere. `unreachable` is for the node's whole podCIDR: without a
 * bridge nothing else covers it, and a packet to a pod that is gone would leave through the default route.
 */
export type PodRoute = { dev: string } | { unreachable: true };

/**
 * The host's routes to its own pods, both families: `10.42.1.5/32` or `fd00:0:0:1::5/128` → the veth. Ours are those of
 * our protocol without a gateway (those with one lead to peers, see vxlan-target.ts).
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
    // Not by its device: that may be gone. But only a route of this kind: the podCIDR may be a peer's by now.
    remove: (entries) =>
      removeEach(where, entries, (dst, route) => {
        if (!('unreachable' in route)) return [deleteRoute({ dst, protocol: ROUTE_PROTOCOL })];
        // The kernel tells kinds of IPv4 routes apart; those of IPv6 that lead nowhere are on the loopback device.
        const kind = dst.includes(':') ? { ifindex: LOOPBACK } : { type: 'unreachable' as const };
        return [deleteRoute({ dst, protocol: ROUTE_PROTOCOL, ...kind })];
      }),
  };
}

/** Its index in every network namespace. */
const LOOPBACK = 1;
