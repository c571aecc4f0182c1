// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { encapBytes, stateSlot } from '../../src/dataplane/desired.ts';
import { icmp, ip, ipv6Extension, ipv6Fragment, protocols, readIp, tcp, udp } from '../../src/net/packets.ts';
import { Random } from '../support/random.ts';
import { describeOnNode, type Fixture, runFixtures } from './support.ts';
import {
  chosenOf,
  delivered,
  encapsulated,
  ipBytes,
  type IpFields,
  podFlow,
  podFrame,
  withOptions,
} from './frames.ts';
import { FROM_FAST_PATH, settings, type Side, sides, v4, v6, tunnel } from './node.ts';

const { tcp: TCP, udp: UDP, icmpv6: ICMPV6 } = protocols;
const segment = tcp({ src: 40000, dst: 80 });
const datagram = udp({ src: 40000, dst: 53 });

/** The outer ECN field for each inner one, as the kernel's VXLAN device makes it: CE becomes ECT(0). */
const outerEcn = [0, 1, 2, 2] as const;

/** Makes fixtures for one family. */
function wordsOf(side: Side) {
  const { sender, near } = side.pods;
  return {
    /** A pod's packet to a pod of this node. It must arrive with its IP packet unchanged. */
    local: (says: string, fields: IpFields, payload = segment, to = near): Fixture => {
      const all = { src: sender.ip, dst: to.ip, protocol: TCP, ...fields };
      return {
        says,
        packet: podFrame(side, all, payload),
        flows: [{ flow: podFlow(side, all, payload) }],
        verdict: 'fast local',
        out: delivered(to, ip(all, payload)),
      };
    },

    /** A pod's packet to a pod of another node. Every byte of what leaves is checked. */
    remote: (says: string, fields: IpFields, payload = segment, to = side.peers.one): Fixture => {
      const all = { src: sender.ip, dst: side.podOf(1, 7), protocol: TCP, ttl: 64, ...fields };
      return {
        says,
        packet: podFrame(side, all, payload),
        flows: [{ flow: podFlow(side, all, payload) }],
        verdict: 'fast encap',
        out: (packet) =>
          encapsulated(side, to, ip({ ...all, ttl: all.ttl - 1 }, payload), {
            ecn: outerEcn[(all.tos ?? 0) & 3]!,
            ...chosenOf(packet),
          }),
      };
    },

    /** A packet that would take the fast path if it were not for what the fixture is about: its flow is valid. */
    is: (says: string, verdict: Fixture['verdict'], fields: IpFields = {}, payload = segment): Fixture => ({
      says,
      verdict,
      packet: podFrame(side, fields, payload),
      flows: [{ flow: podFlow(side, fields, payload) }],
    }),

    /** A packet of a flow that was not learned. */
    first: (
      says: string,
      verdict: Fixture['verdict'],
      fields: IpFields = {},
      payload = segment,
    ): Fixture => ({
      says,
      verdict,
      packet: podFrame(side, fields, payload),
    }),

    /** VXLAN that a pod sends. */
    vxlan: (dst: string, fields: IpFields = {}, port = tunnel.port): [IpFields, Uint8Array] => [
      { dst, protocol: UDP, ...fields },
      udp({ src: 40000, dst: port }, new Uint8Array(58)),
    ],

    /** A TCP segment in an IP packet of `bytes` bytes. */
    segmentOf: (bytes: number): Uint8Array =>
      tcp({ src: 40000, dst: 80 }, new Uint8Array(bytes - ipBytes[side.family] - 20)),
    /** The segment size of a super-packet whose segments are IP packets of `bytes` bytes. */
    gsoOf: (bytes: number): number => bytes - ipBytes[side.family] - 20,
    pathMtu: settings.uplink.mtu - encapBytes[side.family],
  };
}

