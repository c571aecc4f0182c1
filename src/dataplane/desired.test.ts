// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { Random } from '../../test/support/random.ts';
import { checksum } from '../net/packets.ts';
import { parseCidr } from '../net/ip.ts';
import { encode } from './codec.ts';
import {
  desiredConfig,
  desiredEndpoints,
  desiredPeers,
  desiredVteps,
  type Endpoint,
  endpointCapacity,
  endpointSlot,
  type FamilySettings,
  type NodeSettings,
  type Peer,
  type PeerNextHop,
  peer6Value,
  peerCapacity,
  peerKey,
  peerSlot,
  peerValue,
  stateSlot,
} from './desired.ts';

const common = {
  tunnel: { vni: 1, port: 8472 },
  uplink: { ifindex: 2, mtu: 1500, mac: '02:00:00:00:00:03', gsoMaxSegs: 65535 },
  flowTableSize: 65536,
} as const;

function half4(network: string, podCidr: string): FamilySettings {
  const cidrs = { network: parseCidr(network), podCidr: parseCidr(podCidr) };
  return { ...cidrs, vtepMac: 'aa:00:00:00:00:03', vtepIp: '192.168.0.3' };
}

function half6(network: string, podCidr: string): FamilySettings {
  const cidrs = { network: parseCidr(network), podCidr: parseCidr(podCidr) };
  return { ...cidrs, vtepMac: 'aa:00:00:00:06:03', vtepIp: 'fd00:31::3' };
}

const node = (network: string, podCidr: string): NodeSettings => ({ ...common, v4: half4(network, podCidr) });

const [own4, own6] = [half4('10.42.0.0/16', '10.42.3.0/24'), half6('fd00:42::/56', 'fd00:42:0:3::/64')];
const k3s: NodeSettings = { ...common, v4: own4 };
const dual: NodeSettings = { ...common, v4: own4, v6: own6 };
const only6: NodeSettings = { ...common, v6: own6 };
const direct: NodeSettings = { ...dual, directRouting: true };

const by = (ip: string): PeerNextHop => ({ ip, direct: false, mtu: 1500 });
const onLink = (ip: string): PeerNextHop => ({ ip, direct: true, mtu: 1500 });

function peer(n: number, over: Partial<Peer> = {}): Peer {
  return {
    name: `node${n}`,
    podCidr: parseCidr(`10.42.${n}.0/24`),
    vtepIp: `192.168.0.${n}`,
    vtepMac: `aa:00:00:00:00:0${n}`,
    behindNat: false,
    ...over,
  };
}

function peer6(n: number, over: Partial<Peer> = {}): Peer {
  return {
    name: `node${n}`,
    podCidr: parseCidr(`fd00:42:0:${n}::/64`),
    vtepIp: `fd00:31::${n}`,
    vtepMac: `aa:00:00:00:06:0${n}`,
    behindNat: false,
    zeroChecksum: true,
    ...over,
  };
}

function endpoint(ip: string, over: Partial<Endpoint> = {}): Endpoint {
  return {
    ip,
    hostIfname: 'veth1',
    hostIfindex: 7,
    podMac: '0a:00:00:00:00:05',
    hostMac: '0e:00:00:00:00:05',
    mtu: 1450,
    kernelPath: false,
    ...over,
  };
}

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

