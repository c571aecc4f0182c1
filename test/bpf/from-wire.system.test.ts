// SPDX-License-Identifier: Apache-2.0
/**
 * Packets from the wire, in tc and in XDP, with the same verdicts. from_wire delivers to the pod; xdp_from_wire only
 * decapsulates and leaves a mark; it leaves drops to from_wire.
 */
import { describe, expect, it } from 'vitest';
import { encapBytes, type Peer } from '../../src/dataplane/desired.ts';
import {
  ethernet,
  icmp,
  ip,
  ipv6Extension,
  protocols,
  readIp,
  sealed,
  sealedAround,
  tcp,
  udp,
  unsummed,
} from '../../src/net/packets.ts';
import { Random } from '../support/random.ts';
import { describeOnNode, type Fixture, runFixtures } from './support.ts';
import {
  delivered,
  ipBytes,
  type IpFields,
  tunnelled,
  type WireFields,
  wireFlow,
  wireFrame,
  withOptions,
} from './frames.ts';
import { tunnel, type Side, sides, TEST_RUN_MAC, v4, v6 } from './node.ts';

const { tcp: TCP, udp: UDP, icmpv6: ICMPV6 } = protocols;
const segment = tcp({ src: 80, dst: 40000 });

type Hook = 'from_wire' | 'xdp_from_wire';

/** The bytes that xdp_from_wire puts before its frame: `struct mark` of bpf/types.h. */
const mark = new Uint8Array(Uint32Array.of(0x72697073, tunnel.vni).buffer);

/** Makes fixtures for one family at one hook. */
function wordsOf(side: Side, hook: Hook) {
  const { near } = side.pods;

  /** The packet that is delivered for these inner fields on the wire. */
  const taken = (to: typeof near, fields: IpFields & { src: string; dst: string }, payload: Uint8Array) => {
    if (hook === 'from_wire') return delivered(to, ip({ ...fields, ttl: (fields.ttl ?? 64) - 1 }, payload));
    const frame = ethernet({ dst: TEST_RUN_MAC, src: '02:00:00:00:00:01' }, ip(fields, payload));
    return Uint8Array.from([...mark, ...frame]);
  };

  /** A tunnelled packet, whose result is checked byte by byte. */
  const arrives = (
    says: string,
    inner: IpFields = {},
    payload = segment,
    {
      from = side.peers.one,
      to = near,
      wire = {},
      becomes = {},
    }: { from?: Peer; to?: typeof near; wire?: WireFields; becomes?: IpFields } = {},
  ): Fixture => {
    const fields = { src: side.podOf(1, 7), dst: to.ip, protocol: TCP, ttl: 63, ...inner };
    return {
      says,
      packet: tunnelled(side, from, ip(fields, payload), wire),
      flows: [{ flow: wireFlow(side, fields, payload) }],
      verdict: 'fast decap',
      out: taken(to, { ...fields, ...becomes }, payload),
    };
  };

  /** A packet that would take the fast path if it were not for what the fixture is about: its flow is valid. */
  const is = (
    says: string,
    verdict: Fixture['verdict'],
    wire: WireFields = {},
    payload = segment,
  ): Fixture => ({
    says,
    verdict: hook === 'xdp_from_wire' && verdict.startsWith('drop ') ? 'nothing' : verdict,
    packet: wireFrame(side, wire, payload),
    flows: [{ flow: wireFlow(side, wire.inner, payload) }],
  });

  /** A TCP segment in an IP packet of `bytes` bytes. */
  const segmentOf = (bytes: number): Uint8Array =>
    tcp({ src: 80, dst: 40000 }, new Uint8Array(bytes - ipBytes[side.family] - 20));

  return { arrives, is, segmentOf };
}

/** RFC 6040, figure 4: the resulting ECN field; a row for each inner field, a column for each outer field. */
const names = ['Not-ECT', 'ECT(1)', 'ECT(0)', 'CE'] as const; // by codepoint
const figure4 = {
  'Not-ECT': { 'Not-ECT': 'Not-ECT', 'ECT(0)': 'Not-ECT', 'ECT(1)': 'Not-ECT', CE: 'drop' },
  'ECT(0)': { 'Not-ECT': 'ECT(0)', 'ECT(0)': 'ECT(0)', 'ECT(1)': 'ECT(1)', CE: 'CE' },
  'ECT(1)': { 'Not-ECT': 'ECT(1)', 'ECT(0)': 'ECT(1)', 'ECT(1)': 'ECT(1)', CE: 'CE' },
  CE: { 'Not-ECT': 'CE', 'ECT(0)': 'CE', 'ECT(1)': 'CE', CE: 'CE' },
} as const;

