// SPDX-License-Identifier: Apache-2.0
import type { Cidr } from '../net/ip.ts';
import type { OwnLease, OwnNode } from './own-lease.ts';
import type { PeerAlarm, PeerNode } from './peer.ts';
import type { ClusterSnapshot } from './snapshot.ts';

/**
 * Where nodes get their subnets from, and learn each other's leases: the Nodes of Kubernetes, or etcd. To the agent
 * both are the same.
 */
export interface SubnetManager {
  readonly health: SourceHealth;
  /**
   * The cluster as it is known now. The same object as before, for almost nothing, when nothing changed.
   * @param podCidrs what our pods have their addresses from: no peer gets any of it, whoever claims it.
   */
  snapshot(podCidrs: readonly Cidr[]): ClusterSnapshot;
  /**
   * Ask for our own node and its subnet, once.
   * @throws RipstopError saying why there is none, also when nobody answers; the caller retries.
   */
  fetchOwn(): Promise<OwnNode>;
  /**
   * Follow all nodes from now on; returns at once.
   * @param onChange the next snapshot may differ. Should only take a note.
   * @param lastKnown what snapshots have for peers until all nodes have been seen, if this node knew them before.
   */
  start(onChange: () => void, lastKnown?: readonly PeerNode[]): void;
  /**
   * Publish our lease; the same lease again costs nothing.
   * @param own as last seen.
   * @returns whether anything had to be written.
   * @throws RipstopError when that failed.
   */
  publish(own: OwnNode, lease: OwnLease): Promise<boolean>;
  /** Tell the cluster's operators of these alarms, where there is a place for that; returns at once. */
  report?(alarms: readonly PeerAlarm[]): void;
  /** Our address has changed: connections from the old one get no answers any more, so open new ones. */
  reconnect(): void;
  /** Take back our lease and all else that this node has published: peers then send nothing to it any more. */
  withdraw(): Promise<void>;
  /** End for good; resolves when the last connection is closed. */
  stop(): Promise<void>;
}

/** What following a server has taken so far. */
export interface SourceActivity {
  /** Complete lists, the first included. */
  readonly lists: number;
  /** Watches that were opened. */
  readonly watches: number;
  /** How often each kind of fault was met. */
  readonly faults: Readonly<Record<string, number>>;
}

/** The state of the connection to the API server, or to etcd. */
export interface SourceHealth {
  /** A watch is open. */
  readonly connected: boolean;
  /** Since the last event, bookmark or list; absent before the first. */
  readonly lastEventAgeMs?: number;
  /** What is wrong now; absent when nothing is. */
  readonly lastError?: string;
  /** Absent where no server is followed. */
  readonly activity?: SourceActivity;
}
