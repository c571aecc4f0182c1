// SPDX-License-Identifier: Apache-2.0
import { deleteLink, deleteProxy, listNeighbours, replaceProxy } from '#netlink';
import { addressAt, canonicalAddress, type Cidr, type Family } from '../net/ip.ts';
import { noFailures, type Target } from '../reconcile/target.ts';
import { type Link, listLinks } from './links.ts';
import { linkNames, openNetlink, removeEach, type Where, writeEach } from './netlink.ts';
import { ROUTE_PROTOCOL } from './routes.ts';
import type { Sysctl } from './sysctl.ts';

/*
 * Pods that flannel's CNI plugin attached are on a bridge, cni0, and stay there when ripstop takes over the node. For
 * them the whole podCIDR is on-link: they ask for the MAC addresses of other pods with ARP or neighbour discovery. Pods
 * that ripstop attaches have a routed veth each and are not on the bridge. So the node answers for them (it has a proxy
 * neighbour for each, on the bridge), receives the packets and routes them. In the other direction the bridge's
 * connected route still leads to the bridged pods; the /32 and /128 routes of ripstop's pods are more specific.
 */

/** The bridge that has the gateway address of this podCIDR, and with it the podCIDR's connected route. */
export function findPodBridge(podCidr: Cidr, links: ReadonlyMap<string, Link>): Link | undefined {
  const gateway = canonicalAddress(addressAt(podCidr, 1));
  return [...links.values()].find(
    ({ kind, addresses }) =>
      kind === 'bridge' && addresses.some(({ ip, length }) => ip === gateway && length === podCidr.length),
  );
}

/** The bridges of these podCIDRs: usually one. */
export function findPodBridges(podCidrs: readonly Cidr[], links: ReadonlyMap<string, Link>): Link[] {
  return [...new Set(podCidrs.flatMap((podCidr) => findPodBridge(podCidr, links) ?? []))];
}

/**
 * Bridges of these podCIDRs without pods. flannel's plugin creates its bridge again when it needs it, so a bridge
 * without pods is useless; but its connected route would still take packets for the podCIDR. A bridge with an address
 * of another purpose stays.
 */
export function idlePodBridges(podCidrs: readonly Cidr[], links: ReadonlyMap<string, Link>): string[] {
  const gateways = podCidrs.map((podCidr) => canonicalAddress(addressAt(podCidr, 1)));
  return findPodBridges(podCidrs, links)
    .filter(({ name, addresses }) => {
      const hasPort = [...links.values()].some(({ master }) => master === name);
      const isOthers = addresses.some(({ ip, scope }) => scope !== 'link' && !gateways.includes(ip));
      return !hasPort && !isOthers;
    })
    .map(({ name }) => name);
}

/** Idle bridges of these podCIDRs, as a target without desired entries. */
export function idleBridgesTarget(podCidrs: readonly Cidr[], where: Where = {}): Target<true> {
  return {
    name: 'idle-bridges',
    list: async () => new Map(idlePodBridges(podCidrs, await listLinks(where)).map((name) => [name, true])),
    upsert: async () => noFailures,
    remove: (entries) => removeEach(where, entries, (name) => [deleteLink(name)]),
  };
}

/** The settings that a bridge needs so that the node can answer for pods that are not on it. */
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
      why: 'the node answers at once; by default the kernel waits up to 0.8 s for others to answer',
    },
  ]);
}

/** The key of {@link proxyTarget}. */
export const proxyKey = (bridge: string, address: string): string => `${bridge} ${address}`;

/** The addresses for which the node answers on bridges, both families. Ours have our route protocol. */
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
