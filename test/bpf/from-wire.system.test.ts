// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import type { Peer } from '../../src/dataplane/desired.ts';
import { ethernet, type Ipv4Fields, ipv4, readIpv4, tcp, udp } from '../support/packets.ts';
import { Random } from '../support/random.ts';
import { describeOnNode, type Fixture, runFixtures } from './fixtures.ts';
import { delivered, ICMP, SCTP, TCP, tunnelled, type WireFields, wireFrame } from './frames.ts';
import { peers, pods, settings } from './node.ts';

const { near, slow, narrow } = pods;
const segment = tcp({ src: 80, dst: 40000 });
const segmentOf = (bytes: number): Uint8Array => tcp({ src: 80, dst: 40000 }, new Uint8Array(bytes - 40));

/** A tunnelled packet, and what the pod gets of it, byte by byte: the inner packet with a TTL less by one. */
function arrives(
  says: string,
  inner: Partial<Ipv4Fields> = {},
  payload = segment,
  { from = peers.one, to = near, wire = {} }: { from?: Peer; to?: typeof near; wire?: WireFields } = {},
): Fixture {
  const fields = { src: '10.42.1.7', dst: to.ip, protocol: TCP, ttl: 63, ...inner };
  return {
    says,
    packet: tunnelled(from, ipv4(fields, payload), wire),
    verdict: 'fast decap',
    out: delivered(to, ipv4({ ...fields, ttl: fields.ttl - 1 }, payload)),
  };
}

const is = (
  says: string,
  verdict: Fixture['verdict'],
  wire: WireFields = {},
  payload = segment,
): Fixture => ({
  says,
  verdict,
  packet: wireFrame(wire, payload),
});

/** RFC 6040, figure 4: what the inner ECN field becomes; a row for each inner one, a column for each outer one. */
const names = ['Not-ECT', 'ECT(1)', 'ECT(0)', 'CE'] as const; // by codepoint
const figure4 = {
  'Not-ECT': { 'Not-ECT': 'Not-ECT', 'ECT(0)': 'Not-ECT', 'ECT(1)': 'Not-ECT', CE: 'drop' },
  'ECT(0)': { 'Not-ECT': 'ECT(0)', 'ECT(0)': 'ECT(0)', 'ECT(1)': 'ECT(1)', CE: 'CE' },
  'ECT(1)': { 'Not-ECT': 'ECT(1)', 'ECT(0)': 'ECT(1)', 'ECT(1)': 'ECT(1)', CE: 'CE' },
  CE: { 'Not-ECT': 'CE', 'ECT(0)': 'CE', 'ECT(1)': 'CE', CE: 'CE' },
} as const;

/** Each combination, between DSCPs that must stay what they are: EF inside, AF41 outside. */
const ecnFixtures = names.flatMap((inner, innerEcn) =>
  names.map((outer, outerEcn): Fixture => {
    const [dscp, outerDscp] = [46 << 2, 34 << 2];
    const becomes = figure4[inner][outer];
    const says = `${inner} inside ${outer} becomes ${becomes}`;
    const fixture = arrives(says, { tos: dscp | innerEcn }, segment, {
      wire: { outer: { tos: outerDscp | outerEcn } },
    });
    if (becomes === 'drop') return { says, packet: fixture.packet, verdict: 'drop ecn' };
    const tos = dscp | names.indexOf(becomes);
    const packet = ipv4({ src: '10.42.1.7', dst: near.ip, protocol: TCP, ttl: 62, tos }, segment);
    return { ...fixture, out: delivered(near, packet) };
  }),
);

