// SPDX-License-Identifier: Apache-2.0
/**
 * Listings of what there is once for each peer, straight from the kernel: of a large cluster `ip -json` makes megabytes of
 * text, some hundred milliseconds and as many megabytes of memory. Everything else is iproute2's.
 */
import { attributeList, attributesOf, NetlinkSocket, payloadOf } from '#libbpf-ts';
import { addressToBytes, bytesToAddress, type Family } from '../net/ip.ts';
import { bytesToMac } from '../net/mac.ts';
import type { RunOptions } from './run.ts';

type Where = Pick<RunOptions, 'netns'>;

/* linux/rtnetlink.h, linux/neighbour.h, linux/if_link.h, linux/netfilter/nf_tables.h */
const AF: Record<Family, number> = { 4: 2, 6: 10 };
const AF_BRIDGE = 7;
const RTM_GETLINK = 18;
const RTM_GETROUTE = 26;
const RTM_GETNEIGH = 30;
const RT_TABLE_MAIN = 254;
const RTNH_F_ONLINK = 4;
const NUD_PERMANENT = 0x80;
const RTA = { dst: 1, oif: 4, gateway: 5, priority: 6, table: 15, via: 18, nexthop: 30 } as const;
const NDA = { dst: 1, lladdr: 2, ifindex: 8 } as const;
const IFLA_IFNAME = 3;
const IFINFOMSG = 16;
const RTMSG = 12;
const NDMSG = 12;
const NFT_GETSETELEM = (10 << 8) | 13;
const NFPROTO_INET = 1;
const ELEMENTS = { table: 1, set: 2, elements: 3 } as const;

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
  return ([4, 6] as const).flatMap((family) => {
    const request = new Uint8Array(RTMSG);
    request[0] = AF[family];
    request[5] = protocol;
    return socket.dump(
      RTM_GETROUTE,
      payloadOf(request, [[RTA.table, word(RT_TABLE_MAIN)]]),
      ({ payload }) => {
        // Older kernels give all routes, whatever was asked for.
        if (payload[5] !== protocol || payload[4] !== RT_TABLE_MAIN || payload[0] !== AF[family])
          return undefined;
        return readRoute(payload, family, names);
      },
    );
  });
}

/** What the kernel's own routing (rules, tables and metrics included) says of the way to each address; no way: undefined. */
export function routesTo(addresses: readonly string[], { netns }: Where): (KernelRoute | undefined)[] {
  using socket = NetlinkSocket.open('route', netns);
  const names = linkNames(socket);
  const requests = addresses.map((address) => {
    const bytes = addressToBytes(address);
    const request = new Uint8Array(RTMSG);
    request[0] = AF[bytes.length === 4 ? 4 : 6];
    request[1] = bytes.length * 8;
    return payloadOf(request, [[RTA.dst, bytes]]);
  });
  return socket.ask(RTM_GETROUTE, requests, ({ payload }) =>
    readRoute(payload, payload[0] === AF[4] ? 4 : 6, names),
  );
}

function readRoute(payload: Uint8Array, family: Family, names: ReadonlyMap<number, string>): KernelRoute {
  const attributes = attributesOf(payload, RTMSG);
  const dst = attributes.get(RTA.dst);
  const via = attributes.get(RTA.via);
  const oif = attributes.get(RTA.oif);
  const gateway = attributes.get(RTA.gateway) ?? via?.subarray(2);
  const nexthop = attributes.get(RTA.nexthop);
  return {
    family,
    type: payload[7] === 1 ? 'unicast' : payload[7] === 7 ? 'unreachable' : 'other',
    dst: `${dst ? bytesToAddress(dst) : family === 4 ? '0.0.0.0' : '::'}/${payload[1]}`,
    gateway: gateway && bytesToAddress(gateway),
    dev: oif && names.get(u32(oif, 0)),
    onlink: (u32(payload, 8) & RTNH_F_ONLINK) !== 0,
    nexthop: nexthop && u32(nexthop, 0),
  };
}

/** The permanent neighbours of a device, both families: address → MAC. Without the device there are none. */
export function listNeighbours(device: string, where: Where): Map<string, string> {
  return new Map(listEntries(0, device, where).map(({ address, mac }) => [address, mac]));
}

/** The permanent FDB entries of a VXLAN device: MAC → remote address. */
export function listFdb(device: string, where: Where): Map<string, string> {
  return new Map(listEntries(AF_BRIDGE, device, where).map(({ address, mac }) => [mac, address]));
}

/** Neighbours and FDB entries are the same kind of message. */
function listEntries(family: number, device: string, { netns }: Where): { address: string; mac: string }[] {
  using socket = NetlinkSocket.open('route', netns);
  const ifindex = linkNames(socket)
    .entries()
    .find(([, name]) => name === device)?.[0];
  if (ifindex === undefined) return [];
  const request = new Uint8Array(NDMSG);
  request[0] = family;
  return socket.dump(RTM_GETNEIGH, payloadOf(request, [[NDA.ifindex, word(ifindex)]]), ({ payload }) => {
    const state = payload[8]! | (payload[9]! << 8);
    if (u32(payload, 4) !== ifindex || (state & NUD_PERMANENT) === 0) return undefined;
    const attributes = attributesOf(payload, NDMSG);
    const address = attributes.get(NDA.dst);
    const mac = attributes.get(NDA.lladdr);
    return { address: address ? bytesToAddress(address) : '', mac: mac ? bytesToMac(mac) : '' };
  });
}

/** The elements of a set of addresses in a table of nft's family inet; none when there is no such set. */
export function listSetElements(table: string, set: string, family: Family, { netns }: Where): string[] {
  using socket = NetlinkSocket.open('netfilter', netns);
  const request = payloadOf(Uint8Array.of(NFPROTO_INET, 0, 0, 0), [
    [ELEMENTS.table, text(table)],
    [ELEMENTS.set, text(set)],
  ]);
  try {
    return socket.dump(NFT_GETSETELEM, request, ({ payload }) => readElements(payload, family)).flat();
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return [];
    throw error;
  }
}

function readElements(payload: Uint8Array, family: Family): string[] {
  const list = attributesOf(payload, 4).get(ELEMENTS.elements);
  const addresses: string[] = [];
  for (const element of list ? attributeList(list) : []) {
    // NFTA_SET_ELEM_KEY and in it NFTA_DATA_VALUE, both 1.
    const key = attributesOf(element, 0).get(1);
    const value = key && attributesOf(key, 0).get(1);
    // A set that somebody made with our name may hold other things.
    if (value?.length === (family === 4 ? 4 : 16)) addresses.push(bytesToAddress(value));
  }
  return addresses;
}

function linkNames(socket: NetlinkSocket): Map<number, string> {
  return new Map(
    socket.dump(RTM_GETLINK, new Uint8Array(IFINFOMSG), ({ payload }) => {
      const name = attributesOf(payload, IFINFOMSG).get(IFLA_IFNAME)!;
      return [u32(payload, 4), Buffer.from(name.subarray(0, -1)).toString()] as const;
    }),
  );
}

function u32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0;
}

function word(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

function text(value: string): Uint8Array {
  return Buffer.from(`${value}\0`);
}
