// SPDX-License-Identifier: Apache-2.0
import type { Target } from '../dataplane/target.ts';
import { canonicalAddress, type Family } from '../net/ip.ts';
import { applyNft, listNft, NFT_TABLE, type NftObject } from './nft.ts';
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

/** Who may talk VXLAN to this node, of one family. */
export interface VxlanSenders {
  /** The peers' underlay addresses. */
  vteps: ReadonlyMap<string, true>;
  /**
   * What becomes of VXLAN from others. `count`: it is let in. `as found`: as long as peers may be unknown, what the rule in
   * the kernel says, if it is there.
   */
  strangers: 'drop' | 'count' | 'as found';
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
    vteps: new Map(peers.map(({ vtepIp }) => [vtepIp, true])),
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
 * The elements of a family's set: addresses, canonical. Nobody but us has a reason to change them, no event tells of a
 * change, and to list 15,000 takes nft 0.1 s to 0.4 s. So the kernel is asked when `auditMs` have passed, or a write has
 * failed, and in between what was written is remembered.
 */
export function vtepSetTarget(family: Family, auditMs: number, options: RunOptions = {}): Target<true> {
  const { name, type } = VTEP_SETS[family];
  const set = [...NFT_TABLE, name].join(' ');
  let known: Map<string, true> | undefined;
  let listedAt = 0;

  const write = async (
    verbs: readonly string[],
    after: Map<string, true>,
    entries: ReadonlyMap<string, true>,
  ) => {
    const elements = [...entries.keys()].map(canonicalAddress).join(', ');
    known = undefined;
    await applyNft(
      [
        // Somebody's `flush ruleset` takes the set away; the rules come back at the next audit.
        `add table ${NFT_TABLE.join(' ')}`,
        `add set ${set} { type ${type}; }`,
        ...verbs.map((verb) => `${verb} element ${set} { ${elements} }`),
      ],
      options,
    );
    known = after;
  };
  const list = async (): Promise<Map<string, true>> => {
    if (!known || performance.now() - listedAt > auditMs) {
      known = listedVteps(await listNft(['set', ...NFT_TABLE, name], options), family);
      listedAt = performance.now();
    }
    return new Map(known);
  };
  return {
    name: 'vtep-set',
    list,
    upsert: async (entries) => write(['add'], new Map([...(await list()), ...entries]), entries),
    // Added first, since nft refuses to delete what is not there.
    remove: async (entries) => {
      const left = [...(await list())].filter(([address]) => !entries.has(address));
      await write(['add', 'delete'], new Map(left), entries);
    },
  };
}
