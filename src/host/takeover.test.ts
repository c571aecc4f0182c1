// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import type { Link } from './links.ts';
import { link } from './links.support.ts';
import { findPodBridge, idlePodBridges } from './pod-bridge.ts';
import { planAdoption } from './takeover.ts';

describe("flannel's routes", () => {
  const route = { dst: '10.42.7.0/24', gateway: '10.42.7.0', ifindex: 7, protocol: 3 };

  it('become ours, also those to peers that are gone', () => {
    const routes = [route, { ...route, dst: 'fd00:42:0:8::/64', gateway: 'fd00:42:0:8::' }];
    expect(planAdoption(routes)).toEqual([
      { dst: '10.42.7.0/24', gateway: '10.42.7.0', ifindex: 7, onlink: true, protocol: 82 },
      { dst: 'fd00:42:0:8::/64', gateway: 'fd00:42:0:8::', ifindex: 7, onlink: true, protocol: 82 },
    ]);
  });

  it.each([
    ['ours already', { ...route, protocol: 82 }],
    ['not of its shape', { ...route, gateway: '10.42.7.1' }],
    ["the device's own", { ...route, dst: '10.42.1.0/32', gateway: undefined }],
  ])('stay as they are when they are %s', (_, one) => {
    expect(planAdoption([one])).toEqual([]);
  });
});

describe("the bridge of flannel's pods", () => {
  const v4 = parseCidr('10.42.1.0/24');
  const v6 = parseCidr('fd00:42:0:1::/64');
  const addressed = (...texts: string[]): Link['addresses'] =>
    texts.map((text) => {
      const [ip = '', length] = text.split('/');
      const family = ip.includes(':') ? 6 : 4;
      const scope = ip.startsWith('fe80') ? 'link' : 'global';
      return { family, ip, length: Number(length), scope, primary: true };
    });
  const bridge = (name: string, addresses: Link['addresses']): Link =>
    link(name, { kind: 'bridge', addresses });
  const cni0 = bridge('cni0', addressed('10.42.1.1/24', 'fd00:42:0:1::1/64', 'fe80::1/64'));
  const port = link('veth1', { kind: 'veth', master: 'cni0' });
  const among = (...links: Link[]): Map<string, Link> => new Map(links.map((one) => [one.name, one]));

  it('is the one that has the gateway, whatever its name', () => {
    const other = bridge('docker0', addressed('172.17.0.1/16'));
    // As on every host veth of ours.
    const veth = link('veth2', { kind: 'veth', addresses: addressed('10.42.1.1/32') });
    expect(findPodBridge(v4, among(veth, other, cni0))?.name).toBe('cni0');
    expect(findPodBridge(v6, among(other, cni0))?.name).toBe('cni0');
    expect(findPodBridge(parseCidr('10.42.2.0/24'), among(other, cni0))).toBeUndefined();
  });

  it('is idle when it has no ports and no other addresses', () => {
    expect(idlePodBridges([v4, v6], among(cni0, link('veth1', { kind: 'veth' })))).toEqual(['cni0']);
    expect(idlePodBridges([v4, v6], among(cni0, port))).toEqual([]);
    const shared = bridge('cni0', addressed('10.42.1.1/24', '192.168.5.1/24'));
    expect(idlePodBridges([v4], among(shared))).toEqual([]);
    expect(idlePodBridges([v4], among())).toEqual([]);
  });
});
