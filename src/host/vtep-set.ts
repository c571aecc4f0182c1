// SPDX-License-Identifier: Apache-2.0
import { listSetAddresses, NetlinkSocket } from '#netlink';
import { type Failures, noFailures, type Target } from '../reconcile/target.ts';
import { addressFamily, canonicalAddress, type Family } from '../net/ip.ts';
import { applyNft, NFT_TABLE, type NftObject } from './nft.ts';
import type { RunOptions } from './run.ts';

/*
 * The kernel's VXLAN device decapsulates packets of any sender, so nft rules check whether the sender is a node:
 * whether its address is in one of two sets of our table, one per family. Elements are added and removed one by one,
 * with the peers; the rules that use the sets are written rarely and as a whole, see rules.ts.
 */

/** The sets: name and type. */
export const VTEP_SETS = {
  4: { name: 'vteps4', type: 'ipv4_addr' },
  6: { name: 'vteps6', type: 'ipv6_addr' },
} as const satisfies Record<Family, { name: string; type: string }>;

/**
 * The declaration of a set. Without a size, the kernel resizes the set's hash table while it is in use, and a listing
 * made meanwhile lacks elements (up to 1,200 of 15,000 were seen to be missing). With a size it never does. This one is
 * three times the largest cluster, and takes 1 MB of kernel memory.
 */
export function declarationOf(family: Family): string {
  return `type ${VTEP_SETS[family].type}; size 49152;`;
}

/** The hosts that may send VXLAN to this node, in one family. */
export interface VxlanSenders {
  /** The peers' underlay addresses. */
  readonly vteps: () => ReadonlyMap<string, true>;
  /**
   * What the rule does with VXLAN from other hosts: `drop` it, or only `count` it, so that from_vtep judges it. `as
   * found`, while peers may be unknown: the rule stays as it is in the kernel, if there is one.
   */
  readonly strangers: 'drop' | 'count' | 'as found';
}

/** What a peer sends from. */
interface Sender {
  readonly vtepIp: string;
  readonly otherIps?: readonly string[];
  readonly behindNat: boolean;
}

/**
 * @param peers the peers of one family.
 * @param synced whether these are all. If not, a stranger may be a peer.
 */
export function vxlanSenders(peers: readonly Sender[], synced: boolean): VxlanSenders {
  // Packets of a peer behind NAT may have any source address.
  const isAnySource = peers.some(({ behindNat }) => behindNat);
  return {
    vteps: () => sendersOf(peers),
    strangers: isAnySource ? 'count' : synced ? 'drop' : 'as found',
  };
}

/** The addresses from which the peers' packets may come. */
export function sendersOf(peers: readonly Omit<Sender, 'behindNat'>[]): Map<string, true> {
  return new Map(
    peers.flatMap(({ vtepIp, otherIps = [] }) => [vtepIp, ...otherIps].map((one) => [one, true] as const)),
  );
}

/** The elements of a family's set in a listing. */
export function listedVteps(listing: readonly NftObject[], family: Family): Map<string, true> {
  const { name, type } = VTEP_SETS[family];
  const found = listing.find(({ set }) => set?.name === name && set.type === type);
  const elements = (found?.set?.elem ?? []).filter((element) => typeof element === 'string');
  return new Map(elements.map((element) => [canonicalAddress(element), true]));
}

/**
 * The elements of the sets as a target: canonical addresses, each in the set of its family. No event reports changes by
 * other programs, which have no reason to make any.
 */
export function vtepSetTarget(options: RunOptions = {}): Target<true> {
  const write = async (verbs: readonly string[], entries: ReadonlyMap<string, true>): Promise<Failures> => {
    const lines = ([4, 6] as const).flatMap((family) => {
      const addresses = [...entries.keys()].filter((address) => addressFamily(address) === family);
      if (addresses.length === 0) return [];
      const set = [...NFT_TABLE, VTEP_SETS[family].name].join(' ');
      return [
        // The set is missing after another program's `flush ruleset`; rules.ts restores the rules.
        `add table ${NFT_TABLE.join(' ')}`,
        `add set ${set} { ${declarationOf(family)} }`,
        ...verbs.map((verb) => `${verb} element ${set} { ${addresses.map(canonicalAddress).join(', ')} }`),
      ];
    });
    await applyNft(lines, options);
    return noFailures;
  };
  return {
    name: 'vtep-set',
    list: async () => {
      using socket = NetlinkSocket.open('netfilter', options.netns);
      const [family, table] = NFT_TABLE;
      const addresses = ([4, 6] as const).flatMap((ip) =>
        listSetAddresses(socket, { family, table, name: VTEP_SETS[ip].name }, ip),
      );
      return new Map(addresses.map((address) => [address, true]));
    },
    upsert: (entries) => write(['add'], entries),
    // Added first, since nft refuses to delete an element that does not exist.
    remove: (entries) => write(['add', 'delete'], entries),
  };
}
