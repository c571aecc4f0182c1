// SPDX-License-Identifier: Apache-2.0
import { type NetlinkEvent, type NftChange, RTPROT, subscribe, type Subscription } from '#netlink';
import { errorText, RipstopError } from '../errors.ts';
import type { BridgeEvent } from './bridged-pods.ts';
import { OWN_TABLES } from './flannel-rules.ts';
import { isPodVeth } from './links.ts';
import { linkNames, openNetlink, type Where } from './netlink.ts';
import { NFT_TABLE } from './nft.ts';
import { ROUTE_PROTOCOL } from './routes.ts';
import { isHook, isOurFilter } from './shaping.ts';
import { isVtepName } from './vtep-device.ts';

/** A change on the node that concerns ripstop. */
export type NodeEvent =
  /** A host veth of a pod. */
  | {
      readonly kind: 'pod-link';
      readonly name: string;
      readonly deleted: boolean;
      readonly ifindex: number;
      readonly up: boolean;
      readonly mtu: number;
      /** The index of the bridge that it is a port of. */
      readonly master: number | undefined;
    }
  /** A route of ours to a pod, or the one that makes a podCIDR unreachable; `dev` is undefined for the latter. */
  | {
      readonly kind: 'pod-route';
      readonly dst: string;
      readonly deleted: boolean;
      readonly dev: string | undefined;
    }
  /** A proxy neighbour of ours: an address for which the node answers on a bridge. */
  | { readonly kind: 'proxy'; readonly bridge: string; readonly address: string; readonly deleted: boolean }
  /** An entry for a peer: a neighbour or FDB entry of a VTEP device, or a route of ours to a podCIDR. */
  | { readonly kind: 'peers' }
  /** A network setting of an interface, or of all of them: then `name` is undefined. `rpFilter` where that is told. */
  | { readonly kind: 'settings'; readonly name: string | undefined; readonly rpFilter: number | undefined }
  /** Another interface, or an address of a VTEP device. */
  | { readonly kind: 'link' }
  /** Another address, a route or a routing rule: the node may reach others in another way now. */
  | { readonly kind: 'network' }
  /** Our nft table has other chains, rules or sets than before, as after `nft flush ruleset`. */
  | { readonly kind: 'rules' }
  /** A flanneld has written its rules into nftables. */
  | { readonly kind: 'flannel-rules' }
  /**
   * A qdisc or a filter of others in tc. `ifindex` is of its interface; undefined when the filter is in a block that
   * several interfaces share.
   */
  | { readonly kind: 'shaping'; readonly ifindex: number | undefined }
  /** Rules or sets of others in nftables: the kernel path may decide in another way now. */
  | { readonly kind: 'policy' }
  /** An entry of which only bridges of pods are of interest: see BridgedPods. */
  | { readonly kind: 'bridge'; readonly event: BridgeEvent }
  /** An IPsec policy. */
  | { readonly kind: 'ipsec' }
  /** Events were lost, so anything may have changed. */
  | { readonly kind: 'lost' };

/**
 * Subscribe to changes on the node. Neighbours on the underlay come and go every minute, so `bridge` events must cost
 * nothing where they concern no bridge.
 * @throws RipstopError when the kernel refuses, as it does without CAP_NET_ADMIN.
 */
export function monitorNode(
  onEvents: (events: readonly NodeEvent[]) => void,
  where: Where = {},
): Subscription {
  using socket = openNetlink(where);
  const names = linkNames(socket);
  /** Deleted links, of which more may be told in this call and the next. */
  let gone: number[] = [];
  const classifyAll = (raw: readonly NetlinkEvent[]): void => {
    const events: NodeEvent[] = [];
    const forgotten = gone;
    // The kernel tells of a new link's settings before it tells of the link.
    const links = raw.filter((event) => event.kind === 'link');
    for (const { deleted, link } of links) if (!deleted) names.set(link.ifindex, link.name);
    gone = links.flatMap(({ deleted, link }) => (deleted ? [link.ifindex] : []));
    for (const event of latest(raw)) {
      const classified = classify(event, (ifindex) => names.get(ifindex));
      if (classified) events.push(classified);
    }
    for (const ifindex of forgotten) names.delete(ifindex);
    if (events.length > 0) onEvents(events);
  };
  try {
    return subscribe(
      ['link', 'address', 'route', 'nexthop', 'rule', 'neighbour', 'netconf', 'nft', 'policy', 'tc'],
      classifyAll,
      where,
    );
  } catch (error) {
    throw new RipstopError(
      `cannot watch the node's network for changes: ${errorText(error)}; ` +
        'run the agent as root with CAP_NET_ADMIN (in Kubernetes: securityContext.capabilities.add)',
      { cause: error },
    );
  }
}

