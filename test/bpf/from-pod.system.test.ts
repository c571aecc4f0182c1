// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import { type Ipv4Fields, ipv4, readIpv4, tcp, udp } from '../support/packets.ts';
import { Random } from '../support/random.ts';
import { describeOnNode, type Fixture, runFixtures } from './fixtures.ts';
import { chosenOf, delivered, encapsulated, ICMP, podFrame, SCTP, TCP } from './frames.ts';
import { peers, pods, settings } from './node.ts';

const { sender, slowSender, near, slow, narrow } = pods;
const segment = tcp({ src: 40000, dst: 80 });
const datagram = udp({ src: 40000, dst: 53 });

/** A pod's packet to a pod of this node, and how it must arrive: no field of the IP packet changes. */
function local(says: string, ip: Partial<Ipv4Fields>, payload = segment): Fixture {
  const fields = { src: sender.ip, dst: near.ip, protocol: TCP, ...ip };
  return {
    says,
    packet: podFrame(fields, payload),
    verdict: 'fast local',
    out: delivered(near, ipv4(fields, payload)),
  };
}

/** A pod's packet to a pod of another node, and how it must leave: every byte. */
function remote(says: string, ip: Partial<Ipv4Fields>, payload = segment, to = peers.one): Fixture {
  const fields = { src: sender.ip, dst: '10.42.1.7', protocol: TCP, ttl: 64, ...ip };
  return {
    says,
    packet: podFrame(fields, payload),
    verdict: 'fast encap',
    out: (packet) =>
      encapsulated(to, ipv4({ ...fields, ttl: fields.ttl - 1 }, payload), {
        ecn: (fields.tos ?? 0) & 3,
        ...chosenOf(packet),
      }),
  };
}

/** TCP with `bytes` of IP packet in all. */
const segmentOf = (bytes: number): Uint8Array => tcp({ src: 40000, dst: 80 }, new Uint8Array(bytes - 40));

const toStack = (says: string, verdict: Fixture['verdict'], packet: Uint8Array): Fixture => ({
  says,
  verdict,
  packet,
});

const vxlanTo = (dst: string, ip: Partial<Ipv4Fields> = {}, port = settings.port): Uint8Array =>
  podFrame({ dst, protocol: 17, ...ip }, udp({ src: 40000, dst: port }, new Uint8Array(58)));

