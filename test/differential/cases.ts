// SPDX-License-Identifier: Apache-2.0
/**
 * The packets that are sent through both labs. Case n of a seed is always the same. Every packet of case n carries n's
 * tag as its IPv4 id or its IPv6 flow label, and in fields that a kernel's answer repeats, so that all packets of a
 * case can be recognized (tags.ts).
 */
import { bytesToAddress, type Family } from '../../src/net/ip.ts';
import {
  checksum,
  ethernet,
  ip,
  type Ipv4Fields,
  ipv6Fragment,
  protocols as numbers,
  udp,
  vxlan,
} from '../../src/net/packets.ts';
import { Random, seedOf } from '../support/random.ts';
import type { Offload } from '../support/raw-socket.ts';
import { ICMP, ICMP_ERRORS, ICMPV6, ICMPV6_ERRORS, IPV4, IPV6, TCP, UDP } from './dissect.ts';
import {
  familyOf,
  GATEWAYS,
  inCluster,
  isWide,
  NODES,
  type NodeName,
  nodeOf,
  other,
  OUTSIDE,
  type Place,
  POD_MTU,
  type PodName,
  podNames,
  PODS,
  podsOn,
  VTEPS,
  WIDE_MTU,
} from './plan.ts';
import { finished, icmpMessage, numberedTcp } from './segments.ts';
import { OWN, SEGMENTS_PORT, tagOfCase, tagSequence } from './tags.ts';

/** MAC addresses differ between the labs, but not their roles. */
export interface Macs {
  pod(name: PodName): string;
  /** The pod's MAC address of its node. */
  gateway(of: PodName): string;
  /** The MAC address to which the pod's kernel would send a packet to this address. */
  hop(from: PodName, dst: string): string;
  uplink(of: NodeName): string;
  vtep(of: NodeName, family: Family): string;
}

export interface Outgoing {
  frame: (macs: Macs) => Uint8Array;
  offload?: Offload;
}

export interface Case {
  readonly number: number;
  readonly tag: number;
  readonly kind: string;
  readonly family: Family;
  readonly from: Place;
  /** Sent one immediately after another. */
  readonly frames: readonly Outgoing[];
}

const broadcast = 'ff:ff:ff:ff:ff:ff';
const strangersMac = '02:11:22:33:44:55';
const [SCTP, GRE, IGMP, IPIP] = [132, 47, 2, 4];
const HEADER = { 4: 20, 6: 40 } as const;

const one = (random: Random, of: number): boolean => random.below(of) === 0;
/** Pseudo-random bytes, cheaply made. */
function bytes(random: Random, length: number): Uint8Array {
  let value = random.below(65536);
  return new Uint8Array(length).map(() => (value = (value * 25173 + 13849) & 0xffff) >>> 8);
}

const sizes = [
  0, 0, 1, 7, 8, 18, 26, 64, 100, 511, 1000, 1372, 1382, 1383, 1390, 1391, 1392, 1400, 1410, 1411, 1421, 1422,
  1423, 1430, 1431,
] as const;
const oversizes = [1452, 1472, 1480, 1500, 1550] as const;
const ttls = [64, 64, 64, 64, 63, 255, 3, 2, 1, 0] as const;
const fragments = [0, 0, 0, 0, 0, 0x4000, 0x4000, 0x8000, 0x2000, 0x0001, 0x20b9, 0x1fff] as const;
const protocols = [TCP, TCP, TCP, UDP, UDP, UDP, ICMP, ICMP, SCTP, GRE, IGMP, IPIP, 255] as const;
/** Fragment fields for IPv6: zero means no header, DF a header of a whole packet ("atomic", RFC 6946). */
const fragments6 = [0, 0, 0, 0, 0, 0, 0, 0, 0x4000, 0x2000, 0x0001, 0x20b9, 0x1fff] as const;
/** conntrack cannot distinguish masqueraded packets of other protocols by case. */
const natProtocols = [TCP, UDP, ICMP] as const;
const servicePorts = [7, 53, 80, 443, 4789, 8472, 0] as const;
const tcpFlags = [0x02, 0x02, 0x10, 0x18, 0x11, 0x04, 0x12, 0x00, 0x3f, 0x29] as const;