describe('the configuration', () => {
  it('has all that the programs must know of the node', () => {
    expect(desiredConfig(dual)).toEqual({
      network: '10.42.0.0',
      network_mask: '255.255.0.0',
      pod_cidr: '10.42.3.0',
      pod_cidr_mask: '255.255.255.0',
      vtep_ip: '192.168.0.3',
      vxlan_port: 8472,
      vtep_mac: 'aa:00:00:00:00:03',
      vtep_mac6: 'aa:00:00:00:06:03',
      uplink_mac: '02:00:00:00:00:03',
      network6: 'fd00:42::',
      network6_mask: 'ffff:ffff:ffff:ff00::',
      pod_cidr6: 'fd00:42:0:3::',
      pod_cidr6_mask: 'ffff:ffff:ffff:ffff::',
      vtep_ip6: 'fd00:31::3',
      vni: 1,
      subnet_shift: 8,
      endpoint_slots: 256,
      uplink_ifindex: 2,
      uplink_gso_segs: 65535,
      pod_mtu: 1450, // 50 less than the uplink's
      pod_mtu6: 1430, // and 70
      direct_routing: 0,
      lifetime_ns: 5e9,
      bridge_ifindex: 0,
      admits_strangers: 0,
    });
  });

  it('has a flag for reaching peers on our L2 without encapsulation', () => {
    expect(desiredConfig(direct)).toEqual({ ...desiredConfig(dual), direct_routing: 1 });
  });

  it('has a network of one address, which no pod and no peer has, for a family that is off', () => {
    const highest = 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff';
    expect(desiredConfig(k3s)).toEqual({
      ...desiredConfig(dual),
      vtep_mac6: '00:00:00:00:00:00',
      network6: highest,
      network6_mask: highest,
      pod_cidr6: highest,
      pod_cidr6_mask: highest,
      vtep_ip6: highest,
    });
    expect(desiredConfig(only6)).toEqual({
      ...desiredConfig(dual),
      network: '255.255.255.255',
      network_mask: '255.255.255.255',
      pod_cidr: '255.255.255.255',
      pod_cidr_mask: '255.255.255.255',
      vtep_ip: '255.255.255.255',
      vtep_mac: '00:00:00:00:00:00',
      subnet_shift: 0,
    });
    expect([peerCapacity(only6), endpointCapacity(only6)]).toEqual([1, 256]);
  });

  it.each([
    ['fd00::/8', 'fd00:1:2:3::/64', 'ff00::', 'ffff:ffff:ffff:ffff::'],
    ['fd00:42::/57', 'fd00:42:0:3::/81', 'ffff:ffff:ffff:ff80::', 'ffff:ffff:ffff:ffff:ffff:8000::'],
    [
      'fd00:42::/120',
      'fd00:42::4/126',
      'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00',
      'ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc',
    ],
  ])('of a node with %s in %s has their masks', (network, podCidr, networkMask, podMask) => {
    expect(desiredConfig({ ...common, v6: half6(network, podCidr) })).toMatchObject({
      network6_mask: networkMask,
      pod_cidr6_mask: podMask,
    });
  });

  it.each([
    ['10.0.0.0/8', '10.0.0.0/26', '255.0.0.0', '255.255.255.192', 6],
    ['10.128.0.0/9', '10.200.0.0/14', '255.128.0.0', '255.252.0.0', 18],
    ['0.0.0.0/0', '10.1.0.0/16', '0.0.0.0', '255.255.0.0', 16],
  ])('of a node with %s in %s has their masks', (network, podCidr, networkMask, podMask, shift) => {
    expect(desiredConfig(node(network, podCidr))).toMatchObject({
      network_mask: networkMask,
      pod_cidr_mask: podMask,
      subnet_shift: shift,
    });
  });
});

