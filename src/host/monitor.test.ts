// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { changeOf } from './monitor.ts';

describe('a line of ip monitor', () => {
  it.each([
    ['10.64.1.0/24 nhid 171966720 via 10.64.1.0 dev flannel.1 proto 82 onlink ', 'peers'],
    [
      'Deleted fd00:42:0:2::/64 via fd00:42:0:2:: dev flannel-v6.1 proto 82 metric 1024 onlink pref medium',
      'peers',
    ],
    ['id 171966720 via 10.64.1.0 dev flannel.1 scope link proto 82 onlink ', 'peers'],
    ['10.64.1.0 dev flannel.1 lladdr 0a:64:00:00:00:01 PERMANENT', 'peers'],
    ['10.64.1.0 dev flannel.1 lladdr 0a:64:00:00:00:01 STALE', 'peers'],
    ['Deleted 0a:64:00:00:00:01 dev flannel.1 dst 172.31.64.1 self permanent', 'peers'],
    [
      '5: flannel.1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UNKNOWN group default',
      'any',
    ],
    ['Deleted 5: flannel.1    inet 10.42.0.0/32 scope global flannel.1       valid_lft forever', 'any'],
    ['ipv4 dev flannel.1 forwarding on rp_filter loose mc_forwarding off', 'peers'],
    ['default via 172.31.255.254 dev eth0 ', 'any'],
    ['2: eth0    inet 172.31.0.1/16 scope global eth0       valid_lft forever preferred_lft forever', 'any'],
    ['172.31.255.254 dev eth0 lladdr 0e:81:35:6d:4e:c1 REACHABLE', undefined],
    ['172.31.0.9 dev eth0  FAILED', undefined],
    ['172.31.0.9 dev eth0 lladdr 0e:81:35:6d:4e:c1 PERMANENT', 'any'],
    ['10.42.1.5 dev veth01234567 scope link proto 82', 'pods'],
    ['12: veth01234567@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UP', 'pods'],
    ['Deleted 12: veth01234567@if2: <BROADCAST,MULTICAST> mtu 1450 qdisc noop state DOWN', 'pods'],
    ['0.0.0.0/1 via 10.42.1.5 dev veth01234567 ', 'any'],
    ['12: vethernet: <BROADCAST,MULTICAST> mtu 1500', 'any'],
  ] as const)('%j is about %s', (line, what) => expect(changeOf(line)).toBe(what));
});
