// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import { flannelPeers } from './flannel.ts';
import type { KubeNode } from './kube.ts';

const lease = (name: string, i: number, changes: Record<string, string> = {}): KubeNode => ({
  metadata: {
    name,
    annotations: {
      'flannel.alpha.coreos.com/kube-subnet-manager': 'true',
      'flannel.alpha.coreos.com/backend-type': 'vxlan',
      'flannel.alpha.coreos.com/backend-data': `{"VNI":1,"VtepMAC":"02:00:00:00:00:0${i}"}`,
      'flannel.alpha.coreos.com/public-ip': `172.31.0.${i}`,
      ...changes,
    },
  },
  spec: { podCIDR: `10.42.${i - 1}.0/24` },
});

it('a flannel node peers with every VXLAN lease but its own, and leaves out what does not parse', () => {
  const nodes = [
    lease('node1', 1),
    lease('node2', 2),
    lease('unmanaged', 3, { 'flannel.alpha.coreos.com/kube-subnet-manager': 'false' }),
    lease('host-gw', 4, { 'flannel.alpha.coreos.com/backend-type': 'host-gw' }),
    lease('bad-mac', 5, { 'flannel.alpha.coreos.com/backend-data': 'null' }),
    lease('bad-ip', 6, { 'flannel.alpha.coreos.com/public-ip': 'eth0; rm -rf' }),
    { ...lease('bad-cidr', 7), spec: { podCIDR: '10.42.6.7/24' } },
    { ...lease('no-cidr', 8), spec: {} },
    { metadata: { name: 'plain' } },
  ];
  expect(flannelPeers(nodes, 'node1')).toEqual(
    new Map([
      ['10.42.1.0', { podCIDR: '10.42.1.0/24', publicIp: '172.31.0.2', vtepMac: '02:00:00:00:00:02' }],
    ]),
  );
});
