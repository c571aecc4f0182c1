// SPDX-License-Identifier: Apache-2.0
import type { NetConf, OwnNode, Peer } from '../../cluster/index.ts';
import type { Cidr, Family } from '../../net/ip.ts';
import type { Desired } from '../../reconcile/reconciled.ts';
import type { AgentOptions } from '../options.ts';

/** The network of one address family, and this node's part of it. */
export interface NodeFamily {
  readonly family: Family;
  readonly network: Cidr;
  readonly podCidr: Cidr;
}

/** What does not change during an incarnation. */
export interface PlanOptions {
  readonly agent: AgentOptions;
  readonly backend: NetConf['backend'];
  /** Our Node at the start of the incarnation. */
  readonly own: OwnNode;
  /** IPv4 first. */
  readonly families: readonly NodeFamily[];
  /** MAC addresses for VTEP devices, if neither our Node nor a device has one. */
  readonly freshMac: { readonly v4: string; readonly v6: string };
}

/** The peers of one ClusterSnapshot. */
export interface Peers {
  readonly revision: number;
  /** One for each address family of a node. */
  readonly peers: readonly Peer[];
  /** Whether these are all. */
  readonly synced: boolean;
}

/** Desired entries that never change. */
export function always<V>(entries: ReadonlyMap<string, V>): Desired<V> {
  return { revision: '', entries: () => entries, complete: true };
}

/** A value that is computed at its first use, and shared by several targets of the plan. */
export function lazily<T>(compute: () => T): () => T {
  let value: { readonly is: T } | undefined;
  return () => (value ??= { is: compute() }).is;
}