function fixturesOf(side: Side): Record<string, readonly Fixture[]> {
  const { peers, podOf, pods } = side;
  const { markedSender, near, marked, narrow, sender } = pods;
  const { local, remote, is, first, vxlan, segmentOf, gsoOf, pathMtu } = wordsOf(side);
  const [ping, pong] = (side.family === 4 ? [8, 0] : [128, 129]).map((type) =>
    icmp(type, Uint8Array.of(7, 7, 0, 1)),
  );
  return {
    'to a pod of this node': [
      local('sets both MAC addresses and keeps the TTL: one L2 hop, like a bridge', {}),
      local('delivers a TTL of 1, since it is no hop (row 57)', { ttl: 1 }),
      local('keeps DSCP and ECN', { tos: 0xbb }),
      local('delivers UDP', { protocol: UDP }, datagram),
      local('delivers a ping', { protocol: side.icmp }, ping),
      local('delivers the answer to a ping', { protocol: side.icmp }, pong),
      is(
        'leaves an unknown protocol to the kernel',
        'kernel protocol',
        { dst: near.ip, protocol: protocols.gre },
        new Uint8Array(12),
      ),
      is(
        'leaves a first fragment to the kernel, which may wait for the others (row 53)',
        'kernel fragment',
        { dst: near.ip, protocol: UDP, fragment: 0x2000 },
        datagram,
      ),
      is(
        'leaves a last fragment to the kernel, too (row 53)',
        'kernel fragment',
        { dst: near.ip, protocol: UDP, fragment: 0x00b9 },
        new Uint8Array(32),
      ),
      local('delivers a packet that exactly fits the receiver', {}, segmentOf(1280), narrow),
      is(
        'leaves what is a byte too big for the receiver to the kernel',
        'kernel too_big',
        { dst: narrow.ip },
        segmentOf(1281),
      ),
      local('delivers a packet that is too big for a tunnel but not for the receiver', {}, segmentOf(1450)),
      {
        ...local('delivers a GSO super-packet over the MTU whose segments fit (row 55)', {}, segmentOf(3000)),
        gsoSize: gsoOf(1450),
      },
      {
        ...is(
          'leaves a GSO super-packet whose segments do not fit to the kernel',
          'kernel too_big',
          { dst: near.ip },
          segmentOf(3000),
        ),
        gsoSize: gsoOf(1451),
      },
      is('leaves a flow to a pod that is gone to the kernel, which answers (row 64)', 'kernel no_endpoint', {
        dst: podOf(3, 99),
      }),
      is('leaves the gateway address to the kernel', 'kernel no_endpoint', { dst: podOf(3, 1) }),
      is('lets a pod that talks to itself hairpin through the kernel (row 61)', 'kernel no_endpoint', {
        dst: sender.ip,
      }),
      is('leaves a marked receiver to the kernel path', 'kernel marked', { dst: marked.ip }),
    ],

    'to a pod of another node': [
      remote('adds the outer header and decrements the TTL', {}),
      remote('sends to the peer of the destination’s podCIDR', { dst: podOf(2, 7) }, segment, peers.two),
      remote(
        'sends to a peer behind NAT by its published address',
        { dst: podOf(9, 7) },
        segment,
        peers.behindNat,
      ),
      remote('sends UDP', { protocol: UDP }, datagram),
      remote('sends a ping', { protocol: side.icmp }, ping),
      remote('sends the answer to a ping', { protocol: side.icmp }, pong),
      ...[1, 2, 3, 5, 11, 127, 130, 133, 135].map((type) =>
        is(
          `leaves ICMP of type ${type} to the kernel: it belongs to another flow, or to none`,
          'kernel protocol',
          { protocol: side.icmp },
          icmp(type, new Uint8Array(28)),
        ),
      ),
      remote('copies ECN Not-ECT to the outer header (row 59)', { tos: 0 }),
      remote('copies ECN ECT(1) to the outer header (row 59)', { tos: 1 }),
      remote('copies ECN ECT(0) to the outer header (row 59)', { tos: 2 }),
      remote('sends ECN CE in ECT(0), which tells congestion in the tunnel apart (row 59)', { tos: 3 }),
      remote('does not copy DSCP: EF with ECT(0) becomes ECT(0) outside (row 59)', { tos: 0xba }),
      remote('sends the least TTL that may be forwarded, 2, as 1 (row 57)', { ttl: 2 }),
      remote('sends TTL 255', { ttl: 255 }),
      is(
        'leaves a first fragment to the kernel, which may wait for the others (row 53)',
        'kernel fragment',
        { protocol: UDP, fragment: 0x2000 },
        datagram,
      ),
      is(
        'leaves a later fragment to the kernel, too (row 53)',
        'kernel fragment',
        { protocol: UDP, fragment: 0x20b9, id: 7 },
        new Uint8Array(32),
      ),
      is(
        'leaves a last fragment to the kernel, too (row 53)',
        'kernel fragment',
        { protocol: UDP, fragment: 0x00b9, id: 7 },
        new Uint8Array(5),
      ),
      remote('sends a packet that exactly fits (row 56)', {}, segmentOf(pathMtu)),
      remote('sends to the address of the other node’s VXLAN device', { dst: podOf(1, 0) }),
      is(
        'leaves a byte more, with DF, to the kernel, which says frag-needed (row 56)',
        'kernel too_big',
        side.family === 4 ? { fragment: 0x4000 } : {},
        segmentOf(pathMtu + 1),
      ),
      is(
        'leaves a byte more to the kernel, which fragments or says packet-too-big (row 56)',
        'kernel too_big',
        {},
        segmentOf(pathMtu + 1),
      ),
      {
        ...is(
          'leaves a GSO super-packet whose segments do not fit to the kernel',
          'kernel too_big',
          {},
          segmentOf(3000),
        ),
        gsoSize: gsoOf(pathMtu + 1),
      },
      {
        ...is(
          'leaves UDP GSO whose segments do not fit to the kernel',
          'kernel too_big',
          { protocol: UDP },
          udp({ src: 40000, dst: 53 }, new Uint8Array(3000)),
        ),
        gsoSize: pathMtu - ipBytes[side.family] - 7,
      },
      {
        // A test run's GSO packet has no type, so the kernel refuses to grow it, after the size check that is tested
        // here.
        ...is(
          'leaves a packet that the kernel does not let grow as it was',
          'kernel no_room',
          {},
          segmentOf(3000),
        ),
        gsoSize: gsoOf(pathMtu),
      },
      is('leaves TTL 1 to the kernel, which sends time exceeded (row 57)', 'kernel ttl', { ttl: 1 }),
      is('leaves TTL 0 to the kernel (row 57)', 'kernel ttl', { ttl: 0 }),
      is('leaves a flow to a node that is gone to the kernel (row 64)', 'kernel no_peer', {
        dst: podOf(77, 7),
      }),
      is('leaves a node whose podCIDR has another length to the kernel', 'kernel no_peer', {
        dst: podOf(16, 7),
      }),
    ],

    'from whom it does not trust': [
      first('lets no pod use another pod’s address (rows 62, 85)', 'drop other_source', { src: near.ip }),
      first('lets no pod use an address that no pod has (rows 62, 85)', 'drop other_source', {
        src: podOf(3, 99),
      }),
      first('lets no pod use another node’s address (rows 62, 85)', 'drop other_source', {
        src: podOf(1, 10),
      }),
      first('lets no pod use the world’s addresses (rows 62, 85)', 'drop other_source', { src: side.world }),
      first('lets a pod that has no address yet send from none (row 85)', 'kernel link_local', {
        src: side.family === 4 ? '0.0.0.0' : '::',
      }),
      first(
        'lets a pod send from a link-local IPv6 address, as for neighbour discovery (row 85)',
        side.family === 4 ? 'drop other_source' : 'kernel link_local',
        { src: side.family === 4 ? '169.254.0.9' : 'fe80::9' },
      ),
      first('keeps a marked sender on the kernel path to other nodes', 'kernel marked', {
        src: markedSender.ip,
      }),
      first('keeps a marked sender on the kernel path on this node', 'kernel marked', {
        src: markedSender.ip,
        dst: near.ip,
      }),
    ],

    'to the world outside the cluster': [
      first('takes the kernel path', 'kernel new_flow', { dst: side.world }),
      first('takes the kernel path to a Service too', 'kernel new_flow', { dst: side.service }),
      first('takes the kernel path to a Service whose address ends like a pod’s', 'kernel new_flow', {
        dst: side.serviceLikePod,
      }),
      first('never encapsulates multicast (row 60)', 'kernel new_flow', { dst: side.multicast }),
      first('never encapsulates a martian (row 60)', 'kernel new_flow', { dst: side.martian }),
      first('lets a pod talk to a node', 'kernel new_flow', { dst: peers.one.vtepIp }),
      first(
        'lets a pod talk UDP to a node on another port',
        'kernel new_flow',
        ...vxlan(peers.one.vtepIp, {}, 53),
      ),
      first('lets a pod send VXLAN to hosts that are no nodes', 'kernel new_flow', ...vxlan(side.world)),
      first(
        'lets a pod talk TCP to the VXLAN port of a node',
        'kernel new_flow',
        { dst: peers.one.vtepIp },
        tcp({ src: 40000, dst: tunnel.port }),
      ),
      first(
        'reads no ports out of a later fragment’s payload',
        'kernel fragment',
        ...vxlan(peers.one.vtepIp, { fragment: 0x00b9 }),
      ),
      first(
        'drops VXLAN from a pod to another node (row 63)',
        'drop vxlan_from_pod',
        ...vxlan(peers.one.vtepIp),
      ),
      first(
        'drops VXLAN from a pod to this node (row 63)',
        'drop vxlan_from_pod',
        ...vxlan(side.settings.vtepIp),
      ),
      first(
        'drops VXLAN from a pod to a node that the peers map cannot hold (row 63)',
        'drop vxlan_from_pod',
        ...vxlan(peers.unindexed.vtepIp),
      ),
      first(
        'drops VXLAN from a pod that lies about its address (row 63)',
        'drop vxlan_from_pod',
        ...vxlan(peers.two.vtepIp, { src: peers.one.vtepIp }),
      ),
      first(
        'drops VXLAN from a pod in a first fragment (row 63)',
        'drop vxlan_from_pod',
        ...vxlan(peers.one.vtepIp, { fragment: 0x2000 }),
      ),
      first(
        'drops VXLAN from a pod behind IP options too (rows 52, 63)',
        'drop vxlan_from_pod',
        ...withOptions(side, ...vxlan(peers.one.vtepIp)),
      ),
      first(
        'drops VXLAN from a pod that is padded, which the kernel would take off (row 63)',
        'drop vxlan_from_pod',
        ...vxlan(peers.one.vtepIp, { length: 20 + 66 - 4 }),
      ),
      {
        // The kernel would accept a unicast packet in such a frame.
        says: 'drops VXLAN from a pod in a broadcast frame (row 63)',
        verdict: 'drop vxlan_from_pod',
        packet: podFrame(side, ...vxlan(side.settings.vtepIp), { dst: 'ff:ff:ff:ff:ff:ff' }),
      },
    ],

    'that it does not understand': [
      {
        ...is('leaves ARP to the kernel', 'kernel not_ip'),
        packet: podFrame(side, {}, segment, { type: 0x0806 }),
      },
      {
        ...is('leaves VLAN tags to the kernel', 'kernel not_ip'),
        packet: podFrame(side, {}, segment, { type: 0x8100 }),
      },
      {
        ...is('leaves a frame to another MAC address to the kernel', 'kernel other_mac'),
        packet: podFrame(side, {}, segment, { dst: near.podMac }),
      },
      {
        ...is('leaves a broadcast frame to the kernel (row 60)', 'kernel other_mac'),
        packet: podFrame(side, { dst: near.ip }, segment, { dst: 'ff:ff:ff:ff:ff:ff' }),
      },
      is('leaves IP options to the kernel (row 52)', 'kernel ip_options', ...withOptions(side)),
      is(
        'leaves IP options to the kernel on this node too (row 52)',
        'kernel ip_options',
        ...withOptions(side, { dst: near.ip }),
      ),
      is('leaves another IP version to the kernel', 'kernel malformed', { version: 10 - side.family }),
      is('leaves a length beyond the frame to the kernel (row 46)', 'kernel malformed', { length: 61 }),
      is('leaves a length short of the frame to the kernel (row 46)', 'kernel malformed', { length: 19 }),
      is('leaves a length of zero, BIG TCP’s, to the kernel', 'kernel malformed', { length: 0 }),
      is(
        'leaves SCTP to the kernel, as its conntrack lookup knows TCP and UDP only',
        'kernel protocol',
        { protocol: protocols.sctp },
        new Uint8Array(32),
      ),
    ],
  };
}

