// SPDX-License-Identifier: Apache-2.0
import { addressToBytes, type Family } from '../net/ip.ts';
import { type Scope, scopeOf, SCOPES } from './address.ts';
import type { NetlinkError } from './error.ts';
import { CREATE, type Message, type NetlinkSocket, type Request } from './socket.ts';
import { AF, align, familyOf, readBlock, type Reader, Writer } from './wire.ts';

/* linux/rtnetlink.h */
export const RTM_NEWROUTE = 24;
export const RTM_DELROUTE = 25;
const RTM_GETROUTE = 26;
const RTMSG = 12;
const RTNEXTHOP = 8;
export const RTNH_F_ONLINK = 4;
const RTM_F_CLONED = 0x200;
const RTM_F_LOOKUP_TABLE = 0x1000;
/** The bits of TOS or traffic class that routing may look at. */
const DSCP = 0xfc;
const RTA = {
  dst: 1,
  src: 2,
  iif: 3,
  oif: 4,
  gateway: 5,
  priority: 6,
  prefsrc: 7,
  metrics: 8,
  multipath: 9,
  table: 15,
  via: 18,
  ipProto: 27,
  sport: 28,
  dport: 29,
  nhId: 30,
} as const;
const RTAX_MTU = 2;
/** `enum` of RTN_ types, by number. */
const TYPES = [
  'unspec',
  'unicast',
  'local',
  'broadcast',
  'anycast',
  'multicast',
  'blackhole',
  'unreachable',
  'prohibit',
  'throw',
] as const;
export type RouteType = (typeof TYPES)[number];

/** Tables that always exist. */
export const RT_TABLE = { default: 253, main: 254, local: 255 } as const;
/** Who made a route (RTPROT_), as far as the numbers have a fixed meaning. */
export const RTPROT = { redirect: 1, kernel: 2, boot: 3, static: 4, ra: 9, dhcp: 16 } as const;

/** A next hop. */
export interface Hop {
  /** Undefined: the destination is on the link. It may be of the other family (RFC 5549). */
  readonly gateway: string | undefined;
  readonly ifindex: number | undefined;
  /** The gateway need not be covered by a route of its own. */
  readonly onlink: boolean;
}

export interface Route extends Hop {
  readonly family: Family;
  readonly type: RouteType;
  /** `10.42.1.0/24`; `0.0.0.0/0` or `::/0` for a default route. */
  readonly dst: string;
  readonly table: number;
  /** Who made it, see {@link RTPROT}. */
  readonly protocol: number;
  readonly scope: Scope;
  /** 0 is the best, and what IPv4 routes have that were given none. */
  readonly metric: number;
  readonly source: string | undefined;
  /** Several next hops (ECMP), in place of the one above. */
  readonly hops: readonly Hop[] | undefined;
  /** The number of its nexthop object, if it has one. */
  readonly nexthop: number | undefined;
  readonly mtu: number | undefined;
}

/** A route to be made, or to be found for deletion. */
export interface NewRoute {
  /** `10.42.1.0/24`. */
  readonly dst: string;
  /** Default `unicast`. */
  readonly type?: RouteType;
  readonly gateway?: string | undefined;
  readonly ifindex?: number | undefined;
  readonly onlink?: boolean;
  /** Of a nexthop object, in place of gateway and link. */
  readonly nexthop?: number | undefined;
  /** Default: `main`. */
  readonly table?: number;
  /** Default: `boot`; for deletion any. */
  readonly protocol?: number;
  /** Default: `link` for an IPv4 route without a gateway; for deletion any. */
  readonly scope?: Scope;
  readonly metric?: number;
  readonly source?: string;
  readonly mtu?: number | undefined;
}

/** What to list; the kernel picks. */
export interface RouteFilter {
  readonly family: Family;
  /** Default: `main`. */
  readonly table?: number;
  readonly protocol?: number;
  /** The link that they lead out of. */
  readonly ifindex?: number;
  /** Only those with a gateway, or only those without. */
  readonly gateway?: boolean;
  /** Only those to this block; `0.0.0.0/0` and `::/0` are default routes. */
  readonly dst?: string;
}

