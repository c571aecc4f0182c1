// SPDX-License-Identifier: Apache-2.0
import { clearFlannelRules } from './flannel-rules.ts';
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

/** Take over what flannel has left; a node that it never ran on is left alone. @returns what was done, in words. */
export async function takeOverFromFlannel(
  devices: readonly string[],
  options: RunOptions = {},
): Promise<{ done: string[]; kept: string[] }> {
  const done: string[] = [];
  for (const device of devices) {
    // Ours are also among peers that are gone: the first complete sync removes those, and only those that are ours.
    const routes = await Promise.all(
      ['-4', '-6'].map((family) =>
        ipJson<RouteRow>([family, 'route', 'show', 'dev', device, 'proto', 'boot'], options),
      ),
    );
    const adoption = planAdoption(routes.flat(), device);
    await ipBatch(adoption, { ...options, force: true });
    if (adoption.length > 0) done.push(`${adoption.length} routes of ${device}`);
  }
  const { removed, kept } = await clearFlannelRules(options);
  return { done: [...done, ...removed], kept };
}
