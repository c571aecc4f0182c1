// SPDX-License-Identifier: Apache-2.0
/** The addresses of both labs, in both families. */
import { addressFamily, cidrContains, type Family, parseCidr } from '../../src/net/ip.ts';

/** The pods of both labs, with the addresses that they must have. */
export const PODS = {
  4: { n1p1: '10.42.0.2', n1p2: '10.42.0.3', n2p1: '10.42.1.2', n2p2: '10.42.1.3' },
  6: { n1p1: 'fd00:42:0:1::2', n1p2: 'fd00:42:0:1::3', n2p1: 'fd00:42:0:2::2', n2p2: 'fd00:42:0:2::3' },
} as const;
export const NODES = {
  4: { node1: '172.31.0.1', node2: '172.31.0.2' },
  6: { node1: 'fd00:31::1', node2: 'fd00:31::2' },
} as const;
const POD_CIDRS = {
  4: { node1: '10.42.0.0/24', node2: '10.42.1.0/24' },
  6: { node1: 'fd00:42:0:1::/64', node2: 'fd00:42:0:2::/64' },
} as const;
/** The gateways of pods. */
export const GATEWAYS = {
  4: { node1: '10.42.0.1', node2: '10.42.1.1' },
  6: { node1: 'fd00:42:0:1::1', node2: 'fd00:42:0:2::1' },
} as const;
/** The addresses of the VXLAN devices. */
export const VTEPS = {
  4: { node1: '10.42.0.0', node2: '10.42.1.0' },
  6: { node1: 'fd00:42:0:1::', node2: 'fd00:42:0:2::' },
} as const;
const CLUSTER = { 4: parseCidr('10.42.0.0/16'), 6: parseCidr('fd00:42::/56') } as const;
export const OUTSIDE = { 4: '203.0.113.1', 6: '2001:db8::1' } as const;

export type PodName = keyof (typeof PODS)[4];
export type NodeName = keyof (typeof NODES)[4];
/** The places where frames enter: a pod's interface, or the far end of a node's cable. */
export type Place = PodName | `cable of ${NodeName}`;

/** MTUs of a pod's interface, and of a tunnel. */
export const POD_MTU = 1450;
export const TUNNEL_MTU = { 4: 1450, 6: 1430 } as const;
/** Pods with number 2 have a larger MTU than the cluster, like pods from before the MTU was lowered. */
export const WIDE_MTU = 1600;
export const isWide = (pod: PodName): boolean => pod.endsWith('p2');

export const families = [4, 6] as const satisfies readonly Family[];
export const podNames = Object.keys(PODS[4]) as PodName[];
export const nodeNames = Object.keys(NODES[4]) as NodeName[];

export const isPod = (place: string): place is PodName => place in PODS[4];
export const isCable = (place: string): boolean => place.startsWith('cable');
export const nodeOf = (place: string): NodeName => (/^n1|node1$/.test(place) ? 'node1' : 'node2');
export const other = (node: NodeName): NodeName => (node === 'node1' ? 'node2' : 'node1');
export const podsOn = (node: NodeName): PodName[] => podNames.filter((pod) => nodeOf(pod) === node);
/** IPv4 if the text is not an address. */
export const familyOf = (ip: string | undefined): Family => (ip?.includes(':') ? 6 : 4);

export const podWith = (ip: string | undefined): PodName | undefined =>
  podNames.find((pod) => families.some((family) => PODS[family][pod] === ip));
export const inCluster = (ip: string | undefined): boolean =>
  ip !== undefined && addressFamily(ip) !== undefined && cidrContains(CLUSTER[familyOf(ip)], ip);
export const inPodCidr = (node: NodeName, ip: string | undefined): boolean =>
  ip !== undefined && cidrContains(podCidrs[familyOf(ip)][node], ip);
const podCidrs = {
  4: { node1: parseCidr(POD_CIDRS[4].node1), node2: parseCidr(POD_CIDRS[4].node2) },
  6: { node1: parseCidr(POD_CIDRS[6].node1), node2: parseCidr(POD_CIDRS[6].node2) },
};
/** All addresses that are a node's own. */
export const isNode = (ip: string | undefined): boolean =>
  families.some((family) =>
    nodeNames.some((node) => [NODES, GATEWAYS, VTEPS].some((of) => of[family][node] === ip)),
  );