runFixtures('from_wire', {
  'from a peer to a pod of ours': [
    arrives('takes the outer header off and one from the TTL'),
    arrives('delivers UDP', { protocol: 17 }, udp({ src: 53, dst: 40000 })),
    arrives('delivers a ping', { protocol: ICMP }, Uint8Array.of(8, 0, 0xf7, 0xfd, 0, 1, 0, 1)),
    arrives('delivers a first fragment (row 53)', { fragment: 0x2000 }),
    arrives(
      'delivers a later fragment, which has no ports (row 53)',
      { fragment: 0x00b9 },
      new Uint8Array(32),
    ),
    arrives('delivers an empty IP packet', {}, new Uint8Array(0)),
    arrives('takes the last TTL that may travel, 2 (row 57)', { ttl: 2 }),
    arrives('takes TTL 255', { ttl: 255 }),
    arrives('delivers from the other node’s flannel.1: its processes', { src: '10.42.1.0' }),
    arrives('goes by the peer that the inner source belongs to', { src: '10.42.2.7' }, segment, {
      from: peers.two,
    }),
    arrives('takes every source port outside', {}, segment, { wire: { udp: { src: 1 } } }),
    arrives('takes every inner source MAC: the kernel does too', {}, segment, {
      wire: { innerEther: { src: '06:06:06:06:06:06' } },
    }),
    arrives('takes DF outside', {}, segment, { wire: { outer: { fragment: 0x4000 } } }),
    arrives('delivers what exactly fits the receiver', {}, segmentOf(1280), { to: narrow }),
    {
      ...arrives('keeps Ethernet padding behind the inner packet where it is'),
      packet: tunnelled(
        peers.one,
        Uint8Array.from([
          ...ipv4({ src: '10.42.1.7', dst: near.ip, protocol: TCP, ttl: 63 }, segment),
          ...new Uint8Array(6),
        ]),
      ),
      out: delivered(
        near,
        Uint8Array.from([
          ...ipv4({ src: '10.42.1.7', dst: near.ip, protocol: TCP, ttl: 62 }, segment),
          ...new Uint8Array(6),
        ]),
      ),
    },
  ],

  'ECN by RFC 6040, figure 4, DSCP untouched (row 59)': ecnFixtures,

  'that is not for our VXLAN port': [
    is('is not its business when ARP', 'stack not_ipv4', { ether: { type: 0x0806 } }),
    is('is not its business when IPv6', 'stack not_ipv4', { ether: { type: 0x86dd } }),
    is('is not its business when VLAN-tagged (row 54)', 'stack not_ipv4', { ether: { type: 0x8100 } }),
    is('is not its business when TCP', 'stack not_vxlan', { outer: { protocol: TCP } }),
    is('is not its business on another port', 'stack not_vxlan', { udp: { dst: 4789 } }),
    is('is not its business at another address', 'stack not_vxlan', { outer: { dst: '192.168.0.4' } }),
    is('leaves outer IP options to the kernel (row 52)', 'stack ip_options', {
      outer: { options: [1, 1, 1, 0] },
    }),
    is('leaves a first outer fragment to the kernel (row 52)', 'stack outer_fragment', {
      outer: { fragment: 0x2000 },
    }),
    is('leaves a later outer fragment to the kernel (row 52)', 'stack outer_fragment', {
      outer: { fragment: 0x00b9 },
    }),
  ],

  'in VXLAN that it does not speak': [
    is('leaves another VNI to the kernel (row 47)', 'stack other_vni', { vxlan: { vni: 2 } }),
    is('compares all 24 bits of the VNI (row 47)', 'stack other_vni', { vxlan: { vni: 0x01_0001 } }),
    is('leaves a missing I flag to the kernel (row 47)', 'stack other_vni', { vxlan: { flags: 0 } }),
    is('leaves other flags beside it to the kernel, GBP’s say (row 47)', 'stack other_vni', {
      vxlan: { flags: 0x88 },
    }),
    is('leaves another inner MAC to the kernel (row 51)', 'stack other_mac', {
      innerEther: { dst: 'aa:00:00:00:00:04' },
    }),
    is('leaves an inner broadcast to the kernel (rows 51, 60)', 'stack other_mac', {
      innerEther: { dst: 'ff:ff:ff:ff:ff:ff' },
    }),
    is('leaves inner ARP to the kernel (row 50)', 'stack not_ipv4', { innerEther: { type: 0x0806 } }),
    is('leaves inner IPv6, so ND, to the kernel (row 50)', 'stack not_ipv4', {
      innerEther: { type: 0x86dd },
    }),
    is('leaves unknown inner ethertypes to the kernel (row 50)', 'stack not_ipv4', {
      innerEther: { type: 0x88cc },
    }),
    is('leaves inner IP options to the kernel', 'stack ip_options', { inner: { options: [1, 1, 1, 0] } }),
    is('believes no inner version but 4', 'stack ip_options', { inner: { versionIhl: 0x65 } }),
  ],

  'whose lengths contradict each other (row 46)': [
    is('believes no outer length beyond the packet', 'stack truncated', { outer: { totalLength: 91 } }),
    is('believes no outer length short of the packet', 'stack truncated', { outer: { totalLength: 89 } }),
    is('believes no UDP length beyond the packet', 'stack truncated', { udp: { length: 71 } }),
    is('believes no UDP length short of the packet', 'stack truncated', { udp: { length: 69 } }),
    is('believes no inner length beyond the packet', 'stack truncated', { inner: { totalLength: 41 } }),
    is('believes no inner length short of its header', 'stack truncated', { inner: { totalLength: 19 } }),
  ],

  'from who must not': [
    is('drops what comes from no node, in a node’s name (row 48)', 'drop unknown_peer', {
      outer: { src: '192.168.0.77' },
    }),
    is('drops what comes from no node, in nobody’s name (row 48)', 'drop unknown_peer', {
      outer: { src: '192.168.0.77' },
      inner: { src: '10.42.77.7' },
    }),
    is('drops what seems to come from ourselves (row 48)', 'drop unknown_peer', {
      outer: { src: settings.uplink.ip },
    }),
    is('drops one node’s packet in another’s name (row 49)', 'drop spoofed_source', {
      outer: { src: peers.two.vtepIp },
    }),
    is('drops a node’s packet in the name of no node (row 49)', 'drop spoofed_source', {
      inner: { src: '10.42.77.7' },
    }),
    is('drops a node’s packet in our pods’ name (row 49)', 'drop spoofed_source', {
      inner: { src: slow.ip },
    }),
    is('drops a node’s packet in the world’s name (row 49)', 'drop spoofed_source', {
      inner: { src: '8.8.8.8' },
    }),
    is(
      'drops a node’s packet in the name of an outsider with a number like its pods’ (row 49)',
      'drop spoofed_source',
      {
        inner: { src: '10.99.1.7' },
      },
    ),
    is('drops a node’s packet from a multicast address (rows 49, 60)', 'drop spoofed_source', {
      inner: { src: '224.0.0.1' },
    }),
    is('drops a spoofed source also when no pod of ours is meant (row 49)', 'drop spoofed_source', {
      inner: { src: '10.42.2.7', dst: '8.8.8.8' },
    }),
    is('leaves to the kernel what a node sends that has no slot in the peers map', 'stack no_peer', {
      outer: { src: peers.unindexed.vtepIp },
      inner: { src: '10.42.16.7' },
    }),
    arrives('takes a peer behind NAT from whatever address', { src: '10.42.9.7' }, segment, {
      from: { ...peers.behindNat, vtepIp: '198.51.100.200' },
    }),
    is('lets a peer behind NAT speak for its own pods only (row 49)', 'drop spoofed_source', {
      outer: { src: peers.behindNat.vtepIp },
    }),
  ],

  'that the kernel must see to': [
    is('leaves an outer checksum that nobody verified to the kernel (row 58)', 'stack outer_checksum', {
      udp: { checksum: 0x1234 },
    }),
    is('knows no such pod', 'stack no_endpoint', { inner: { dst: '10.42.3.99' } }),
    is('leaves the node’s own flannel.1 address to the kernel', 'stack no_endpoint', {
      inner: { dst: '10.42.3.0' },
    }),
    is('relays nothing to another node', 'stack no_endpoint', { inner: { dst: '10.42.2.7' } }),
    is('relays nothing back to the node that it came from', 'stack no_endpoint', {
      inner: { dst: '10.42.1.8' },
    }),
    is('relays nothing to the world', 'stack no_endpoint', { inner: { dst: '8.8.8.8' } }),
    is('takes no other node’s pod for ours that has its number', 'stack no_endpoint', {
      inner: { dst: near.ip.replace('10.42.3.', '10.42.2.') },
    }),
    is('takes nobody in the world for a pod that has its number', 'stack no_endpoint', {
      inner: { dst: near.ip.replace('10.42.3.', '198.51.100.') },
    }),
    is('delivers no multicast (row 60)', 'stack no_endpoint', { inner: { dst: '224.0.0.251' } }),
    is('leaves a slow receiver to the kernel path', 'stack slow', { inner: { dst: slow.ip } }),
    is('leaves TTL 1 to the kernel, which says time exceeded (row 57)', 'stack ttl', { inner: { ttl: 1 } }),
    is('leaves TTL 0 to the kernel (row 57)', 'stack ttl', { inner: { ttl: 0 } }),
    is(
      'leaves what is a byte too big for the receiver to the kernel (row 56)',
      'stack too_big',
      { inner: { dst: narrow.ip } },
      segmentOf(1281),
    ),
    {
      // A test run's GSO packet has no type, so the kernel refuses to shrink it.
      ...is(
        'leaves a packet that the kernel does not let shrink as it was',
        'stack no_room',
        {},
        segmentOf(3000),
      ),
      gsoSize: 1400,
    },
    is('leaves SCTP to the kernel', 'stack translated', { inner: { protocol: SCTP } }, new Uint8Array(32)),
  ],
});

