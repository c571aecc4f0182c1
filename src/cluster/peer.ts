// SPDX-License-Identifier: Apache-2.0
import type { Cidr, PerFamily } from '../net/ip.ts';

/** One address family's part of another node: how to reach its pods. A dual-stack node is two peers. */
export interface Peer {
  /** The node's. */
  readonly name: string;
  readonly podCidr: Cidr;
  /** The outer destination: the underlay address that the peer publishes. */
  readonly vtepIp: string;
  /** The inner destination MAC, that of the peer's flannel.1; lower case. All zero without tunnels. */
  readonly vtepMac: string;
  /** The peer publishes `public-ip-overwrite`: it is behind NAT, so its outer source may differ from `vtepIp`. */
  readonly behindNat: boolean;
  /**
   * The Node's other addresses, as far as they were read: a flannel node that publishes another address than its
   * interface's sends from the latter. Absent when there are none.
   */
  readonly otherIps?: readonly string[];
  /**
   * The peer accepts packets without an outer UDP checksum over IPv6, which the kernel refuses by default. Always
   * false for IPv4, where everybody accepts them.
   */
  readonly zeroChecksum: boolean;
}

/** A node with a valid lease; it has at least one of the two parts. */
export interface PeerNode extends PerFamily<Peer> {
  readonly name: string;
  readonly uid: string;
  /** Orders nodes by age: when the Node was created, in ms since 1970; in etcd the lease's revision. */
  readonly createdAt: number;
}

/** What can be wrong with a node, for machines. */
export type AlarmKind =
  /** What the API server sent is no Node object. */
  | 'malformed_node'
  /** An annotation, or a podCIDR, cannot be read. */
  | 'malformed_lease'
  /** The node has no lease that this cluster could use. */
  | 'no_lease'
  /** The API server does not give the node's podCIDRs. */
  | 'podcidr_unknown'
  /** The podCIDRs that the node publishes are not those of its spec. */
  | 'podcidr_mistaken'
  | 'other_backend'
  /** The podCIDR is outside the network of net-conf.json. */
  | 'podcidr_outside'
  /** The podCIDR overlaps an older node's. */
  | 'podcidr_conflict'
  /** An older node has the same VTEP address or MAC. */
  | 'vtep_shared'
  /** Another node has our own subnet now; etcd only. */
  | 'subnet_lost';

/** Something about a node that a person must look at. */
export interface PeerAlarm {
  /** The node's name. */
  readonly node: string;
  /** The node's UID; empty when it is unknown. */
  readonly uid: string;
  readonly kind: AlarmKind;
  readonly reason: string;
}