/**
 * Without the events that a later one replaces: of several about the same link, or the same settings of a link, the last
 * tells how it is now. A link comes with a handful of them. Pure.
 */
export function latest(events: readonly NetlinkEvent[]): NetlinkEvent[] {
  const seen = new Set<string>();
  return events
    .toReversed()
    .filter((event) => {
      const subject = subjectOf(event);
      if (subject === undefined) return true;
      return !seen.has(subject) && seen.add(subject);
    })
    .toReversed();
}

/** What an event tells all of; undefined when it tells a part. */
function subjectOf(event: NetlinkEvent): string | undefined {
  if (event.kind === 'link') return `link ${event.link.ifindex}`;
  if (event.kind !== 'netconf') return undefined;
  const { family, ifindex, rpFilter } = event;
  return `settings ${family} ${ifindex} ${rpFilter === undefined}`;
}

/** linux/rtnetlink.h TCM_IFINDEX_MAGIC_BLOCK */
const SHARED_BLOCK = 0xffff_ffff;

/** The change that a netlink event tells of; undefined when it does not concern ripstop. Pure. */
export function classify(
  event: NetlinkEvent,
  nameOf: (ifindex: number) => string | undefined,
): NodeEvent | undefined {
  switch (event.kind) {
    case 'link': {
      const { name, ifindex, up, mtu, master } = event.link;
      return isPodVeth(name)
        ? { kind: 'pod-link', name, deleted: event.deleted, ifindex, up, mtu, master }
        : { kind: 'link' };
    }
    case 'address': {
      const name = nameOf(event.address.ifindex) ?? '';
      if (isPodVeth(name)) return undefined;
      return { kind: isVtepName(name) ? 'link' : 'network' };
    }
    case 'route':
      return classifyRoute(event, nameOf);
    case 'nexthop':
      return event.nexthop.protocol === ROUTE_PROTOCOL ? { kind: 'peers' } : { kind: 'network' };
    case 'rule':
      return { kind: 'network' };
    case 'neighbour': {
      const { ifindex, proxy, protocol, address } = event.neighbour;
      const device = nameOf(ifindex) ?? '';
      if (proxy && protocol === ROUTE_PROTOCOL)
        return { kind: 'proxy', bridge: device, address, deleted: event.deleted };
      return isVtepName(device) ? { kind: 'peers' } : { kind: 'bridge', event };
    }
    case 'fdb':
      return isVtepName(nameOf(event.entry.ifindex) ?? '') ? { kind: 'peers' } : { kind: 'bridge', event };
    case 'netconf':
      return {
        kind: 'settings',
        name: event.ifindex < 0 ? undefined : (nameOf(event.ifindex) ?? ''),
        rpFilter: event.rpFilter,
      };
    case 'nft':
      return classifyNft(event);
    case 'qdisc':
      // A new hook has no filters yet.
      return isHook(event.qdisc) && !event.deleted
        ? undefined
        : { kind: 'shaping', ifindex: event.qdisc.ifindex };
    case 'filter': {
      const { ifindex } = event.filter;
      if (isOurFilter(event.filter)) return undefined;
      return { kind: 'shaping', ifindex: ifindex === SHARED_BLOCK ? undefined : ifindex };
    }
    case 'policy':
      return { kind: 'ipsec' };
    case 'lost':
      return { kind: 'lost' };
    default:
      return undefined;
  }
}

function classifyNft({ object, family, table, name, deleted }: NftChange): NodeEvent | undefined {
  // Our own rules change with peers and pods, in ways that the programs know.
  if (family === NFT_TABLE[0] && table === NFT_TABLE[1])
    return object === 'element' ? undefined : { kind: 'rules' };
  if (object === 'element') return { kind: 'policy' };
  const isFlannels = OWN_TABLES.includes(`${family} ${table}`) || name.startsWith('FLANNEL-');
  return isFlannels && !deleted ? { kind: 'flannel-rules' } : { kind: 'policy' };
}

function classifyRoute(
  { deleted, route }: Extract<NetlinkEvent, { kind: 'route' }>,
  nameOf: (ifindex: number) => string | undefined,
): NodeEvent | undefined {
  const { dst, type, gateway, nexthop, protocol, ifindex } = route;
  const dev = ifindex === undefined ? undefined : nameOf(ifindex);
  if (protocol === ROUTE_PROTOCOL) {
    if (gateway !== undefined || nexthop !== undefined) return { kind: 'peers' };
    return { kind: 'pod-route', dst, deleted, dev: type === 'unreachable' ? undefined : dev };
  }
  // The kernel's own routes to the addresses of a host veth, or of a VTEP device.
  if (dev !== undefined && isPodVeth(dev)) return undefined;
  return dev !== undefined && isVtepName(dev) && protocol === RTPROT.kernel
    ? { kind: 'peers' }
    : { kind: 'network' };
}