/** With room for two routers. In a fragmented datagram only the first fragment has it. */
const recordRoute = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/** Options (RFC 791), valid and invalid; each has a multiple of four bytes. */
const optionSets: readonly (readonly number[])[] = [
  [1, 1, 1, 1],
  [0, 0, 0, 0],
  recordRoute,
  [68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0], // timestamps
  [148, 4, 0, 0], // router alert
  [131, 7, 4, 10, 42, 1, 3, 0], // loose source route
  [130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], // security
  [200, 4, 1, 2], // unknown, copied
  [7, 40, 4, 0], // longer than the header
  [7, 0, 4, 0], // length zero
];

/**
 * Extension headers (RFC 8200 section 4) without their first byte, the next header. Each has a multiple of eight bytes
 * with it.
 */
const extensionSets: readonly (readonly (readonly [type: number, ...body: number[]])[])[] = [
  [[numbers.hopByHop, 0, 1, 4, 0, 0, 0, 0]],
  [[numbers.hopByHop, 0, 5, 2, 0, 1, 1, 0]], // router alert, for RSVP
  [[numbers.hopByHop, 0, 0x7e, 4, 0, 0, 0, 0]], // an unknown option: discard
  [[numbers.hopByHop, 0, 0xbe, 4, 0, 0, 0, 0]], // discard, with an ICMP error
  [[numbers.hopByHop, 0, 1, 9, 0, 0, 0, 0]], // an option that is longer than the header
  [[numbers.hopByHop, 200, 1, 4, 0, 0, 0, 0]], // longer than the packet, mostly
  [[numbers.destinationOptions, 0, 1, 4, 0, 0, 0, 0]],
  [[numbers.destinationOptions, 1, 1, 12, ...Array.from({ length: 12 }, () => 0)]],
  [[numbers.destinationOptions, 0, 0xbe, 4, 0, 0, 0, 0]],
  [[numbers.routing, 0, 4, 0, 0, 0, 0, 0]], // with no segments left
  [[numbers.routing, 0, 4, 1, 0, 0, 0, 0]],
  [
    [numbers.hopByHop, 0, 1, 4, 0, 0, 0, 0],
    [numbers.destinationOptions, 0, 1, 4, 0, 0, 0, 0],
  ],
  [
    [numbers.destinationOptions, 0, 1, 4, 0, 0, 0, 0],
    [numbers.hopByHop, 0, 1, 4, 0, 0, 0, 0], // not in first place
  ],
];

/** A destination of a pod's packet, or a forged source. */
function anyone(random: Random, from: NodeName, family: Family): string {
  const away = other(from);
  return random.pick(family === 4 ? everyone4(from, away) : everyone6(from, away));
}

function everyone4(home: NodeName, away: NodeName): readonly string[] {
  const all = [home, away].map((node) => VTEPS[4][node].replace(/0$/, ''));
  return [
    ...all.map((net) => `${net}77`), // no pod on either node has it
    '10.42.200.7', // no node has it
    ...all.flatMap((net) => [`${net}1`, `${net}0`, `${net}255`]),
    NODES[4][home],
    NODES[4][away],
    '172.31.0.99',
    OUTSIDE[4],
    OUTSIDE[4],
    OUTSIDE[4],
    '198.51.100.7',
    '224.0.0.251',
    '239.1.2.3',
    '255.255.255.255',
    '0.0.0.0',
    '127.0.0.1',
    '240.0.0.1',
    '169.254.1.1',
  ];
}

