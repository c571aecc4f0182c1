// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { decode, encode, type Kind, kindCodec, kindSize, type Struct, type StructName } from './codec.ts';
import { layout } from './layout.gen.ts';

/** Written by hand from bpf/types.h, for a little-endian machine: what a struct's value must look like in a map. */
interface Golden<S extends StructName> {
  readonly value: Struct<S>;
  readonly bytes: string;
}

const ether: Golden<'ether'> = {
  value: { dst: '01:02:03:04:05:06', src: 'a1:a2:a3:a4:a5:a6', type: 0x0800 },
  bytes: '010203040506 a1a2a3a4a5a6 0800',
};
const ipv4: Golden<'ipv4'> = {
  value: {
    version_ihl: 0x45,
    tos: 0xb9,
    total_length: 84,
    id: 0x1234,
    fragment: 0x4000,
    ttl: 63,
    protocol: 17,
    checksum: 0xabcd,
    src: '10.42.1.2',
    dst: '10.42.3.4',
  },
  bytes: '45 b9 0054 1234 4000 3f 11 abcd 0a2a0102 0a2a0304',
};
const ipv6: Golden<'ipv6'> = {
  value: {
    version_class_flow: 0x6b91_2345,
    payload_length: 100,
    next_header: 17,
    hop_limit: 63,
    src: 'fd00:42:0:1::2',
    dst: '2001:db8::304',
  },
  bytes: '6b912345 0064 11 3f fd00004200000001 0000000000000002 20010db800000000 0000000000000304',
};
const udp: Golden<'udp'> = {
  value: { src_port: 45678, dst_port: 8472, length: 70, checksum: 0xfffe },
  bytes: 'b26e 2118 0046 fffe',
};
const vxlan: Golden<'vxlan'> = {
  value: { flags: 0x08000000, vni: 0xfffffe00 },
  bytes: '08000000 fffffe00',
};
const outerHeader: Golden<'outer_header'> = {
  value: {
    ether: ether.value,
    ip: ipv4.value,
    udp: udp.value,
    vxlan: vxlan.value,
    inner_ether: { ...ether.value, dst: 'ff:ee:dd:cc:bb:aa' },
  },
  bytes: `
    010203040506 a1a2a3a4a5a6 0800
    45 b9 0054 1234 4000 3f 11 abcd 0a2a0102 0a2a0304
    b26e 2118 0046 fffe
    08000000 fffffe00
    ffeeddccbbaa a1a2a3a4a5a6 0800`,
};

const outerHeader6: Golden<'outer_header6'> = {
  value: { ...outerHeader.value, ip: ipv6.value },
  bytes: outerHeader.bytes.replace(ipv4.bytes, ipv6.bytes),
};
const peerHead: Golden<'peer_head'> = {
  value: {
    flags: 11,
    checksum_base: 0x0001_f2e3,
    vtep_ip: '192.168.0.1',
    next_hop: 'fd00:31::fe',
    mtu: 1500,
  },
  bytes: `0b000000 e3f20100
    00000000000000000000ffff c0a80001
    fd00003100000000 00000000000000fe
    dc050000 00000000`,
};

const flow4: Golden<'flow4'> = {
  value: { src: '10.42.1.2', dst: '10.42.3.4', src_port: 40000, dst_port: 80, protocol: 6 },
  bytes: '0a2a0102 0a2a0304 9c40 0050 06 000000',
};
/** With addresses of IPv4, as arrivals have them. */
const flow6: Golden<'flow6'> = {
  value: flow4.value,
  bytes: `00000000000000000000ffff 0a2a0102
    00000000000000000000ffff 0a2a0304
    9c40 0050 06 000000`,
};
const learned: Golden<'learned'> = {
  value: {
    learned_ns: 0x0001_0203_0405_0607,
    packets: 0x0001_0000_0000_0009,
    bytes: 0x0001_0203_0405_0700,
    epoch: 7,
    ifindex: 0x01020304,
    mtu: 1450,
    mark: 0x4000,
    priority: 6,
    frame_dst: 0x0a0b0c0d,
    is_translated: 1,
    is_settled: 1,
    hops: 1,
    ttl: 63,
    dscp: 46,
    is_ending: 1,
    source_port: 45678,
    noted_ns: 0x0001_0203_0405_0608,
  },
  bytes: `0706050403020100 0900000000000100 0007050403020100
    07000000 04030201 aa050000 00400000 06000000 0d0c0b0a 01 01 01 3f 2e 01 b26e 0806050403020100`,
};

