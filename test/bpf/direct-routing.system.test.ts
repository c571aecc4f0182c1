// SPDX-License-Identifier: Apache-2.0
/**
 * With DirectRouting peers on the same L2 are reached without encapsulation, both ways; others by tunnels, as usual.
 */
import { encapBytes } from '../../src/dataplane/desired.ts';
import { ethernet, icmp, ip, protocols, tcp, udp } from '../../src/net/packets.ts';
import { type Fixture, runFixtures } from './support.ts';
import {
  chosenOf,
  delivered,
  encapsulated,
  ipBytes,
  type IpFields,
  podFlow,
  podFrame,
  tunnelled,
  wireFlow,
  wireFrame,
} from './frames.ts';
import {
  directSettings,
  type Flow,
  type LearnedFlow,
  settings,
  type Side,
  sides,
  TEST_RUN_MAC,
  v6,
} from './node.ts';

const { tcp: TCP, udp: UDP } = protocols;
const segment = tcp({ src: 80, dst: 40000 });

function wordsOf(side: Side) {
  const { sender, near } = side.pods;
  const far = side.podOf(1, 7);
  const learned = (flow: Flow): LearnedFlow[] => [{ flow, mtu: settings.uplink.mtu }];
  /** A pod's packet to a pod on our L2: one hop less, the frame unchanged; the kernel writes its MAC addresses. */
  const leaves = (says: string, fields: IpFields = {}, payload = segment): Fixture => ({
    says,
    packet: podFrame(side, fields, payload),
    flows: learned(podFlow(side, fields, payload)),
    verdict: 'fast direct',
    out: podFrame(side, { ...fields, ttl: (fields.ttl ?? 64) - 1 }, payload),
  });
  const plain = (fields: IpFields = {}, payload = segment): Uint8Array =>
    ip({ src: far, dst: near.ip, protocol: TCP, ttl: 63, ...fields }, payload);
  const onWire = (packet: Uint8Array, padding = 0): Uint8Array =>
    ethernet(
      { dst: TEST_RUN_MAC, src: '02:00:00:00:00:01' },
      Uint8Array.from([...packet, ...new Uint8Array(padding)]),
    );
  return {
    leaves,
    plain,
    onWire,
    leavesFor: (
      says: string,
      verdict: Fixture['verdict'],
      fields: IpFields,
      payload = segment,
      mtu = settings.uplink.mtu,
    ): Fixture => ({
      says,
      verdict,
      packet: podFrame(side, fields, payload),
      flows: [{ flow: podFlow(side, fields, payload), mtu }],
    }),
    /** A plain packet from the wire, with one hop less. */
    arrives: (says: string, fields: IpFields = {}, payload = segment): Fixture => ({
      says,
      packet: onWire(plain(fields, payload)),
      flows: learned(wireFlow(side, fields, payload)),
      verdict: 'fast direct',
      out: delivered(near, plain({ ...fields, ttl: (fields.ttl ?? 63) - 1 }, payload)),
    }),
    is: (says: string, verdict: Fixture['verdict'], fields: IpFields, payload = segment): Fixture => ({
      says,
      verdict,
      packet: onWire(plain(fields, payload)),
      flows: learned(wireFlow(side, fields, payload)),
    }),
    /** A TCP segment in an IP packet of `bytes` bytes. */
    segmentOf: (bytes: number): Uint8Array =>
      tcp({ src: 80, dst: 40000 }, new Uint8Array(bytes - ipBytes[side.family] - 20)),
    gsoOf: (bytes: number): number => bytes - ipBytes[side.family] - 20,
    sender,
  };
}