describe('a podCIDR', () => {
  it.each([
    ['10.42.0.0/16', '10.42.3.0/24', '10.42.0.0/24', 0, 256],
    ['10.42.0.0/16', '10.42.3.0/24', '10.42.255.0/24', 255, 256],
    ['10.0.0.0/8', '10.42.3.0/24', '10.42.3.0/24', 42 * 256 + 3, 65536],
    ['10.0.0.0/8', '10.42.3.0/24', '10.255.255.0/24', 65535, 65536],
    ['10.0.0.0/8', '10.42.0.0/16', '10.255.0.0/16', 255, 256],
    ['10.42.0.0/16', '10.42.3.64/26', '10.42.255.192/26', 1023, 1024],
    ['192.0.0.0/4', '200.0.0.0/12', '207.240.0.0/12', 255, 256],
  ])('in network %s among nodes like %s: %s has slot %i of %i', (network, own, podCidr, slot, capacity) => {
    const settings = node(network, own);
    expect(peerSlot(settings, parseCidr(podCidr))).toBe(slot);
    expect(peerCapacity(settings)).toBe(capacity);
  });

  it.each([
    ['10.42.4.0/25', 'longer than ours'],
    ['10.42.4.0/23', 'shorter than ours'],
    ['10.41.255.0/24', 'just below the network'],
    ['10.43.0.0/24', 'just above the network'],
    ['0.0.0.0/24', 'far below it'],
    ['255.255.255.0/24', 'far above it'],
    ['fd00::/24', 'of the other family'],
  ])('%s has none: it is %s', (podCidr) => {
    expect(peerSlot(dual, parseCidr(podCidr))).toBeUndefined();
    expect(peerSlot(only6, parseCidr(podCidr))).toBeUndefined();
  });

  it.each(['fd00:42:0:1::/64', 'fd00:42::/64', 'fd00:42:0:ff::/64'])(
    '%s has its base for a key',
    (podCidr) => {
      expect(peerKey(dual, parseCidr(podCidr))).toBe(podCidr.replace('/64', ''));
      expect(peerKey(k3s, parseCidr(podCidr))).toBeUndefined();
    },
  );

  it.each([
    ['fd00:42:0:1::/65', 'longer than ours'],
    ['fd00:42:0:10::/60', 'shorter than ours'],
    ['fd00:42:0:100::/64', 'just above the network'],
    ['fd00:41:ffff:ffff::/64', 'just below the network'],
    ['10.42.1.0/24', 'of the other family'],
  ])('%s has no key: it is %s', (podCidr) => {
    expect(peerKey(dual, parseCidr(podCidr))).toBeUndefined();
  });
});