function everyone6(home: NodeName, away: NodeName): readonly string[] {
  return [
    `${VTEPS[6][home]}77`,
    `${VTEPS[6][away]}77`,
    'fd00:42:0:c8::7',
    ...[GATEWAYS, VTEPS, NODES].flatMap((of) => [of[6][home], of[6][away]]),
    'fd00:31::99',
    OUTSIDE[6],
    OUTSIDE[6],
    OUTSIDE[6],
    '2001:db8:ffff::7',
    'ff02::1',
    'ff02::fb',
    'ff05::2',
    'ff0e::1',
    '::',
    '::1',
    '::ffff:10.42.0.2',
    'fe80::dead',
  ];
}

interface Made {
  packet: Uint8Array;
  /** An offset from the packet's start. */
  offload?: Offload;
}

interface Ends {
  family: Family;
  src: string;
  dst: string;
  /** From a pod's own address to the cluster network, so that no node masquerades it. */
  isPlain: boolean;
}

/** The payload of an IP packet, and its protocol number. */
function transport(random: Random, tag: number, size: number, ends: Ends) {
  const payload = bytes(random, size);
  const dst = random.pick(servicePorts);
  const drawn = random.pick(ends.isPlain ? protocols : natProtocols);
  const protocol = drawn === ICMP && ends.family === 6 ? ICMPV6 : drawn;
  const about = { ...ends, protocol };
  switch (protocol) {
    case TCP: {
      const flags = random.pick(tcpFlags);
      const sequence = {
        seq: tagSequence(tag, random.below(1024)),
        ack: tagSequence(tag, random.below(1024)),
      };
      const segment = numberedTcp(
        { src: 10_000 + random.below(50_000), dst, flags, ...sequence },
        payload.subarray(0, Math.max(0, size - 12)),
      );
      return finish(random, about, segment, 16);
    }
    case UDP: {
      const length = one(random, 15)
        ? { length: random.pick([0, 7, 8, 8 + size - 1, 8 + size + 1, 65535]) }
        : {};
      const datagram = udp({ src: 10_000 + random.below(50_000), dst, ...length }, payload);
      if (one(random, ends.family === 4 ? 6 : 30) || 'length' in length)
        return { protocol, segment: datagram }; // no checksum
      return finish(random, about, datagram, 6);
    }
    case ICMP: {
      const type = random.pick([8, 8, 8, 0, 13, 17, 40]);
      const isReply = type === 0;
      return {
        protocol,
        segment: icmpMessage({ type, rest: tag * 65536 + (isReply ? OWN : tag) }, payload, ends),
      };
    }
    case ICMPV6: {
      // Among others neighbour discovery about an unused address.
      const type = random.pick([128, 128, 128, 128, 129, 135, 136, 139, 200]);
      const isReply = type === 129;
      const rest = tag * 65536 + (isReply ? OWN : tag);
      const message = icmpMessage({ type, rest }, payload, ends);
      if (one(random, 8)) message[2]! ^= 1 + random.below(255);
      return { protocol, segment: message };
    }
    default:
      return { protocol, segment: payload };
  }
}

/** Set the checksum: correct, mostly left to the device as by a pod's kernel, or wrong. */
function finish(
  random: Random,
  about: { src: string; dst: string; protocol: number },
  segment: Uint8Array,
  checksumAt: number,
) {
  const { protocol } = about;
  switch (random.below(8)) {
    case 0: {
      const wrong = finished(about, segment);
      wrong[checksumAt]! ^= 1 + random.below(255);
      return { protocol, segment: wrong };
    }
    case 1:
    case 2:
    case 3:
      return { protocol, segment: finished(about, segment) };
    default:
      return { protocol, segment: finished(about, segment, true), checksumAt };
  }
}

