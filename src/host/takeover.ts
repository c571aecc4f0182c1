// SPDX-License-Identifier: Apache-2.0
import { noFailures, type Target } from '../reconcile/target.ts';
import { ipBatch, ipJson, line } from './ip.ts';
import { ROUTE_PROTOCOL, routeKey, type RouteRow } from './routes.ts';
import type { RunOptions } from './run.ts';

/*
 * What a flanneld that ran here before us leaves behind, beyond what is the same for both: its device, neighbours and FDB
 * entries are adopted where they are.
 */

/** Lines of `ip -batch` that make flannel's routes to peers ours; those that are ours already need none. */
export function planAdoption(rows: readonly RouteRow[], device: string): string[] {
  return rows
    .filter(
      // flannel's own shape: to a podCIDR via its base.
      (row) =>
        row.protocol !== String(ROUTE_PROTOCOL) &&
        row.gateway !== undefined &&
        row.dst.startsWith(`${row.gateway}/`),
    )
    .map(
      (row) =>
        line`route replace ${routeKey(row)} via ${row.gateway!} dev ${device} onlink proto ${ROUTE_PROTOCOL}`,
    );
}

/**
 * flannel's routes over these devices as a target of which nothing is desired: to remove one is to make it ours. Ours are
 * also those to peers that are gone; the first complete sync removes these, and only those that are ours.
 */
export function flannelRoutesTarget(devices: readonly string[], options: RunOptions = {}): Target<string> {
  return {
    name: 'flannel-routes',
    list: async () => {
      const found = new Map<string, string>();
      for (const device of devices) {
        const routes = await Promise.all(
          ['-4', '-6'].map((family) =>
            ipJson<RouteRow>([family, 'route', 'show', 'dev', device, 'proto', 'boot'], options),
          ),
        );
        for (const command of planAdoption(routes.flat(), device)) found.set(command, command);
      }
      return found;
    },
    upsert: async () => noFailures,
    remove: async (entries) => {
      await ipBatch([...entries.values()], { ...options, force: true });
      return noFailures;
    },
  };
}
