// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { type LabFlags, parseLabOptions } from './options.ts';
import { isLabNetns } from './state.ts';

describe('the flags of lab up', () => {
  it('have defaults for everything', () => {
    expect(parseLabOptions({})).toEqual({
      mode: 'cni',
      name: 'lab',
      datapaths: ['ripstop', 'ripstop'],
      pods: 2,
      wire: 'gso',
      mtu: 1500,
      network: '10.42.0.0/16',
      underlay: '172.31.0.0/16',
      ipv6: false,
      directRouting: false,
      backend: 'vxlan',
      kubeProxy: 'iptables',
    });
  });

  it('give all nodes one datapath, or each its own', () => {
    expect(parseLabOptions({ nodes: '3', datapath: 'flannel' }).datapaths).toEqual([
      'flannel',
      'flannel',
      'flannel',
    ]);
    expect(parseLabOptions({ datapath: 'ripstop,flannel,host' }).datapaths).toEqual([
      'ripstop',
      'flannel',
      'host',
    ]);
    expect(parseLabOptions({ nodes: 1, datapath: 'host' }).datapaths).toEqual(['host']);
  });

  it.each<[string, LabFlags, string]>([
    ['an unknown mode', { mode: 'turbo' }, '--mode cannot be "turbo"; choose cni, boost'],
    ['boost without flannel', { mode: 'boost', backend: 'host-gw' }, 'so --mode boost cannot either'],
    ['a link too small for IPv6 in VXLAN', { ipv6: true, mtu: 1349 }, 'from 1350 to'],
    ['an unknown kube-proxy', { kubeProxy: 'ipvs' }, '--kube-proxy cannot be "ipvs"; choose iptables'],
    ['an unknown datapath', { datapath: 'ripstop,cilium' }, '--datapath cannot be "cilium"; choose ripstop'],
    ['a list of another length', { nodes: 3, datapath: 'ripstop,flannel' }, 'names 2 nodes but --nodes is 3'],
    ['a fraction of a node', { nodes: 1.5 }, '--nodes cannot be "1.5"'],
    ['no node', { nodes: '0' }, 'from 1 to 255'],
    ['text for a number', { mtu: '1e9' }, '--mtu cannot be "1e9"'],
    ['a name that would leave its directory', { name: '../etc' }, 'cannot name a lab'],
    ['a network without room', { network: '10.42.0.0/20' }, '--network cannot be "10.42.0.0/20"'],
    ['a network that is none', { network: '10.42.0.1/16' }, '--network: '],
    ['an underlay without room', { underlay: '192.168.0.0/24' }, 'is too small'],
  ])('refuse %s, in one line and as wrong usage', (_, flags, message) => {
    expect(() => parseLabOptions(flags)).toThrow(
      expect.objectContaining({ exitCode: 2, message: expect.stringContaining(message) as string }),
    );
  });
});

describe('the names of a lab', () => {
  it('never match another lab with a similar name', () => {
    expect(isLabNetns('a', 'a-underlay')).toBe(true);
    expect(isLabNetns('a', 'a-node12-pod3')).toBe(true);
    for (const netns of ['a-b-node1', 'a-node1-underlay', 'a-node1-node1', 'ab-node1', 'a', 'a-node1-podx']) {
      expect(isLabNetns('a', netns), netns).toBe(false);
    }
  });
});
