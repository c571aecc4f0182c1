// SPDX-License-Identifier: Apache-2.0
import { noFailures, type Target } from '../reconcile/target.ts';
import { ipv4ToInt, parseCidr } from '../net/ip.ts';
import { bridgeBatch, ipBatch, ipJson, line } from './ip.ts';
import { type KernelRoute, listFdb, listNeighbours } from './netlink.ts';
import { listOwnRoutes, ROUTE_PROTOCOL, routeKey, type RouteRow, stillPresent } from './routes.ts';
import { listLinks } from './links.ts';
import type { RunOptions } from './run.ts';
import { isVtepDevice } from './vtep-device.ts';

/*
 * How the kernel reaches a peer's pods. It routes the peer's podCIDR "via" the base of that very podCIDR, an address that
 * exists only as the name of the peer's VTEP; the neighbour entry gives that name its MAC, which becomes the inner
 * destination MAC; and the FDB says at which node that MAC lives. All three are written ahead of traffic, one of each
 * per peer, so no packet ever waits for a lookup in user space or floods an unknown destination. That is why the order
 * matters: a route without the other two would black-hole, so it comes last and goes first.
 */

/** The route to a peer's pods. */
export interface PeerRoute {
  /** The gateway: the peer's podCIDR base, or its public IP with DirectRouting. */
  via: string;
  dev: string;
  /** The gateway need not be covered by a route of its own: always so on the VTEP device. */
  onlink: boolean;
}

export const neighbourKey = (device: string, address: string): string => `${device} ${address}`;
export const fdbKey = (device: string, mac: string): string => `${device} ${mac}`;

async function perDevice(list: (device: string) => Map<string, string>, options: RunOptions) {
  const devices = [...(await listLinks(options)).values()].filter(isVtepDevice).map(({ name }) => name);
  return new Map(
    devices.flatMap((device) =>
      [...list(device)].map(([key, value]) => [`${device} ${key}`, value] as const),
    ),
  );
}

/** The permanent neighbours of the VTEP devices: podCIDR base → VtepMAC. All of them are ours. */
export function neighbourTarget(options: RunOptions = {}): Target<string> {
  const list = () => perDevice((device) => listNeighbours(device, options), options);
  return {
    name: 'neighbours',
    list,
    upsert: async (entries) => {
      await ipBatch(
        [...entries].map(([key, mac]) => {
          const [device = '', ip = ''] = key.split(' ');
          return line`neigh replace ${ip} lladdr ${mac} dev ${device} nud permanent`;
        }),
        { ...options, force: true },
      );
      return noFailures;
    },
    remove: async (entries) => {
      await ipBatch(
        [...(await stillPresent(entries, list)).keys()].map((key) => {
          const [device = '', ip = ''] = key.split(' ');
          return line`neigh del ${ip} dev ${device}`;
        }),
        { ...options, force: true },
      );
      return noFailures;
    },
  };
}

/** The permanent FDB entries of the VTEP device: VtepMAC → the node's public IP. All of them are ours. */
export function fdbTarget(options: RunOptions = {}): Target<string> {
  const list = () => perDevice((device) => listFdb(device, options), options);
  return {
    name: 'fdb',
    list,
    upsert: async (entries) => {
      await bridgeBatch(
        [...entries].map(([key, ip]) => {
          const [device = '', mac = ''] = key.split(' ');
          return line`fdb replace ${mac} dev ${device} dst ${ip} self permanent`;
        }),
        { ...options, force: true },
      );
      return noFailures;
    },
    remove: async (entries) => {
      await bridgeBatch(
        [...(await stillPresent(entries, list)).keys()].map((key) => {
          const [device = '', mac = ''] = key.split(' ');
          return line`fdb del ${mac} dev ${device} self`;
        }),
        { ...options, force: true },
      );
      return noFailures;
    },
  };
}

/**
 * The routes to peers, through tunnels and direct, both families: podCIDR → route. Ours are those of our protocol that
 * have a gateway (those without are the pods' own, see pod-routes.ts). A route of the same prefix and metric that
 * somebody else made is taken over, as flannel would.
 */
export function peerRouteTarget(options: RunOptions = {}): Target<PeerRoute> {
  const rows = (): KernelRoute[] => listOwnRoutes(options).filter(({ gateway, dev }) => gateway && dev);
  return {
    name: 'peer-routes',
    list: async () =>
      new Map(rows().map(({ dst, gateway, dev, onlink }) => [dst, { via: gateway!, dev: dev!, onlink }])),
    upsert: async (entries) => {
      const room = await inTheWay(entries, options);
      const commands = [...entries].flatMap(([cidr, route]) => replaceCommands(cidr, route));
      await ipBatch([...room, ...commands], { ...options, force: true });
      return noFailures;
    },
    remove: async (entries) => {
      const present = entries.size > 0 ? rows().filter(({ dst }) => entries.has(dst)) : [];
      await ipBatch(present.flatMap(removeCommands), { ...options, force: true });
      return noFailures;
    },
  };
}

/**
 * An IPv4 route has its way as an object of its own (ip-nexthop(8)). Among ways inside routes the kernel looks for one that
 * is the same before it makes another, and finds them all in one bucket of its hash table, since the gateway is no part of
 * the hash: 15,000 routes would take it ten times as long. IPv6 routes do not share their ways.
 */
function replaceCommands(cidr: string, { via, dev, onlink }: PeerRoute): string[] {
  const way = line`via ${via} dev ${dev} proto ${ROUTE_PROTOCOL}` + (onlink ? ' onlink' : '');
  const { family, base } = parseCidr(cidr);
  if (family === 6) return [line`route replace ${cidr} ` + way];
  // podCIDRs do not overlap, and the small numbers are those of routing daemons.
  const id = ipv4ToInt(base);
  return [
    line`nexthop replace id ${id} ` + way,
    line`route replace ${cidr} nhid ${id} proto ${ROUTE_PROTOCOL}`,
  ];
}

/** The route first: a way in use takes its routes along, for which the kernel would search all there are. */
function removeCommands({ dst, gateway, dev, nexthop }: KernelRoute): string[] {
  if (nexthop === undefined)
    return [line`route del ${dst} via ${gateway!} dev ${dev!} proto ${ROUTE_PROTOCOL}`];
  return [line`route del ${dst} nhid ${nexthop} proto ${ROUTE_PROTOCOL}`, line`nexthop del id ${nexthop}`];
}

/** The metric of IPv6 routes that are given none, such as ours: IP6_RT_PRIO_USER of the kernel's ipv6_route.h. */
const IPV6_METRIC = 1024;

/**
 * Commands that make room for routes into an IPv6 tunnel. The kernel refuses an on-link gateway that another device's
 * route covers, even when that is the route to be replaced: one that leads to the same peer directly (DirectRouting).
 */
async function inTheWay(entries: ReadonlyMap<string, PeerRoute>, options: RunOptions): Promise<string[]> {
  if (![...entries].some(([cidr, { onlink }]) => onlink && cidr.includes(':'))) return [];
  const rows = await ipJson<RouteRow>(['-6', 'route', 'show', 'table', 'main'], options);
  return rows.flatMap((row) => {
    const wanted = row.gateway === undefined ? undefined : entries.get(routeKey(row));
    if (!wanted?.onlink || row.metric !== IPV6_METRIC || row.dev === undefined || row.dev === wanted.dev)
      return [];
    return [line`route del ${routeKey(row)} dev ${row.dev} metric ${IPV6_METRIC}`];
  });
}