function ipPacket(
  random: Random,
  tag: number,
  ends: Ends,
  wide: boolean,
  over: Partial<Ipv4Fields> = {},
): Made {
  const size = random.pick(wide && one(random, 4) ? oversizes : sizes);
  const { family } = ends;
  const made = { checksumAt: undefined, ...transport(random, tag, size, ends) };
  const { checksumAt } = made;
  const fragment = random.pick(family === 4 ? fragments : fragments6);
  const hasOptions = one(random, 20);
  const options = hasOptions && family === 4 ? [...random.pick(optionSets)] : [];
  const extensions = hasOptions && family === 6 ? random.pick(extensionSets) : [];
  const { protocol, segment } = extended(extensions, extensions.length > 0 ? fragment : 0, tag, made);
  const fields = { ...ends, protocol, id: tag, flowLabel: tag, options };
  const packet = ip(
    {
      ...fields,
      tos: one(random, 2) ? 0 : random.below(256),
      ttl: random.pick(ttls),
      ...(extensions.length === 0 && { fragment }),
      ...over,
    },
    segment,
  );
  const lengths = one(random, 25);
  if (lengths) {
    const by = random.pick([-20, -8, -1, 1, 8, 1000]);
    const length = Math.max(0, packet.length + by - (family === 4 ? 0 : HEADER[6]));
    return { packet: ip({ ...fields, length, ...over }, segment) };
  }
  const padded = one(random, 15)
    ? Uint8Array.from([...packet, ...bytes(random, 1 + random.below(30))])
    : packet;
  if (checksumAt === undefined || padded !== packet) return { packet: padded };
  return { packet, offload: { transport: 14 + packet.length - made.segment.length, checksumAt } };
}

/** A payload with extension headers before it, and the number of the first header. */
function extended(
  extensions: (typeof extensionSets)[number],
  fragment: number,
  id: number,
  { protocol, segment }: { protocol: number; segment: Uint8Array },
): { protocol: number; segment: Uint8Array } {
  const inner =
    fragment === 0
      ? { protocol, segment }
      : { protocol: numbers.fragment, segment: ipv6Fragment({ protocol, fragment, id }, segment) };
  return extensions.reduceRight(
    (behind, [type, ...body]) => ({
      protocol: type,
      segment: Uint8Array.from([behind.protocol, ...body, ...behind.segment]),
    }),
    inner,
  );
}

/** A frame of a pod with this packet. */
function sendFrom(from: PodName, dst: string, { packet, offload }: Made): Outgoing {
  const type = familyOf(dst) === 6 ? IPV6 : IPV4; // also if the version in a corrupted header differs
  return {
    frame: (macs) => ethernet({ dst: macs.hop(from, dst), src: macs.pod(from), type }, packet),
    ...(offload && { offload }),
  };
}

function podEnds(random: Random, from: PodName, family: Family): Ends {
  const others = podNames.filter((pod) => pod !== from).map((pod) => PODS[family][pod]);
  const own = PODS[family][from];
  const src = one(random, 20) ? random.pick([...others, anyone(random, nodeOf(from), family)]) : own;
  const dst = random.pick([
    ...others,
    ...others,
    ...(one(random, 8) ? [own] : []),
    anyone(random, nodeOf(from), family),
    anyone(random, nodeOf(from), family),
  ]);
  return { family, src, dst, isPlain: src === own && inCluster(dst) };
}

type Maker = (
  random: Random,
  tag: number,
  family: Family,
) => Omit<Case, 'number' | 'tag' | 'kind' | 'family'>;

const packet: Maker = (random, tag, family) => {
  const from = random.pick(podNames);
  const ends = podEnds(random, from, family);
  return { from, frames: [sendFrom(from, ends.dst, ipPacket(random, tag, ends, isWide(from)))] };
};

