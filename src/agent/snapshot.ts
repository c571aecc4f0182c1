// SPDX-License-Identifier: Apache-2.0
/** What was observed of this node. Snapshots are immutable: an observer makes a new one, and `revision` tells them apart. */
import type { Attachment } from '../cni/attachments.ts';
import type { HookName } from '../dataplane/links.ts';
import type { Link } from '../host/links.ts';
import type { NextHop } from '../host/neighbours.ts';
import type { UplinkFacts } from '../host/uplink.ts';
import { isSame } from '../reconcile/target.ts';

/** A value as last observed; its revision grows whenever another value is seen. */
export interface Observed<T> {
  readonly revision: number;
  readonly value: T;
}

/** @param before what was observed last. Equal values keep its revision. */
export function observed<T>(before: Observed<T>, value: T): Observed<T> {
  return isSame(before.value, value) ? before : { revision: before.revision + 1, value };
}

/** The programs in the kernel. */
export interface LoadedIds {
  readonly ids: Readonly<Record<HookName, number>>;
  /** Their maps are not in use yet: what is attached runs previous programs over the previous maps. */
  readonly pending: boolean;
}

export interface NodeSnapshot {
  /** By name, with their addresses. */
  readonly links: Observed<ReadonlyMap<string, Link>>;
  /** Default routes and the like: what the uplink is chosen by. */
  readonly routes: Observed<Omit<UplinkFacts, 'links'>>;
  /** The kernel's next hop to each address that peers are dialled at; an address without a route is missing. */
  readonly nextHops: Observed<ReadonlyMap<string, NextHop>>;
  /** net.ipv4.ip_local_port_range, both ends included. */
  readonly sourcePorts: { readonly min: number; readonly max: number };
  /** The CNI attachments. */
  readonly pods: Observed<readonly Attachment[]>;
  /** Undefined before programs were loaded for the first time. */
  readonly programs: Observed<LoadedIds | undefined>;
  /** Keys of the links that are pinned. */
  readonly attached: ReadonlySet<string>;
  /** Why drivers refused XDP, by `xdpKey` of dataplane/links.ts. */
  readonly xdpRefusals: ReadonlyMap<string, string>;
}