describe('a peer', () => {
  it('has its outer header ready to copy, byte by byte', () => {
    const { head, header } = peerValue(k3s, own4, peer(1), by('192.168.0.254'));
    expect(hexOf(encode({ struct: 'outer_header' }, header))).toBe(
      [
        '000000000000 000000000000 0800', // filled in by the kernel's neighbour table
        '45 00 0000 0000 0000 40 11 0000 c0a80003 c0a80001', // TTL 64, DF clear, UDP, from us to the peer
        '0000 2118 0000 0000', // to port 8472
        '08000000 00000100', // VNI 1 follows
        'aa0000000001 aa0000000003 0800', // from our VTEP to the peer's
      ]
        .join('')
        .replaceAll(' ', ''),
    );
    expect(head).toMatchObject({ flags: 1, vtep_ip: '192.168.0.1', next_hop: '192.168.0.254', mtu: 1500 });
  });

  it('has its outer IPv6 header ready to copy, byte by byte', () => {
    const { head, header } = peer6Value(dual, own6, peer6(1), by('fd00:31::fe'));
    expect(hexOf(encode({ struct: 'outer_header6' }, header))).toBe(
      [
        '000000000000 000000000000 86dd',
        '60000000 0000 11 40', // no class, no flow label; UDP, hop limit 64, from us to the peer
        'fd000031000000000000000000000003 fd000031000000000000000000000001',
        '0000 2118 0000 0000', // to port 8472, no checksum
        '08000000 00000100',
        'aa0000000601 aa0000000603 86dd', // from our flannel-v6.1 to the peer's
      ]
        .join('')
        .replaceAll(' ', ''),
    );
    expect(head).toEqual({
      flags: 1,
      checksum_base: 0,
      vtep_ip: 'fd00:31::1',
      next_hop: 'fd00:31::fe',
      mtu: 1500,
    });
  });

  it('carries the largest VNI and another port too', () => {
    const settings = { ...dual, tunnel: { vni: 0xff_ffff, port: 4789 } };
    for (const { header } of [
      peerValue(settings, own4, peer(1), by('192.168.0.1')),
      peer6Value(settings, own6, peer6(1), by('fd00:31::1')),
    ]) {
      expect(hexOf(encode({ struct: 'vxlan' }, header.vxlan))).toBe('08000000ffffff00');
      expect(hexOf(encode({ struct: 'udp' }, header.udp))).toBe('000012b500000000');
    }
  });

  const [present, behindNat, kernelPath, onL2] = [1, 2, 4, 8];
  const flags4 = (nextHop: PeerNextHop, over: Partial<Peer> = {}): number =>
    peerValue(dual, own4, peer(1, over), nextHop).head.flags;
  const flags6 = (nextHop: PeerNextHop, over: Partial<Peer> = {}): number =>
    peer6Value(dual, own6, peer6(1, over), nextHop).head.flags;

  it('behind NAT is marked as such', () => {
    expect(flags4(by('192.168.0.1'), { behindNat: true })).toBe(present | behindNat);
    expect(flags6(by('fd00:31::1'), { behindNat: true })).toBe(present | behindNat);
  });

  it('that requires outer checksums is on the kernel path, over IPv6', () => {
    for (const zeroChecksum of [false, undefined])
      expect(flags6(by('fd00:31::1'), { zeroChecksum: zeroChecksum as boolean })).toBe(present | kernelPath);
    expect(flags4(by('192.168.0.1'), { zeroChecksum: false })).toBe(present);
  });

  it('on our L2 is marked as such with DirectRouting, and needs no checksum then', () => {
    expect(flags4(onLink('192.168.0.1'))).toBe(present | onL2);
    expect(flags6(onLink('fd00:31::1'), { zeroChecksum: false })).toBe(present | onL2);
  });

  it('behind a router gets encapsulated packets, with and without DirectRouting', () => {
    expect(flags4(by('192.168.0.254'))).toBe(present);
    expect(flags6(by('fd00:31::fe'))).toBe(present);
    expect(flags6(by('fd00:31::fe'), { zeroChecksum: false })).toBe(present | kernelPath);
  });

  it('has the checksum of what never changes: a header filled in as the program does it is valid (RFC 1071)', () => {
    const random = new Random(1071);
    const wordOf = (high: number, low: number): number =>
      new Uint16Array(Uint8Array.of(high, low).buffer)[0]!;
    for (let i = 0; i < 500; i++) {
      const vtepIp = [0, 0, 0, 0].map(() => random.below(256)).join('.');
      const { head, header } = peerValue(k3s, own4, peer(1, { vtepIp }), by(vtepIp));
      const [tos, length, id] = [random.below(256), random.below(65536), random.below(65536)];
      const bytes = encode({ struct: 'ipv4' }, { ...header.ip, tos, total_length: length, id });
      let sum = head.checksum_base + wordOf(0, tos) + wordOf(length >> 8, length) + wordOf(id >> 8, id);
      sum = (sum & 0xffff) + (sum >>> 16);
      sum = (sum & 0xffff) + (sum >>> 16);
      new Uint16Array(bytes.buffer)[5] = ~sum;
      expect(checksum(bytes), `to ${vtepIp}, tos ${tos}, length ${length}, id ${id}`).toBe(0);
    }
  });
});