runFixtures('from_pod', {
  'to a pod of this node': [
    local('gives the frame both MAC addresses and keeps the TTL: one L2 hop, as over the bridge', {}),
    local('delivers even a TTL of 1, which ends at the pod and not here (row 57)', { ttl: 1 }),
    local('keeps DSCP and ECN', { tos: 0xbb }),
    local('delivers UDP', { protocol: 17 }, datagram),
    local('delivers a ping', { protocol: ICMP }, Uint8Array.of(8, 0, 0xf7, 0xfd, 0, 1, 0, 1)),
    local('delivers a first fragment (row 53)', { fragment: 0x2000 }, datagram),
    local('delivers a later fragment, which has no ports (row 53)', { fragment: 0x00b9 }, new Uint8Array(32)),
    {
      ...local('delivers a frame with Ethernet padding behind the packet', {}),
      packet: Uint8Array.from([...podFrame({ dst: near.ip }), 0, 0, 0, 0, 0, 0]),
      out: delivered(
        near,
        Uint8Array.from([
          ...ipv4({ src: sender.ip, dst: near.ip, protocol: TCP }, segment),
          0,
          0,
          0,
          0,
          0,
          0,
        ]),
      ),
    },
    {
      ...local('delivers what exactly fits the receiver', { dst: narrow.ip }, segmentOf(1280)),
      out: delivered(narrow, ipv4({ src: sender.ip, dst: narrow.ip, protocol: TCP }, segmentOf(1280))),
    },
    toStack(
      'leaves what is a byte too big for the receiver to the kernel',
      'stack too_big',
      podFrame({ dst: narrow.ip }, segmentOf(1281)),
    ),
    {
      ...local('delivers a GSO super-packet over the MTU whose segments fit (row 55)', {}, segmentOf(3000)),
      gsoSize: 1410,
    },
    {
      ...toStack(
        'leaves a GSO super-packet whose segments do not fit to the kernel',
        'stack too_big',
        podFrame({ dst: near.ip }, segmentOf(3000)),
      ),
      gsoSize: 1411,
    },
    toStack(
      'knows no such pod: the kernel answers (row 64)',
      'stack no_endpoint',
      podFrame({ dst: '10.42.3.99' }),
    ),
    toStack('leaves the gateway address to the kernel', 'stack no_endpoint', podFrame({ dst: '10.42.3.1' })),
    toStack(
      'lets a pod that talks to itself hairpin through the kernel (row 61)',
      'stack no_endpoint',
      podFrame({ dst: sender.ip }),
    ),
    toStack('leaves a slow receiver to the kernel path', 'stack slow', podFrame({ dst: slow.ip })),
  ],

  'to a pod of another node': [
    remote('puts the outer header before it and takes one from the TTL', {}),
    remote('goes by the peer that the destination belongs to', { dst: '10.42.2.7' }, segment, peers.two),
    remote(
      'sends to a peer behind NAT by its published address',
      { dst: '10.42.9.7' },
      segment,
      peers.behindNat,
    ),
    remote('sends UDP', { protocol: 17 }, datagram),
    remote('sends a ping', { protocol: ICMP }, Uint8Array.of(8, 0, 0xf7, 0xfd, 0, 1, 0, 1)),
    remote('copies ECN Not-ECT to the outer header (row 59)', { tos: 0 }),
    remote('copies ECN ECT(1) to the outer header (row 59)', { tos: 1 }),
    remote('copies ECN ECT(0) to the outer header (row 59)', { tos: 2 }),
    remote('copies ECN CE to the outer header (row 59)', { tos: 3 }),
    remote('keeps DSCP for itself: EF with ECT(0) shows ECT(0) alone outside (row 59)', { tos: 0xba }),
    remote('sends the last TTL that may travel, 2, as 1 (row 57)', { ttl: 2 }),
    remote('sends TTL 255', { ttl: 255 }),
    remote('sends a first fragment whole (row 53)', { fragment: 0x2000 }, datagram),
    remote('sends a later fragment whole (row 53)', { fragment: 0x20b9, id: 7 }, new Uint8Array(32)),
    remote('sends a last fragment whole (row 53)', { fragment: 0x00b9, id: 7 }, new Uint8Array(5)),
    remote('sends what exactly fits, 1450 bytes (row 56)', {}, segmentOf(1450)),
    remote('sends to the address of the other node’s flannel.1', { dst: '10.42.1.0' }),
    toStack(
      'leaves a byte more, with DF, to the kernel, which says frag-needed (row 56)',
      'stack too_big',
      podFrame({ fragment: 0x4000 }, segmentOf(1451)),
    ),
    toStack(
      'leaves a byte more, without DF, to the kernel, which fragments (row 56)',
      'stack too_big',
      podFrame({}, segmentOf(1451)),
    ),
    {
      ...toStack(
        'leaves a GSO super-packet whose segments do not fit to the kernel',
        'stack too_big',
        podFrame({}, segmentOf(3000)),
      ),
      gsoSize: 1411,
    },
    {
      // A test run's GSO packet has no type, so the kernel refuses to grow it: behind the size check, and that is what is shown.
      ...toStack(
        'leaves a packet that the kernel does not let grow as it was',
        'stack no_room',
        podFrame({}, segmentOf(3000)),
      ),
      gsoSize: 1410,
    },
    toStack(
      'leaves TTL 1 to the kernel, which says time exceeded (row 57)',
      'stack ttl',
      podFrame({ ttl: 1 }),
    ),
    toStack('leaves TTL 0 to the kernel (row 57)', 'stack ttl', podFrame({ ttl: 0 })),
    toStack(
      'leaves a part of the network that no node has to the kernel (row 64)',
      'stack no_peer',
      podFrame({ dst: '10.42.77.7' }),
    ),
    toStack(
      'leaves the network’s broadcast address to the kernel (row 60)',
      'stack no_peer',
      podFrame({ dst: '10.42.255.255' }),
    ),
  ],

  'from whom it does not trust': [
    toStack(
      'lets no pod use another pod’s address (row 62)',
      'stack other_source',
      podFrame({ src: near.ip }),
    ),
    toStack(
      'lets no pod use an address that no pod has (row 62)',
      'stack other_source',
      podFrame({ src: '10.42.3.99' }),
    ),
    toStack(
      'lets no pod use another node’s address (row 62)',
      'stack other_source',
      podFrame({ src: '10.42.1.10' }),
    ),
    toStack(
      'lets no pod use the world’s addresses (row 62)',
      'stack other_source',
      podFrame({ src: '8.8.8.8' }),
    ),
    toStack('keeps a slow sender slow to other nodes', 'stack slow', podFrame({ src: slowSender.ip })),
    toStack(
      'keeps a slow sender slow on this node',
      'stack slow',
      podFrame({ src: slowSender.ip, dst: near.ip }),
    ),
  ],

  'to the world outside the cluster': [
    toStack('is the kernel’s', 'stack outside', podFrame({ dst: '8.8.8.8' })),
    toStack('is the kernel’s for a service too', 'stack outside', podFrame({ dst: '10.43.0.10' })),
    toStack(
      'is the kernel’s for a service that has a pod’s number',
      'stack outside',
      podFrame({ dst: '10.43.1.7' }),
    ),
    toStack('never encapsulates multicast (row 60)', 'stack outside', podFrame({ dst: '224.0.0.251' })),
    toStack('never encapsulates broadcast (row 60)', 'stack outside', podFrame({ dst: '255.255.255.255' })),
    toStack('never encapsulates a martian (row 60)', 'stack outside', podFrame({ dst: '127.0.0.1' })),
    toStack('lets a pod talk to a node', 'stack outside', podFrame({ dst: peers.one.vtepIp })),
    toStack(
      'lets a pod talk UDP to a node on another port',
      'stack outside',
      vxlanTo(peers.one.vtepIp, {}, 53),
    ),
    toStack('lets a pod talk VXLAN to who is no node', 'stack outside', vxlanTo('198.51.100.7')),
    toStack(
      'lets a pod talk TCP to the VXLAN port of a node',
      'stack outside',
      podFrame({ dst: peers.one.vtepIp }, tcp({ src: 40000, dst: settings.port })),
    ),
    toStack(
      'reads no ports out of a later fragment’s payload',
      'stack outside',
      vxlanTo(peers.one.vtepIp, { fragment: 0x00b9 }),
    ),
    toStack(
      'drops VXLAN from a pod to another node (row 63)',
      'drop vxlan_from_pod',
      vxlanTo(peers.one.vtepIp),
    ),
    toStack(
      'drops VXLAN from a pod to this node (row 63)',
      'drop vxlan_from_pod',
      vxlanTo(settings.uplink.ip),
    ),
    toStack(
      'drops VXLAN from a pod that lies about its address (row 63)',
      'drop vxlan_from_pod',
      vxlanTo(peers.two.vtepIp, { src: peers.one.vtepIp }),
    ),
    toStack(
      'drops VXLAN from a pod in a first fragment (row 63)',
      'drop vxlan_from_pod',
      vxlanTo(peers.one.vtepIp, { fragment: 0x2000 }),
    ),
    toStack(
      'drops VXLAN from a pod behind IP options too (rows 52, 63)',
      'drop vxlan_from_pod',
      vxlanTo(peers.one.vtepIp, { options: [1, 1, 1, 0] }),
    ),
    toStack(
      'drops VXLAN from a pod behind as many IP options as fit (rows 52, 63)',
      'drop vxlan_from_pod',
      vxlanTo(peers.one.vtepIp, { options: Array.from({ length: 40 }, () => 1) }),
    ),
  ],

  'that it does not understand': [
    toStack('leaves ARP to the kernel', 'stack not_ipv4', podFrame({}, segment, { type: 0x0806 })),
    toStack('leaves IPv6 to the kernel', 'stack not_ipv4', podFrame({}, segment, { type: 0x86dd })),
    toStack('leaves VLAN tags to the kernel', 'stack not_ipv4', podFrame({}, segment, { type: 0x8100 })),
    toStack(
      'leaves IP options to the kernel (row 52)',
      'stack ip_options',
      podFrame({ options: [1, 1, 1, 0] }),
    ),
    toStack(
      'leaves IP options to the kernel on this node too (row 52)',
      'stack ip_options',
      podFrame({ dst: near.ip, options: [0x94, 4, 0, 0] }),
    ),
    toStack('believes no other version in an IPv4 frame', 'stack ip_options', podFrame({ versionIhl: 0x65 })),
    toStack('believes no header shorter than a header', 'stack ip_options', podFrame({ versionIhl: 0x44 })),
    toStack(
      'believes no length beyond the packet (row 46)',
      'stack truncated',
      podFrame({ totalLength: 41 }),
    ),
    toStack(
      'believes no length shorter than the header (row 46)',
      'stack truncated',
      podFrame({ totalLength: 19 }),
    ),
    toStack(
      'leaves a length of zero, BIG TCP’s, to the kernel',
      'stack truncated',
      podFrame({ totalLength: 0 }),
    ),
    toStack(
      'leaves SCTP to the kernel, as its conntrack lookup knows TCP and UDP only',
      'stack translated',
      podFrame({ protocol: SCTP }, new Uint8Array(32)),
    ),
  ],
});

