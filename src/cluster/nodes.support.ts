// SPDX-License-Identifier: Apache-2.0
import { parseCidr } from '../net/ip.ts';
import { annotationKeys } from './annotations.ts';
import type { LeaseSettings } from './node-lease.ts';

/** Test data: Nodes as flannel leaves them behind, and the settings of the cluster they are in. */

export const dualStack: LeaseSettings = {
  keys: annotationKeys(),
  backend: 'vxlan',
  vni: 1,
  network: parseCidr('10.42.0.0/16'),
  ipv6Network: parseCidr('fd00:42::/56'),
};

const prefix = 'flannel.alpha.coreos.com/';

export interface TestNode {
  apiVersion: string;
  kind: string;
  metadata: {
    name: string;
    uid: string;
    resourceVersion: string;
    creationTimestamp: string;
    annotations: Record<string, string>;
  };
  spec: { podCIDR?: string; podCIDRs?: string[] };
  status?: Record<string, unknown>;
}

/**
 * Node number `n` (1–255) of a dual-stack flannel cluster; `changes` override annotations, null takes one away. A key
 * without a `/` is one of flannel's.
 */
export function flannelNode(
  n: number,
  changes: Record<string, string | null> = {},
  other: { uid?: string; createdAt?: string; podCIDRs?: string[] } = {},
): TestNode {
  const byte = n.toString(16).padStart(2, '0');
  const all: Record<string, string | null> = {
    'kube-subnet-manager': 'true',
    'backend-type': 'vxlan',
    'backend-data': `{"VNI":1,"VtepMAC":"0a:00:00:00:04:${byte}"}`,
    'public-ip': `192.168.1.${n}`,
    'backend-v6-data': `{"VNI":1,"VtepMAC":"0a:00:00:00:06:${byte}"}`,
    'public-ipv6': `2001:db8::${n.toString(16)}`,
    ...changes,
  };
  const annotations: Record<string, string> = { 'node.alpha.kubernetes.io/ttl': '0' };
  for (const [key, value] of Object.entries(all))
    if (value !== null) annotations[key.includes('/') ? key : prefix + key] = value;
  const podCIDRs = other.podCIDRs ?? [`10.42.${n}.0/24`, `fd00:42:0:${n.toString(16)}::/64`];
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: {
      name: `node-${n}`,
      uid: other.uid ?? `uid-${n}`,
      resourceVersion: String(1000 + n),
      creationTimestamp: other.createdAt ?? '2026-01-01T00:00:00Z',
      annotations,
    },
    spec: { ...(podCIDRs[0] && { podCIDR: podCIDRs[0] }), podCIDRs },
  };
}