describe('the peers maps', () => {
  const nextHopTo = ({ vtepIp: ip }: Peer): PeerNextHop =>
    by({ '10.9.9.9': '192.168.0.254', '2001:db8::9': 'fd00:31::fe' }[ip] ?? ip);

  it('hold each peer by its podCIDR, with its next hop', () => {
    const far = peer(200, {
      podCidr: parseCidr('10.42.200.0/24'),
      vtepMac: 'aa:00:00:00:00:c8',
      vtepIp: '10.9.9.9',
    });
    const far6 = peer6(9, { vtepIp: '2001:db8::9' });
    const { peers, peers6 } = desiredPeers(dual, [peer(1), far, peer6(1), far6], nextHopTo);
    expect(peers).toEqual(
      new Map([
        ['1', peerValue(dual, own4, peer(1), by('192.168.0.1'))],
        ['200', peerValue(dual, own4, far, by('192.168.0.254'))],
      ]),
    );
    expect(peers6).toEqual(
      new Map([
        ['fd00:42:0:1::', peer6Value(dual, own6, peer6(1), by('fd00:31::1'))],
        ['fd00:42:0:9::', peer6Value(dual, own6, far6, by('fd00:31::fe'))],
      ]),
    );
  });

  it('leave to the kernel path a peer without a route, of another length, or outside the network', () => {
    const all = [
      peer(1, { vtepIp: '198.51.100.1' }),
      peer(2, { podCidr: parseCidr('10.42.4.0/23') }),
      peer(5, { podCidr: parseCidr('10.99.5.0/24') }),
      peer(6),
      peer6(1, { vtepIp: '2001:db8::1' }),
      peer6(2, { podCidr: parseCidr('fd00:42:0:4::/63') }),
      peer6(5, { podCidr: parseCidr('fd00:43:0:5::/64') }),
      peer6(6),
    ];
    const { peers, peers6 } = desiredPeers(dual, all, ({ vtepIp: ip }) =>
      ip === '198.51.100.1' || ip === '2001:db8::1' ? undefined : by(ip),
    );
    expect([...peers.keys()]).toEqual(['6']);
    expect([...peers6.keys()]).toEqual(['fd00:42:0:6::']);
  });

  it('are empty for a family that the node does not have', () => {
    const all = [peer(1), peer6(1)];
    expect(desiredPeers(k3s, all, nextHopTo).peers6.size).toBe(0);
    expect(desiredPeers(only6, all, nextHopTo).peers.size).toBe(0);
  });
});

describe('the vteps map', () => {
  const vtepsOf = (settings: NodeSettings, peers: readonly Peer[]) =>
    desiredVteps(
      settings,
      peers,
      desiredPeers(settings, peers, ({ vtepIp }) => by(vtepIp)),
    );

  it('holds every node, also those that the peers maps cannot hold, and marks our own addresses', () => {
    const peers = [
      peer(1),
      peer(2, { podCidr: parseCidr('10.42.4.0/23') }),
      peer6(1),
      peer6(2, { podCidr: parseCidr('fd00:42:0:4::/63') }),
    ];
    expect(vtepsOf(dual, peers)).toEqual(
      new Map([
        ['192.168.0.1', { flags: 2, vtep_ip: '192.168.0.1' }],
        ['192.168.0.2', { flags: 2 | 4, vtep_ip: '192.168.0.2' }],
        ['fd00:31::1', { flags: 2, vtep_ip: 'fd00:31::1' }],
        ['fd00:31::2', { flags: 2 | 4, vtep_ip: 'fd00:31::2' }],
        // For from_vtep, which knows no more of an IPv6 sender.
        ['::1', { flags: 2, vtep_ip: 'fd00:31::1' }],
        ['::2', { flags: 2 | 4, vtep_ip: 'fd00:31::2' }],
        ['192.168.0.3', { flags: 1, vtep_ip: '192.168.0.3' }],
        ['fd00:31::3', { flags: 1, vtep_ip: 'fd00:31::3' }],
      ]),
    );
  });

  it('keeps our own address ours when a peer claims it', () => {
    const claims = [peer(1, { vtepIp: '192.168.0.3' }), peer6(1, { vtepIp: 'fd00:31::3' })];
    const vteps = vtepsOf(dual, claims);
    expect(vteps.get('192.168.0.3')).toEqual({ flags: 1, vtep_ip: '192.168.0.3' });
    expect(vteps.get('fd00:31::3')).toEqual({ flags: 1, vtep_ip: 'fd00:31::3' });
  });

  it("has a node's other addresses, unless another node publishes them", () => {
    const greedy = peer(1, { otherIps: ['192.168.0.2', '192.168.0.99'] });
    const vteps = vtepsOf(dual, [greedy, peer(2), peer6(2, { otherIps: ['fd00:31::99'] })]);
    expect(vteps.get('192.168.0.2')?.vtep_ip).toBe('192.168.0.2');
    expect(vteps.get('192.168.0.99')?.vtep_ip).toBe('192.168.0.1');
    expect(vteps.get('::99')?.vtep_ip).toBe('fd00:31::2');
  });

  it('has the flags of both nodes for an address that two nodes share', () => {
    const shared = { vtepIp: '203.0.113.1', behindNat: true };
    const odd = { ...shared, podCidr: parseCidr('10.42.4.0/23') };
    for (const peers of [
      [peer(1, shared), peer(2, odd)],
      [peer(2, odd), peer(1, shared)],
    ])
      expect(vtepsOf(k3s, peers).get('203.0.113.1')?.flags).toBe(2 | 4);
  });
});

