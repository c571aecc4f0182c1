// SPDX-License-Identifier: Apache-2.0

/** The podCIDRs that a node says it has, or is known to have. */
export interface Claim {
  readonly uid: string;
  /** Joined with commas. */
  readonly podCidrs: string;
}

/**
 * Whose claims could be at others' cost: those that claim what another claims too, and those whose block is of another size
 * than most blocks of its family, since only such a one can contain another's or lie in it. Kubernetes gives all nodes blocks of one size
 * and each its own, so in a healthy cluster there is none.
 * @returns UIDs.
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
  // One size for each family: the usual case, quickly.
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
