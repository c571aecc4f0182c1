// SPDX-License-Identifier: Apache-2.0
import type { Target } from '../dataplane/target.ts';
import { type Cidr, formatCidr, ipv4ToInt, parseCidr } from '../net/ip.ts';
import { bridgeBatch, ipBatch, ipJson, line } from './ip.ts';
import { type KernelRoute, listFdb, listNeighbours } from './netlink.ts';
import { listOwnRoutes, ROUTE_PROTOCOL, routeKey, type RouteRow, stillPresent } from './routes.ts';
import type { RunOptions } from './run.ts';

/*
 * How the kernel reaches a peer's pods. It routes the peer's podCIDR "via" the base of that very podCIDR, an address that
 * exists only as the name of the peer's VTEP; the neighbour entry gives that name its MAC, which becomes the inner
 * destination MAC; and the FDB says at which node that MAC lives. All three are written ahead of traffic, one of each
 * per peer, so no packet ever waits for a lookup in user space or floods an unknown destination. That is why the order
 * matters: a route without the other two would black-hole, so it comes last and goes first.
 */

/** A peer as the kernel path needs it. */
export interface VtepPeer {
  podCidr: Cidr;
  vtepMac: string;
  /** The address that we dial. */
  vtepIp: string;
  /** The peer is on our own L2 and its pods are routed without a tunnel: the uplink's name. */
  directDev?: string;
}

/** The route to a peer's pods. */
export interface PeerRoute {
  /** The gateway: the peer's podCIDR base, or its public IP with DirectRouting. */
  via: string;
  dev: string;
  /** The gateway need not be covered by a route of its own: always so on the VTEP device. */
  onlink: boolean;
}

/** What the three targets of one VTEP device should hold. */
export interface PeerEntries {
  /** podCIDR base → VtepMAC. */
  neighbours: Map<string, string>;
  /** VtepMAC → public IP. */
  fdb: Map<string, string>;
  /** podCIDR → route. */
  routes: Map<string, PeerRoute>;
}

/**
 * flannel's three entries of each peer, as the desired values of the targets below. A peer that neither direct routing nor
 * a tunnel leads to has none.
 * @param device of this family; undefined without tunnels.
 */
export function peerEntries(peers: Iterable<VtepPeer>, device: string | undefined): PeerEntries {
  const entries: PeerEntries = { neighbours: new Map(), fdb: new Map(), routes: new Map() };
  for (const { podCidr, vtepMac, vtepIp, directDev } of peers) {
    if (directDev !== undefined) {
      entries.routes.set(formatCidr(podCidr), { via: vtepIp, dev: directDev, onlink: false });
    } else if (device !== undefined) {
      entries.neighbours.set(podCidr.base, vtepMac);
      entries.fdb.set(vtepMac, vtepIp);
      entries.routes.set(formatCidr(podCidr), { via: podCidr.base, dev: device, onlink: true });
    }
  }
  return entries;
}

/** The permanent neighbours of the VTEP device: podCIDR base → VtepMAC. All of them are ours. */
export function neighbourTarget(device: string, options: RunOptions = {}): Target<string> {
  const list = async (): Promise<Map<string, string>> => listNeighbours(device, options);
  return {
    name: 'neighbours',
    list,
    upsert: async (entries) =>
      ipBatch(
        [...entries].map(([ip, mac]) => line`neigh replace ${ip} lladdr ${mac} dev ${device} nud permanent`),
        { ...options, force: true },
      ),
    remove: async (entries) =>
      ipBatch(
        [...(await stillPresent(entries, list)).keys()].map((ip) => line`neigh del ${ip} dev ${device}`),
        {
          ...options,
          force: true,
        },
      ),
  };
}

/** The permanent FDB entries of the VTEP device: VtepMAC → the node's public IP. All of them are ours. */
export function fdbTarget(device: string, options: RunOptions = {}): Target<string> {
  const list = async (): Promise<Map<string, string>> => listFdb(device, options);
  return {
    name: 'fdb',
    list,
    upsert: async (entries) =>
      bridgeBatch(
        [...entries].map(([mac, ip]) => line`fdb replace ${mac} dev ${device} dst ${ip} self permanent`),
        { ...options, force: true },
      ),
    // Without a destination the whole entry goes, also one of several destinations that somebody appended.
    remove: async (entries) =>
      bridgeBatch(
        [...(await stillPresent(entries, list)).keys()].map((mac) => line`fdb del ${mac} dev ${device} self`),
        { ...options, force: true },
      ),
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
    },
    remove: async (entries) => {
      const present = entries.size > 0 ? rows().filter(({ dst }) => entries.has(dst)) : [];
      await ipBatch(present.flatMap(removeCommands), { ...options, force: true });
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
