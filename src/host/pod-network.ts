// SPDX-License-Identifier: Apache-2.0
import { type Cidr, formatCidr } from '../net/ip.ts';

/** One family's pod addresses: the cluster's network and, inside it, this node's podCIDR. */
export interface PodNetwork {
  network: Cidr;
  podCidr: Cidr;
}

/** The same as nft and iptables spell it. */
export function wordsOf({ network, podCidr }: PodNetwork): {
  ip: 'ip' | 'ip6';
  cluster: string;
  pods: string;
  multicast: string;
} {
  const v4 = network.family === 4;
  return {
    ip: v4 ? 'ip' : 'ip6',
    cluster: formatCidr(network),
    pods: formatCidr(podCidr),
    multicast: v4 ? '224.0.0.0/4' : 'ff00::/8',
  };
}