/** Each combination, with DSCPs that must not change: EF inside, AF41 outside. */
const ecnFixtures = (side: Side, hook: Hook): Fixture[] =>
  names.flatMap((inner, innerEcn) =>
    names.map((outer, outerEcn): Fixture => {
      const { arrives, is } = wordsOf(side, hook);
      const [dscp, outerDscp] = [46 << 2, 34 << 2];
      const becomes = figure4[inner][outer];
      const says = `${inner} inside ${outer} becomes ${becomes}`;
      const wire = { inner: { tos: dscp | innerEcn }, outer: { tos: outerDscp | outerEcn } };
      if (becomes === 'drop') return is(says, 'drop ecn', wire);
      const tos = dscp | names.indexOf(becomes);
      return arrives(says, wire.inner, segment, { wire, becomes: { tos } });
    }),
  );

const pingOf = ({ family }: Side, ...data: number[]): Uint8Array =>
  icmp(family === 4 ? 8 : 128, Uint8Array.of(0, 1, 0, 1, ...data));

/** Outer UDP checksums, as far as the headers can prove them (row 58). */
function checksumFixtures(side: Side, hook: Hook): Fixture[] {
  const { arrives, is } = wordsOf(side, hook);
  const inner = { src: side.podOf(1, 7), dst: side.pods.near.ip, ttl: 63 };
  const sealedBody = (fields: IpFields, payload: Uint8Array): Uint8Array =>
    sealed(ip({ ...inner, ...fields }, payload)).subarray(ipBytes[side.family]);

  /** Around an inner packet with a correct checksum. */
  const right = (says: string, fields: IpFields, payload: Uint8Array): Fixture[] => [
    arrives(`takes a right one around ${says}`, fields, sealedBody(fields, payload), {
      wire: { seal: sealed },
    }),
    is(
      `leaves a wrong one around ${says} to the kernel, which drops it`,
      'kernel outer_checksum',
      { inner: { ...inner, ...fields }, udp: { checksum: 0x1234 } },
      sealedBody(fields, payload),
    ),
  ];
  /** For outer checksums that are correct, and that would be correct if the inner packet had one that covers it all. */
  const kept = (says: string, fields: IpFields, payload: Uint8Array): Fixture[] =>
    Object.entries({ right: sealed, 'seemingly right': sealedAround }).map(([which, seal]) =>
      is(
        `leaves a ${which} one around ${says} to the kernel`,
        'kernel outer_checksum',
        { inner: { ...inner, ...fields }, seal },
        payload,
      ),
    );
  const echo = pingOf(side, 5);
  const sealedSegment = sealedBody({ protocol: TCP }, segment);
  return [
    ...right('TCP', { protocol: TCP }, segment),
    ...right(
      'TCP with an odd number of bytes',
      { protocol: TCP },
      tcp({ src: 80, dst: 40000 }, Uint8Array.of(1, 2, 3)),
    ),
    ...right('UDP', { protocol: UDP }, udp({ src: 53, dst: 40000 }, Uint8Array.of(1, 2, 3))),
    ...right('a ping', { protocol: side.icmp }, echo),
    is(
      'leaves one to the kernel that is wrong by one',
      'kernel outer_checksum',
      { seal: (packet) => off(sealed(packet), ipBytes[side.family] + 7) },
      sealedSegment,
    ),
    is(
      'leaves all ones to the kernel when that is wrong',
      'kernel outer_checksum',
      { udp: { checksum: 0xffff } },
      sealedSegment,
    ),
    is(
      'leaves a right one around a wrong inner one to the kernel, which knows better',
      'kernel outer_checksum',
      { seal: sealed },
      segment,
    ),
    arrives('leaves a wrong inner one to the pod', {}, segment, { wire: { seal: sealedAround } }),
    // The checksum is still left to a NIC, so it is not wrong; but XDP cannot clear the kernel's note of that.
    hook === 'from_wire'
      ? arrives('takes one that was left to a NIC', { protocol: side.icmp }, pingOf(side), {
          wire: { seal: unsummed },
        })
      : is(
          'leaves a checksum that was left to a NIC to tc',
          'kernel outer_checksum',
          { seal: unsummed },
          segment,
        ),
    ...kept('UDP that has none', { protocol: UDP }, udp({ src: 53, dst: 40000 })),
    ...kept(
      'UDP that does not cover all',
      { protocol: UDP },
      udp({ src: 53, dst: 40000, length: 12, checksum: 1 }),
    ),
  ];
}

