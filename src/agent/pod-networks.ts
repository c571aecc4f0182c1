// SPDX-License-Identifier: Apache-2.0
import type { CniFamily } from '../cni/ops.ts';
import { podMtu } from '../dataplane/desired.ts';
import { formatCidr, partsOf } from '../net/ip.ts';
import type { Outline } from './plan/index.ts';

/** The networks from which new pods get addresses, IPv4 first; none before the node has a plan. */
export function podNetworks(outline: Outline | undefined): CniFamily[] {
  if (!outline) return [];
  const { v4, v6 } = outline.settings;
  return partsOf({ ...(v4 && { v4 }), ...(v6 && { v6 }) }).map(({ network, podCidr }) => ({
    podCidr: formatCidr(podCidr),
    clusterNetwork: formatCidr(network),
    mtu: podMtu(outline.settings, podCidr.family),
  }));
}
