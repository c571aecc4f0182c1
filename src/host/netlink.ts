// SPDX-License-Identifier: Apache-2.0
/** Listings of what there is once for each peer. */
import {
  getLink,
  listFdb as listFdbOf,
  listLinks,
  listNeighbours as listNeighboursOf,
  listRoutes as listRoutesOf,
  listSetAddresses,
  lookUpRoutes,
  NetlinkError,
  NetlinkSocket,
  type Route,
} from '#netlink';
import type { Family } from '../net/ip.ts';
import type { RunOptions } from './run.ts';

type Where = Pick<RunOptions, 'netns'>;

/** A route as far as it is read here. */
export interface KernelRoute {
  readonly family: Family;
  /** `unicast` leads somewhere; of the others only this one is told apart. */
  readonly type: 'unicast' | 'unreachable' | 'other';
  /** `10.42.1.0/24`; `0.0.0.0/0` for a default route. */
  readonly dst: string;
  readonly gateway: string | undefined;
  readonly dev: string | undefined;
  readonly onlink: boolean;
  /** The number of the nexthop object that holds its way, where one does. */
  readonly nexthop: number | undefined;
}

/** The routes of the main table that were made under this protocol number, of both families. */
export function listRoutes(protocol: number, { netns }: Where): KernelRoute[] {
  using socket = NetlinkSocket.open('route', netns);
  const names = linkNames(socket);
  return ([4, 6] as const).flatMap((family) =>
    listRoutesOf(socket, { family, protocol }).map((route) => toKernelRoute(route, names)),
  );
}

/** What the kernel's own routing (rules, tables and metrics included) says of the way to each address; no way: undefined. */
export function routesTo(addresses: readonly string[], { netns }: Where): (KernelRoute | undefined)[] {
  using socket = NetlinkSocket.open('route', netns);
  const names = linkNames(socket);
  return lookUpRoutes(socket, addresses).map((route) =>
    route instanceof NetlinkError ? undefined : toKernelRoute(route, names),
  );
}

function toKernelRoute(route: Route, names: ReadonlyMap<number, string>): KernelRoute {
  const { family, type, dst, gateway, ifindex, onlink, nexthop } = route;
  return {
    family,
    type: type === 'unicast' || type === 'unreachable' ? type : 'other',
    dst,
    gateway,
    dev: ifindex === undefined ? undefined : names.get(ifindex),
    onlink,
    nexthop,
  };
}

/** The permanent neighbours of a device, both families: address → MAC. Without the device there are none. */
export function listNeighbours(device: string, { netns }: Where): Map<string, string> {
  using socket = NetlinkSocket.open('route', netns);
  const ifindex = getLink(socket, device)?.ifindex;
  if (ifindex === undefined) return new Map();
  const permanent = listNeighboursOf(socket, { ifindex }).filter(({ state }) => state === 'permanent');
  return new Map(permanent.map(({ address, mac }) => [address, mac ?? '']));
}

/** The permanent FDB entries of a VXLAN device: MAC → remote address. */
export function listFdb(device: string, { netns }: Where): Map<string, string> {
  using socket = NetlinkSocket.open('route', netns);
  const ifindex = getLink(socket, device)?.ifindex;
  if (ifindex === undefined) return new Map();
  const permanent = listFdbOf(socket, ifindex).filter(({ state }) => state === 'permanent');
  return new Map(permanent.map(({ mac, dst }) => [mac, dst ?? '']));
}

/** The elements of a set of addresses in a table of nft's family inet; none when there is no such set. */
export function listSetElements(table: string, set: string, family: Family, { netns }: Where): string[] {
  using socket = NetlinkSocket.open('netfilter', netns);
  return listSetAddresses(socket, { family: 'inet', table, name: set }, family);
}

function linkNames(socket: NetlinkSocket): Map<number, string> {
  return new Map(listLinks(socket).map(({ ifindex, name }) => [ifindex, name]));
}