/** Increments one byte. */
const off = (bytes: Uint8Array, at: number): Uint8Array => bytes.with(at, (bytes[at]! + 1) & 255);

function fixturesOf(side: Side, hook: Hook): Record<string, readonly Fixture[]> {
  const { arrives, is, segmentOf } = wordsOf(side, hook);
  const { peers, podOf, pods } = side;
  const { near, marked, narrow } = pods;
  const [withOptionsIn, optionsPayload] = withOptions(side);
  const otherFamily = side.family === 4 ? 0x86dd : 0x0800;
  const frameBytes = wireFrame(side).length - 14;
  /** Bytes that the header's length field does not count. */
  const uncounted = side.family === 4 ? 0 : 40;
  return {
    'from a peer to a pod of ours': [
      arrives('takes the outer header off'),
      arrives('takes UDP', { protocol: UDP }, udp({ src: 53, dst: 40000 })),
      arrives('takes a ping', { protocol: side.icmp }, pingOf(side)),
      arrives('takes the answer to a ping', { protocol: side.icmp }, icmp(side.family === 4 ? 0 : 129)),
      ...[3, 1, 11, 127, 130, 133, 136].map((type) =>
        is(
          `leaves ICMP of type ${type} to the kernel: it belongs to another flow, or to none`,
          'kernel protocol',
          { inner: { protocol: side.icmp } },
          icmp(type, new Uint8Array(28)),
        ),
      ),
      is('leaves a first fragment to the kernel, which reassembles it (row 53)', 'kernel fragment', {
        inner: { protocol: UDP, fragment: 0x2000 },
      }),
      is('leaves a later fragment to the kernel, too (row 53)', 'kernel fragment', {
        inner: { protocol: UDP, fragment: 0x00b9, id: 77 },
      }),
      is('leaves an empty IP packet to the kernel', 'kernel malformed', {}, new Uint8Array(0)),
      arrives('takes the last TTL that may travel, 2 (row 57)', { ttl: 2 }),
      arrives('takes TTL 255', { ttl: 255 }),
      arrives('takes what comes from the other node’s VXLAN device: its processes', { src: podOf(1, 0) }),
      arrives('goes by the peer that the inner source belongs to', { src: podOf(2, 7) }, segment, {
        from: peers.two,
      }),
      arrives('takes every source port outside', {}, segment, { wire: { udp: { src: 1 } } }),
      arrives('takes every inner source MAC: the kernel does too', {}, segment, {
        wire: { innerEther: { src: '06:06:06:06:06:06' } },
      }),
      arrives('takes every outer TTL', {}, segment, { wire: { outer: { ttl: 1 } } }),
      arrives('takes what exactly fits the receiver', {}, segmentOf(1280), { to: narrow }),
    ],

    'ECN by RFC 6040, figure 4, DSCP untouched (row 59)': ecnFixtures(side, hook),

    'with an outer checksum (row 58)': checksumFixtures(side, hook),

    'that is not for our VXLAN port': [
      is('is ignored when ARP', 'kernel not_ip', { ether: { type: 0x0806 } }),
      is('is ignored when VLAN-tagged (row 54)', 'kernel not_ip', { ether: { type: 0x8100 } }),
      is('is ignored when for another MAC address', 'kernel other_mac', {
        ether: { dst: '02:00:00:00:00:04' },
      }),
      is('is ignored when broadcast (row 60)', 'kernel other_mac', {
        ether: { dst: 'ff:ff:ff:ff:ff:ff' },
      }),
      is('is ignored when TCP', 'kernel not_vxlan', { outer: { protocol: TCP } }),
      is('is ignored on another port', 'kernel not_vxlan', { udp: { dst: 4789 } }),
      is('is ignored at another address', 'kernel not_vxlan', { outer: { dst: side.vtepOf(4) } }),
      is('leaves a first outer fragment to the kernel (row 52)', 'kernel fragment', {
        outer: { fragment: 0x2000 },
      }),
      is('leaves a later outer fragment to the kernel (row 52)', 'kernel fragment', {
        outer: { fragment: 0x00b9 },
      }),
      {
        says: 'leaves a plain packet for a local pod to the kernel',
        verdict: 'kernel not_vxlan',
        packet: ethernet(
          { dst: TEST_RUN_MAC, src: '02:00:00:00:00:01' },
          ip({ src: podOf(1, 7), dst: near.ip, protocol: TCP }, segment),
        ),
      },
    ],

    'in VXLAN of another kind': [
      is('leaves another VNI to the kernel (row 47)', 'kernel other_vni', { vxlan: { vni: 2 } }),
      is('compares all 24 bits of the VNI (row 47)', 'kernel other_vni', { vxlan: { vni: 0x01_0001 } }),
      is('leaves a missing I flag to the kernel (row 47)', 'kernel other_vni', { vxlan: { flags: 0 } }),
      is('leaves other flags beside it to the kernel, such as GBP’s (row 47)', 'kernel other_vni', {
        vxlan: { flags: 0x88 },
      }),
      is('leaves another inner MAC to the kernel (row 51)', 'kernel other_mac', {
        innerEther: { dst: 'aa:00:00:00:00:04' },
      }),
      is('leaves the other family’s device’s MAC to the kernel (row 51)', 'kernel other_mac', {
        innerEther: { dst: (side === v4 ? v6 : v4).settings.vtepMac },
      }),
      is('leaves an inner broadcast to the kernel (rows 51, 60)', 'kernel other_mac', {
        innerEther: { dst: 'ff:ff:ff:ff:ff:ff' },
      }),
      is('leaves inner ARP to the kernel (row 50)', 'kernel not_ip', { innerEther: { type: 0x0806 } }),
      is('leaves the other family inside to the kernel', 'kernel not_ip', {
        innerEther: { type: otherFamily },
      }),
      is('leaves unknown inner ethertypes to the kernel (row 50)', 'kernel not_ip', {
        innerEther: { type: 0x88cc },
      }),
      is(
        'leaves inner IP options to the kernel',
        'kernel ip_options',
        { inner: withOptionsIn },
        optionsPayload,
      ),
      is('leaves another inner IP version to the kernel', 'kernel malformed', {
        inner: { version: 10 - side.family },
      }),
      is('leaves another outer IP version to the kernel', 'kernel malformed', {
        outer: { version: 10 - side.family },
      }),
    ],

    'whose lengths contradict each other (row 46)': [
      is('leaves an outer length beyond the frame to the kernel', 'kernel malformed', {
        outer: { length: frameBytes - uncounted + 1 },
      }),
      is('leaves an outer length short of the frame to the kernel', 'kernel malformed', {
        outer: { length: frameBytes - uncounted - 1 },
      }),
      is('leaves a UDP length beyond the frame to the kernel', 'kernel malformed', {
        udp: { length: frameBytes - ipBytes[side.family] + 1 },
      }),
      is('leaves a UDP length short of the frame to the kernel', 'kernel malformed', {
        udp: { length: frameBytes - ipBytes[side.family] - 1 },
      }),
      is('leaves an inner length beyond the frame to the kernel', 'kernel malformed', {
        inner: { length: ipBytes[side.family] + 20 - uncounted + 1 },
      }),
      is('leaves an inner length short of the frame to the kernel', 'kernel malformed', {
        inner: { length: ipBytes[side.family] + 20 - uncounted - 1 },
      }),
    ],

    'from who must not': [
      is('drops a packet of an unknown sender with a node’s inner source (row 48)', 'drop unknown_peer', {
        outer: { src: side.vtepOf(77) },
      }),
      is('drops a packet of an unknown sender with an unused inner source (row 48)', 'drop unknown_peer', {
        outer: { src: side.vtepOf(77) },
        inner: { src: podOf(77, 7) },
      }),
      is('drops a packet with our own VTEP address as its sender (row 48)', 'drop unknown_peer', {
        outer: { src: side.settings.vtepIp },
      }),
      is('drops a node’s packet with an inner source of another node (row 49)', 'drop spoofed_source', {
        outer: { src: peers.two.vtepIp },
      }),
      is('drops a node’s packet with another node’s own address as inner source', 'drop spoofed_source', {
        inner: { src: peers.two.vtepIp },
      }),
      is('leaves a node’s packet with an inner source of no node to the kernel (row 80)', 'kernel outside', {
        inner: { src: podOf(77, 7) },
      }),
      is('drops a node’s packet with an inner source of a local pod (row 49)', 'drop spoofed_source', {
        inner: { src: marked.ip },
      }),
      is('leaves a packet with the node’s own address as inner source to the kernel', 'kernel outside', {
        inner: { src: peers.one.vtepIp },
      }),
      is(
        'leaves a node’s packet with an inner source of the world to the kernel (row 80)',
        'kernel outside',
        {
          inner: { src: side.world },
        },
      ),
      is(
        'leaves a node’s packet in the name of an outsider with a number like its pods’ to the kernel',
        'kernel outside',
        { inner: { src: side.serviceLikePod } },
      ),
      is('leaves a node’s packet from a multicast address to the kernel (row 60)', 'kernel outside', {
        inner: { src: side.multicast },
      }),
      is('drops a spoofed source also when the destination is no local pod (row 49)', 'drop spoofed_source', {
        inner: { src: podOf(2, 7), dst: side.world },
      }),
      is('drops a spoofed source also when the packet is padded (row 49)', 'drop spoofed_source', {
        inner: { src: podOf(2, 7), length: 39 },
      }),
      is('leaves packets of a node without a slot in the peers map to the kernel', 'kernel no_peer', {
        outer: { src: peers.unindexed.vtepIp },
        inner: { src: podOf(16, 7) },
      }),
      arrives('takes a peer behind NAT from whatever address', { src: podOf(9, 7) }, segment, {
        from: { ...peers.behindNat, vtepIp: side.world },
      }),
      is('lets a peer behind NAT send for its own pods only (row 49)', 'drop spoofed_source', {
        outer: { src: peers.behindNat.vtepIp },
      }),
    ],

    'that the kernel must see to': [
      is('leaves an address that no pod has to the kernel', 'kernel no_endpoint', {
        inner: { dst: podOf(3, 99) },
      }),
      is('leaves the node’s own VXLAN device’s address to the kernel', 'kernel no_endpoint', {
        inner: { dst: podOf(3, 0) },
      }),
      is('relays nothing to another node', 'kernel no_endpoint', { inner: { dst: podOf(2, 7) } }),
      is('relays nothing back to the node that it came from', 'kernel no_endpoint', {
        inner: { dst: podOf(1, 8) },
      }),
      is('relays nothing to the world', 'kernel no_endpoint', { inner: { dst: side.world } }),
      is(
        'does not confuse a pod of another node with a local one whose address ends alike',
        'kernel no_endpoint',
        {
          inner: { dst: podOf(2, 20) },
        },
      ),
      is('delivers no multicast (row 60)', 'kernel no_endpoint', { inner: { dst: side.multicast } }),
      is('leaves a marked receiver to the kernel path', 'kernel marked', { inner: { dst: marked.ip } }),
      is('leaves TTL 1 to the kernel, which sends time exceeded (row 57)', 'kernel ttl', {
        inner: { ttl: 1 },
      }),
      is('leaves TTL 0 to the kernel (row 57)', 'kernel ttl', { inner: { ttl: 0 } }),
      is(
        'leaves what is a byte too big for the receiver to the kernel (row 56)',
        'kernel too_big',
        { inner: { dst: narrow.ip } },
        segmentOf(1281),
      ),
      is(
        'leaves SCTP to the kernel',
        'kernel protocol',
        { inner: { protocol: protocols.sctp } },
        new Uint8Array(32),
      ),
    ],
  };
}

