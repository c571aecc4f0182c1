// SPDX-License-Identifier: Apache-2.0
import type { NetlinkEvent } from '#netlink';
import { describe, expect, it } from 'vitest';
import { classify, latest } from './monitor.ts';

const names = new Map([
  [2, 'eth0'],
  [5, 'flannel.1'],
  [6, 'flannel-v6.1'],
  [9, 'veth01234567'],
  [10, 'vethernet'],
  [11, 'cni0'],
]);

type Of<K extends NetlinkEvent['kind']> = Extract<NetlinkEvent, { kind: K }>;

const route = (of: Partial<Of<'route'>['route']>, deleted = false): NetlinkEvent =>
  ({ kind: 'route', deleted, route: { family: 4, type: 'unicast', protocol: 3, ...of } }) as Of<'route'>;
const link = (ifindex: number, deleted = false): NetlinkEvent =>
  ({
    kind: 'link',
    deleted,
    link: { ifindex, name: names.get(ifindex)!, up: true, mtu: 1450 },
  }) as Of<'link'>;
const neighbour = (of: Partial<Of<'neighbour'>['neighbour']>): NetlinkEvent =>
  ({
    kind: 'neighbour',
    deleted: false,
    neighbour: { address: '10.42.2.0', state: 'permanent', proxy: false, ...of },
  }) as Of<'neighbour'>;
const onWire = neighbour({ ifindex: 2, state: 'stale' });
const othersProxy = neighbour({ ifindex: 11, proxy: true, protocol: 4 });
const qdisc = (kind: string, deleted = false): NetlinkEvent => ({
  kind: 'qdisc',
  deleted,
  qdisc: { ifindex: 9, kind, handle: 0x10000, parent: 0xffffffff },
});
const filter = (of: Partial<Of<'filter'>['filter']>): NetlinkEvent =>
  ({ kind: 'filter', deleted: false, filter: { ifindex: 9, kind: 'u32', handle: 0, ...of } }) as Of<'filter'>;
const nft = (of: Partial<Of<'nft'>>): NetlinkEvent => ({
  kind: 'nft',
  deleted: true,
  object: 'rule',
  family: 'inet',
  table: 'ripstop',
  name: '',
  ...of,
});

const settings = (ifindex: number, rpFilter?: number): NetlinkEvent => ({
  kind: 'netconf',
  family: 4,
  ifindex,
  forwarding: rpFilter === undefined ? true : undefined,
  rpFilter,
});

describe('of the events of a new pod', () => {
  it('those that a later one replaces are left out, and the order stays', () => {
    const [new_, up, gone] = [link(9), link(9), link(10, true)];
    const [first, forwarding, last] = [settings(9, 0), settings(9), settings(9, 1)];
    const toPod = route({ dst: '10.42.1.5/32', ifindex: 9, protocol: 82 });
    expect(latest([first, new_, toPod, gone, toPod, forwarding, last, up])).toEqual([
      toPod,
      gone,
      toPod,
      forwarding,
      last,
      up,
    ]);
  });
});