const tunnelKey: Golden<'tunnel_key'> = {
  value: {
    vtep_ip: '192.168.0.1',
    src: '10.42.1.7',
    dst: '10.42.3.9',
    mark: 0x4000,
    priority: 6,
    is_inward: 1,
    sender: 'aa:bb:cc:dd:ee:ff',
    ttl: 64,
    tos: 2,
  },
  bytes: `00000000000000000000ffffc0a80001 00000000000000000000ffff0a2a0107 00000000000000000000ffff0a2a0309
    00400000 06000000 01000000 aabbccddeeff 40 02 00000000`,
};

const golden: { readonly [S in StructName]: Golden<S> } = {
  ether,
  ipv4,
  ipv6,
  udp,
  vxlan,
  outer_header: outerHeader,
  outer_header6: outerHeader6,
  peer_head: peerHead,
  peer: {
    value: { head: peerHead.value, header: outerHeader.value },
    bytes: `${peerHead.bytes} ${outerHeader.bytes}`,
  },
  // Four bytes of padding follow, due to the alignment.
  peer6: {
    value: { head: peerHead.value, header: outerHeader6.value },
    bytes: `${peerHead.bytes} ${outerHeader6.bytes} 00000000`,
  },
  vtep: {
    value: { flags: 2, vtep_ip: '192.168.0.1' },
    bytes: '02000000 00000000 00000000000000000000ffffc0a80001',
  },
  endpoint: {
    value: {
      ifindex: 0x01020304,
      flags: 1,
      pod_mac: '0a:00:00:00:00:05',
      host_mac: '0e:00:00:00:00:06',
      mtu: 1450,
    },
    bytes: '04030201 01000000 0a0000000005 0e0000000006 aa050000',
  },
  endpoint_state: {
    value: { forwards: 2 },
    bytes: '02000000',
  },
  flow4,
  flow6,
  learned,
  learned4: {
    value: { head: learned.value, out: flow4.value },
    bytes: `${learned.bytes} ${flow4.bytes}`,
  },
  learned6: {
    value: { head: learned.value, out: flow6.value },
    bytes: `${learned.bytes} ${flow6.bytes}`,
  },
  party: {
    value: { address: '10.43.0.10', port: 80, protocol: 6 },
    bytes: '00000000000000000000ffff 0a2b000a 0050 06 0000000000',
  },
  carried: {
    value: { packets: 7, bytes: 0x0102 },
    bytes: '0700000000000000 0201000000000000',
  },
  arrival: {
    value: {
      flow: flow6.value,
      noted_ns: 0x0001_0203_0405_0607,
      since_ns: 1,
      epoch: 5,
      ifindex: 0x01020304,
      frame_dst: 0x0a0b0c0d,
      dscp: 46,
      ttl: 63,
    },
    bytes: `${flow6.bytes} 0706050403020100 0100000000000000 05000000 04030201 0d0c0b0a 2e 3f 0000`,
  },
  tunnel_key: tunnelKey,
  tunnel: {
    value: { seen_ns: 0x0001_0203_0405_0607, epoch: 5, mtu: 1450, carried: 552, ifindex: 7 },
    bytes: '0706050403020100 05000000 aa050000 28020000 07000000',
  },
  tunnel_arrival: {
    value: { key: tunnelKey.value, packet: 0x0001_0203_0405_0607, epoch: 5 },
    bytes: `${tunnelKey.bytes} 0706050403020100 05000000 00000000`,
  },
  sighting: { value: { ifindex: 7, mac: 'aa:bb:cc:dd:ee:ff' }, bytes: '07000000 aabbccddeeff 0000' },
  event: {
    value: { time_ns: 0x0001_0203_0405_0607, ifindex: 5, length: 1500, captured: 192, hook: 2, reason: 16 },
    bytes: '0706050403020100 05000000 dc050000 c0000000 02000000 10000000 00000000',
  },
  listener: {
    value: { reasons: 2 ** 40 + 1, heard: 3, allowed: 1000, sample: 10, owner: 0x01020304 },
    bytes: '0100000000010000 0300000000000000 e803000000000000 0a000000 04030201',
  },
  flow_count: { value: { ipv4: 2, ipv6: 2 ** 40 }, bytes: '0200000000000000 0000000000010000' },
  invalidation: { value: { times: 2 ** 40 }, bytes: '0000000000010000' },
  counter: { value: { packets: 1, bytes: 2 ** 40 }, bytes: '0100000000000000 0000000000010000' },
  config: {
    value: {
      network: '10.42.0.0',
      network_mask: '255.255.0.0',
      pod_cidr: '10.42.3.0',
      pod_cidr_mask: '255.255.255.0',
      vtep_ip: '192.168.0.3',
      vxlan_port: 8472,
      vtep_mac: 'aa:bb:cc:dd:ee:ff',
      vtep_mac6: 'aa:bb:cc:dd:ee:06',
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
      uplink_gso_segs: 1500,
      pod_mtu: 1450,
      pod_mtu6: 1430,
      direct_routing: 1,
      lifetime_ns: 5e9,
      netns: 0xf0000098,
      bridge_ifindex: 7,
      admits_strangers: 1,
      source_port: 32768,
      source_ports: 28231,
    },
    bytes: `
      0a2a0000 ffff0000 0a2a0300 ffffff00 c0a80003 2118 aabbccddeeff aabbccddee06 020000000003
      fd00004200000000 0000000000000000 ffffffffffffff00 0000000000000000
      fd00004200000003 0000000000000000 ffffffffffffffff 0000000000000000
      fd00003100000000 0000000000000003
      01000000 08000000 00010000 02000000 dc050000 aa050000 96050000 01000000
      00f2052a01000000 980000f0 07000000 01000000 00800000 476e0000 00000000`,
  },
};