const hooks = ['from_wire', 'xdp_from_wire'] as const;
for (const side of sides)
  for (const hook of hooks) runFixtures(hook, `IPv${side.family}`, fixturesOf(side, hook));

for (const hook of hooks) {
  const in4 = wordsOf(v4, hook);
  runFixtures(hook, 'what only IPv4 has', {
    'at the edges': [
      in4.arrives('accepts DF outside', {}, segment, { wire: { outer: { fragment: 0x4000 } } }),
      in4.is('leaves outer IP options to the kernel (row 52)', 'kernel ip_options', {
        outer: { options: [1, 1, 1, 0] },
      }),
      in4.is('leaves a wrong outer header checksum to the kernel', 'kernel malformed', {
        outer: { checksum: 0x1234 },
      }),
      in4.is('leaves a wrong inner header checksum to the kernel', 'kernel malformed', {
        inner: { checksum: 0x1234 },
      }),
      in4.is(
        'does not confuse an address of the world with a local pod whose address ends alike',
        'kernel no_endpoint',
        {
          inner: { dst: '198.51.100.20' },
        },
      ),
    ],
  });

  const in6 = wordsOf(v6, hook);
  const { far } = v6.peers;
  runFixtures(hook, 'what only IPv6 has', {
    'ICMPv6 that is no echo (row 50)': [133, 134, 135, 136, 137].map((type) =>
      in6.is(
        `leaves type ${type}, neighbour discovery, to the kernel`,
        'kernel protocol',
        { inner: { protocol: ICMPV6, ttl: 255 } },
        icmp(type),
      ),
    ),
    'a peer that wants outer checksums': [
      in6.is('takes the kernel path in this direction too', 'kernel marked', {
        outer: { src: far.vtepIp },
        inner: { src: v6.podOf(5, 7) },
      }),
      in6.is('may send for its own pods only (row 49)', 'drop spoofed_source', {
        outer: { src: far.vtepIp },
      }),
    ],
    'headers before the transport header (row 52)': [
      {
        ...in6.is('outside take the kernel path, since the port is unknown', 'kernel not_vxlan'),
        packet: ethernet(
          { dst: TEST_RUN_MAC, src: '02:00:00:00:00:01' },
          ip(
            { src: v6.peers.one.vtepIp, dst: v6.settings.vtepIp, protocol: protocols.destinationOptions },
            ipv6Extension(UDP, wireFrame(v6).subarray(54)),
          ),
        ),
      },
      in6.is(
        'inside, behind a fragment header, are the kernel’s',
        'kernel ip_options',
        { inner: { protocol: protocols.hopByHop, fragment: 0x2000 } },
        ipv6Extension(UDP, udp({ src: 1, dst: 2 })),
      ),
      in6.is(
        'are malformed when cut off (row 46)',
        'kernel malformed',
        { inner: { protocol: protocols.fragment } },
        new Uint8Array(7),
      ),
    ],
    'the rest of the header': [in6.arrives('stays: the flow label', { flowLabel: 0xabcde, tos: 0xfc })],
  });
}