for (const side of sides) {
  const { peers, podOf, pods } = side;
  const { leaves, leavesFor, arrives, is, plain, onWire, segmentOf, gsoOf, sender } = wordsOf(side);
  const { near, marked, narrow } = pods;
  const { uplink } = settings;
  const title = `IPv${side.family} with DirectRouting`;

  runFixtures(
    'from_pod',
    title,
    {
      'to a peer on our L2': [
        leaves('sends the packet as it is, one hop further'),
        leaves('sends to the other one too', { dst: podOf(2, 7) }),
        leaves('sends UDP', { protocol: UDP }, udp({ src: 1, dst: 2 })),
        leaves('keeps DSCP and ECN', { tos: 0xbb }),
        leaves('sends the last TTL that may travel, 2 (row 57)', { ttl: 2 }),
        leaves('sends what exactly fits the uplink (row 56)', {}, segmentOf(uplink.mtu)),
        leavesFor(
          'leaves a byte more to the kernel (row 56)',
          'kernel too_big',
          {},
          segmentOf(uplink.mtu + 1),
        ),
        {
          ...leaves('sends a GSO super-packet whose segments fit the uplink (row 55)', {}, segmentOf(3000)),
          gsoSize: gsoOf(uplink.mtu),
        },
        {
          ...leavesFor(
            'leaves a super-packet whose segments do not fit to the kernel',
            'kernel too_big',
            {},
            segmentOf(3000),
          ),
          gsoSize: gsoOf(uplink.mtu + 1),
        },
        leavesFor('leaves TTL 1 to the kernel (row 57)', 'kernel ttl', { ttl: 1 }),
        {
          ...leavesFor('keeps a marked sender on the kernel path', 'kernel marked', {
            src: pods.markedSender.ip,
          }),
          flows: [],
        },
        leavesFor(
          'leaves what its way does not carry, less than the uplink, to the kernel',
          'kernel too_big',
          {},
          segmentOf(1401),
          1400,
        ),
      ],
      'to a peer behind a router': [
        {
          says: 'encapsulates as usual',
          packet: podFrame(side, { dst: podOf(9, 7) }, segment),
          flows: [{ flow: podFlow(side, { dst: podOf(9, 7) }, segment) }],
          verdict: 'fast encap',
          out: (packet) =>
            encapsulated(
              side,
              peers.behindNat,
              ip({ src: sender.ip, dst: podOf(9, 7), protocol: TCP, ttl: 63 }, segment),
              chosenOf(packet),
            ),
        },
        leavesFor(
          'leaves what is too big for its tunnel to the kernel',
          'kernel too_big',
          { dst: podOf(9, 7) },
          segmentOf(uplink.mtu - encapBytes[side.family] + 1),
          uplink.mtu - encapBytes[side.family],
        ),
      ],
    },
    directSettings,
  );

  runFixtures(
    'from_wire',
    title,
    {
      'plain from a peer on our L2': [
        arrives('delivers to the pod, one hop further'),
        arrives('delivers UDP', { protocol: UDP }, udp({ src: 1, dst: 2 })),
        arrives('delivers a ping', { protocol: side.icmp }, icmp(side.family === 4 ? 8 : 128)),
        is(
          'leaves other ICMP to the kernel',
          'kernel protocol',
          { protocol: side.icmp },
          icmp(side.family === 4 ? 3 : 135, new Uint8Array(28)),
        ),
        is(
          'leaves a fragment to the kernel (row 53)',
          'kernel fragment',
          { fragment: 0x00b9 },
          new Uint8Array(32),
        ),
        arrives('keeps DSCP and ECN', { tos: 0xbb }),
        arrives('delivers the last TTL that may travel, 2 (row 57)', { ttl: 2 }),
        arrives('delivers what exactly fits the receiver', {}, segmentOf(1450)),
        is('leaves a byte more to the kernel', 'kernel too_big', {}, segmentOf(1451)),
        {
          ...arrives('delivers a super-packet whose segments fit (row 55)', {}, segmentOf(3000)),
          gsoSize: gsoOf(1450),
        },
        {
          ...is(
            'leaves a super-packet whose segments do not fit to the kernel',
            'kernel too_big',
            {},
            segmentOf(3000),
          ),
          gsoSize: gsoOf(1451),
        },
        is('leaves TTL 1 to the kernel (row 57)', 'kernel ttl', { ttl: 1 }),
        is('leaves a marked receiver to the kernel', 'kernel marked', { dst: marked.ip }),
        is('leaves SCTP to the kernel', 'kernel protocol', { protocol: protocols.sctp }, new Uint8Array(32)),
        is('leaves an address that no pod has to the kernel', 'kernel no_endpoint', { dst: podOf(3, 99) }),
        is('leaves what is too big for a narrow pod', 'kernel too_big', { dst: narrow.ip }, segmentOf(1281)),
        is('leaves a length beyond the frame to the kernel (row 46)', 'kernel malformed', { length: 61 }),
        {
          ...is('leaves unusual padding to the kernel', 'kernel malformed', {}),
          packet: onWire(plain(), 1),
        },
        {
          ...arrives('leaves a broadcast frame to the kernel'),
          packet: ethernet({ dst: 'ff:ff:ff:ff:ff:ff', src: '02:00:00:00:00:01' }, plain()),
          verdict: 'kernel other_mac',
          out: ethernet({ dst: 'ff:ff:ff:ff:ff:ff', src: '02:00:00:00:00:01' }, plain()),
        },
      ],
      'plain from who must send it in a tunnel': [
        is('leaves a peer behind a router to the kernel', 'kernel not_vxlan', { src: podOf(9, 7) }),
        is('leaves an address without a peer to the kernel', 'kernel not_vxlan', { src: podOf(77, 7) }),
        is('leaves the world to the kernel', 'kernel not_vxlan', { src: side.world }),
        is('leaves our own pods’ addresses to the kernel', 'kernel not_vxlan', { src: marked.ip }),
        is('leaves packets to pods of other nodes to the kernel', 'kernel not_vxlan', { dst: podOf(2, 7) }),
      ],
      'in a tunnel': [
        {
          says: 'comes VXLAN of a peer on our L2 too',
          packet: wireFrame(side, {}, segment),
          flows: [{ flow: wireFlow(side) }],
          verdict: 'fast decap',
          out: delivered(near, plain({ ttl: 62 })),
        },
        {
          says: 'comes VXLAN of a peer behind a router',
          packet: tunnelled(side, peers.behindNat, plain({ src: podOf(9, 7) })),
          flows: [{ flow: wireFlow(side, { src: podOf(9, 7) }) }],
          verdict: 'fast decap',
          out: delivered(near, plain({ src: podOf(9, 7), ttl: 62 })),
        },
        {
          says: 'no peer may send for another (row 49)',
          packet: wireFrame(side, { outer: { src: peers.two.vtepIp } }),
          verdict: 'drop spoofed_source',
        },
      ],
    },
    directSettings,
  );

  runFixtures('from_wire', `IPv${side.family} without DirectRouting`, {
    plain: [is('takes the kernel path from any sender', 'kernel not_vxlan', {})],
  });
}