describe('an event', () => {
  it.each([
    ['a host veth', link(9), { kind: 'pod-link', name: 'veth01234567', ifindex: 9, deleted: false }],
    ['a host veth that is gone', link(9, true), { kind: 'pod-link', ifindex: 9, deleted: true }],
    ['the uplink', link(2), { kind: 'link' }],
    ['a VTEP device', link(5), { kind: 'link' }],
    ["somebody else's veth", link(10), { kind: 'link' }],
    [
      'a route to a pod',
      route({ dst: '10.42.1.5/32', ifindex: 9, protocol: 82 }),
      { kind: 'pod-route', dst: '10.42.1.5/32', dev: 'veth01234567', deleted: false },
    ],
    [
      "the podCIDR's route to nowhere",
      route({ dst: 'fd00:42::/64', ifindex: 1, type: 'unreachable', protocol: 82 }, true),
      { kind: 'pod-route', dst: 'fd00:42::/64', dev: undefined, deleted: true },
    ],
    ["a host veth's rp_filter", settings(9, 2), { kind: 'settings', name: 'veth01234567', rpFilter: 2 }],
    ['a setting of all interfaces', settings(-1), { kind: 'settings', name: undefined }],
    ['a qdisc that shapes', qdisc('tbf'), { kind: 'shaping', ifindex: 9 }],
    ['a hook for filters', qdisc('clsact'), undefined],
    ['a hook that is gone, and its filters with it', qdisc('ingress', true), { kind: 'shaping', ifindex: 9 }],
    ["somebody's filter", filter({}), { kind: 'shaping', ifindex: 9 }],
    [
      'a filter that several interfaces share',
      filter({ ifindex: 0xffffffff }),
      { kind: 'shaping', ifindex: undefined },
    ],
    ['a program of ours', filter({ kind: 'bpf', handle: 0x72697073, priority: 100 }), undefined],
    ["the kernel's own route to a host veth", route({ dst: '10.42.1.1/32', ifindex: 9 }), undefined],
    ['a route to a peer', route({ gateway: '10.42.2.0', ifindex: 5, protocol: 82 }), { kind: 'peers' }],
    [
      'a direct route to a peer',
      route({ gateway: '192.0.2.2', ifindex: 2, protocol: 82 }),
      { kind: 'peers' },
    ],
    ['a route to a peer by way of a nexthop', route({ nexthop: 7, protocol: 82 }), { kind: 'peers' }],
    ["somebody's route into the tunnel", route({ gateway: '10.42.2.0', ifindex: 5 }), { kind: 'network' }],
    ["the kernel's route to the tunnel's network", route({ ifindex: 5, protocol: 2 }), { kind: 'peers' }],
    ['a default route', route({ gateway: '192.0.2.254', ifindex: 2 }), { kind: 'network' }],
    ['a neighbour in the tunnel', neighbour({ ifindex: 6 }), { kind: 'peers' }],
    ['a neighbour on the wire', onWire, { kind: 'bridge', event: onWire }],
    [
      'a proxy of ours',
      neighbour({ ifindex: 11, address: '10.42.1.5', proxy: true, protocol: 82 }),
      { kind: 'proxy', bridge: 'cni0', address: '10.42.1.5', deleted: false },
    ],
    ["somebody else's proxy", othersProxy, { kind: 'bridge', event: othersProxy }],
    ['a chain of our table that is deleted', nft({ object: 'chain' }), { kind: 'rules' }],
    ['a rule that somebody adds to our table', nft({ deleted: false }), { kind: 'rules' }],
    [
      "a chain of flannel's",
      nft({ object: 'chain', family: 'ip', table: 'filter', name: 'FLANNEL-FWD', deleted: false }),
      { kind: 'flannel-rules' },
    ],
    [
      'a table of its own that flannel makes',
      nft({ object: 'table', family: 'ip6', table: 'flannel-ipv6', deleted: false }),
      { kind: 'flannel-rules' },
    ],
    ['an element of our set that goes', nft({ object: 'element' }), undefined],
    ['a rule in another table that goes', nft({ table: 'kube-proxy' }), { kind: 'policy' }],
    ['a rule in another table that comes', nft({ table: 'kube-proxy', deleted: false }), { kind: 'policy' }],
    ["an element of somebody's set", nft({ object: 'element', table: 'kube-proxy' }), { kind: 'policy' }],
    [
      "a chain of flannel's that goes",
      nft({ family: 'ip', table: 'filter', name: 'FLANNEL-FWD' }),
      { kind: 'policy' },
    ],
    [
      'IPsec policies that go',
      { kind: 'policy', deleted: true, policy: undefined } as const,
      { kind: 'ipsec' },
    ],
    ['events that were lost', { kind: 'lost' } as const, { kind: 'lost' }],
  ] as const)('about %s', (_, event, expected) => {
    const classified = classify(event, (ifindex) => names.get(ifindex));
    if (expected) expect(classified).toMatchObject(expected);
    else expect(classified).toBeUndefined();
  });
});