for (const side of sides) runFixtures('from_pod', `IPv${side.family}`, fixturesOf(side));

const in4 = wordsOf(v4);
runFixtures('from_pod', 'what only IPv4 has', {
  'at the edges': [
    in4.first('leaves the network’s broadcast address to the kernel (row 60)', 'kernel new_flow', {
      dst: '10.42.255.255',
    }),
    in4.first('never encapsulates broadcast (row 60)', 'kernel new_flow', { dst: '255.255.255.255' }),
    in4.is(
      'drops VXLAN from a pod behind as many IP options as fit (rows 52, 63)',
      'drop vxlan_from_pod',
      ...in4.vxlan(v4.peers.one.vtepIp, { options: Array.from({ length: 40 }, () => 1) }),
    ),
    in4.is(
      'finds no port in a header that is shorter than a header',
      'kernel malformed',
      ...in4.vxlan(v4.peers.one.vtepIp, { ihl: 0, length: tunnel.port }),
    ),
    in4.is('leaves a wrong header checksum to the kernel', 'kernel malformed', { checksum: 0x1234 }),
    in4.is('believes no header shorter than a header', 'kernel ip_options', { ihl: 4 }),
  ],
});

const in6 = wordsOf(v6);
const { one, far } = v6.peers;
runFixtures('from_pod', 'what only IPv6 has', {
  'ICMPv6 that is no echo (row 50)': [
    ...[133, 134, 135, 136, 137].map((type) =>
      in6.is(
        `leaves type ${type}, neighbour discovery, to the kernel`,
        'kernel protocol',
        { dst: v6.pods.near.ip, protocol: ICMPV6, ttl: 255 },
        icmp(type, new Uint8Array(20)),
      ),
    ),
    in6.first(
      'leaves a solicitation to all nodes to the kernel',
      'kernel protocol',
      { dst: 'ff02::1:ff00:1', protocol: ICMPV6 },
      icmp(135),
    ),
    in6.is('leaves ICMP of IPv4 to the kernel', 'kernel protocol', { protocol: protocols.icmp }, icmp(8)),
    in6.remote('is not looked for in UDP', { protocol: UDP }, udp({ src: 135 << 8, dst: 53 })),
  ],
  'a peer that wants outer checksums': [
    in6.is('takes the kernel path', 'kernel marked', { dst: v6.podOf(5, 7) }),
    in6.is('must not get VXLAN from pods either (row 63)', 'drop vxlan_from_pod', ...in6.vxlan(far.vtepIp)),
  ],
  'the rest of the header': [
    in6.remote('does not copy the flow label', { flowLabel: 0xabcde, tos: 0xff }),
    in6.local('delivers the flow label', { flowLabel: 0xabcde }),
    in6.is('leaves a length of zero with a jumbo option to the kernel', 'kernel malformed', {
      length: 0,
    }),
  ],
  'headers before the transport header (row 52)': [
    ...[0, 43, 51, 59, 60, 135, 139, 140].map((next) =>
      in6.is(
        `leaves next header ${next} to the kernel`,
        'kernel ip_options',
        { protocol: next },
        ipv6Extension(TCP, segment),
      ),
    ),
    in6.is(
      'leaves them behind a fragment header to the kernel too',
      'kernel ip_options',
      { protocol: protocols.destinationOptions, fragment: 0x2000 },
      ipv6Extension(UDP, datagram),
    ),
    in6.is(
      'leaves a second fragment header to the kernel',
      'kernel ip_options',
      { protocol: protocols.fragment, fragment: 0x2000 },
      ipv6Fragment({ protocol: UDP, fragment: 0x2000 }, datagram),
    ),
    in6.is(
      'leaves a fragment header that is cut off to the kernel (row 46)',
      'kernel malformed',
      { protocol: protocols.fragment },
      new Uint8Array(7),
    ),
    in6.is(
      'leaves ESP to the kernel, whose payload is unreadable',
      'kernel protocol',
      { protocol: 50 },
      new Uint8Array(40),
    ),
  ],
  'VXLAN that hides (row 63)': [
    ...[0, 43, 51, 60, 135].map((next) =>
      in6.is(
        `is dropped behind next header ${next}`,
        'drop vxlan_from_pod',
        { dst: one.vtepIp, protocol: next },
        ipv6Extension(UDP, in6.vxlan(one.vtepIp)[1]),
      ),
    ),
    in6.is(
      'is dropped behind a fragment header and another header',
      'drop vxlan_from_pod',
      { dst: one.vtepIp, protocol: protocols.hopByHop, fragment: 0x2000 },
      ipv6Extension(UDP, in6.vxlan(one.vtepIp)[1]),
    ),
    in6.is(
      'is dropped behind two fragment headers',
      'drop vxlan_from_pod',
      { dst: one.vtepIp, protocol: protocols.fragment, fragment: 0x2000 },
      ipv6Fragment({ protocol: UDP, fragment: 0 }, in6.vxlan(one.vtepIp)[1]),
    ),
    {
      says: 'is dropped in a packet that was whole before it got a fragment header',
      verdict: 'drop vxlan_from_pod',
      packet: podFrame(
        v6,
        { dst: one.vtepIp, protocol: protocols.fragment },
        ipv6Fragment({ protocol: UDP, fragment: 0 }, in6.vxlan(one.vtepIp)[1]),
      ),
    },
    in6.is(
      'is nothing that a node could hear behind a later fragment’s header',
      'kernel ip_options',
      { dst: one.vtepIp, protocol: protocols.hopByHop, fragment: 0x00b9 },
      ipv6Extension(UDP, in6.vxlan(one.vtepIp)[1]),
    ),
    in6.is(
      'may be sent to who is no node',
      'kernel ip_options',
      { dst: v6.world, protocol: protocols.hopByHop },
      ipv6Extension(UDP, in6.vxlan(v6.world)[1]),
    ),
  ],
});

