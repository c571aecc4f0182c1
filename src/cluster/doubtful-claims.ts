// SPDX-License-Identifier: Apache-2.0

/** The podCIDRs that a node says it has, or is known to have. */
export interface Claim {
  readonly uid: string;
  /** Joined with commas. */
  readonly podCidrs: string;
}

/**
 * The nodes whose claims may take traffic from others: two that claim the same block, and those whose block has another
 * size than most blocks of its family, because only such a block can contain another's or lie in it. Kubernetes gives
 * every node a block of its own, all of one size, so a healthy cluster has none.
 * @returns their UIDs.
 */
export function doubtfulClaims(claims: readonly Claim[]): Set<string> {
  const doubtful = new Set<string>();
  const holders = new Map<string, string>();
  const sizes = new Map<string, number>();
  const totals = { 4: 0, 6: 0 };
  for (const { uid, podCidrs } of claims) {
    for (const cidr of split(podCidrs)) {
      const holder = holders.get(cidr);
      if (holder === undefined) holders.set(cidr, uid);
      else doubtful.add(holder).add(uid);
      const size = sizeOf(cidr);
      sizes.set(size, (sizes.get(size) ?? 0) + 1);
      totals[familyOf(cidr)]++;
    }
  }
  // The usual case: one size for each family.
  const families = Number(totals[4] > 0) + Number(totals[6] > 0);
  if (sizes.size === families) return doubtful;
  for (const { uid, podCidrs } of claims) {
    const odd = split(podCidrs).some((cidr) => 2 * sizes.get(sizeOf(cidr))! <= totals[familyOf(cidr)]);
    if (odd) doubtful.add(uid);
  }
  return doubtful;
}

function split(podCidrs: string): string[] {
  return podCidrs === '' ? [] : podCidrs.split(',');
}

function familyOf(cidr: string): 4 | 6 {
  return cidr.includes(':') ? 6 : 4;
}

function sizeOf(cidr: string): string {
  return `${familyOf(cidr)}${cidr.slice(cidr.indexOf('/'))}`;
}
