// SPDX-License-Identifier: Apache-2.0
import { type Cidr, type Family, familyKey, formatCidr, maskAddress, partsOf, perFamily } from '../net/ip.ts';
import { NO_MAC } from '../net/mac.ts';
import type { ParsedNode } from './node-lease.ts';
import type { AlarmKind, PeerAlarm, PeerNode } from './peer.ts';

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
    alarmAboutSharedVteps(nodes, alarms);
    return { nodes, alarms };
  }
}

function quarantine(reason: string, good: PeerNode | undefined): string {
  return good
    ? `quarantined with its last good lease: ${reason}`
    : `left out, it has no earlier good lease: ${reason}`;
}

/**
 * Of two nodes that claim the same addresses the older gets them; the younger one loses that family's part. The
 * alarm is about the younger one, even when that is this node: so all nodes have the same alarms.
 * @param ourself this node as the others see it.
 */
function settleClaims(
  nodes: PeerNode[],
  own: OwnSubnets | undefined,
  ourself: PeerNode | undefined,
  alarms: PeerAlarm[],
): PeerNode[] {
  const claims = new Claims(nodes, own?.podCidrs ?? []);
  const ourName = `${own?.name} (this node)`;
  for (const cidr of own?.podCidrs ?? []) claims.add(cidr, ourName);
  nodes.sort(byAge);
  /** The node without what it may not have; undefined when nothing is left. */
  const settle = (node: PeerNode): PeerNode | undefined => {
    const refused = new Set<Family>();
    for (const { podCidr } of partsOf(node)) {
      const holder = claims.add(podCidr, node.name);
      if (holder === undefined) continue;
      refused.add(podCidr.family);
      const [theirs, held] = [formatCidr(podCidr), formatCidr(holder.cidr)];
      const older = holder.node === ourName && ourself && byAge(node, ourself) < 0;
      const { name, uid } = older ? ourself : node;
      const reason = older
        ? `other nodes refuse podCIDR ${held}: it overlaps ${theirs} of ${node.name}`
        : `podCIDR ${theirs} refused: it overlaps ${held} of ${holder.node}`;
      alarms.push({ node: name, uid, kind: 'podcidr_conflict', reason });
    }
    if (refused.size === 0) return node;
    const parts = perFamily((family) => (refused.has(family) ? undefined : node[familyKey(family)]));
    const { name, uid, createdAt } = node;
    return parts.v4 || parts.v6 ? { name, uid, createdAt, ...parts } : undefined;
  };
  return nodes.map(settle).filter((node) => node !== undefined);
}

function byAge(a: PeerNode, b: PeerNode): number {
  return a.createdAt - b.createdAt || (a.uid < b.uid ? -1 : 1);
}

/**
 * Two live peers with one address or one MAC break each other's tunnel. But a Node object may also outlive its machine
 * while another machine has the address already. To refuse the younger node would cut off a live machine, so only warn.
 */
function alarmAboutSharedVteps(nodes: readonly PeerNode[], alarms: PeerAlarm[]): void {
  const holdersOf = (): Record<Family, Map<string, string>> => ({ 4: new Map(), 6: new Map() });
  const [addresses, macs] = [holdersOf(), holdersOf()];
  const check = (node: PeerNode, what: string, value: string, holders: Map<string, string>): void => {
    const holder = holders.get(value);
    if (holder === undefined) return void holders.set(value, node.name);
    const reason = `${what} ${value} is also that of ${holder}`;
    alarms.push({ node: node.name, uid: node.uid, kind: 'vtep_shared', reason });
  };
  for (const node of nodes) {
    for (const { podCidr, vtepIp, vtepMac } of partsOf(node)) {
      check(node, 'public IP', vtepIp, addresses[podCidr.family]);
      if (vtepMac !== NO_MAC) check(node, 'VTEP MAC', vtepMac, macs[podCidr.family]);
    }
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
