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
import { ifindexes, openNetlink, removeEach, type Where, writeEach } from './netlink.ts';
import { eachOwnRoute, ROUTE_PROTOCOL } from './routes.ts';
import { isVtepDevice } from './vtep-device.ts';

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

/** What the three targets should hold of one VTEP device. */
export interface PeerEntries {
  /** By {@link neighbourKey}. */
  neighbours: Map<string, string>;
  /** By {@link fdbKey}. */
  fdb: Map<string, string>;
  /** podCIDR → route. */
  routes: Map<string, PeerRoute>;
}

/**
 * flannel's three entries of each peer, as the desired values of the targets below. A peer that neither direct routing nor
 * a tunnel leads to has none. Pure.
 * @param vtepOf the family's VTEP device; undefined when there is none (now).
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

/** The entries that `list` finds of each VTEP device, by device and their own key. */
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

/** The permanent neighbours of the VTEP devices: podCIDR base → VtepMAC. All of them are ours. */
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

/** The permanent FDB entries of the VTEP devices: VtepMAC → the node's public IP. All of them are ours. */
export function fdbTarget(where: Where = {}): Target<string> {
  return {
    name: 'fdb',
    list: async () =>
      ofVtepDevices(where, (socket, ifindex, found) => {
        for (const { mac, dst = '', state } of listFdb(socket, ifindex)) {
          if (state === 'permanent') found(mac, dst);
        }
      }),
    upsert: (entries) =>
      writeEach(where, entries, (key, dst, ifindexOf) => {
        const [device = '', mac = ''] = key.split(' ');
        return [replaceFdbEntry({ ifindex: ifindexOf(device), mac, dst })];
      }),
    // The whole entry goes, also one of several destinations that somebody appended.
    remove: (entries) =>
      removeEach(where, entries, (key, _dst, ifindexOf) => {
        const [device = '', mac = ''] = key.split(' ');
        return [deleteFdbEntry({ ifindex: ifindexOf(device), mac })];
      }),
  };
}

/**
 * The routes to peers, through tunnels and direct, both families: podCIDR → route. Ours are those of our protocol that
 * have a gateway (those without are the pods' own, see pod-routes.ts). A route of the same prefix and metric that
 * somebody else made is taken over, as flannel would.
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
      if (blocked.size === 0 || !makeRoom(where, blocked)) return failures;
      const still = await writeRoutes(where, blocked);
      return new Map([...[...failures].filter(([dst]) => !blocked.has(dst)), ...still]);
    },
    // The route first: a way in use takes its routes along, for which the kernel would search all there are.
    remove: (entries) =>
      removeEach(where, entries, (dst, { via }) => {
        if (isIpv6(dst)) return [deleteRoute({ dst, gateway: via, protocol: ROUTE_PROTOCOL })];
        return [deleteRoute({ dst, protocol: ROUTE_PROTOCOL }), deleteNexthop(nexthopOf(dst))];
      }),
  };
}

/**
 * An IPv4 route has its way as an object of its own (ip-nexthop(8)). Among ways inside routes the kernel looks for one that
 * is the same before it makes another, and finds them all in one bucket of its hash table, since the gateway is no part of
 * the hash: 15,000 routes would take it ten times as long. IPv6 routes do not share their ways.
 */
function writeRoutes(where: Where, entries: ReadonlyMap<string, PeerRoute>): Promise<Failures> {
  return writeEach(where, entries, (dst, { via, dev, onlink }, ifindexOf) => {
    const way = { gateway: via, ifindex: ifindexOf(dev), onlink, protocol: ROUTE_PROTOCOL };
    if (isIpv6(dst)) return [replaceRoute({ dst, ...way })];
    const id = nexthopOf(dst);
    return [replaceNexthop({ id, ...way }), replaceRoute({ dst, nexthop: id, protocol: ROUTE_PROTOCOL })];
  });
}

/** The number of the nexthop of an IPv4 podCIDR: these do not overlap, and the small numbers are those of routing daemons. */
function nexthopOf(dst: string): number {
  return ipv4ToInt(dst.slice(0, dst.indexOf('/')));
}

function isIpv6(dst: string): boolean {
  return dst.includes(':');
}

/** The metric of IPv6 routes that are given none, such as ours: IP6_RT_PRIO_USER of the kernel's ipv6_route.h. */
const IPV6_METRIC = 1024;

/**
 * Make room for routes into an IPv6 tunnel. The kernel refuses an on-link gateway that another device's route covers, even
 * when that is the route to be replaced: one that leads to the same peer directly (DirectRouting).
 * @returns whether there was anything in the way.
 */
function makeRoom(where: Where, entries: ReadonlyMap<string, PeerRoute>): boolean {
  using socket = openNetlink(where);
  const ifindexOf = ifindexes(socket);
  const inTheWay = listRoutes(socket, { family: 6, gateway: true }).filter(({ dst, metric, ifindex }) => {
    const wanted = entries.get(dst);
    return wanted !== undefined && metric === IPV6_METRIC && ifindex !== ifindexOf(wanted.dev);
  });
  const errors = socket.writeAll(
    inTheWay.map(({ dst, ifindex, metric }) => deleteRoute({ dst, ifindex, metric })),
  );
  return errors.includes(undefined);
}
