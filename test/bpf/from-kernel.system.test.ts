// SPDX-License-Identifier: Apache-2.0
/**
 * to_pod and to_wire let everything pass, and learn flows from what they see: here without connections in conntrack, and
 * without a way to a peer. conntrack.system.test.ts has both.
 */
import { describe, expect, it } from 'vitest';
import { ethernet, type EthernetFields, icmp, ip, protocols, tcp, udp } from '../../src/net/packets.ts';
import { describeOnNode, type Fixture, runFixtures } from './support.ts';
import { encapsulated, flowOf, ipBytes, type IpFields, podFrame, withOptions } from './frames.ts';
import {
  directSettings,
  FROM_FAST_PATH,
  noteArrival,
  type NotedArrival,
  type Side,
  sides,
  tableOf,
  TEST_RUN_IFINDEX,
  TEST_RUN_MAC,
  v6,
} from './node.ts';

const { tcp: TCP, udp: UDP } = protocols;
const segment = tcp({ src: 80, dst: 40000 });
const datagram = udp({ src: 53, dst: 40000 });
const flagsOfEnds = { SYN: 0x02, 'SYN, ACK and FIN': 0x13, FIN: 0x11, RST: 0x04 } as const;

/** A test run's device is the host veth of the pod that sends in other fixtures, and that receives here. */
const toPodFields = ({ podOf, pods }: Side, fields: IpFields) => ({
  src: podOf(1, 7),
  dst: pods.sender.ip,
  protocol: TCP,
  ttl: 63,
  ...fields,
});

/** A frame that the kernel path delivers to a pod. */
function toPodFrame(
  side: Side,
  fields: IpFields = {},
  payload: Uint8Array = segment,
  ether: Partial<EthernetFields> = {},
): Uint8Array {
  const { podMac, hostMac } = side.pods.sender;
  const type = side.family === 4 ? 0x0800 : 0x86dd;
  return ethernet({ dst: podMac, src: hostMac, type, ...ether }, ip(toPodFields(side, fields), payload));
}

const echoOf = ({ family }: Side): Uint8Array => icmp(family === 4 ? 0 : 129, Uint8Array.of(0, 9, 0, 1));

function toPodFixtures(side: Side): Record<string, Fixture[]> {
  const { podOf, pods } = side;
  /** Its arrival was noted, so only what the fixture is about keeps it from being learned. */
  const is = (
    says: string,
    verdict: Fixture['verdict'],
    fields: IpFields = {},
    payload = segment,
    ether: Partial<EthernetFields> = {},
  ): Fixture => ({
    says,
    verdict,
    packet: toPodFrame(side, fields, payload, ether),
    noted: { flow: flowOf(toPodFields(side, fields), payload) },
  });
  const syn = tcp({ src: 80, dst: 40000, flags: 0x02 });
  return {
    'of no pod’s packet': [
      is('lets ARP pass', 'kernel not_ip', {}, segment, { type: 0x0806 }),
      is('lets another IP version pass', 'kernel malformed', { version: 10 - side.family }),
      is('lets packets to the world pass', 'kernel no_endpoint', { dst: side.world }),
      is('lets packets pass that are for no pod', 'kernel no_endpoint', { dst: podOf(3, 99) }),
      is('lets packets pass that are for a pod of another node', 'kernel no_endpoint', { dst: podOf(2, 7) }),
      is('lets packets pass that are for another pod than this device’s', 'kernel no_endpoint', {
        dst: pods.near.ip,
      }),
      is('lets packets from the world pass', 'kernel outside', { src: side.world }, syn),
      is(
        'lets packets pass from an address of ours that no pod has',
        'kernel outside',
        { src: podOf(3, 99) },
        syn,
      ),
      is('lets packets of a pod pass that is marked for the kernel path', 'kernel marked', {
        dst: pods.markedSender.ip,
      }),
    ],
    'of what is no flow': [
      is('learns nothing from IP options', 'kernel ip_options', ...withOptions(side)),
      is('learns nothing from a fragment', 'kernel fragment', { fragment: 0x2000 }),
      is('learns nothing from an unknown protocol', 'kernel protocol', { protocol: protocols.sctp }),
      is(
        'learns nothing from an ICMP error',
        'kernel protocol',
        { protocol: side.icmp },
        icmp(side.family === 4 ? 3 : 1, new Uint8Array(28)),
      ),
      is('learns nothing from a header that is cut off', 'kernel malformed', {}, segment.subarray(0, 19)),
      ...Object.entries(flagsOfEnds).map(([name, flags]) =>
        is(`learns nothing from ${name}`, 'kernel handshake', {}, tcp({ src: 80, dst: 40000, flags })),
      ),
    ],
    'of what did not come in as it leaves': kinds(side).flatMap((kind) => notSeen(side, kind)),
  };
}

