// SPDX-License-Identifier: Apache-2.0
import { type Cidr, type Family, familyKey, formatCidr, maskAddress, partsOf, perFamily } from '../net/ip.ts';
import { NO_MAC } from '../net/mac.ts';
import type { ParsedNode } from './node-lease.ts';
import type { AlarmKind, Peer, PeerAlarm, PeerNode } from './peer.ts';

export interface PeerView {
  /** The nodes to forward to: no two of their podCIDRs overlap. */
  readonly nodes: readonly PeerNode[];
  readonly alarms: readonly PeerAlarm[];
}

/** The node that this agent runs on. */
export interface OwnSubnets {
  readonly name: string;
  readonly podCidrs: readonly Cidr[];
}

/**
 * Resolves conflicts: from all nodes to the peers that the data plane may trust.
 *
 * Each update looks at the whole cluster, so the result depends on what is there, not on the order in which it came:
 * when a conflict's loser is deleted nothing changes, when its winner is deleted the loser gets in. Only each node's
 * last good lease is remembered, for as long as its annotations are broken.
 */
export class PeerTable {
  /** Each node's last good lease. */
  #good: readonly PeerNode[] = [];

  /**
   * @param all every node of the cluster.
   * @param own this node: it is no peer of itself, and keeps its podCIDRs, whoever claims them.
   */
  update(all: Iterable<ParsedNode>, own?: OwnSubnets): PeerView {
    const alarms: PeerAlarm[] = [];
    const good: PeerNode[] = [];
    const byName = new Map<string, PeerNode>();
    /** By UID, so that a node that is deleted and created again starts without a past. Rarely needed. */
    let before: Map<string, PeerNode> | undefined;
    for (const node of all) {
      const alarm = (kind: AlarmKind, reason: string): void =>
        void alarms.push({ node: node.name, uid: node.uid, kind, reason });
      if (node.kind === 'ignored') {
        if (node.alarm) alarm(node.alarm, `skipped: ${node.reason}`);
        continue;
      }
      let lease: PeerNode | undefined;
      if (node.kind === 'peer') lease = node.peer;
      else {
        before ??= new Map(this.#good.map((one) => [one.uid, one]));
        lease = before.get(node.uid);
        if (lease?.name !== node.name) lease = undefined;
      }
      if (node.kind === 'malformed') alarm(node.alarm, quarantine(node.reason, lease));
      if (node.kind === 'peer' && node.mistaken !== undefined) alarm('podcidr_mistaken', node.mistaken);
      if (!lease) continue;
      good.push(lease);
      // One name with two UIDs is a node that was created again: the newer object is the node.
      const other = byName.get(lease.name);
      if (!other || other.createdAt <= lease.createdAt) byName.set(lease.name, lease);
    }
    this.#good = good;
    const ourself = own && byName.get(own.name);
    if (own) byName.delete(own.name);
    const nodes = settleClaims([...byName.values()], own, ourself, alarms);
    return { nodes, alarms };
  }
}

function quarantine(reason: string, good: PeerNode | undefined): string {
  return good
    ? `quarantined with its last good lease: ${reason}`
    : `left out, it has no earlier good lease: ${reason}`;
}

/**
 * Of two nodes that claim the same podCIDR, VTEP address or VTEP MAC the older keeps it; the younger one loses that
 * family's part. The alarm is about the younger one, even when that is this node: so all nodes have the same alarms.
 * @param ourself this node as the others see it.
 */
function settleClaims(
  nodes: readonly PeerNode[],
  own: OwnSubnets | undefined,
  ourself: PeerNode | undefined,
  alarms: PeerAlarm[],
): PeerNode[] {
  const claims = new Claims(nodes, own?.podCidrs ?? []);
  const ourName = `${own?.name} (this node)`;
  for (const cidr of own?.podCidrs ?? []) claims.add(cidr, ourName);
  const vteps = new VtepClaims();
  const alarm = ({ name, uid }: PeerNode, kind: AlarmKind, reason: string): void =>
    void alarms.push({ node: name, uid, kind, reason });
  /** Whether the node may have this podCIDR. */
  const mayHave = (node: PeerNode, podCidr: Cidr): boolean => {
    const holder = claims.add(podCidr, node.name);
    if (holder === undefined) return true;
    const [theirs, held] = [formatCidr(podCidr), formatCidr(holder.cidr)];
    const older = holder.node === ourName && ourself && byAge(node, ourself) < 0;
    if (older) {
      alarm(
        ourself,
        'podcidr_conflict',
        `other nodes refuse podCIDR ${held}: it overlaps ${theirs} of ${node.name}`,
      );
    } else {
      alarm(node, 'podcidr_conflict', `podCIDR ${theirs} refused: it overlaps ${held} of ${holder.node}`);
    }
    return false;
  };
  /** The node without what it may not have; undefined when nothing is left, and for ourself. */
  const settle = (node: PeerNode): PeerNode | undefined => {
    const parts = perFamily((family) => {
      const part = node[familyKey(family)];
      if (!part || (node !== ourself && !mayHave(node, part.podCidr))) return undefined;
      const shared = vteps.add(part, node === ourself ? ourName : node.name);
      if (shared === undefined) return part;
      alarm(node, 'vtep_shared', `${node === ourself ? 'other nodes refuse it' : 'refused'}: ${shared}`);
      return undefined;
    });
    if (node === ourself) return undefined;
    if (parts.v4 === node.v4 && parts.v6 === node.v6) return node;
    const { name, uid, createdAt } = node;
    return parts.v4 || parts.v6 ? { name, uid, createdAt, ...parts } : undefined;
  };
  const all = ourself ? [...nodes, ourself] : [...nodes];
  return all
    .sort(byAge)
    .map(settle)
    .filter((node) => node !== undefined);
}

function byAge(a: PeerNode, b: PeerNode): number {
  return a.createdAt - b.createdAt || (a.uid < b.uid ? -1 : 1);
}

/**
 * Who has which VTEP address and MAC. Two nodes with one of either break each other's tunnel, and whoever may write a
 * Node could claim another's to get its traffic. A Node that has outlived its machine keeps them too, until it is
 * deleted.
 */
class VtepClaims {
  readonly #holders = new Map<string, string>();