/** Routes of a family and table. */
export function listRoutes(socket: NetlinkSocket, filter: RouteFilter): Route[] {
  const { family, table = RT_TABLE.main, protocol, ifindex, gateway, dst } = filter;
  const length = dst === undefined ? undefined : readBlock(dst).length;
  const payload = header(family, { protocol: protocol ?? 0 })
    .u32(RTA.table, table)
    .u32(RTA.oif, ifindex)
    .done();
  return socket.dump({ type: RTM_GETROUTE, payload, what: () => `list IPv${family} routes` }, (message) => {
    const { body } = message;
    // Older kernels give all routes, whatever was asked for; and entries of the routing cache of IPv6.
    if (body.u8(0) !== AF[family] || (body.u32(8) & RTM_F_CLONED) !== 0) return undefined;
    if (protocol !== undefined && body.u8(5) !== protocol) return undefined;
    // The list may be long: skip unwanted routes before they are decoded.
    if (length !== undefined && body.u8(1) !== length) return undefined;
    if (gateway !== undefined && hasGateway(body) !== gateway) return undefined;
    const route = readRoute(message);
    if (route?.table !== table || (dst !== undefined && route.dst !== dst)) return undefined;
    return ifindex === undefined || leadsOut(route, ifindex) ? route : undefined;
  });
}

function hasGateway(body: Reader): boolean {
  const attributes = body.attributes(RTMSG);
  return attributes.has(RTA.gateway) || attributes.has(RTA.via);
}

function leadsOut(route: Route, ifindex: number): boolean {
  return route.ifindex === ifindex || (route.hops?.some((hop) => hop.ifindex === ifindex) ?? false);
}

/**
 * The route that the kernel selects for each address (by rules, tables and metrics), or why there is
 * none: ENETUNREACH, EHOSTUNREACH, …
 * @param sources the packets' source addresses; undefined: the kernel's choice.
 * @throws Error when one is no address.
 */
export function lookUpRoutes(
  socket: NetlinkSocket,
  addresses: readonly string[],
  sources: { readonly v4?: string; readonly v6?: string } = {},
): (Route | NetlinkError)[] {
  const requests = addresses.map((address): Request => {
    const bytes = addressToBytes(address);
    const family = bytes.length === 4 ? 4 : 6;
    const source = family === 4 ? sources.v4 : sources.v6;
    const from = source === undefined ? undefined : addressToBytes(source);
    const writer = header(family, { length: bytes.length * 8, sourceLength: (from?.length ?? 0) * 8 });
    writer.bytes(RTA.dst, bytes);
    if (from) writer.bytes(RTA.src, from);
    const payload = writer.done();
    return { type: RTM_GETROUTE, payload, what: () => `look up the route to ${address}` };
  });
  return socket.ask(requests, (message) => readRoute(message)!);
}

/** A packet that comes in at a device, as far as routing and its rules look at it. */
export interface IncomingPacket {
  /** The index of the device. */
  readonly iif: number;
  readonly src: string;
  readonly dst: string;
  readonly protocol: number;
  /** The kernel takes them for TCP and UDP only. */
  readonly ports?: { readonly src: number; readonly dst: number };
  /** Default 0. */
  readonly tos?: number;
}

/**
 * What the kernel does with an incoming packet: to deliver it here (`local`), to forward it by a route, or why neither.
 * The table is the one in which it found the route.
 * @throws Error when one is no address.
 */
export function lookUpIncoming(socket: NetlinkSocket, packet: IncomingPacket): Route | NetlinkError {
  const { iif, src, dst, protocol, ports, tos } = packet;
  const [from, to] = [addressToBytes(src), addressToBytes(dst)];
  const [family, bits] = to.length === 4 ? ([4, 32] as const) : ([6, 128] as const);
  const payload = header(family, {
    length: bits,
    sourceLength: bits,
    // IPv6 names the table in any case, and refuses the flag.
    flags: family === 4 ? RTM_F_LOOKUP_TABLE : 0,
    ...(tos !== undefined && { tos: tos & DSCP }),
  })
    .bytes(RTA.dst, to)
    .bytes(RTA.src, from)
    .u32(RTA.iif, iif)
    .u8(RTA.ipProto, protocol)
    .be16(RTA.sport, ports?.src)
    .be16(RTA.dport, ports?.dst)
    .done();
  const what = (): string => `look up the route from ${src} to ${dst}`;
  return socket.ask([{ type: RTM_GETROUTE, payload, what }], (message) => readRoute(message)!)[0]!;
}