const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const bytesOf = (hex: string): Uint8Array => Uint8Array.from(Buffer.from(hex.replace(/\s/g, ''), 'hex'));

const structs = Object.keys(layout.structs) as StructName[];

describe('the codec of', () => {
  it('every struct of the layout has its golden bytes here', () => {
    expect(Object.keys(golden).sort()).toEqual([...structs].sort());
  });

  it.each(Object.entries(golden))(
    'struct %s writes the bytes that C reads, and reads them back',
    (name, row) => {
      const kind = { struct: name as StructName };
      const bytes = bytesOf(row.bytes);
      expect(hexOf(encode(kind, row.value))).toBe(hexOf(bytes));
      expect(decode(kind, bytes)).toEqual(row.value);
    },
  );

  it.each(structs)('struct %s covers the struct: its fields fill it without overlap', (name) => {
    const { size, fields } = layout.structs[name];
    let end = 0;
    for (const { offset, kind } of Object.values(fields) as { offset: number; kind: Kind }[]) {
      expect(offset, 'fields overlap').toBeGreaterThanOrEqual(end);
      end = offset + kindSize(kind);
    }
    // Some end with a member named `unused`, or with what their alignment asks for.
    const unused: Partial<Record<StructName, number>> = {
      flow4: 3,
      flow6: 3,
      party: 5,
      arrival: 2,
      tunnel_key: 4,
      tunnel_arrival: 4,
      sighting: 2,
      peer_head: 4,
      peer6: 4,
      config: 4,
      event: 4,
    };
    expect(size - end).toBe(unused[name] ?? 0);
  });

  it('a struct writes unused bytes as zero: map keys must not differ in garbage', () => {
    const into = new Uint8Array(kindSize({ struct: 'flow6' })).fill(0xff);
    kindCodec({ struct: 'flow6' }).encode(flow6.value, into);
    expect(hexOf(into)).toBe(hexOf(bytesOf(flow6.bytes)));
  });

  it('a struct stays within its bytes, also amid a larger buffer', () => {
    const buffer = new Uint8Array(8).fill(0xee);
    kindCodec({ struct: 'endpoint_state' }).encode({ forwards: 0x01020304 }, buffer.subarray(2, 6));
    expect(hexOf(buffer)).toBe('eeee04030201eeee');
    expect(decode({ struct: 'endpoint_state' }, buffer.subarray(2, 6))).toEqual({ forwards: 0x01020304 });
  });

  it.each([
    ['u8', 255, 'ff'],
    ['u16', 0xfffe, 'feff'],
    ['u32', 0xffff_fffe, 'feffffff'],
    ['u64', Number.MAX_SAFE_INTEGER, 'ffffffffffff1f00'],
    ['be16', 0xfffe, 'fffe'],
    ['net32', 0xffff_fffe, 'fffffffe'],
    ['be32', '255.255.255.254', 'fffffffe'],
    ['mac', 'ff:ff:ff:ff:ff:fe', 'fffffffffffe'],
    ['address', '255.255.255.254', '00000000000000000000fffffffffffe'],
    ['address', 'ffff::fffe', 'ffff000000000000000000000000fffe'],
    ['address', '::', '00000000000000000000000000000000'],
    ['address', '::fffe:0:1', '0000000000000000 0000fffe00000001'],
  ] as const)('a %s holds %s', (kind, value, hex) => {
    expect(hexOf(encode<Kind>(kind, value))).toBe(hex.replaceAll(' ', ''));
    expect(decode<Kind>(kind, bytesOf(hex))).toBe(value);
  });

  it('an address or a MAC refuses invalid text', () => {
    expect(() => encode('be32', 'fd00::1')).toThrow();
    expect(() => encode('address', 'fd00::1::2')).toThrow('not an IP address');
    expect(() => encode('be32', '10.0.0')).toThrow('not an IPv4 address');
    expect(() => encode('mac', 'aa-bb-cc-dd-ee-ff')).toThrow('not a MAC address');
  });
});