/** A datagram in fragments: in order, the last one first, one missing, or one twice. */
const pieces: Maker = (random, tag, family) => {
  const from = random.pick(podNames);
  const ends = podEnds(random, from, family);
  const size = random.pick([24, 100, 1000, 1440, 3000, 9000]);
  const { protocol, segment } = transport(random, tag, size, ends);
  const about = { ...ends, protocol };
  const whole = one(random, 4) ? segment : finished(about, segment);
  const step = random.pick(
    isWide(from)
      ? [8, 64, 552, 1376, 1384, 1400, 1424, 1432, 1552, 1576]
      : [8, 64, 552, 1376, 1384, 1400, 1424],
  );
  const count = Math.min(Math.ceil(whole.length / step), 30);
  const fields = { ...about, id: tag, flowLabel: tag, ttl: random.pick(ttls), tos: random.below(256) };
  const ofTheFirst =
    family === 4 && one(random, 8) && step + 32 < POD_MTU ? { options: [...recordRoute] } : {};
  const frames = Array.from({ length: count }, (_, i) => {
    const more = i < count - 1;
    const part = more ? whole.subarray(i * step, (i + 1) * step) : whole.subarray(i * step);
    const fragment = (more ? 0x2000 : 0) | ((i * step) >>> 3);
    const options = i === 0 ? ofTheFirst : {};
    const packet = ip({ ...fields, ...options, fragment }, part);
    return { size: HEADER[family] + part.length, frame: sendFrom(from, ends.dst, { packet }) };
  }).flatMap(({ size, frame }) => (size > (isWide(from) ? WIDE_MTU : POD_MTU) ? [] : [frame]));
  switch (random.below(6)) {
    case 0:
      frames.reverse();
      break;
    case 1:
      frames.splice(random.below(frames.length), 1);
      break;
    case 2:
      frames.push(random.pick(frames));
      break;
    default:
  }
  return { from, frames };
};

/** An ICMP error about a packet that its receiver may or may not have sent. */
const icmpError: Maker = (random, tag, family) => {
  const from = random.pick(podNames);
  const ends = podEnds(random, from, family);
  const about = ipPacket(random, tag, { ...ends, src: ends.dst, dst: ends.src }, false).packet;
  // An MTU without effect: a pod's kernel would remember a smaller one, which would affect later cases.
  const mtu = 9000;
  const [type, rest] =
    family === 4
      ? [random.pick(ICMP_ERRORS.filter((type) => type !== 5)), tag * 65536]
      : [random.pick(ICMPV6_ERRORS), 0];
  const fields = { type, code: random.below(5), rest: rest + (type === (family === 4 ? 3 : 2) ? mtu : 0) };
  const quoted = about.subarray(0, random.pick([8, 20, 27, 28, 40, 48, 128, 548, 1232]));
  const message = icmpMessage(fields, quoted, ends);
  const protocol = family === 4 ? ICMP : ICMPV6;
  const packet = ip({ ...ends, protocol, id: tag, flowLabel: tag, ttl: random.pick(ttls) }, message);
  return { from, frames: [sendFrom(from, ends.dst, { packet })] };
};

/**
 * Frames that a bridge and a router treat differently: to unused addresses, broadcasts, with VLAN tags, of unknown
 * types.
 */
const frame: Maker = (random, tag, family) => {
  const from = random.pick(podNames);
  const ends = podEnds(random, from, family);
  const { packet } = ipPacket(random, tag, ends, false);
  if (family === 6 && one(random, 8)) packet[0]! ^= 0x10; // an unknown version of IP
  const tagged = random.pick([undefined, undefined, 0, 5, 0x2003]);
  const to = random.below(7);
  const type = one(random, 4)
    ? random.pick([0x88b5, 0x86dd, 0x0806, 0x0060])
    : family === 4
      ? 0x0800
      : 0x86dd;
  const neighbour = random.pick(podsOn(nodeOf(from)));
  const isForged = one(random, 8);
  return {
    from,
    frames: [
      {
        frame: (macs) => {
          const dst = [
            broadcast,
            family === 4 ? '01:00:5e:00:00:fb' : '33:33:00:00:00:fb',
            '01:80:c2:00:00:0e',
            strangersMac,
            macs.gateway(from),
            macs.pod(neighbour),
            macs.hop(from, ends.dst),
          ][to]!;
          const src = isForged ? strangersMac : macs.pod(from);
          if (tagged === undefined) return ethernet({ dst, src, type }, packet);
          const inVlan = Uint8Array.from([tagged >>> 8, tagged & 255, type >>> 8, type & 255, ...packet]);
          return ethernet({ dst, src, type: 0x8100 }, inVlan);
        },
      },
    ],
  };
};