  /** Claim a part's address and MAC, or get the reason why not. */
  add({ podCidr: { family }, vtepIp, vtepMac }: Peer, node: string): string | undefined {
    const claims = [
      `public IP ${vtepIp}`,
      ...(vtepMac === NO_MAC ? [] : [`IPv${family} VTEP MAC ${vtepMac}`]),
    ];
    const taken = claims.find((claim) => this.#holders.has(claim));
    if (taken !== undefined) return `${taken} is that of ${this.#holders.get(taken)}`;
    for (const claim of claims) this.#holders.set(claim, node);
    return undefined;
  }
}

interface Claim {
  readonly node: string;
  readonly cidr: Cidr;
}

/** Claims by the base of a block; one map for each length. */
type ByLength = Map<number, Map<string, Claim>>;

/**
 * Who holds which addresses. Of two blocks that overlap one contains the other: its base is the other's, cut to its
 * length. A cluster has one or two lengths, so a claim costs that many look-ups, not a walk over all others.
 */
class Claims {
  /** The claimed blocks. */
  readonly #held: Record<Family, ByLength> = { 4: new Map(), 6: new Map() };
  /** All blocks of a length in use that contain a claimed one. */
  readonly #within: Record<Family, ByLength> = { 4: new Map(), 6: new Map() };

  constructor(nodes: readonly PeerNode[], own: readonly Cidr[]) {
    const lengthSeen = ({ family, length }: Cidr): void => {
      if (this.#held[family].has(length)) return;
      this.#held[family].set(length, new Map());
      this.#within[family].set(length, new Map());
    };
    for (const node of nodes) for (const { podCidr } of partsOf(node)) lengthSeen(podCidr);
    for (const cidr of own) lengthSeen(cidr);
  }

  /** Claim a block, or get the claim that is in the way. */
  add(cidr: Cidr, node: string): Claim | undefined {
    const { family, length, base } = cidr;
    const cut = (to: number): string => (to === length ? base : maskAddress(base, to));
    for (const [other, held] of this.#held[family]) {
      const holder = other <= length ? held.get(cut(other)) : undefined;
      if (holder) return holder;
    }
    const inside = this.#within[family].get(length)!.get(base);
    if (inside) return inside;
    const claim = { node, cidr };
    this.#held[family].get(length)!.set(base, claim);
    for (const [other, within] of this.#within[family]) if (other < length) within.set(cut(other), claim);
    return undefined;
  }
}
