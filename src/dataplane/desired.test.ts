// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { Random } from '../../test/support/random.ts';
import { checksum } from '../../test/support/packets.ts';
import { parseCidr } from '../net/ip.ts';
import { encode } from './codec.ts';
import {
  desiredConfig,
  desiredEndpoints,
  desiredPeers,
  desiredVteps,
  type Endpoint,
  endpointSlot,
  type NodeSettings,
  type Peer,
  peerCapacity,
  peerSlot,
  peerValue,
} from './desired.ts';

function node(network: string, podCidr: string): NodeSettings {
  return {
    network: parseCidr(network),
    podCidr: parseCidr(podCidr),
    vni: 1,
    port: 8472,
    vtepMac: 'aa:00:00:00:00:03',
    uplink: { ifindex: 2, ip: '192.168.0.3', mtu: 1500 },
    sourcePorts: { min: 32768, max: 60999 },
  };
}
const k3s = node('10.42.0.0/16', '10.42.3.0/24');

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

function endpoint(ip: string, over: Partial<Endpoint> = {}): Endpoint {
  return {
    ip,
    hostIfname: 'veth1',
    hostIfindex: 7,
    podMac: '0a:00:00:00:00:05',
    hostMac: '0e:00:00:00:00:05',
    mtu: 1450,
    slow: false,
    ...over,
  };
}

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

describe('the configuration', () => {
  it('says all that the programs must know of the node', () => {
    expect(desiredConfig(k3s)).toEqual({
      network: '10.42.0.0',
      network_mask: '255.255.0.0',
      pod_cidr: '10.42.3.0',
      pod_cidr_mask: '255.255.255.0',
      vtep_ip: '192.168.0.3',
      vxlan_port: 8472,
      vtep_mac: 'aa:00:00:00:00:03',
      vni: 1,
      subnet_shift: 8,
      uplink_ifindex: 2,
      pod_mtu: 1450, // 50 less than the uplink's
      source_port_min: 32768,
      source_port_count: 28232, // both ends of the range belong to it
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
    expect(peerSlot(k3s, parseCidr(podCidr))).toBeUndefined();
  });
});

describe('a peer', () => {
  it('has its outer header ready to copy, byte by byte', () => {
    const { header, ...rest } = peerValue(k3s, peer(1), '192.168.0.254');
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
    expect(rest).toMatchObject({ flags: 1, vtep_ip: '192.168.0.1', next_hop: '192.168.0.254' });
  });

  it('carries the largest VNI and another port too', () => {
    const { header } = peerValue({ ...k3s, vni: 0xff_ffff, port: 4789 }, peer(1), '192.168.0.1');
    expect(hexOf(encode({ struct: 'vxlan' }, header.vxlan))).toBe('08000000ffffff00');
    expect(hexOf(encode({ struct: 'udp' }, header.udp))).toBe('000012b500000000');
  });

  it('behind NAT is marked as such', () => {
    expect(peerValue(k3s, peer(1, { behindNat: true }), '192.168.0.1').flags).toBe(3);
  });

  it('has the checksum of what never changes: a header that is filled in as the program does it is right (RFC 1071)', () => {
    const random = new Random(1071);
    const wordOf = (high: number, low: number): number =>
      new Uint16Array(Uint8Array.of(high, low).buffer)[0]!;
    for (let i = 0; i < 500; i++) {
      const vtepIp = [0, 0, 0, 0].map(() => random.below(256)).join('.');
      const { header, checksum_base: base } = peerValue(k3s, peer(1, { vtepIp }), vtepIp);
      const [tos, length, id] = [random.below(256), random.below(65536), random.below(65536)];
      const bytes = encode({ struct: 'ipv4' }, { ...header.ip, tos, total_length: length, id });
      let sum = base + wordOf(0, tos) + wordOf(length >> 8, length) + wordOf(id >> 8, id);
      sum = (sum & 0xffff) + (sum >>> 16);
      sum = (sum & 0xffff) + (sum >>> 16);
      new Uint16Array(bytes.buffer)[5] = ~sum;
      expect(checksum(bytes), `to ${vtepIp}, tos ${tos}, length ${length}, id ${id}`).toBe(0);
    }
  });
});

describe('the peers map', () => {
  it('holds each peer in the slot of its podCIDR, by way of the next hop to it', () => {
    const far = peer(200, {
      podCidr: parseCidr('10.42.200.0/24'),
      vtepMac: 'aa:00:00:00:00:c8',
      vtepIp: '10.9.9.9',
    });
    const slots = desiredPeers(k3s, [peer(1), far], (ip) => (ip === '10.9.9.9' ? '192.168.0.254' : ip));
    expect([...slots.keys()]).toEqual(['1', '200']);
    expect(slots.get('1')).toEqual(peerValue(k3s, peer(1), '192.168.0.1'));
    expect(slots.get('200')).toEqual(peerValue(k3s, far, '192.168.0.254'));
  });

  it('leaves to the kernel path a peer without a route, of another length, or outside the network', () => {
    const peers = [
      peer(1, { vtepIp: '198.51.100.1' }),
      peer(2, { podCidr: parseCidr('10.42.4.0/23') }),
      peer(5, { podCidr: parseCidr('10.99.5.0/24') }),
      peer(6),
    ];
    const slots = desiredPeers(k3s, peers, (ip) => (ip === '198.51.100.1' ? undefined : ip));
    expect([...slots.keys()]).toEqual(['6']);
  });
});

describe('the vteps map', () => {
  it('knows every node, those too that the peers map cannot hold, and us as us', () => {
    const peers = [peer(1), peer(2, { podCidr: parseCidr('10.42.4.0/23') })];
    const indexed = desiredPeers(k3s, peers, (ip) => ip);
    expect(desiredVteps(k3s, peers, indexed)).toEqual(
      new Map([
        ['192.168.0.1', { flags: 2 }],
        ['192.168.0.2', { flags: 2 | 4 }],
        ['192.168.0.3', { flags: 1 }],
      ]),
    );
  });

  it('believes no peer that claims our own address', () => {
    expect(desiredVteps(k3s, [peer(1, { vtepIp: '192.168.0.3' })], new Map())).toEqual(
      new Map([['192.168.0.3', { flags: 1 }]]),
    );
  });
});

describe('the endpoints map', () => {
  it('holds each pod in the slot of its address, and marks the slow ones', () => {
    const slots = desiredEndpoints(k3s, [
      endpoint('10.42.3.5'),
      endpoint('10.42.3.255', { hostIfindex: 8, slow: true, mtu: 1400 }),
    ]);
    const macs = { pod_mac: '0a:00:00:00:00:05', host_mac: '0e:00:00:00:00:05' };
    expect(slots).toEqual(
      new Map([
        ['5', { ifindex: 7, flags: 0, ...macs, mtu: 1450 }],
        ['255', { ifindex: 8, flags: 1, ...macs, mtu: 1400 }],
      ]),
    );
  });

  it('leaves out a pod whose address is not of our podCIDR', () => {
    expect(desiredEndpoints(k3s, [endpoint('10.42.2.255'), endpoint('10.42.4.0')]).size).toBe(0);
  });

  it('has a slot for every address, whatever the length', () => {
    expect(endpointSlot(node('10.0.0.0/8', '10.42.0.0/16'), '10.42.255.255')).toBe(65535);
    expect(endpointSlot(node('10.42.0.0/16', '10.42.3.64/26'), '10.42.3.127')).toBe(63);
    expect(endpointSlot(node('10.42.0.0/16', '10.42.3.64/26'), '10.42.3.128')).toBeUndefined();
  });
});