describe('the endpoints maps', () => {
  it('hold each pod by its address, and mark those on the kernel path', () => {
    const { endpoints, endpoints6 } = desiredEndpoints(dual, [
      endpoint('10.42.3.5'),
      endpoint('10.42.3.255', { hostIfindex: 8, kernelPath: true, mtu: 1400 }),
      endpoint('fd00:42:0:3::5'),
      endpoint('fd00:42:0:3:1::5', { hostIfindex: 8, kernelPath: true, mtu: 1400 }),
    ]);
    const macs = { pod_mac: '0a:00:00:00:00:05', host_mac: '0e:00:00:00:00:05' };
    const [usual, kernelPath] = [
      { ifindex: 7, flags: 0, ...macs, mtu: 1450 },
      { ifindex: 8, flags: 1, ...macs, mtu: 1400 },
    ];
    expect(endpoints).toEqual(
      new Map([
        ['5', usual],
        ['255', kernelPath],
      ]),
    );
    expect(endpoints6).toEqual(
      new Map([
        ['fd00:42:0:3::5', usual],
        ['fd00:42:0:3:1::5', kernelPath],
      ]),
    );
  });

  it('lack a pod whose address is outside our podCIDRs', () => {
    const all = ['10.42.2.255', '10.42.4.0', 'fd00:42:0:2::5', 'fd00:42:0:4::'].map((ip) => endpoint(ip));
    const { endpoints, endpoints6 } = desiredEndpoints(dual, all);
    expect([endpoints.size, endpoints6.size]).toEqual([0, 0]);
  });

  it('lack addresses of a family that the node does not have', () => {
    const all = ['10.42.3.5', 'fd00:42:0:3::5'].map((ip) => endpoint(ip));
    expect(desiredEndpoints(k3s, all).endpoints6.size).toBe(0);
    expect(desiredEndpoints(only6, all).endpoints.size).toBe(0);
  });

  it('have a slot for every IPv4 address, whatever the length', () => {
    expect(endpointSlot(node('10.0.0.0/8', '10.42.0.0/16'), '10.42.255.255')).toBe(65535);
    expect(endpointSlot(node('10.42.0.0/16', '10.42.3.64/26'), '10.42.3.127')).toBe(63);
    expect(endpointSlot(node('10.42.0.0/16', '10.42.3.64/26'), '10.42.3.128')).toBeUndefined();
    expect(endpointSlot(dual, 'fd00:42:0:3::5')).toBeUndefined();
  });
});

describe('the endpoint_state map', () => {
  it('has a slot for each IPv4 address, and after them slots for the lowest bits of IPv6 addresses', () => {
    expect(stateSlot(dual, '10.42.3.5')).toBe(5);
    expect(stateSlot(dual, 'fd00:42:0:3::5')).toBe(256 + 5);
    expect(stateSlot(dual, 'fd00:42:0:3:7::a:1ff')).toBe(256 + 255);
    expect(stateSlot(node('10.42.0.0/16', '10.42.3.64/26'), 'fd00::ff')).toBe(64 + 63);
    expect(stateSlot(only6, 'fd00:42:0:3::5')).toBe(256 + 5);
  });
});
