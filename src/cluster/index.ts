// SPDX-License-Identifier: Apache-2.0
export { type AnnotationKeys, annotationKeys, DEFAULT_ANNOTATION_PREFIX } from './annotations.ts';
export { ApiClient, type ApiClientOptions, ApiError } from './api-client.ts';
export type { Item } from './item-store.ts';
export { type Backend, type BackendType, type NetConf, parseNetConf, readNetConf } from './net-conf.ts';
export { type LeaseSettings, leaseSettings, type ParsedNode, parseNode } from './node-lease.ts';
export {
  fetchOwnNode,
  type LeasePart,
  type OwnLease,
  type OwnNode,
  ownPodCidrs,
  parseOwnNode,
  publishLease,
} from './own-lease.ts';
export { KubeSubnetManager } from './kube-subnets.ts';
export type { SourceHealth, SubnetManager } from './subnet-manager.ts';
export type { AlarmKind, Peer, PeerAlarm, PeerNode } from './peer.ts';
export { type OwnSubnets, PeerTable, type PeerView } from './peer-table.ts';
export { type ClusterSnapshot, Snapshots } from './snapshot.ts';
export {
  type FaultKind,
  Reflector,
  type ReflectorHealth,
  type ReflectorOptions,
  type ReflectorTiming,
} from './reflector.ts';
