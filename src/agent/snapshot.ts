// SPDX-License-Identifier: Apache-2.0
/** Snapshots of this node. They are immutable; the revision of a part grows when, and only when, the part changes. */
import type { Attachment } from '../cni/attachments.ts';
import type { ProgramIds } from '../dataplane/links.ts';
import type { PodBridges } from '../host/bridged-pods.ts';
import type { Link } from '../host/links.ts';
import type { NextHop } from '../host/neighbours.ts';
import type { UplinkFacts } from '../host/uplink.ts';
import type { Policy } from '#netlink';
import { isSame } from '../reconcile/target.ts';

/** A value as last observed; its revision grows whenever another value is observed. */
export interface Observed<T> {
  readonly revision: number;
  readonly value: T;
}

/** @param before the last observation; an equal value keeps its revision. */
export function observed<T>(before: Observed<T>, value: T): Observed<T> {
  return isSame(before.value, value) ? before : { revision: before.revision + 1, value };
}

/** The loaded programs. */
export interface LoadedIds {
  readonly ids: ProgramIds;
  /** Whether their maps are not in use yet: the attached programs are previous ones, with the previous maps. */
  readonly pending: boolean;
}

export interface NodeSnapshot {
  /** By name, with their addresses. */
  readonly links: Observed<ReadonlyMap<string, Link>>;
  /** Default routes and the like: the facts by which the uplink is chosen. */
  readonly routes: Observed<Omit<UplinkFacts, 'links'>>;
  /**
   * The kernel's next hop to each underlay address of a peer, and with direct routes to the base of its podCIDR; an
   * address without a route is missing.
   */
  readonly nextHops: Observed<ReadonlyMap<string, NextHop>>;
  /** The IPsec policies for packets that leave this node. */
  readonly policies: Observed<readonly Policy[]>;
  /** The CNI attachments. */
  readonly pods: Observed<readonly Attachment[]>;
  /** The bridges of our podCIDRs, and the pods on them. */
  readonly bridged: Observed<PodBridges>;
  /** The host veths of attachments whose files are malformed. */
  readonly lostPods: readonly string[];
  /** The indexes of the host veths and VTEP devices whose packets somebody shapes or filters in tc. */
  readonly shaped: Observed<readonly number[]>;
  /** Undefined before programs were loaded for the first time. */
  readonly programs: Observed<LoadedIds | undefined>;
  /** Keys of the links that are pinned. */
  readonly attached: ReadonlySet<string>;
  /** Why drivers refused XDP, by `xdpKey` of dataplane/links.ts. */
  readonly xdpRefusals: ReadonlyMap<string, string>;
}

/** The indexes of the pods' netkits, of which a previous agent may have made some. */
export function netkitsOf({ links, pods }: Pick<NodeSnapshot, 'links' | 'pods'>): Set<number> {
  const found = pods.value.map(({ hostIfname }) => links.value.get(hostIfname));
  return new Set(found.flatMap((link) => (link?.kind === 'netkit' ? [link.ifindex] : [])));
}
