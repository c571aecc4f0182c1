// SPDX-License-Identifier: Apache-2.0
import { closeSync } from 'node:fs';
import { constants } from 'node:os';
import type { Family } from '../net/ip.ts';
import { type Address, readAddress, RTM_DELADDR, RTM_NEWADDR } from './address.ts';
import { lastErrno, libc, poll } from './calls.ts';
import { NetlinkError } from './error.ts';
import { type Link, readLink, RTM_DELLINK, RTM_NEWLINK } from './link.ts';
import { type FdbEntry, type Neighbour, readNeighbour, RTM_DELNEIGH, RTM_NEWNEIGH } from './neighbour.ts';
import { type Nexthop, readNexthop, RTM_DELNEXTHOP, RTM_NEWNEXTHOP } from './nexthop.ts';
import { type NftChange, type NftCommit, readNft } from './nftables.ts';
import {
  type Filter,
  type Qdisc,
  readFilter,
  readQdisc,
  RTM_DELQDISC,
  RTM_DELTFILTER,
  RTM_NEWQDISC,
  RTM_NEWTFILTER,
} from './qdisc.ts';
import { readRoute, type Route, RTM_DELROUTE, RTM_NEWROUTE } from './route.ts';
import { readRule, RTM_DELRULE, RTM_NEWRULE, type Rule } from './rule.ts';
import {
  attachFilter,
  BUFFER_BYTES,
  joinGroup,
  type Message,
  openEventSocket,
  type Protocol,
  readMessages,
} from './socket.ts';
import { AF_UNSPEC, familyOf } from './wire.ts';
import {
  type Policy,
  readPolicy,
  XFRM_MSG_DELPOLICY,
  XFRM_MSG_FLUSHPOLICY,
  XFRM_MSG_NEWPOLICY,
  XFRM_MSG_UPDPOLICY,
} from './xfrm.ts';

/* linux/rtnetlink.h, linux/netconf.h */
const RTM_NEWNETCONF = 80;
const RTM_DELNETCONF = 81;
const NETCONFMSG = 4;
const NETCONFA = { ifindex: 1, forwarding: 2, rpFilter: 3 } as const;

/** What can be subscribed to, with the numbers of its multicast groups (RTNLGRP_, XFRMNLGRP_, NFNLGRP_). */
const GROUPS = {
  link: { protocol: 'route', groups: [1] },
  neighbour: { protocol: 'route', groups: [3] },
  /** qdiscs and filters. */
  tc: { protocol: 'route', groups: [4] },
  address: { protocol: 'route', groups: [5, 9] },
  route: { protocol: 'route', groups: [7, 11] },
  rule: { protocol: 'route', groups: [8, 19] },
  netconf: { protocol: 'route', groups: [24, 25] },
  nexthop: { protocol: 'route', groups: [32] },
  policy: { protocol: 'xfrm', groups: [4] },
  nft: { protocol: 'netfilter', groups: [7] },
} as const satisfies Record<string, { protocol: Protocol; groups: readonly number[] }>;
export type Group = keyof typeof GROUPS;

/** A setting of the network that has changed: forwarding or rp_filter. */
export interface NetconfChange {
  readonly kind: 'netconf';
  readonly family: Family;
  /** −1: of all links; −2: of those that will be made. */
  readonly ifindex: number;
  readonly forwarding: boolean | undefined;
  readonly rpFilter: number | undefined;
}

/** What has happened. `deleted`: it is gone; else it is new, or another than it was. */
export type NetlinkEvent =
  | { readonly kind: 'link'; readonly deleted: boolean; readonly link: Link }
  | { readonly kind: 'address'; readonly deleted: boolean; readonly address: Address }
  | { readonly kind: 'route'; readonly deleted: boolean; readonly route: Route }
  | { readonly kind: 'nexthop'; readonly deleted: boolean; readonly nexthop: Nexthop }
  | { readonly kind: 'rule'; readonly deleted: boolean; readonly rule: Rule }
  | { readonly kind: 'neighbour'; readonly deleted: boolean; readonly neighbour: Neighbour }
  | { readonly kind: 'fdb'; readonly deleted: boolean; readonly entry: FdbEntry }
  | { readonly kind: 'qdisc'; readonly deleted: boolean; readonly qdisc: Qdisc }
  | { readonly kind: 'filter'; readonly deleted: boolean; readonly filter: Filter }
  /** Undefined: all policies are gone. */
  | { readonly kind: 'policy'; readonly deleted: boolean; readonly policy: Policy | undefined }
  | NetconfChange
  | NftChange
  | NftCommit
  /** The kernel had more to tell than the socket could hold: list again whatever you follow. */
  | { readonly kind: 'lost' };