describeOnNode('from_pod, packet by packet', (node) => {
  it('takes no packet that is cut anywhere, and leaves it as it was (row 46)', () => {
    for (const whole of [podFrame(), podFrame({ dst: near.ip }), vxlanTo('8.8.8.8')]) {
      // Linux runs no test on an IPv4 frame that is shorter than its IP header.
      for (let size = 34; size < whole.length; size++) {
        const { verdict, counted, packet } = node().run('from_pod', whole.subarray(0, size));
        expect({ size, verdict, counted }).toEqual({
          size,
          verdict: 'stack',
          counted: 'from_pod: stack truncated',
        });
        expect(packet).toEqual(whole.subarray(0, size));
      }
    }
  });

  it('stands the shortest of frames of every other type (row 46)', () => {
    for (const type of [0x0806, 0x86dd, 0x88cc]) {
      const { verdict, counted } = node().run('from_pod', podFrame({}, segment, { type }).subarray(0, 54));
      expect({ verdict, counted }).toEqual({ verdict: 'stack', counted: 'from_pod: stack not_ipv4' });
    }
  });

  it('gives a flow one source port, inside the range, and different flows different ones', () => {
    const ports = new Set<number>();
    for (let flow = 0; flow < 100; flow++) {
      const of = (seed: number): number => {
        const payload = tcp({ src: 40000 + flow, dst: 80 }, new Uint8Array(seed).fill(seed));
        return chosenOf(node().run('from_pod', podFrame({ id: seed }, payload)).packet).sourcePort;
      };
      const port = of(1);
      expect([of(2), of(700)], `flow ${flow}`).toEqual([port, port]);
      expect(port).toBeGreaterThanOrEqual(settings.sourcePorts.min);
      expect(port).toBeLessThanOrEqual(settings.sourcePorts.max);
      ports.add(port);
    }
    expect(ports.size).toBeGreaterThan(90);
  });

  it('sends all fragments of a packet by one source port, though only the first has ports', () => {
    const fragments = [0x2000, 0x2004, 0x0008].map((fragment, i) =>
      podFrame({ id: 77, fragment, protocol: 17 }, udp({ src: i, dst: 53 + i }, new Uint8Array(24))),
    );
    const ports = fragments.map((packet) => chosenOf(node().run('from_pod', packet).packet).sourcePort);
    expect(new Set(ports).size, `ports ${ports.join(', ')}`).toBe(1);
  });

  it('sends all pings of a pair by one source port, though their checksums differ', () => {
    const ping = (n: number): Uint8Array =>
      podFrame({ protocol: ICMP }, Uint8Array.of(8, 0, 0xf7, 0xfe - n, 0, 1, 0, n));
    const ports = [1, 2, 3].map((n) => chosenOf(node().run('from_pod', ping(n)).packet).sourcePort);
    expect(new Set(ports).size, `ports ${ports.join(', ')}`).toBe(1);
  });

  it('leaves both checksums right, whatever the packet', () => {
    const random = new Random(1624);
    for (let round = 0; round < 300; round++) {
      const ip = { id: random.below(65536), ttl: 2 + random.below(254), tos: random.below(256) };
      const { verdict, packet } = node().run('from_pod', podFrame(ip, segmentOf(40 + random.below(1411))));
      const [outer, inner] = [readIpv4(packet), readIpv4(packet, 64)];
      expect({ ip, verdict, outer: outer.valid, inner: inner.valid, ttl: inner.ttl }).toEqual({
        ip,
        verdict: 'fast',
        outer: true,
        inner: true,
        ttl: ip.ttl - 1,
      });
    }
  });

  it('gives every encapsulated packet an id of its own', () => {
    const ids = Array.from({ length: 50 }, () => chosenOf(node().run('from_pod', podFrame()).packet).id);
    expect(new Set(ids).size).toBeGreaterThan(45);
  });
});
