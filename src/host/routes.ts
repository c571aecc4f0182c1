// SPDX-License-Identifier: Apache-2.0
import { formatCidr, hostCidr, parseCidr } from '../net/ip.ts';
import { type KernelRoute, listRoutes } from './netlink.ts';
import type { RunOptions } from './run.ts';

/**
 * The route protocol number (rtnetlink's `rtm_protocol`, 0x52 = "R") that marks a route as ours. It is unused by
 * rtnetlink.h and iproute2's rt_protos, and it is how we find exactly our own routes and touch nobody else's.
 */
export const ROUTE_PROTOCOL = 0x52;

/** The part of `ip -json -details route` that is read here. */
export interface RouteRow {
  type: string;
  /** `10.42.1.5`, `10.42.1.0/24` or `default`. */
  dst: string;
  gateway?: string;
  /** A gateway of the other family (RFC 5549). */
  via?: { family: string; host: string };
  dev?: string;
  /** Who made it: `kernel`, `ra` (a router's advertisement), `static`, … or a number. */
  protocol?: string;
  /** Several ways at once (ECMP), in place of `gateway` and `dev`. */
  nexthops?: { gateway?: string; dev: string }[];
  metric?: number;
  prefsrc?: string;
  flags: string[];
}

/** Our routes in the main table, both families. */
export function listOwnRoutes(options: RunOptions = {}): KernelRoute[] {
  return listRoutes(ROUTE_PROTOCOL, options);
}

/** The destination of a listed route (never `default`) as a canonical CIDR block, the key of our route targets. */
export function routeKey(row: RouteRow): string {
  return row.dst.includes('/') ? formatCidr(parseCidr(row.dst)) : hostCidr(row.dst);
}

/** Those of the entries that are there, so that removing what is gone is no error. */
export async function stillPresent<V>(
  entries: ReadonlyMap<string, V>,
  list: () => Promise<Map<string, V>>,
): Promise<Map<string, V>> {
  if (entries.size === 0) return new Map();
  const present = await list();
  return new Map([...present].filter(([key]) => entries.has(key)));
}
