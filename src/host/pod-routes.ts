// SPDX-License-Identifier: Apache-2.0
import { noFailures, type Target } from '../reconcile/target.ts';
import { ipBatch, line } from './ip.ts';
import { listOwnRoutes, ROUTE_PROTOCOL, stillPresent } from './routes.ts';
import type { RunOptions } from './run.ts';

/**
 * Where a local prefix leads: to a pod's host veth, or nowhere. `unreachable` is for the node's whole podCIDR: without a
 * bridge nothing else covers it, and a packet to a pod that is gone would leave through the default route.
 */
export type PodRoute = { dev: string } | { unreachable: true };

/**
 * The host's routes to its own pods, both families: `10.42.1.5/32` or `fd00:0:0:1::5/128` → the veth. Ours are those of
 * our protocol without a gateway (those with one lead to peers, see vxlan-target.ts).
 */
export function podRouteTarget(options: RunOptions = {}): Target<PodRoute> {
  const list = async (): Promise<Map<string, PodRoute>> => {
    const routes = new Map<string, PodRoute>();
    for (const row of listOwnRoutes(options)) {
      if (row.gateway !== undefined) continue;
      if (row.type === 'unreachable') routes.set(row.dst, { unreachable: true });
      else if (row.dev !== undefined) routes.set(row.dst, { dev: row.dev });
    }
    return routes;
  };
  return {
    name: 'pod-routes',
    list,
    upsert: async (entries) => {
      await ipBatch(
        [...entries].map(([cidr, route]) => command('replace', cidr, route)),
        { ...options, force: true },
      );
      return noFailures;
    },
    remove: async (entries) => {
      await ipBatch(
        [...(await stillPresent(entries, list))].map(([cidr, route]) => command('del', cidr, route)),
        { ...options, force: true },
      );
      return noFailures;
    },
  };
}

function command(verb: string, cidr: string, route: PodRoute): string {
  if ('unreachable' in route) return line`route ${verb} unreachable ${cidr} proto ${ROUTE_PROTOCOL}`;
  return line`route ${verb} ${cidr} dev ${route.dev} scope link proto ${ROUTE_PROTOCOL}`;
}