describeOnNode('from_wire, packet by packet', (node) => {
  it('leaves the inner checksum right, whatever it was', () => {
    const random = new Random(1624);
    for (let round = 0; round < 256; round++) {
      // ECT(1) becomes CE, and both bytes of the checksum take every value, so both changes carry now and then.
      const inner = { id: round * 257, ttl: 2 + random.below(254), tos: 1 };
      const { verdict, packet } = node().run('from_wire', wireFrame({ inner, outer: { tos: 3 } }));
      const { valid, ttl, tos } = readIpv4(packet);
      expect({ inner, verdict, valid, ttl, tos }).toEqual({
        inner,
        verdict: 'fast',
        valid: true,
        ttl: inner.ttl - 1,
        tos: 3,
      });
    }
  });

  const whole = wireFrame();
  // Linux runs no test on an IPv4 frame that is shorter than its IP header.
  const sizes = Array.from({ length: whole.length - 34 }, (_, i) => 34 + i);

  it('takes no packet that is cut anywhere, and leaves it as it was (row 46)', () => {
    for (const size of sizes) {
      const { verdict, packet } = node().run('from_wire', whole.subarray(0, size));
      expect({ size, verdict }).toEqual({ size, verdict: 'stack' });
      expect(packet).toEqual(whole.subarray(0, size));
    }
  });

  it('takes no inner packet that is cut anywhere, in an outer one that is whole (row 46)', () => {
    for (const size of sizes.filter((size) => size >= 42)) {
      const payload = whole.subarray(42, size); // VXLAN header and what follows
      const packet = ethernet(
        { dst: '02:00:00:00:00:03', src: '02:00:00:00:00:01' },
        ipv4({ src: peers.one.vtepIp, dst: settings.uplink.ip }, udp({ src: 45678, dst: 8472 }, payload)),
      );
      const { verdict, counted } = node().run('from_wire', packet);
      expect({ size, verdict, counted }).toEqual({
        size,
        verdict: 'stack',
        counted: 'from_wire: stack truncated',
      });
    }
  });
});