for (const side of sides) {
  const { is, segmentOf } = wordsOf(side, 'from_wire');
  const big = segmentOf(3000);
  const bigUdp = udp({ src: 53, dst: 40000 }, new Uint8Array(3000));
  const fixtures = [
    // A test run's GSO packet has no type, so the kernel refuses to shrink it.
    is('leaves one unchanged that the kernel refuses to shrink', 'kernel no_room', {}, big),
    is(
      'does not check the checksum, which GRO has verified',
      'kernel no_room',
      { udp: { checksum: 1 } },
      big,
    ),
    is('drops one by RFC 6040', 'drop ecn', { outer: { tos: 3 } }, big),
    is('leaves one to the kernel whose end is known to be near', 'kernel ttl', { inner: { ttl: 1 } }, big),
    is(
      'leaves UDP to the kernel, whose tunnel would still be seen where it is cut up',
      'kernel no_room',
      { inner: { protocol: UDP } },
      bigUdp,
    ),
  ].map((fixture) => ({ ...fixture, gsoSize: 1400 }));
  runFixtures('from_wire', `IPv${side.family}`, { 'super-packets (row 55)': fixtures });
}

describeOnNode('from_wire, packet by packet', (node) => {
  describe.each(sides)('IPv$family', (side) => {
    it('writes a correct inner header for random packets', () => {
      const random = new Random(1624);
      for (let round = 0; round < 256; round++) {
        // ECT(1) becomes CE, and both bytes of IPv4's checksum take every value, so both changes produce carries at
        // times.
        const inner = { id: round * 257, ttl: 2 + random.below(254), tos: 1 };
        using _ = node().learn([{ flow: wireFlow(side) }]);
        const { verdict, packet } = node().run('from_wire', wireFrame(side, { inner, outer: { tos: 3 } }));
        const { valid, ttl, tos } = readIp(packet);
        expect({ inner, verdict, valid, ttl, tos }).toEqual({
          inner,
          verdict: 'fast',
          valid: true,
          ttl: inner.ttl - 1,
          tos: 3,
        });
      }
    });

    it('accepts correct outer checksums of random packets, and refuses wrong ones', () => {
      const random = new Random(768);
      for (let round = 0; round < 300; round++) {
        const data = Uint8Array.from({ length: random.below(300) }, () => random.below(256));
        const [protocol, payload] = random.pick([
          [TCP, tcp({ src: random.below(65536), dst: 40000 }, data)],
          [UDP, udp({ src: random.below(65536), dst: 40000 }, data)],
          [side.icmp, icmp(side.family === 4 ? 8 : 128, Uint8Array.from([0, 1, 0, 1, ...data]))],
        ] as const);
        const fields = { src: side.podOf(1, 7), dst: side.pods.near.ip, protocol, tos: random.below(256) };
        const inner = sealed(ip(fields, payload));
        const frame = tunnelled(side, side.peers.one, inner, {
          seal: sealed,
          udp: { src: random.below(65536) },
        });
        for (const hook of hooks) {
          using _ = node().learn([{ flow: wireFlow(side, fields, payload) }]);
          const { counted } = node().run(hook, frame);
          expect({ round, counted }).toEqual({ round, counted: `${hook}: fast decap` });
          // A bit of the headers that are summed up: addresses, ports, VXLAN, inner IP.
          const wrong = frame.slice();
          const at = 14 + ipBytes[side.family] + random.pick([0, 1, 6, 22, 27, 29]);
          wrong[at]! ^= 1 << random.below(8);
          const { counted: refused } = node().run(hook, wrong);
          const outcome = at === 14 + ipBytes[side.family] + 29 ? 'not_ip' : 'outer_checksum';
          const isZero = wrong[20 + ipBytes[side.family]] === 0 && wrong[21 + ipBytes[side.family]] === 0;
          if (!isZero)
            expect({ round, at, refused }).toEqual({ round, at, refused: `${hook}: kernel ${outcome}` });
        }
      }
    });

    const whole = wireFrame(side);
    // Linux refuses a test run with a frame that is shorter than its IP header.
    const shortest = 14 + ipBytes[side.family];
    const sizes = Array.from({ length: whole.length - shortest }, (_, i) => shortest + i);

    it.each(hooks)('%s takes no truncated packet, and leaves it unchanged (row 46)', (hook) => {
      using _ = node().learn([{ flow: wireFlow(side) }]);
      for (const size of sizes) {
        const { verdict, counted, packet } = node().run(hook, whole.subarray(0, size));
        const outcome = size < shortest + 8 ? 'not_vxlan' : 'malformed';
        expect({ size, verdict, counted }).toEqual({
          size,
          verdict: hook === 'from_wire' ? 'kernel' : 'pass',
          counted: `${hook}: kernel ${outcome}`,
        });
        expect(packet).toEqual(whole.subarray(0, size));
      }
    });

    it.each(hooks)(
      '%s takes no inner packet that is cut anywhere, in an outer one that is whole (row 46)',
      (hook) => {
        using _ = node().learn([{ flow: wireFlow(side) }]);
        for (const size of sizes.filter((size) => size >= shortest + 8)) {
          const payload = whole.subarray(shortest + 8, size); // VXLAN header and what follows
          const packet = ethernet(
            { dst: TEST_RUN_MAC, src: '02:00:00:00:00:01' },
            ip(
              { src: side.peers.one.vtepIp, dst: side.settings.vtepIp },
              udp({ src: 45678, dst: tunnel.port }, payload),
            ),
          );
          const { counted } = node().run(hook, packet);
          expect({ size, counted }).toEqual({ size, counted: `${hook}: kernel malformed` });
        }
      },
    );
  });

  it('counts the bytes of the packet that leaves, and XDP those of the packet that came', () => {
    const frame = wireFrame(v4);
    using _ = node().learn([{ flow: wireFlow(v4) }]);
    expect(node().run('from_wire', frame).bytes).toBe(frame.length - encapBytes[4]);
    expect(node().run('xdp_from_wire', frame).bytes).toBe(frame.length);
  });
});