/** A corrupted packet, with its tag intact. Sometimes the header's checksum and length match the corruption. */
const broken: Maker = (random, tag, family) => {
  const from = random.pick(podNames);
  const ends = { ...podEnds(random, from, family), isPlain: false }; // its destination may be corrupted
  let bad = ipPacket(random, tag, ends, false).packet.slice();
  const headerLength = family === 4 ? (bad[0]! & 15) * 4 : HEADER[6];
  const isTag = (at: number) =>
    (family === 4 ? at === 4 || at === 5 : at < 4) || (at >= headerLength + 4 && at < headerLength + 12);
  const mend = one(random, 2);
  for (let left = 1 + random.below(3); left > 0; left--) {
    const at = random.below(Math.min(bad.length, family === 4 ? 60 : 80));
    if (isTag(at) || (mend && at === 0)) continue;
    if (one(random, 2)) bad[at]! ^= 1 << random.below(8);
    else if (one(random, 3)) bad = bad.slice(0, 6 + random.below(Math.max(1, bad.length - 6)));
    else bad[at] = random.below(256);
  }
  if (mend && family === 6 && bad.length >= HEADER[6]) {
    const length = bad.length - HEADER[6];
    bad.set([length >>> 8, length & 255], 4);
  }
  if (mend && family === 4 && bad.length >= headerLength) {
    if (one(random, 2)) bad.set([bad.length >>> 8, bad.length & 255], 2);
    bad.set([0, 0], 10);
    const sum = checksum(bad.subarray(0, headerLength));
    bad.set([sum >>> 8, sum & 255], 10);
  }
  const address = family === 4 ? bad.subarray(16, 20) : bad.subarray(24, 40);
  const dst = bad.length < HEADER[family] ? ends.dst : bytesToAddress(address);
  return { from, frames: [sendFrom(from, dst, { packet: bad })] };
};

/** A super-packet of TCP or UDP, not yet segmented by the sender's kernel. */
const superPacket: Maker = (random, tag, family) => {
  const from = random.pick(podNames);
  const src = PODS[family][from];
  const isTcp = one(random, 2);
  const others = podNames.filter((pod) => pod !== from).map((pod) => PODS[family][pod]);
  const dst = random.pick(isTcp ? [...others, OUTSIDE[family]] : others);
  const size = random.pick([100, 536, 1000, 1370, 1371, 1382, 1383, 1390, 1398, 1410, 1411, 1422, 1430]);
  const payload = bytes(random, random.pick([3000, 9000, isTcp ? 62_000 : 20_000]));
  const ports = isTcp
    ? { src: 10_000 + random.below(50_000), dst: random.pick(servicePorts) }
    : { src: tag, dst: SEGMENTS_PORT };
  const seq = tagSequence(tag, 0);
  const segment = isTcp
    ? numberedTcp({ ...ports, flags: 0x18, seq, ack: seq }, payload)
    : udp(ports, payload);
  const protocol = isTcp ? TCP : UDP;
  const header = isTcp ? 20 : 8;
  const fields = {
    src,
    dst,
    protocol,
    id: tag,
    flowLabel: tag,
    ttl: random.pick(ttls),
    tos: random.below(256) & ~3,
  };
  const fragment = family === 4 && one(random, 2) ? 0x4000 : 0;
  const packet = ip({ ...fields, fragment }, finished(fields, segment, true));
  const transport = 14 + HEADER[family];
  const type = isTcp ? (family === 4 ? 'tcp4' : 'tcp6') : family === 4 ? 'udp4' : 'udp6';
  const gso = { type, size, headers: transport + header } as const;
  const offload = { transport, checksumAt: isTcp ? 16 : 6, gso };
  return { from, frames: [sendFrom(from, dst, { packet, offload })] };
};

