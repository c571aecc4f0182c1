// SPDX-License-Identifier: Apache-2.0
import { deleteLink, deleteProxy, listNeighbours, replaceProxy } from '#netlink';
import { addressAt, canonicalAddress, type Cidr, type Family } from '../net/ip.ts';
import { noFailures, type Target } from '../reconcile/target.ts';
import { type Link, listLinks } from './links.ts';
import { linkNames, openNetlink, removeEach, type Where, writeEach } from './netlink.ts';
import { ROUTE_PROTOCOL } from './routes.ts';
import type { Sysctl } from './sysctl.ts';

/*
 * Pods that flannel's CNI plugin has attached hang off a bridge, cni0, and go on doing so when ripstop takes the node over.
 * To them the whole podCIDR is on their link: they ask for each other's MAC address. Pods that ripstop attaches hang off
 * veths of their own, so the node answers in their place (a proxy neighbour for each, on the bridge), gets the packet and
 * routes it. The other way round the connected route of the bridge leads to the bridged pods, as it always did; the /32
 * routes of the others are more specific.
 */

/** The bridge that has the gateway's address of this podCIDR; it also has the podCIDR's connected route. */
export function findPodBridge(podCidr: Cidr, links: ReadonlyMap<string, Link>): Link | undefined {
  const gateway = canonicalAddress(addressAt(podCidr, 1));
  return [...links.values()].find(
    ({ kind, addresses }) =>
      kind === 'bridge' && addresses.some(({ ip, length }) => ip === gateway && length === podCidr.length),
  );
}

/**
 * Bridges of these podCIDRs that no pod hangs off any more. flannel's plugin makes its bridge anew when it needs it, so
 * one that is left behind is of no use; but it keeps the podCIDR's route, into nowhere. One that somebody gave another
 * address stays.
 */
export function idlePodBridges(podCidrs: readonly Cidr[], links: ReadonlyMap<string, Link>): string[] {
  const gateways = podCidrs.map((podCidr) => canonicalAddress(addressAt(podCidr, 1)));
  const bridges = new Set(podCidrs.flatMap((podCidr) => findPodBridge(podCidr, links) ?? []));
  return [...bridges]
    .filter(({ name, addresses }) => {
      const hasPort = [...links.values()].some(({ master }) => master === name);
      const isOthers = addresses.some(({ ip, scope }) => scope !== 'link' && !gateways.includes(ip));
      return !hasPort && !isOthers;
    })
    .map(({ name }) => name);
}

/** Idle bridges of these podCIDRs as a target of which nothing is desired. */
export function idleBridgesTarget(podCidrs: readonly Cidr[], where: Where = {}): Target<true> {
  return {
    name: 'idle-bridges',
    list: async () => new Map(idlePodBridges(podCidrs, await listLinks(where)).map((name) => [name, true])),
    upsert: async () => noFailures,
    remove: (entries) => removeEach(where, entries, (name) => [deleteLink(name)]),
  };
}

/** What the bridge needs to answer for pods that are not on it. */
export function podBridgeSysctls(bridge: string, families: readonly Family[]): Sysctl[] {
  return families.flatMap((family) => [
    ...(family === 6
      ? [
          {
            path: `net/ipv6/conf/${bridge}/proxy_ndp`,
            value: '1',
            why: 'the node answers for its pods that are not on the bridge',
          },
        ]
      : []),
    {
      path: `net/ipv${family}/neigh/${bridge}/proxy_delay`,
      value: '0',
      why: 'and at once: the kernel would let others answer first, for up to 0.8 s',
    },
  ]);
}

/** The key of {@link proxyTarget}. */
export const proxyKey = (bridge: string, address: string): string => `${bridge} ${address}`;

/** The addresses that the node answers for on bridges, both families. Ours are those of our protocol. */
export function proxyTarget(where: Where = {}): Target<true> {
  return {
    name: 'proxies',
    list: async () => {
      using socket = openNetlink(where);
      const names = linkNames(socket);
      const ours = listNeighbours(socket, { proxy: true }).filter(
        ({ protocol }) => protocol === ROUTE_PROTOCOL,
      );
      return new Map(
        ours.map(({ ifindex, address }) => [proxyKey(names.get(ifindex) ?? String(ifindex), address), true]),
      );
    },
    upsert: (entries) =>
      writeEach(where, entries, (key, _, ifindexOf) => {
        const [bridge = '', address = ''] = key.split(' ');
        return [replaceProxy({ ifindex: ifindexOf(bridge), address, protocol: ROUTE_PROTOCOL })];
      }),
    remove: (entries) =>
      removeEach(where, entries, (key, _, ifindexOf) => {
        const [bridge = '', address = ''] = key.split(' ');
        return [deleteProxy({ ifindex: ifindexOf(bridge), address })];
      }),
  };
}
