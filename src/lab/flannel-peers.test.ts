// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import { flannelPeers } from './flannel-peers.ts';
import type { KubeNode } from './kube.ts';

const lease = (name: string, i: number, changes: Record<string, string> = {}): KubeNode => ({
  metadata: {
    name,
    annotations: {
      'flannel.alpha.coreos.com/kube-subnet-manager': 'true',
      'flannel.alpha.coreos.com/backend-type': 'vxlan',
      'flannel.alpha.coreos.com/backend-data': `{"VNI":1,"VtepMAC":"02:00:00:00:00:0${i}"}`,
      'flannel.alpha.coreos.com/public-ip': `172.31.0.${i}`,
      'flannel.alpha.coreos.com/backend-v6-data': `{"VNI":1,"VtepMAC":"02:00:00:00:06:0${i}"}`,
      'flannel.alpha.coreos.com/public-ipv6': `fd00:31::${i}`,
      ...changes,
    },
  },
  spec: { podCIDRs: [`10.42.${i - 1}.0/24`, `fd00:42:0:${i}::/64`] },
});

it('a flannel node peers with every VXLAN lease but its own, and skips leases that cannot be parsed', () => {
  const nodes = [
    lease('node1', 1),
    lease('node2', 2),
    lease('unmanaged', 3, { 'flannel.alpha.coreos.com/kube-subnet-manager': 'false' }),
    lease('host-gw', 4, { 'flannel.alpha.coreos.com/backend-type': 'host-gw' }),
    lease('bad-mac', 5, { 'flannel.alpha.coreos.com/backend-data': 'null' }),
    lease('bad-ip', 6, { 'flannel.alpha.coreos.com/public-ip': 'eth0; rm -rf' }),
    { ...lease('bad-cidr', 7), spec: { podCIDRs: ['10.42.6.7/24'] } },
    { ...lease('no-cidr', 8), spec: {} },
    { metadata: { name: 'plain' } },
  ];
  expect(flannelPeers(nodes, 'node1', 4)).toEqual(
    new Map([
      ['10.42.1.0', { podCIDR: '10.42.1.0/24', publicIp: '172.31.0.2', vtepMac: '02:00:00:00:00:02' }],
    ]),
  );
});

it('the IPv4 and the IPv6 part of a lease are two peers: one may exist without the other', () => {
  const nodes = [
    lease('node2', 2),
    lease('no-v6', 3, { 'flannel.alpha.coreos.com/public-ipv6': '172.31.0.3' }),
    { ...lease('no-v4', 4), spec: { podCIDRs: ['fd00:42:0:4::/64'] } },
  ];
  expect([...flannelPeers(nodes, 'node1', 4).keys()]).toEqual(['10.42.1.0', '10.42.2.0']);
  expect(flannelPeers(nodes, 'node1', 6)).toEqual(
    new Map([
      [
        'fd00:42:0:2::',
        { podCIDR: 'fd00:42:0:2::/64', publicIp: 'fd00:31::2', vtepMac: '02:00:00:00:06:02' },
      ],
      [
        'fd00:42:0:4::',
        { podCIDR: 'fd00:42:0:4::/64', publicIp: 'fd00:31::4', vtepMac: '02:00:00:00:06:04' },
      ],
    ]),
  );
});

it('with direct routing only peers outside the L2 are reached by a tunnel', () => {
  const nodes = [lease('near', 2), lease('far', 3, { 'flannel.alpha.coreos.com/public-ip': '192.0.2.3' })];
  expect([...flannelPeers(nodes, 'node1', 4, parseCidr('172.31.0.0/16')).values()]).toEqual([
    { podCIDR: '10.42.1.0/24', publicIp: '172.31.0.2' },
    { podCIDR: '10.42.2.0/24', publicIp: '192.0.2.3', vtepMac: '02:00:00:00:00:03' },
  ]);
});
