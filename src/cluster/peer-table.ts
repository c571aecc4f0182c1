// SPDX-License-Identifier: Apache-2.0
import { addressToBytes, type Cidr, formatCidr, partsOf } from '../net/ip.ts';
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
 * From all Nodes to the peers that the data plane may trust.
 *
 * Each pass looks at the whole cluster, so the outcome depends on what is there, not on the order in which it came: the
 * deletion of a conflict's loser changes nothing, that of its winner lets the loser in. The one thing remembered
 * between passes is each node's last good lease, for the time that its annotations are broken.
 */
export class PeerTable {
  /** By UID: a node that is deleted and made again starts without a past. */
  #lastGood = new Map<string, PeerNode>();

  /**
   * @param nodes every Node of the cluster, as {@link parseNode} gave it.
   * @param own this node: it is no peer of itself, and it never sends its own podCIDR away, whoever claims it.
   */
  update(nodes: Iterable<ParsedNode>, own?: OwnSubnets): PeerView {
    const alarms: PeerAlarm[] = [];
    const lastGood = new Map<string, PeerNode>();
    const byName = new Map<string, PeerNode>();
    for (const node of nodes) {
      const alarm = (kind: AlarmKind, reason: string): void =>
        void alarms.push({ node: node.name, uid: node.uid, kind, reason });
      if (node.kind === 'ignored') {
        if (node.alarm) alarm(node.alarm, `skipped: ${node.reason}`);
        continue;
      }
      const good = node.kind === 'peer' ? node.peer : this.#knownGood(node);
      if (node.kind === 'malformed') alarm(node.alarm, quarantine(node.reason, good));
      if (node.kind === 'peer' && node.mistaken !== undefined) alarm('podcidr_mistaken', node.mistaken);
      if (!good) continue;
      lastGood.set(good.uid, good);
      // One name with two UIDs is a node that was made again: the newer object is the node.
      const other = byName.get(good.name);
      if (!other || other.createdAt <= good.createdAt) byName.set(good.name, good);
    }
    this.#lastGood = lastGood;
    const ourself = own && byName.get(own.name);
    if (own) byName.delete(own.name);
    const peers = settleClaims([...byName.values()], own, ourself, alarms);
    alarmAboutSharedVteps(peers, alarms);
    return { nodes: peers, alarms };
  }

  #knownGood(node: ParsedNode): PeerNode | undefined {
    const good = this.#lastGood.get(node.uid);
    return good?.name === node.name ? good : undefined;
  }
}

function quarantine(reason: string, good: PeerNode | undefined): string {
  return good
    ? `quarantined with its last good lease: ${reason}`
    : `left out, it has no earlier good lease: ${reason}`;
}

/**
 * Of two nodes that claim the same addresses the older gets them; the younger one loses that family's part. The alarm is about
 * the younger, also when that is the node that looks: so all nodes have the same alarms.
 * @param ourself the node that looks, as the others see it.
 */
function settleClaims(
  nodes: PeerNode[],
  own: OwnSubnets | undefined,
  ourself: PeerNode | undefined,
  alarms: PeerAlarm[],
): PeerNode[] {
  const claims = new Claims(
    nodes.flatMap((node) => partsOf(node).map(({ podCidr }) => podCidr)).concat(own?.podCidrs ?? []),
  );
  const ourName = `${own?.name} (this node)`;
  for (const cidr of own?.podCidrs ?? []) claims.add(cidr, ourName);
  nodes.sort(byAge);
  const peers: PeerNode[] = [];
  for (const node of nodes) {
    const refused = new Set<Peer>();
    for (const peer of partsOf(node)) {
      const holder = claims.add(peer.podCidr, node.name);
      if (holder === undefined) continue;
      refused.add(peer);
      const [theirs, held] = [formatCidr(peer.podCidr), formatCidr(holder.cidr)];
      const older = holder.node === ourName && ourself && byAge(node, ourself) < 0;
      const { name, uid } = older ? ourself : node;
      const reason = older
        ? `other nodes refuse podCIDR ${held}: it overlaps ${theirs} of ${node.name}`
        : `podCIDR ${theirs} refused: it overlaps ${held} of ${holder.node}`;
      alarms.push({ node: name, uid, kind: 'podcidr_conflict', reason });
    }
    if (refused.size === 0) peers.push(node);
    else if (refused.size < partsOf(node).length) {
      const { v4, v6, ...rest } = node;
      peers.push({ ...rest, ...(v4 && !refused.has(v4) && { v4 }), ...(v6 && !refused.has(v6) && { v6 }) });
    }
  }
  return peers;
}

function byAge(a: PeerNode, b: PeerNode): number {
  return a.createdAt - b.createdAt || (a.uid < b.uid ? -1 : 1);
}

/**
 * Two live peers at one address or with one MAC break each other's tunnel, but a Node object also outlives its machine
 * while the address is already another's. Refusing the younger would cut off the machine that is there: only warn.
 */
function alarmAboutSharedVteps(peers: readonly PeerNode[], alarms: PeerAlarm[]): void {
  const holders = new Map<string, string>();
  for (const node of peers) {
    for (const { podCidr, vtepIp, vtepMac } of partsOf(node)) {
      for (const [what, value] of [
        ['public IP', vtepIp],
        ['VTEP MAC', vtepMac],
      ] as const) {
        if (value === NO_MAC) continue;
        const key = `${podCidr.family} ${value}`;
        const holder = holders.get(key);
        if (holder === undefined) holders.set(key, node.name);
        else {
          const reason = `${what} ${value} is also that of ${holder}`;
          alarms.push({ node: node.name, uid: node.uid, kind: 'vtep_shared', reason });
        }
      }
    }
  }
}

interface Claim {
  readonly node: string;
  readonly cidr: Cidr;
}

/**
 * Who holds which addresses. As text of ones and zeros, two blocks overlap exactly when one is a prefix of the other;
 * a cluster has one or two prefix lengths, so a claim costs that many look-ups, not a walk over all others.
 */
class Claims {
  readonly #lengths: readonly number[];
  /** By a claimed block's bits. */
  readonly #held = new Map<string, Claim>();
  /** By the bits of each block, of a length in use, that contains a claimed one. */
  readonly #within = new Map<string, Claim>();

  constructor(cidrs: readonly Cidr[]) {
    this.#lengths = [...new Set(cidrs.map((cidr) => cidr.length))];
  }

  /** Claim a block, or get the claim that is in the way. */
  add(cidr: Cidr, node: string): Claim | undefined {
    const bits = bitsOf(cidr);
    const containing = this.#lengths
      .filter((length) => length <= cidr.length)
      .map((length) => key(cidr, bits, length));
    for (const block of containing) {
      const holder = this.#held.get(block);
      if (holder) return holder;
    }
    const own = key(cidr, bits, cidr.length);
    const inside = this.#within.get(own);
    if (inside) return inside;
    const claim = { node, cidr };
    this.#held.set(own, claim);
    for (const block of containing) this.#within.set(block, claim);
    return undefined;
  }
}

function key(cidr: Cidr, bits: string, length: number): string {
  return `${cidr.family}:${bits.slice(0, length)}`;
}

function bitsOf(cidr: Cidr): string {
  let bits = '';
  for (const byte of addressToBytes(cidr.base)) bits += byte.toString(2).padStart(8, '0');
  return bits.slice(0, cidr.length);
}
