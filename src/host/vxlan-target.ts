// SPDX-License-Identifier: Apache-2.0
import {
  deleteFdbEntry,
  deleteNeighbour,
  deleteNexthop,
  deleteRoute,
  listFdb,
  listLinks,
  listNeighbours,
  listRoutes,
  type NetlinkSocket,
  replaceFdbEntry,
  replaceNeighbour,
  replaceNexthop,
  replaceRoute,
} from '#netlink';
import { type Cidr, type Family, formatCidr, ipv4ToInt } from '../net/ip.ts';
import type { Failures, Target } from '../reconcile/target.ts';
import { ifindexes, linkNames, openNetlink, removeEach, type Where, writeEach } from './netlink.ts';
import { eachOwnRoute, ROUTE_PROTOCOL } from './routes.ts';
import { isVtepDevice } from './vtep-device.ts';

/*
 * How the kernel path reaches a peer's pods. The route of the peer's podCIDR has the base of that podCIDR as its
 * gateway, an address that stands for the peer's VTEP. The neighbour entry of that address has the VTEP's MAC, which
 * becomes the inner destination MAC. The FDB entry of that MAC has the peer's underlay address. All three are written
 * before there is traffic, so that no packet waits for a lookup in user space or is flooded. A route without the other
 * two would drop packets, so the route is written last and removed first.
 */

/** A peer as the kernel path needs it. */
export interface VtepPeer {
  podCidr: Cidr;
  vtepMac: string;
  /** The peer's underlay address: the outer destination. */
  vtepIp: string;
  /** The name of the uplink, if the peer is on our own L2 and its pods are routed directly, without a tunnel. */
  directDev?: string;
}

/** The route to a peer's pods. */
export interface PeerRoute {
  /** The gateway: the peer's podCIDR base, or its public IP with DirectRouting. */
  via: string;
  dev: string;
  /** Whether the gateway is taken as on-link without a route to it: always so on the VTEP device. */
  onlink: boolean;
}

/** The desired entries of the three targets. */
export interface PeerEntries {
  /** By {@link neighbourKey}. */
  neighbours: Map<string, string>;
  /** By {@link fdbKey}. */
  fdb: Map<string, string>;
  /** podCIDR → route. */
  routes: Map<string, PeerRoute>;
}

/**
 * flannel's three entries for each peer, as desired entries of the targets below. A peer that can be reached neither
 * directly nor through a tunnel has none. Pure.
 * @param vtepOf the family's VTEP device; undefined when there is none at present.
 */
export function peerEntries(
  peers: Iterable<VtepPeer>,
  vtepOf: (family: Family) => string | undefined,
): PeerEntries {
  const entries: PeerEntries = { neighbours: new Map(), fdb: new Map(), routes: new Map() };
  for (const { podCidr, vtepMac, vtepIp, directDev } of peers) {
    const vtep = vtepOf(podCidr.family);
    if (directDev !== undefined) {
      entries.routes.set(formatCidr(podCidr), { via: vtepIp, dev: directDev, onlink: false });
    } else if (vtep !== undefined) {
      entries.neighbours.set(neighbourKey(vtep, podCidr.base), vtepMac);
      entries.fdb.set(fdbKey(vtep, vtepMac), vtepIp);
      entries.routes.set(formatCidr(podCidr), { via: podCidr.base, dev: vtep, onlink: true });
    }
  }
  return entries;
}

/** The keys of {@link neighbourTarget} and {@link fdbTarget}. */
export const neighbourKey = (device: string, address: string): string => `${device} ${address}`;
export const fdbKey = (device: string, mac: string): string => `${device} ${mac}`;

/** List entries of all VTEP devices. @param list calls `found` with the key and value of each entry of one device. */
function ofVtepDevices(
  where: Where,
  list: (socket: NetlinkSocket, ifindex: number, found: (key: string, value: string) => void) => void,
): Map<string, string> {
  using socket = openNetlink(where);
  const entries = new Map<string, string>();
  for (const { name, ifindex } of listLinks(socket).filter(isVtepDevice)) {
    list(socket, ifindex, (key, value) => entries.set(`${name} ${key}`, value));
  }
  return entries;
}

/** The permanent neighbours of the VTEP devices: podCIDR base → the VTEP's MAC. All of them are ours. */
export function neighbourTarget(where: Where = {}): Target<string> {
  return {
    name: 'neighbours',
    list: async () =>
      ofVtepDevices(where, (socket, ifindex, found) => {
        for (const { address, mac = '', state } of listNeighbours(socket, { ifindex })) {
          if (state === 'permanent') found(address, mac);
        }
      }),
    upsert: (entries) =>
      writeEach(where, entries, (key, mac, ifindexOf) => {
        const [device = '', address = ''] = key.split(' ');
        return [replaceNeighbour({ ifindex: ifindexOf(device), address, mac })];
      }),
    remove: (entries) =>
      removeEach(where, entries, (key, _mac, ifindexOf) => {
        const [device = '', address = ''] = key.split(' ');
        return [deleteNeighbour({ ifindex: ifindexOf(device), address })];
      }),
  };
}

/** The permanent FDB entries of the VTEP devices: the VTEP's MAC → the peer's public IP. All of them are ours. */
export function fdbTarget(where: Where = {}): Target<string> {
  return {
    name: 'fdb',
    list: async () =>
      ofVtepDevices(where, (socket, ifindex, found) => {
        for (const { mac, dst = '', state } of listFdb(socket, { ifindex })) {
          if (state === 'permanent') found(mac, dst);
        }
      }),
    upsert: (entries) =>
      writeEach(where, entries, (key, dst, ifindexOf) => {
        const [device = '', mac = ''] = key.split(' ');
        return [replaceFdbEntry({ ifindex: ifindexOf(device), mac, dst })];
      }),
    // This removes the whole entry, also if another program appended destinations to it.
    remove: (entries) =>
      removeEach(where, entries, (key, _dst, ifindexOf) => {
        const [device = '', mac = ''] = key.split(' ');
        return [deleteFdbEntry({ ifindex: ifindexOf(device), mac })];
      }),
  };
}