/** VXLAN from a node's cable, mostly from the other node, mostly valid. */
const tunnelled: Maker = (random, tag, family) => {
  const to = random.pick(['node1', 'node2'] as const);
  const peer = other(to);
  const odd = <T>(usual: T, ...others: T[]): T => (one(random, 25) ? random.pick(others) : usual);
  const theirs = PODS[family][random.pick(podsOn(peer))];
  const src = odd<string>(theirs, PODS[family][random.pick(podsOn(to))], anyone(random, to, family));
  const ours = PODS[family][random.pick(podsOn(to))];
  const dst = one(random, 6) ? anyone(random, to, family) : ours;
  const ends = { family, src, dst, isPlain: src === theirs && dst === ours };
  const { packet: inner } = ipPacket(random, tag, ends, false, {
    ttl: random.pick([63, 63, 63, 255, 2, 1, 0]),
  });
  const outer = {
    src: odd<string>(
      NODES[family][peer],
      NODES[family][to],
      family === 4 ? '172.31.0.99' : 'fd00:31::99',
      OUTSIDE[family],
    ),
    dst: odd<string>(NODES[family][to], NODES[family][peer], family === 4 ? '172.31.255.255' : 'ff02::1'),
    tos: random.below(256),
    ttl: random.pick([64, 64, 1, 0]),
    id: tag,
    flowLabel: tag,
    fragment: odd(0, 0x4000, 0x2000, 0x00b9),
    options: odd<number[]>([], [1, 1, 1, 1], [148, 4, 0, 0]),
  };
  const ports = { src: 32768 + random.below(28000), dst: odd(8472, 4789, 53) };
  const header = { vni: odd(1, 2, 0x10001), flags: odd(8, 0, 0x88, 0xff) };
  const type = family === 4 ? odd(0x0800, 0x86dd, 0x0806, 0x88b5) : odd(0x86dd, 0x0806, 0x88b5);
  const toMac = odd<'vtep' | 'pod' | 'broadcast' | 'stranger'>('vtep', 'pod', 'broadcast', 'stranger');
  const check = random.pick(
    family === 4
      ? ['none', 'none', 'none', 'right', 'right', 'wrong']
      : ['none', 'right', 'right', 'right', 'right', 'right', 'right', 'wrong'],
  );
  const cut = odd(0, 1, 20, 45);
  const tail = odd(0, 3, 40);
  return {
    from: `cable of ${to}`,
    frames: [
      {
        frame: (macs) => {
          const innerDst = {
            vtep: macs.vtep(to, family),
            pod: macs.pod(podsOn(to)[0]!),
            broadcast,
            stranger: strangersMac,
          }[toMac];
          const innerFrame = ethernet({ dst: innerDst, src: macs.vtep(peer, family), type }, inner);
          let datagram = udp(ports, vxlan(header, innerFrame));
          if (check !== 'none') datagram = finished({ ...outer, protocol: UDP }, datagram);
          // Not wrong by the same amount as an inner checksum: then the fast path accepts it, and leaves the check to
          // the pod.
          if (check === 'wrong') datagram[7]! ^= 0x55;
          const whole = ethernet(
            { dst: macs.uplink(to), src: macs.uplink(peer) },
            ip({ ...outer, protocol: UDP }, datagram),
          );
          return Uint8Array.from([...whole.subarray(0, whole.length - cut), ...new Uint8Array(tail)]);
        },
      },
    ],
  };
};

const makers: readonly [weight: number, kind: string, maker: Maker][] = [
  [56, 'packet', packet],
  [5, 'pieces', pieces],
  [4, 'ICMP error', icmpError],
  [6, 'frame', frame],
  [6, 'broken', broken],
  [3, 'super-packet', superPacket],
  [20, 'tunnelled', tunnelled],
];

/** Case `number` of the series of `seed`. It is always the same. */
export function caseOf(seed: number, number: number): Case {
  const random = new Random(seedOf(seed, number));
  const tag = tagOfCase(number);
  let chosen = random.below(makers.reduce((sum, [weight]) => sum + weight, 0));
  const [, kind, maker] = makers.find(([weight]) => (chosen -= weight) < 0)!;
  const family = one(random, 3) ? 6 : 4;
  return { number, tag, kind, family, ...maker(random, tag, family) };
}