export interface SubscribeOptions {
  /**
   * Path of the network namespace to hear of, in place of this process's own; it lives on as long as the
   * subscription.
   */
  readonly netns?: string | undefined;
  /** Room for events that were not read yet, in bytes. Default 8 MiB. */
  readonly receiveBytes?: number;
}

export interface Subscription extends Disposable {
  /** `onEvents` is not called again. Twice is no error. */
  close(): void;
}

/** Datagrams that are read before the event loop goes on: none of its other work waits for long. */
const READS = 256;

/**
 * Hear of changes, from the moment that this returns. An open subscription keeps the process alive. Nothing is heard of
 * what the kernel does not have, such as IPsec's policies.
 * @param onEvents gets what has come since the last call, in order.
 * @throws Error with `code` when a group cannot be joined, such as EPERM.
 */
export function subscribe(
  groups: readonly Group[],
  onEvents: (events: readonly NetlinkEvent[]) => void,
  { netns, receiveBytes = 8 << 20 }: SubscribeOptions = {},
): Subscription {
  const closers: (() => void)[] = [];
  const close = (): void => {
    for (const closer of closers.splice(0)) closer();
  };
  try {
    for (const protocol of new Set(groups.map((group) => GROUPS[group].protocol))) {
      const numbers = groups.flatMap((group) =>
        GROUPS[group].protocol === protocol ? GROUPS[group].groups : [],
      );
      const fd = openIfKnown(protocol, numbers, netns, receiveBytes);
      if (fd === undefined) continue;
      closers.push(() => closeSync(fd));
      closers.unshift(watch(fd, protocol, onEvents));
    }
  } catch (error) {
    close();
    throw error;
  }
  return { close, [Symbol.dispose]: close };
}

/** As openEventSocket(); undefined when the kernel does not have the protocol. */
function openIfKnown(...request: Parameters<typeof openEventSocket>): number | undefined {
  try {
    return openEventSocket(...request);
  } catch (error) {
    if (error instanceof NetlinkError && error.code === 'EPROTONOSUPPORT') return undefined;
    throw error;
  }
}

/** NFNLGRP_CONNTRACK_DESTROY: the connections that conntrack has destroyed. */
const CONNTRACK_DESTROY = 3;

/**
 * Have a BPF program of type socket filter look at each event of a connection that conntrack has destroyed, in the
 * kernel, at once. What it returns is thrown away: nobody reads the socket.
 * @param programFd the program; it stays loaded as long as the result is not disposed of.
 * @throws Error with `code` when the kernel refuses.
 */