/** Packets that conntrack does not know. */
const kinds = (side: Side): { name: string; protocol: number; payload: Uint8Array }[] => [
  { name: 'a ping', protocol: side.icmp, payload: echoOf(side) },
  { name: 'TCP', protocol: TCP, payload: segment },
  { name: 'the answer to a SYN', protocol: TCP, payload: tcp({ src: 80, dst: 40000, flags: 0x12 }) },
  { name: 'UDP', protocol: UDP, payload: datagram },
];

/** A packet without a connection, with what was noted of its arrival. */
function notSeen(side: Side, { name, protocol, payload }: ReturnType<typeof kinds>[number]): Fixture[] {
  const fields = { protocol, ttl: 62, tos: 0xb8 };
  const flow = flowOf(toPodFields(side, fields), payload);
  const when = (says: string, noted?: Omit<NotedArrival, 'flow'>): Fixture => ({
    says: `does not learn ${name} when ${says}`,
    verdict: 'kernel not_seen',
    packet: toPodFrame(side, fields, payload),
    noted: { dscp: 46, ttl: 63, ...noted, flow: noted ? flow : { ...flow, src_port: 10 } },
  });
  return [
    when('another packet was noted'),
    when('somebody changed its DSCP', { dscp: 0 }),
    when('it is two hops further', { ttl: 64 }),
    when('its TTL has grown', { ttl: 61 }),
  ];
}

for (const side of sides) runFixtures('to_pod', `IPv${side.family}`, toPodFixtures(side));

/** A frame that the kernel path has encapsulated. */
function toWireFrame(side: Side, fields: IpFields = {}, payload: Uint8Array = segment): Uint8Array {
  const inner = { src: side.pods.sender.ip, dst: side.podOf(1, 7), protocol: TCP, ttl: 63, ...fields };
  return encapsulated(side, side.peers.one, ip(inner, payload), { id: 1, sourcePort: 40000 });
}

function toWireFixtures(side: Side): Record<string, Fixture[]> {
  const { podOf, peers, settings, family } = side;
  const udpAt = 14 + ipBytes[family];
  const valid = toWireFrame(side);
  const is = (says: string, verdict: Fixture['verdict'], packet: Uint8Array): Fixture => ({
    says,
    verdict,
    packet,
  });
  const inner = (says: string, verdict: Fixture['verdict'], fields: IpFields): Fixture =>
    is(says, verdict, toWireFrame(side, fields));
  const plain = (says: string, fields: IpFields, payload: Uint8Array): Fixture =>
    is(
      says,
      'kernel not_vxlan',
      ethernet(
        { dst: TEST_RUN_MAC, src: TEST_RUN_MAC },
        ip({ src: settings.vtepIp, dst: peers.one.vtepIp, ...fields }, payload),
      ),
    );
  return {
    'of what is not in our tunnel': [
      is('lets ARP pass', 'kernel not_ip', podFrame(side, {}, segment, { type: 0x0806 })),
      plain('lets TCP of the node pass', { protocol: TCP }, segment),
      plain('lets UDP of the node pass', {}, datagram),
      plain('lets VXLAN pass that the node forwards', { src: podOf(3, 10) }, udp({ src: 1, dst: 8472 })),
      is('lets another VNI pass', 'kernel other_vni', valid.with(udpAt + 8 + 6, 2)),
      is('lets other flags of VXLAN pass', 'kernel other_vni', valid.with(udpAt + 8, 0x88)),
      is('lets ARP in the tunnel pass', 'kernel not_ip', valid.with(udpAt + 16 + 13, 6)),
      is('lets another IP version in the tunnel pass', 'kernel malformed', valid.with(udpAt + 30, 0)),
    ],
    'of what goes to no peer': [
      inner('lets packets pass to a part of the network that no node has', 'kernel no_peer', {
        dst: podOf(77, 7),
      }),
      inner('lets packets to the world pass', 'kernel no_peer', { dst: side.world }),
    ],
    'of what from_pod would send otherwise': [
      inner(
        'learns nothing, when the kernel knows no way to the peer over the uplink',
        'kernel other_way',
        {},
      ),
    ],
    'of what from_pod has sent': [
      { ...is('looks at nothing and counts nothing', 'nothing', valid), note: FROM_FAST_PATH },
    ],
  };
}

