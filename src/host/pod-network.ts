// SPDX-License-Identifier: Apache-2.0
import type { Cidr } from '../net/ip.ts';

/** One family's pod addresses: the cluster's network and, inside it, this node's podCIDR. */
export interface PodNetwork {
  network: Cidr;
  podCidr: Cidr;
}
