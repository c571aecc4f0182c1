// SPDX-License-Identifier: Apache-2.0
import { type Cidr, formatCidr, partsOf } from '../net/ip.ts';
import type { ParsedNode } from './node-lease.ts';
import type { OwnNode } from './own-lease.ts';
import type { Peer, PeerAlarm, PeerNode } from './peer.ts';
import { PeerTable } from './peer-table.ts';

/**
 * The cluster as this node saw it at one moment. Never changes. Compare revisions, not contents: a part whose revision
 * is the same has the same content.
 */
export interface ClusterSnapshot {
  /** Grows when, and only when, anything else in the snapshot changes. */
  readonly revision: number;
  /** Grows when, and only when, `peers` (and so `nodes`) change. */
  readonly peersRevision: number;
  /**
   * Whether all nodes have been seen since the start. Until then `peers` are some of them, or the last-known ones, and
   * absence means nothing: remove nothing.
   */
  readonly synced: boolean;
  /** One for each address family of each node. No two of their podCIDRs overlap, nor do they overlap ours. */
  readonly peers: readonly Peer[];
  /** The same peers by node: `nodes.flatMap(partsOf)` is `peers`. */
  readonly nodes: readonly PeerNode[];
  readonly alarms: readonly PeerAlarm[];
  /** Our own node as last seen; undefined before it was seen, and while it does not exist. */
  readonly own: OwnNode | undefined;
}

/** What a snapshot is made from. */
export interface ClusterState {
  readonly synced: boolean;
  readonly own: OwnNode | undefined;
  /** Every node that was seen. */
  readonly nodes: Iterable<ParsedNode>;
}

/** Makes a SubnetManager's snapshots, and only when something may have changed. */
export class Snapshots {
  readonly #nodeName: string;
  readonly #observe: () => ClusterState;
  readonly #table = new PeerTable();
  /** Used until the first sync. */
  #lastKnown: readonly ParsedNode[] | undefined;
  #stale = true;
  /** The podCIDRs that the last snapshot was made with. */
  #podCidrs = '';
  #last: ClusterSnapshot = {
    revision: 1,
    peersRevision: 1,
    synced: false,
    peers: [],
    nodes: [],
    alarms: [],
    own: undefined,
  };

  /** @param observe gives the current state; called only for a new snapshot. */
  constructor(nodeName: string, observe: () => ClusterState) {
    this.#nodeName = nodeName;
    this.#observe = observe;
  }

  /** Use these peers, known from before the start, until all nodes have been seen. */
  useLastKnown(nodes: readonly PeerNode[]): void {
    this.#lastKnown = nodes.map((peer) => ({ kind: 'peer', name: peer.name, uid: peer.uid, peer }));
    this.#stale = true;
  }

  /** Something may have changed. */
  invalidate(): void {
    this.#stale = true;
  }

  /** @param podCidrs as {@link SubnetManager.snapshot} has them. */
  get(podCidrs: readonly Cidr[]): ClusterSnapshot {
    const text = podCidrs.map(formatCidr).join(',');
    if (this.#stale || text !== this.#podCidrs) this.#last = this.#make(podCidrs);
    this.#stale = false;
    this.#podCidrs = text;
    return this.#last;
  }

  #make(podCidrs: readonly Cidr[]): ClusterSnapshot {
    const { synced, own, nodes: all } = this.#observe();
    if (synced) this.#lastKnown = undefined;
    const { nodes, alarms } = this.#table.update(this.#lastKnown ?? all, { name: this.#nodeName, podCidrs });
    const last = this.#last;
    const samePeers =
      nodes.length === last.nodes.length && nodes.every((node, i) => isSameNode(node, last.nodes[i]!));
    const same =
      samePeers &&
      synced === last.synced &&
      JSON.stringify(own) === JSON.stringify(last.own) &&
      JSON.stringify(alarms) === JSON.stringify(last.alarms);
    if (same) return last;
    return {
      revision: last.revision + 1,
      synced,
      alarms,
      own,
      ...(samePeers
        ? { peersRevision: last.peersRevision, peers: last.peers, nodes: last.nodes }
        : { peersRevision: last.peersRevision + 1, peers: nodes.flatMap(partsOf), nodes }),
    };
  }
}

function isSameNode(a: PeerNode, b: PeerNode): boolean {
  return (
    a.name === b.name &&
    a.uid === b.uid &&
    a.createdAt === b.createdAt &&
    isSamePeer(a.v4, b.v4) &&
    isSamePeer(a.v6, b.v6)
  );
}

function isSamePeer(a: Peer | undefined, b: Peer | undefined): boolean {
  if (!a || !b) return !a && !b;
  return (
    a.name === b.name &&
    a.podCidr.base === b.podCidr.base &&
    a.podCidr.length === b.podCidr.length &&
    a.vtepIp === b.vtepIp &&
    a.vtepMac === b.vtepMac &&
    a.behindNat === b.behindNat &&
    a.otherIps?.join() === b.otherIps?.join() &&
    a.zeroChecksum === b.zeroChecksum
  );
}