export function filterDestroyed(programFd: number): Disposable {
  const fd = openEventSocket('netfilter', [], undefined);
  try {
    attachFilter(fd, programFd);
    joinGroup(fd, CONNTRACK_DESTROY);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
  return { [Symbol.dispose]: () => closeSync(fd) };
}

/** @returns a function that ends it. */
function watch(
  fd: number,
  protocol: Protocol,
  onEvents: (events: readonly NetlinkEvent[]) => void,
): () => void {
  let open = true;
  let handle: { close(): void };
  const listen = (): void => {
    handle = poll(fd, () => {
      if (!open) return;
      const events = readEvents(fd, protocol);
      // Out of koffi's callback: promises settled inside it would wait for the next event (Node 26).
      if (events.length > 0) setImmediate(deliver, events);
    });
  };
  const deliver = (events: readonly NetlinkEvent[]): void => {
    if (!open) return;
    if (events.some(({ kind }) => kind === 'lost')) {
      // libuv stops watching a socket that had an error.
      handle.close();
      listen();
    }
    onEvents(events);
  };
  listen();
  return () => {
    open = false;
    handle.close();
  };
}

const buffer = Buffer.alloc(BUFFER_BYTES);

function readEvents(fd: number, protocol: Protocol): NetlinkEvent[] {
  const events: NetlinkEvent[] = [];
  for (let reads = 0; reads < READS; reads++) {
    const size = libc().recv(fd, buffer, BUFFER_BYTES, 0);
    if (size < 0) {
      const errno = lastErrno();
      if (errno === constants.errno.EAGAIN) break;
      if (errno === constants.errno.ENOBUFS) events.push({ kind: 'lost' });
      else if (errno !== constants.errno.EINTR) throw new NetlinkError('receive netlink events', errno);
      continue;
    }
    readMessages(buffer, size, (message) => {
      const event = EVENTS[protocol](message);
      if (event) events.push(event);
    });
  }
  return events;
}

const EVENTS: Record<Protocol, (message: Message) => NetlinkEvent | undefined> = {
  route: routeEvent,
  xfrm: (message) => {
    const { type } = message;
    if (type === XFRM_MSG_FLUSHPOLICY) return { kind: 'policy', deleted: true, policy: undefined };
    if (type !== XFRM_MSG_NEWPOLICY && type !== XFRM_MSG_UPDPOLICY && type !== XFRM_MSG_DELPOLICY)
      return undefined;
    const policy = readPolicy(message);
    return policy && { kind: 'policy', deleted: type === XFRM_MSG_DELPOLICY, policy };
  },
  netfilter: readNft,
};

function routeEvent(message: Message): NetlinkEvent | undefined {
  switch (message.type) {
    case RTM_NEWLINK:
    case RTM_DELLINK:
      // Of other families: what a bridge or IPv6 has to say of a link, which is not the whole of it.
      if (message.body.u8(0) !== AF_UNSPEC) return undefined;
      return { kind: 'link', deleted: message.type === RTM_DELLINK, link: readLink(message) };
    case RTM_NEWADDR:
    case RTM_DELADDR: {
      const address = readAddress(message);
      return address && { kind: 'address', deleted: message.type === RTM_DELADDR, address };
    }
    case RTM_NEWROUTE:
    case RTM_DELROUTE: {
      const route = readRoute(message);
      return route && { kind: 'route', deleted: message.type === RTM_DELROUTE, route };
    }
    case RTM_NEWNEXTHOP:
    case RTM_DELNEXTHOP:
      return { kind: 'nexthop', deleted: message.type === RTM_DELNEXTHOP, nexthop: readNexthop(message) };
    case RTM_NEWRULE:
    case RTM_DELRULE: {
      const rule = readRule(message);
      return rule && { kind: 'rule', deleted: message.type === RTM_DELRULE, rule };
    }
    case RTM_NEWNEIGH:
    case RTM_DELNEIGH:
      return neighbourEvent(message);
    case RTM_NEWQDISC:
    case RTM_DELQDISC:
      return { kind: 'qdisc', deleted: message.type === RTM_DELQDISC, qdisc: readQdisc(message) };
    case RTM_NEWTFILTER:
    case RTM_DELTFILTER:
      return { kind: 'filter', deleted: message.type === RTM_DELTFILTER, filter: readFilter(message) };
    case RTM_NEWNETCONF:
    case RTM_DELNETCONF:
      return message.type === RTM_NEWNETCONF ? readNetconf(message) : undefined;
    default:
      return undefined;
  }
}

function neighbourEvent(message: Message): NetlinkEvent | undefined {
  const deleted = message.type === RTM_DELNEIGH;
  const entry = readNeighbour(message);
  if (entry?.kind === 'fdb') return { kind: 'fdb', deleted, entry };
  return entry && { kind: 'neighbour', deleted, neighbour: entry };
}

function readNetconf({ body }: Message): NetconfChange | undefined {
  const family = familyOf(body.u8(0));
  if (family === undefined) return undefined;
  const attributes = body.attributes(NETCONFMSG);
  const forwarding = attributes.u32(NETCONFA.forwarding);
  return {
    kind: 'netconf',
    family,
    ifindex: attributes.get(NETCONFA.ifindex)?.i32(0) ?? 0,
    forwarding: forwarding === undefined ? undefined : forwarding !== 0,
    rpFilter: attributes.u32(NETCONFA.rpFilter),
  };
}
