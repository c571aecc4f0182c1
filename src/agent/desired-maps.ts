// SPDX-License-Identifier: Apache-2.0
/** What the maps should hold, for `ripstop maps diff`. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { ClusterSnapshot, SubnetManager } from '../cluster/index.ts';
import { desiredConfig } from '../dataplane/desired.ts';
import { layout } from '../dataplane/layout.gen.ts';
import { RipstopError } from '../errors.ts';
import type { Cidr } from '../net/ip.ts';
import type { Desired } from '../reconcile/reconciled.ts';
import type { Plan } from './plan/index.ts';

/** The answer of /maps/desired, as JSON. */
export interface DesiredMaps {
  /** The version of the layout that the values have. */
  readonly layout: number;
  readonly maps: readonly DesiredMap[];
  /** The programs' constants. */
  readonly config: Readonly<Record<string, unknown>>;
}

export interface DesiredMap {
  readonly name: DesiredMapName;
  /** Whether these are all entries that there should be. */
  readonly complete: boolean;
  /** Keys as text, values as the codecs have them. */
  readonly entries: readonly (readonly [key: string, value: unknown])[];
}

export type DesiredMapName = 'peers' | 'peers6' | 'vteps' | 'endpoints' | 'endpoints6';

export function desiredMapsOf({ outline, peers, pods }: Plan): DesiredMaps {
  const map = (name: DesiredMapName, desired: Desired<unknown> | undefined): DesiredMap[] =>
    desired ? [{ name, complete: desired.complete, entries: [...desired.entries()] }] : [];
  return {
    layout: layout.version,
    maps: [
      ...map('peers', peers.peers),
      ...map('peers6', peers.peers6),
      ...map('vteps', peers.vteps),
      ...map('endpoints', pods.endpoints),
      ...map('endpoints6', pods.endpoints6),
    ],
    config: desiredConfig(outline.settings),
  };
}

/** How long the cluster may take to answer. */
const LIST_MS = 30_000;
const POLL_MS = 20;

/**
 * The cluster as it is listed now, by a manager of its own, which is stopped afterwards.
 * @throws RipstopError when the cluster does not answer in time.
 */
export async function listCluster(
  subnets: SubnetManager,
  podCidrs: readonly Cidr[],
): Promise<ClusterSnapshot> {
  try {
    subnets.start(() => {});
    for (const endMs = performance.now() + LIST_MS; performance.now() < endMs; await sleep(POLL_MS)) {
      const cluster = subnets.snapshot(podCidrs);
      if (cluster.synced) return cluster;
    }
    const why = subnets.health.lastError ?? `no answer within ${LIST_MS / 1000} s`;
    throw new RipstopError(`cannot list the cluster's nodes: ${why}`);
  } finally {
    await subnets.stop();
  }
}
