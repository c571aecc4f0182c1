// SPDX-License-Identifier: Apache-2.0
import { type Family, addressAt, parseCidr } from '../net/ip.ts';
import type { LabOptions } from './options.ts';

const CLUSTER6 = 'fd00:42::/56';

/**
 * ClusterIP of the Service `kubernetes`; the API server's certificate names it. Nodes reach it only where a test sees
 * to that.
 */
export const KUBERNETES_SERVICE_IP = '10.43.0.1';

const UNDERLAY6 = 'fd00:31::/64';

/** The networks of ClusterIPs. No device has an address of these. */
const SERVICES: Readonly<Record<Family, string>> = { 4: '10.43.0.0/16', 6: 'fd00:43::/112' };

/** The address families of a lab, in the order in which Kubernetes lists them. */
export function familiesOf({ ipv6 }: LabOptions): Family[] {
  return ipv6 ? [4, 6] : [4];
}

/** The network that pods' addresses come from. */
export function clusterNetwork(options: LabOptions, family: Family): string {
  return family === 4 ? options.network : CLUSTER6;
}

/** The network that ClusterIPs come from. */
export function serviceNetwork(family: Family): string {
  return SERVICES[family];
}

/** The network that the nodes' uplinks share. */
export function underlayNetwork(options: LabOptions, family: Family): string {
  return family === 4 ? options.underlay : UNDERLAY6;
}

/**
 * The underlay's own address, which is the nodes' default gateway: the last usable one of the network, at most the
 * 65,534th (172.31.255.254, fd00:31::fffe).
 */
export function gatewayAddress(network: string): string {
  const cidr = parseCidr(network);
  const hostBits = (cidr.family === 4 ? 32 : 128) - cidr.length;
  return addressAt(cidr, 2 ** Math.min(hostBits, 16) - 2);
}

/** One address family's part of a node. */
export interface FamilyPart {
  readonly family: Family;
  /** The uplink's address. */
  readonly ip: string;
  readonly podCIDR: string;
}

/** The IPv4 part of a node, and on a dual-stack lab its IPv6 part, as the state and `lab status` spell them. */
export interface NodeAddresses {
  readonly ip: string;
  readonly podCIDR: string;
  readonly ip6?: string;
  readonly podCIDR6?: string;
}

/** The addresses of node `index` (from 1): 172.31.0.1 and 10.42.0.0/24, fd00:31::1 and fd00:42:0:1::/64, and so on. */
export function nodeAddresses(options: LabOptions, index: number): NodeAddresses {
  const uplink = (family: Family) => addressAt(parseCidr(underlayNetwork(options, family)), index);
  const pods = (family: Family, n: number) => addressAt(parseCidr(clusterNetwork(options, family)), n);
  return {
    ip: uplink(4),
    podCIDR: `${pods(4, (index - 1) * 2 ** 8)}/24`,
    ...(options.ipv6 && {
      ip6: uplink(6),
      podCIDR6: `${pods(6, index * 2 ** 64)}/64`,
    }),
  };
}

/** The parts that the node has, IPv4 first. */
export function familyParts({ ip, podCIDR, ip6, podCIDR6 }: NodeAddresses): FamilyPart[] {
  const v4: FamilyPart = { family: 4, ip, podCIDR };
  return ip6 === undefined || podCIDR6 === undefined ? [v4] : [v4, { family: 6, ip: ip6, podCIDR: podCIDR6 }];
}