/**
 * The routes to peers, through tunnels and direct, both families: podCIDR → route. Ours have our route protocol and a
 * gateway (those without a gateway lead to the node's pods, see pod-routes.ts). Another program's route of the same
 * prefix and metric is replaced, as flannel does; what of it leads directly the same way leaves its MTU to ours.
 */
export function peerRouteTarget(where: Where = {}): Target<PeerRoute> {
  return {
    name: 'peer-routes',
    list: async () => {
      const routes = new Map<string, PeerRoute>();
      eachOwnRoute(where, { gateway: true }, ({ dst, gateway, onlink }, dev) => {
        if (gateway !== undefined && dev !== undefined) routes.set(dst, { via: gateway, dev, onlink });
      });
      return routes;
    },
    upsert: async (entries) => {
      const failures = await writeRoutes(where, entries);
      if (failures.size === 0) return failures;
      const blocked = new Map(
        [...entries].filter(([dst, { onlink }]) => onlink && isIpv6(dst) && failures.has(dst)),
      );
      if (blocked.size === 0 || !removeCoveringRoutes(where, blocked)) return failures;
      const still = await writeRoutes(where, blocked);
      return new Map([...[...failures].filter(([dst]) => !blocked.has(dst)), ...still]);
    },
    // The route first: to delete a nexthop in use, the kernel searches all routes for those that use it.
    remove: (entries) =>
      removeEach(where, entries, (dst, { via }) => {
        if (isIpv6(dst)) return [deleteRoute({ dst, gateway: via, protocol: ROUTE_PROTOCOL })];
        return [deleteRoute({ dst, protocol: ROUTE_PROTOCOL }), deleteNexthop(nexthopOf(dst))];
      }),
  };
}

/**
 * Each IPv4 route gets a nexthop object (ip-nexthop(8)). For a route with its next hop inside, the kernel searches for
 * an equal next hop to share. It finds all of them in one bucket of its hash table, since the gateway is not part of
 * the hash: 15,000 routes would take ten times as long. IPv6 routes do not share next hops.
 */
function writeRoutes(where: Where, entries: ReadonlyMap<string, PeerRoute>): Promise<Failures> {
  const mtus = mtusOf(where, entries);
  return writeEach(where, entries, (dst, { via, dev, onlink }, ifindexOf) => {
    const nextHop = { gateway: via, ifindex: ifindexOf(dev), onlink, protocol: ROUTE_PROTOCOL };
    const mtu = mtus.get(dst);
    if (isIpv6(dst)) return [replaceRoute({ dst, ...nextHop, mtu })];
    const id = nexthopOf(dst);
    return [
      replaceNexthop({ id, ...nextHop }),
      replaceRoute({ dst, nexthop: id, mtu, protocol: ROUTE_PROTOCOL }),
    ];
  });
}

/** The MTUs that somebody has given to direct routes which lead the same way already: the underlay may carry less. */
function mtusOf(where: Where, entries: ReadonlyMap<string, PeerRoute>): Map<string, number> {
  const mtus = new Map<string, number>();
  if (entries.values().every(({ onlink }) => onlink)) return mtus;
  using socket = openNetlink(where);
  const names = linkNames(socket);
  for (const family of [4, 6] as const) {
    for (const { dst, gateway, ifindex, metric, mtu } of listRoutes(socket, { family, gateway: true })) {
      const desired = entries.get(dst);
      const isSameWay =
        desired?.via === gateway && ifindex !== undefined && names.get(ifindex) === desired?.dev;
      if (mtu !== undefined && isSameWay && metric === (family === 4 ? 0 : IPV6_METRIC)) mtus.set(dst, mtu);
    }
  }
  return mtus;
}

/**
 * The ID of the nexthop object of an IPv4 podCIDR: its base, since podCIDRs do not overlap. Routing daemons use small
 * numbers.
 */
function nexthopOf(dst: string): number {
  return ipv4ToInt(dst.slice(0, dst.indexOf('/')));
}

function isIpv6(dst: string): boolean {
  return dst.includes(':');
}

/** The metric of IPv6 routes that are added without one, such as ours: IP6_RT_PRIO_USER of ipv6_route.h. */
const IPV6_METRIC = 1024;

/**
 * Remove the routes that keep these from being written. The kernel refuses a route into an IPv6 tunnel if a route over
 * another device covers its on-link gateway, even the route to be replaced: one that leads to the same peer directly
 * (DirectRouting).
 * @returns whether any was removed.
 */
function removeCoveringRoutes(where: Where, entries: ReadonlyMap<string, PeerRoute>): boolean {
  using socket = openNetlink(where);
  const ifindexOf = ifindexes(socket);
  const covering = listRoutes(socket, { family: 6, gateway: true }).filter(({ dst, metric, ifindex }) => {
    const desired = entries.get(dst);
    return desired !== undefined && metric === IPV6_METRIC && ifindex !== ifindexOf(desired.dev);
  });
  const errors = socket.writeAll(
    covering.map(({ dst, ifindex, metric }) => deleteRoute({ dst, ifindex, metric })),
  );
  return errors.includes(undefined);
}