const [v4Side] = sides;
const in4 = wordsOf(v4Side);
const tiny = udp({ src: 1, dst: 2 }, Uint8Array.of(7));
const tinyFields = { protocol: UDP };
const tinyBytes = in4.plain(tinyFields, tiny).length;
runFixtures(
  'from_wire',
  'DirectRouting of short packets',
  {
    'padded to the shortest Ethernet frame': [
      {
        says: 'delivers them with the padding, which the pod removes',
        packet: in4.onWire(in4.plain(tinyFields, tiny), 46 - tinyBytes),
        flows: [{ flow: wireFlow(v4Side, tinyFields, tiny) }],
        verdict: 'fast direct',
        out: delivered(
          v4Side.pods.near,
          Uint8Array.from([
            ...in4.plain({ ...tinyFields, ttl: 62 }, tiny),
            ...new Uint8Array(46 - tinyBytes),
          ]),
        ),
      },
      {
        says: 'leaves a TCP header that is cut off, and goes on in the padding, to the kernel',
        packet: in4.onWire(in4.plain({}, segment.subarray(0, 19)), 46 - 39),
        flows: [{ flow: wireFlow(v4Side, {}, segment) }],
        verdict: 'kernel malformed',
      },
      {
        says: 'leaves packets that are too short for a transport header to the kernel',
        packet: in4.onWire(in4.plain(tinyFields, new Uint8Array(7)), 46 - 27),
        verdict: 'kernel malformed',
      },
    ],
  },
  directSettings,
);

const in6 = wordsOf(v6);
runFixtures(
  'from_pod',
  'what only IPv6 with DirectRouting has',
  {
    'a peer behind a router that wants outer checksums': [
      in6.leavesFor('takes the kernel path', 'kernel marked', { dst: v6.podOf(5, 7) }),
    ],
  },
  directSettings,
);
