// SPDX-License-Identifier: Apache-2.0
import { listSetAddresses, NetlinkSocket } from '#netlink';
import { type Failures, noFailures, type Target } from '../reconcile/target.ts';
import { addressFamily, canonicalAddress, type Family } from '../net/ip.ts';
import { applyNft, NFT_TABLE, type NftObject } from './nft.ts';
import type { RunOptions } from './run.ts';

/*
 * The kernel's VXLAN device decapsulates for anyone, so nft asks in its place whether the sender is a node. What it compares
 * with are two sets of our table, one per family. Their elements come and go one by one, with the peers; the rules that
 * use them are written rarely and as a whole, see rules.ts.
 */

/** The sets: name and type. */
export const VTEP_SETS = {
  4: { name: 'vteps4', type: 'ipv4_addr' },
  6: { name: 'vteps6', type: 'ipv6_addr' },
} as const satisfies Record<Family, { name: string; type: string }>;

/**
 * What nft has to know of a set to make it. A set of unknown size is a table that the kernel makes larger and smaller beside
 * its use, and a listing meanwhile lacks elements (of 15,000 up to 1,200 were seen to). One of known size stays as it is:
 * three times the largest cluster, 1 MB of the kernel's memory.
 */
export function declarationOf(family: Family): string {
  return `type ${VTEP_SETS[family].type}; size 49152;`;
}

/** Who may talk VXLAN to this node, of one family. */
export interface VxlanSenders {
  /** The peers' underlay addresses. */
  readonly vteps: () => ReadonlyMap<string, true>;
  /**
   * What becomes of VXLAN from others. `count`: it is let in. `as found`: as long as peers may be unknown, what the rule in
   * the kernel says, if it is there.
   */
  readonly strangers: 'drop' | 'count' | 'as found';
}

/**
 * @param peers of one family.
 * @param synced all of them are known. Before, a stranger may be a peer.
 */
export function vxlanSenders(
  peers: readonly { readonly vtepIp: string; readonly behindNat: boolean }[],
  synced: boolean,
): VxlanSenders {
  // What a peer behind NAT sends may come from any address.
  const anywhere = peers.some(({ behindNat }) => behindNat);
  return {
    vteps: () => new Map(peers.map(({ vtepIp }) => [vtepIp, true])),
    strangers: anywhere ? 'count' : synced ? 'drop' : 'as found',
  };
}

/** The elements of a family's set in a listing. */
export function listedVteps(listing: readonly NftObject[], family: Family): Map<string, true> {
  const { name, type } = VTEP_SETS[family];
  const found = listing.find(({ set }) => set?.name === name && set.type === type);
  const elements = (found?.set?.elem ?? []).filter((element) => typeof element === 'string');
  return new Map(elements.map((element) => [canonicalAddress(element), true]));
}

/**
 * The elements of the sets: addresses, canonical, each in the set of its family. Nobody but us has a reason to change them,
 * and no event tells of it.
 */
export function vtepSetTarget(options: RunOptions = {}): Target<true> {
  const write = async (verbs: readonly string[], entries: ReadonlyMap<string, true>): Promise<Failures> => {
    const lines = ([4, 6] as const).flatMap((family) => {
      const addresses = [...entries.keys()].filter((address) => addressFamily(address) === family);
      if (addresses.length === 0) return [];
      const set = [...NFT_TABLE, VTEP_SETS[family].name].join(' ');
      return [
        // Somebody's `flush ruleset` takes the set away; the rules come back at the next audit.
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
    // Added first, since nft refuses to delete what is not there.
    remove: (entries) => write(['add', 'delete'], entries),
  };
}