/** Undefined for a route of another family (MPLS, multicast). */
export function readRoute({ body }: Message): Route | undefined {
  const family = familyOf(body.u8(0));
  if (family === undefined) return undefined;
  const attributes = body.attributes(RTMSG);
  const multipath = attributes.get(RTA.multipath);
  const via = attributes.get(RTA.via);
  return {
    family,
    type: TYPES[body.u8(7)] ?? 'unspec',
    dst: `${attributes.address(RTA.dst) ?? (family === 4 ? '0.0.0.0' : '::')}/${body.u8(1)}`,
    gateway: attributes.address(RTA.gateway) ?? via?.address(2),
    ifindex: attributes.u32(RTA.oif),
    onlink: (body.u32(8) & RTNH_F_ONLINK) !== 0,
    table: attributes.u32(RTA.table) ?? body.u8(4),
    protocol: body.u8(5),
    scope: scopeOf(body.u8(6)),
    metric: attributes.u32(RTA.priority) ?? 0,
    source: attributes.address(RTA.prefsrc),
    hops: multipath && readHops(multipath),
    nexthop: attributes.u32(RTA.nhId),
    mtu: attributes.nested(RTA.metrics)?.u32(RTAX_MTU),
  };
}

/** Several `struct rtnexthop`, each with attributes behind it. */
function readHops(multipath: Reader): Hop[] {
  const hops: Hop[] = [];
  for (let at = 0; at + RTNEXTHOP <= multipath.length;) {
    const length = multipath.u16(at);
    if (length < RTNEXTHOP) break;
    const attributes = multipath.part(at, length).attributes(RTNEXTHOP);
    hops.push({
      gateway: attributes.address(RTA.gateway) ?? attributes.get(RTA.via)?.address(2),
      ifindex: multipath.u32(at + 4),
      onlink: (multipath.u8(at + 2) & RTNH_F_ONLINK) !== 0,
    });
    at += align(length);
  }
  return hops;
}

/**
 * Make a route. EEXIST when there is one of its destination, metric and table.
 * @throws Error when `dst` is no CIDR block.
 */
export function addRoute(route: NewRoute): Request {
  return { ...request(RTM_NEWROUTE, 'add', route), flags: CREATE.add };
}

/** Make a route, in place of the one of its destination, metric and table, if there is one. */
export function replaceRoute(route: NewRoute): Request {
  return { ...request(RTM_NEWROUTE, 'replace', route), flags: CREATE.replace };
}

/** Delete the route that has all that is given. ESRCH when there is none. */
export function deleteRoute(route: NewRoute): Request {
  return request(RTM_DELROUTE, 'delete', route);
}

function request(type: number, verb: string, route: NewRoute): Request {
  const { dst, gateway, ifindex, onlink, nexthop, table = RT_TABLE.main } = route;
  const { family, bytes, length } = readBlock(dst);
  const via = gateway === undefined ? undefined : addressToBytes(gateway);
  const isOtherFamily = via !== undefined && via.length !== bytes.length;
  const { mtu } = route;
  const writer = header(family, {
    length,
    protocol: route.protocol ?? (type === RTM_NEWROUTE ? RTPROT.boot : 0),
    scope: SCOPES[route.scope ?? usualScope(type, family, route)],
    type: TYPES.indexOf(route.type ?? 'unicast'),
    flags: onlink ? RTNH_F_ONLINK : 0,
  })
    // A default route has none.
    .bytes(RTA.dst, length === 0 ? undefined : bytes)
    .u32(RTA.table, table)
    .u32(RTA.oif, ifindex)
    .u32(RTA.nhId, nexthop)
    .u32(RTA.priority, route.metric)
    .address(RTA.prefsrc, route.source)
    .bytes(RTA.gateway, isOtherFamily ? undefined : via);
  if (isOtherFamily) {
    writer.bytes(RTA.via, Uint8Array.of(AF[via.length === 4 ? 4 : 6], 0, ...via));
  }
  if (mtu !== undefined) writer.nest(RTA.metrics, (metrics) => metrics.u32(RTAX_MTU, mtu));
  return { type, payload: writer.done(), what: () => `${verb} route ${dst}` };
}

/** What iproute2 takes, too. */
function usualScope(
  type: number,
  family: Family,
  { gateway, nexthop, type: kind = 'unicast' }: NewRoute,
): Scope {
  if (type === RTM_DELROUTE) return 'nowhere';
  const onLink = family === 4 && kind === 'unicast' && gateway === undefined && nexthop === undefined;
  return onLink ? 'link' : kind === 'local' ? 'host' : 'global';
}

/** `struct rtmsg`. The table is an attribute, which has room for large numbers. */
function header(
  family: Family,
  given: {
    length?: number;
    sourceLength?: number;
    protocol?: number;
    scope?: number;
    type?: number;
    flags?: number;
    tos?: number;
  },
): Writer {
  const { length = 0, sourceLength = 0, protocol = 0, scope = 0, type = 0, flags = 0, tos = 0 } = given;
  return new Writer().struct(
    [1, AF[family]],
    [1, length],
    [1, sourceLength],
    [1, tos],
    [1, 0],
    [1, protocol],
    [1, scope],
    [1, type],
    [4, flags],
  );
}
