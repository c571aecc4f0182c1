// SPDX-License-Identifier: Apache-2.0
import type { Family } from '../net/ip.ts';
import { NetlinkError } from './error.ts';
import type { Message, NetlinkSocket } from './socket.ts';
import { type Reader, Writer } from './wire.ts';

/* linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h */
const NFNL_SUBSYS_NFTABLES = 10;
const NFT_MSG_GETSETELEM = 13;
const NFT_MSG_NEWGEN = 15;
const NFGENMSG = 4;
/** NFPROTO_ numbers. */
const FAMILIES = { inet: 1, ip: 2, arp: 3, netdev: 5, bridge: 7, ip6: 10 } as const;
export type NftFamily = keyof typeof FAMILIES;
const NFTA_GEN = { id: 1, pid: 2, name: 3 } as const;
const NFTA_SET_ELEM_LIST = { table: 1, set: 2, elements: 3 } as const;
const NFTA_SET_ELEM_KEY = 1;
const NFTA_DATA_VALUE = 1;

/**
 * NFT_MSG_NEW… and NFT_MSG_DEL… of each kind of object, and which attribute has its own name (the table's is always
 * 1).
 */
const OBJECTS = {
  table: { added: 0, deleted: 2, name: 1 },
  chain: { added: 3, deleted: 5, name: 3 },
  rule: { added: 6, deleted: 8, name: 2 },
  set: { added: 9, deleted: 11, name: 2 },
  element: { added: 12, deleted: 14, name: 2 },
  object: { added: 18, deleted: 20, name: 2 },
  flowtable: { added: 22, deleted: 24, name: 2 },
} as const;
const MESSAGES = new Map<number, { object: keyof typeof OBJECTS; deleted: boolean; name: number }>(
  Object.entries(OBJECTS).flatMap(([object, { added, deleted, name }]) => [
    [added, { object: object as keyof typeof OBJECTS, deleted: false, name }] as const,
    [deleted, { object: object as keyof typeof OBJECTS, deleted: true, name }] as const,
  ]),
);

/** What became of an object of nftables. */
export interface NftChange {
  readonly kind: 'nft';
  readonly deleted: boolean;
  readonly object: keyof typeof OBJECTS;
  readonly family: NftFamily;
  readonly table: string;
  /** Its own name; of a rule its chain's, of an element its set's. */
  readonly name: string;
}

/** The end of a transaction: all changes that came since the last one are in force. */
export interface NftCommit {
  readonly kind: 'nft-commit';
  /** The number of the ruleset that it made. */
  readonly generation: number;
  /** Who did it. */
  readonly process: { readonly pid: number; readonly name: string };
}

/** Undefined for what is neither. */
export function readNft({ type, body }: Message): NftChange | NftCommit | undefined {
  if (type >> 8 !== NFNL_SUBSYS_NFTABLES) return undefined;
  const attributes = body.attributes(NFGENMSG);
  if ((type & 0xff) === NFT_MSG_NEWGEN) {
    return {
      kind: 'nft-commit',
      generation: attributes.get(NFTA_GEN.id)?.be32(0) ?? 0,
      process: {
        pid: attributes.get(NFTA_GEN.pid)?.be32(0) ?? 0,
        name: attributes.text(NFTA_GEN.name) ?? '',
      },
    };
  }
  const what = MESSAGES.get(type & 0xff);
  const family = (Object.keys(FAMILIES) as NftFamily[]).find((name) => FAMILIES[name] === body.u8(0));
  if (!what || family === undefined) return undefined;
  return {
    kind: 'nft',
    deleted: what.deleted,
    object: what.object,
    family,
    table: attributes.text(1) ?? '',
    name: attributes.text(what.name) ?? '',
  };
}

/**
 * The elements of a set of addresses of this family; none when there is no such set, or when it holds other things. The
 * socket is one of protocol `netfilter`.
 */
export function listSetAddresses(
  socket: NetlinkSocket,
  set: { readonly family: NftFamily; readonly table: string; readonly name: string },
  family: Family,
): string[] {
  const payload = new Writer()
    .struct([1, FAMILIES[set.family]], [1, 0], [2, 0])
    .text(NFTA_SET_ELEM_LIST.table, set.table)
    .text(NFTA_SET_ELEM_LIST.set, set.name)
    .done();
  const type = (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETSETELEM;
  const what = (): string => `list the set ${set.name} of table ${set.family} ${set.table}`;
  try {
    return socket
      .dump({ type, payload, what }, ({ body }) => readElements(body, family === 4 ? 4 : 16))
      .flat();
  } catch (error) {
    if (error instanceof NetlinkError && error.code === 'ENOENT') return [];
    throw error;
  }
}

function readElements(body: Reader, size: number): string[] {
  const addresses: string[] = [];
  for (const [, element] of body.attributes(NFGENMSG).nested(NFTA_SET_ELEM_LIST.elements) ?? []) {
    const value = element.attributes().nested(NFTA_SET_ELEM_KEY)?.get(NFTA_DATA_VALUE);
    if (value?.length === size) addresses.push(value.address());
  }
  return addresses;
}
