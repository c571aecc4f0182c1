// SPDX-License-Identifier: Apache-2.0
import type { ParsedNode } from './node-lease.ts';
import type { OwnLease, OwnNode } from './own-lease.ts';
import type { PeerAlarm } from './peer-table.ts';

/**
 * Where nodes get their subnets from, and learn of each other's leases: the Nodes of Kubernetes, or etcd. What it is
 * behind makes no difference to the agent.
 */
export interface SubnetManager {
  /** Every node's lease, ours too: a live view, to be read anew after each change. Not all until `synced`. */
  readonly nodes: Iterable<ParsedNode>;
  /** Our own node as last seen; undefined before it was seen since the start. */
  readonly own: OwnNode | undefined;
  /** Whether all nodes were seen since the start: before that, absence means nothing. */
  readonly synced: boolean;
  readonly health: SourceHealth;
  /**
   * Ask for our own node and its subnet, once.
   * @throws RipstopError saying why there is none, also when nobody answers; the caller tries again.
   */
  fetchOwn(): Promise<OwnNode>;
  /** Follow all nodes from now on; returns at once. `onChange` should only take a note. */
  start(onChange: () => void): void;
  /**
   * Make our lease say this; the same lease again costs nothing.
   * @param own as last seen.
   * @returns whether anything had to be written.
   * @throws RipstopError when that failed.
   */
  publish(own: OwnNode, lease: OwnLease): Promise<boolean>;
  /** Tell the cluster's operators that these alarms are up, where there is a place for that; returns at once. */
  report?(alarms: readonly PeerAlarm[]): void;
  /** Our address has changed: what is connected from the old one gets no answer any more, and is connected anew. */
  reconnect(): void;
  /** Take our lease back, with everything that this node has published: peers then send it nothing more. */
  withdraw(): Promise<void>;
  /** End for good; resolves when the last connection is closed. */
  stop(): Promise<void>;
}

/** How well we hear of the other nodes. */
export interface SourceHealth {
  /** A watch is open. */
  readonly connected: boolean;
  /** Since the last event, bookmark or list; absent before the first. */
  readonly lastEventAgeMs?: number;
  /** The trouble at hand; absent when there is none. */
  readonly lastError?: string;
}