describeOnNode('from_pod, packet by packet', (node) => {
  describe.each(sides)('IPv$family', (side) => {
    const { segmentOf, vxlan, pathMtu } = wordsOf(side);
    const shortest = 14 + ipBytes[side.family];

    it('takes no truncated packet, and leaves it unchanged (row 46)', () => {
      for (const fields of [{}, { dst: side.pods.near.ip }]) {
        const whole = podFrame(side, fields);
        using _ = node().learn([{ flow: podFlow(side, fields) }]);
        // Linux refuses a test run with a frame that is shorter than its IP header.
        for (let size = shortest; size < whole.length; size++) {
          const { verdict, counted, packet } = node().run('from_pod', whole.subarray(0, size));
          expect({ size, verdict, counted }).toEqual({
            size,
            verdict: 'kernel',
            counted: 'from_pod: kernel malformed',
          });
          expect(packet).toEqual(whole.subarray(0, size));
        }
      }
    });

    it('drops truncated VXLAN to a node if it contains the port (row 63)', () => {
      const whole = podFrame(side, ...vxlan(side.peers.one.vtepIp));
      for (let size = shortest; size < whole.length; size++) {
        const { counted } = node().run('from_pod', whole.subarray(0, size));
        const outcome = size < shortest + 4 ? 'kernel malformed' : 'drop vxlan_from_pod';
        expect({ size, counted }).toEqual({ size, counted: `from_pod: ${outcome}` });
      }
    });

    it('sends with the mark and the priority that the kernel path gave, and a note for to_wire', () => {
      using _ = node().learn([{ flow: podFlow(side), mark: 0x4000, priority: 6 }]);
      const { beside } = node().run('from_pod', podFrame(side));
      expect(beside).toEqual({ mark: 0x4000, priority: 6, note: FROM_FAST_PATH });
    });

    it('remembers a pod that forwards super-packets from a tunnel, which the kernel does not let grow', () => {
      using _ = node().learn([{ flow: podFlow(side) }]);
      const slot = stateSlot(settings, side.pods.sender.ip)!;
      node().tables.endpoint_state.set(slot, { forwards: 0 });
      node().run('from_pod', podFrame(side, {}, segmentOf(3000)), { gsoSize: 500 });
      expect(node().tables.endpoint_state.get(slot)).toEqual({ forwards: 1 });
    });

    it('sends from the outer source port that the kernel path chose', () => {
      using _ = node().learn([{ flow: podFlow(side), source_port: 61234 }]);
      const { packet } = node().run('from_pod', podFrame(side));
      expect(new DataView(packet.buffer, packet.byteOffset).getUint16(shortest)).toBe(61234);
    });

    it('takes a hop off between pods of this node where the kernel path does', () => {
      const fields = { dst: side.pods.near.ip, tos: 0xbb };
      const flow = podFlow(side, fields);
      using _ = node().learn([{ flow, hops: 1 }]);
      const expected = delivered(
        side.pods.near,
        ip({ src: side.pods.sender.ip, protocol: TCP, ttl: 63, ...fields }, segment),
      );
      expect(node().run('from_pod', podFrame(side, fields)).packet).toEqual(expected);
      const { counted } = node().run('from_pod', podFrame(side, { ...fields, ttl: 1 }));
      expect(counted).toBe('from_pod: kernel ttl');
    });

    it('writes correct headers for random packets', () => {
      const random = new Random(1624);
      const innerAt = 14 + encapBytes[side.family];
      for (let round = 0; round < 300; round++) {
        using _ = node().learn([{ flow: podFlow(side) }]); // each time, for it expires on a slow machine
        const fields = { id: random.below(65536), ttl: 2 + random.below(254), tos: random.below(256) };
        const size = ipBytes[side.family] + 20 + random.below(pathMtu - ipBytes[side.family] - 19);
        const { verdict, packet } = node().run('from_pod', podFrame(side, fields, segmentOf(size)));
        const [outer, inner] = [readIp(packet), readIp(packet, innerAt)];
        expect({ fields, verdict, outer: outer.valid, inner: inner.valid, ttl: inner.ttl }).toEqual({
          fields,
          verdict: 'fast',
          outer: true,
          inner: true,
          ttl: fields.ttl - 1,
        });
      }
    });
  });

  it('survives the shortest frames of every other type (row 46)', () => {
    for (const type of [0x0806, 0x88cc]) {
      const frame = podFrame(v4, {}, segment, { type }).subarray(0, 34);
      const { verdict, counted } = node().run('from_pod', frame);
      expect({ verdict, counted }).toEqual({ verdict: 'kernel', counted: 'from_pod: kernel not_ip' });
    }
  });

  it('writes a checksum that becomes zero as zero, like the kernel', () => {
    using _ = node().learn([{ flow: podFlow(v4) }]);
    // With this id the header's checksum is 0xfeff. 0x0100 more is 0xffff, the other zero of one's complement.
    for (let id = 0; id < 65536; id++) {
      const frame = podFrame(v4, { id });
      if (frame[24] !== 0xfe || frame[25] !== 0xff) continue;
      const { packet } = node().run('from_pod', frame);
      expect([packet[74], packet[75]]).toEqual([0, 0]);
      return;
    }
    expect.fail('no id gives that checksum');
  });

  it('gives every encapsulated IPv4 packet a different id', () => {
    using _ = node().learn([{ flow: podFlow(v4) }]);
    const ids = Array.from({ length: 50 }, () => chosenOf(node().run('from_pod', podFrame(v4)).packet).id);
    expect(new Set(ids).size).toBeGreaterThan(45);
  });
});