for (const side of sides) runFixtures('to_wire', `IPv${side.family}`, toWireFixtures(side));

runFixtures('to_wire', 'IPv6', {
  'to a peer that wants outer checksums': [
    {
      says: 'is let pass',
      verdict: 'kernel marked',
      packet: toWireFrame(v6, { dst: v6.podOf(5, 7) }),
    },
  ],
});

for (const side of sides) {
  const is = (says: string, verdict: Fixture['verdict'], dst: string): Fixture => ({
    says,
    verdict,
    packet: podFrame(side, { dst, ttl: 63 }),
  });
  runFixtures(
    'to_wire',
    `IPv${side.family} with DirectRouting`,
    {
      'plain to a pod of another node': [
        is('learns nothing, when the kernel knows no way there', 'kernel other_way', side.podOf(1, 7)),
        is('lets packets pass to a peer behind a router', 'kernel no_peer', side.podOf(9, 7)),
        is('lets packets pass to no peer', 'kernel no_peer', side.podOf(77, 7)),
        is('lets packets pass to the world', 'kernel not_vxlan', side.world),
      ],
    },
    directSettings,
  );
}

describeOnNode('to_pod and to_wire, packet by packet', (node) => {
  describe.each(sides)('IPv$family', (side) => {
    it.each(['to_pod', 'to_wire'] as const)('%s lets truncated packets pass (row 46)', (hook) => {
      const whole = (hook === 'to_pod' ? toPodFrame : toWireFrame)(side);
      for (let size = 14 + ipBytes[side.family]; size < whole.length; size++) {
        const { verdict, packet } = node().run(hook, whole.subarray(0, size));
        expect({ size, verdict }).toEqual({ size, verdict: 'kernel' });
        expect(packet).toEqual(whole.subarray(0, size));
      }
    });

    it.each(
      kinds(side).flatMap((kind) => [
        { ...kind, says: 'one hop further', hops: 1 },
        { ...kind, says: 'across a bridge', hops: 0 },
      ]),
    )('to_pod learns $name that leaves as it came in, $says', ({ protocol, payload, hops }) => {
      const fields = { protocol, ttl: 62, tos: 0xba };
      const flow = flowOf(toPodFields(side, fields), payload);
      using _ = node().learn([]);
      noteArrival(node().tables, { flow, ttl: 62 + hops, dscp: 46, epoch: 3, ifindex: 9 });
      const before = Number(process.hrtime.bigint());
      const { counted, packet } = node().run('to_pod', toPodFrame(side, fields, payload));
      expect(counted).toBe('to_pod: kernel learned');
      expect(packet).toEqual(toPodFrame(side, fields, payload));
      const { head, out } = tableOf(node().tables, flow).get(flow)!;
      expect(Math.abs(head.learned_ns - before)).toBeLessThan(1e9);
      expect({ ...head, learned_ns: 'now', noted_ns: 'then', out }).toEqual({
        noted_ns: 'then',
        learned_ns: 'now',
        packets: 0,
        bytes: 0,
        epoch: 3,
        ifindex: 9,
        mtu: side.pods.sender.mtu,
        mark: 0,
        priority: 0,
        frame_dst: 0,
        is_translated: 0,
        is_settled: 0,
        is_ending: 0,
        ttl: 62 + hops,
        dscp: 46,
        hops,
        source_port: 0,
        out: flow,
      });
    });

    it('to_pod learns a flow again that has expired', () => {
      const fields = { protocol: side.icmp };
      const flow = flowOf(toPodFields(side, fields), echoOf(side));
      using _ = node().learn([{ flow, ageMs: 60_000 }]);
      noteArrival(node().tables, { flow, ifindex: TEST_RUN_IFINDEX });
      expect(node().run('to_pod', toPodFrame(side, fields, echoOf(side))).counted).toBe(
        'to_pod: kernel learned',
      );
      const age = Number(process.hrtime.bigint()) - tableOf(node().tables, flow).get(flow)!.head.learned_ns;
      expect(age).toBeLessThan(1e9);
    });
  });
});
