// SPDX-License-Identifier: Apache-2.0
/**
 * Packets for the comparison, each determined by a seed and a number: valid ones of every kind that a node meets, and
 * the same with something wrong. Every kind is frequent enough that ten thousand packets meet every reason.
 */
import type { Peer } from '../../src/dataplane/desired.ts';
import { addressAt, addressToBytes, cidrContains, type Family } from '../../src/net/ip.ts';
import { bytesToMac } from '../../src/net/mac.ts';
import {
  type Flow,
  type NotedArrival,
  type Side,
  sides,
  TEST_RUN_IFINDEX,
  TEST_RUN_MAC,
  tunnel,
  tunnelKey,
} from '../bpf/node.ts';
import {
  checksum,
  ethernet,
  type EthernetFields,
  icmp,
  ip,
  ipv6Extension,
  ipv6Fragment,
  protocols,
  sealed,
  sealedAround,
  tcp,
  udp,
  vxlan,
  unsummed,
} from '../../src/net/packets.ts';
import { Random, seedOf } from '../support/random.ts';
import { type Arrival, type Entry, EPOCH, type Hook, type MetTunnel } from './model.ts';
import { endsOf, type IpPacket, familyOf, headerLength, membership, readFlow, readIp, u16 } from './read.ts';
import { ports, type WorldName, worlds } from './world.ts';

/** The shortest frame of a test run: an Ethernet header, and an IP header of the ethertype's family. */
export const SHORTEST: Readonly<Record<Family, number>> = { 4: 34, 6: 54 };

const { port: vxlanPort, vni } = tunnel;

/** The addresses that packets of a family come from and go to. */
interface Cast extends Pick<Side, 'family' | 'settings' | 'icmp'> {
  readonly peers: (typeof worlds.tunnelled)['peers'];
  /** Those without special properties. */
  readonly plain: { readonly peer: Peer; readonly sender: string; readonly receiver: string };
  readonly pods: readonly string[];
  readonly senders: readonly string[];
  readonly receivers: readonly string[];
  readonly remotePods: readonly string[];
  readonly anyone: readonly string[];
  readonly nodes: readonly string[];
  readonly noNode: string;
  /** Addresses that were those of a pod, or of a node's, before it went. */
  readonly lost: readonly string[];
  /** The senders whose packets are not all left to the kernel path. */
  readonly trusted: readonly string[];
  readonly isInNetwork: (address: string) => boolean;
}

function castOf({ family, settings, icmp, podOf, vtepOf, ...side }: Side): Cast {
  const ofFamily = (address: string): boolean => address.includes(':') === (family === 6);
  const endpoints = worlds.tunnelled.endpoints.filter(({ ip }) => ofFamily(ip));
  const pods = endpoints.map(({ ip }) => ip);
  const peers = worlds.tunnelled.peers.filter(({ podCidr }) => podCidr.family === family);
  // Whether this is in the podCIDR of a node depends on the length of podCIDRs.
  const [remoteEdge, ownEdge] =
    family === 4 ? [podOf(1, 207), podOf(3, 207)] : ['fd00:42:0:1:100::7', 'fd00:42:0:3:100::7'];
  const remotePods = [
    podOf(1, 7),
    podOf(2, 7),
    podOf(5, 7),
    podOf(9, 7),
    remoteEdge,
    podOf(1, 0),
    podOf(200, 7),
  ];
  const nodes = [...peers.map(({ vtepIp }) => vtepIp), settings.vtepIp];
  const lost = [podOf(77, 7), podOf(3, 99), podOf(3, 0), ownEdge];
  const nobody = family === 4 ? ['0.0.0.0'] : ['::', 'fe80::7'];
  const strangers = [...lost, side.world, side.service, side.multicast, ...nobody];
  const isSender = (hostIfindex: number): boolean => hostIfindex === TEST_RUN_IFINDEX;
  return {
    family,
    settings,
    icmp,
    peers,
    plain: { peer: side.peers.one, sender: side.pods.sender.ip, receiver: side.pods.near.ip },
    pods,
    senders: endpoints.filter(({ hostIfindex }) => isSender(hostIfindex)).map(({ ip }) => ip),
    receivers: endpoints.filter(({ hostIfindex }) => !isSender(hostIfindex)).map(({ ip }) => ip),
    remotePods,
    nodes,
    anyone: [...pods, ...remotePods, ...strangers, ...nodes],
    noNode: vtepOf(77),
    lost,
    trusted: [side.pods.sender.ip],
    isInNetwork: (address) => cidrContains(settings.network, address),
  };
}
const casts = sides.map(castOf);

const smallSizes = [0, 1, 3, 4, 8, 20, 26, 100] as const;
const mtus = [1280, 1430, 1450, 1500] as const;
/** All MTUs, and one byte more. */
const mtuEdges = mtus.flatMap((mtu) => [mtu, mtu + 1]);
const ttls = [64, 64, 63, 255, 2, 1, 0] as const;
const fragments = [0, 0, 0, 0x4000, 0x2000, 0x00b9, 0x20b9, 0x8000] as const;
/** ICMPv6: too big, echo, and the types from before neighbour discovery to after it. In IPv4 they mean nothing. */
const icmpTypes = [0, 1, 2, 3, 5, 8, 11, 127, 128, 129, 132, 133, 134, 135, 136, 137, 138] as const;
const echoTypes = { 4: [0, 8], 6: [128, 129] } as const;
const extensions = [
  protocols.hopByHop,
  protocols.routing,
  51,
  protocols.destinationOptions,
  135,
  139,
  140,
] as const;
/** Byte values that matter in headers. */
const interesting = [0, 1, 3, 0x2c, 0x3a, 0x44, 0x45, 0x46, 0x4f, 0x60, 0x7f, 0x80, 0xff] as const;

const one = (random: Random, of: number): boolean => random.below(of) === 0;

/** Mostly the first, sometimes one of the others. */
const mostly = <T>(random: Random, usual: readonly T[], others: readonly T[]): T =>
  random.pick(one(random, 8) ? others : usual);

/** Half of the time a protocol of the fast path. */
const often = <T>(random: Random, plain: T, all: readonly T[]): T =>
  one(random, 2) ? plain : random.pick(all);

/** Rarely one of the others. */
const odd = <T>(random: Random, usual: T, ...others: T[]): T =>
  one(random, 40) ? random.pick(others) : usual;

const transportHeaders: Readonly<Record<number, number>> = { [protocols.tcp]: 20, [protocols.udp]: 8 };

function payloadOf(random: Random, cast: Cast, protocol: number): Uint8Array {
  const { family } = cast;
  const byte = random.below(256);
  if (one(random, 10)) return new Uint8Array(random.pick(smallSizes)).fill(byte); // without a valid header
  const headers = headerLength[family] + (transportHeaders[protocol] ?? 4);
  const size = one(random, 4) ? random.pick(mtuEdges) - headers : random.pick(smallSizes);
  const data = new Uint8Array(size).fill(byte);
  const port = { src: random.pick(ports), dst: random.pick(ports) };
  if (protocol === protocols.tcp)
    return tcp({ ...port, flags: odd(random, 0x10, 0x02, 0x12, 0x11, 0x04, 0xf8) }, data);
  if (protocol === protocols.udp) return udp(one(random, 6) ? { ...port, dst: vxlanPort } : port, data);
  if (protocol === protocols.icmp || protocol === protocols.icmpv6)
    return icmp(
      mostly(random, echoTypes[family], icmpTypes),
      Uint8Array.from([0, random.below(3), 0, byte, ...data]),
    );
  return data;
}

/** IPv6 extension headers: options and others. */
function withExtension(random: Random, protocol: number, payload: Uint8Array): [number, Uint8Array] {
  if (one(random, 3)) {
    const inner = { protocol, fragment: random.pick(fragments), id: random.below(65536) };
    return [protocols.fragment, ipv6Fragment(inner, payload)];
  }
  return [random.pick(extensions), ipv6Extension(protocol, payload)];
}

interface Ends {
  readonly src: string;
  readonly dst: string;
}

function ipPacket(random: Random, cast: Cast, ends: Ends): Uint8Array {
  const { family } = cast;
  const protocol = mostly(
    random,
    [protocols.tcp, protocols.udp, protocols.tcp, protocols.udp, cast.icmp],
    [protocols.icmp, protocols.icmpv6, protocols.sctp, protocols.gre, protocols.noNext, random.below(256)],
  );
  const payload = payloadOf(random, cast, protocol);
  const hasOptions = one(random, 20);
  const extended = hasOptions && family === 6 ? withExtension(random, protocol, payload) : undefined;
  const fields = {
    ...ends,
    protocol: extended?.[0] ?? protocol,
    tos: random.below(256),
    id: random.below(65536),
    flowLabel: random.below(0x100000),
    ttl: mostly(random, [64, 63], ttls),
    fragment: mostly(random, [extended?.[0] === protocols.fragment ? 0x2000 : 0], fragments),
    version: odd(random, family, 4, 6, 0, 15),
    ...(hasOptions && { options: Array.from({ length: 4 * (1 + random.below(10)) }, () => 1) }),
    ...(one(random, 40) && { checksum: random.below(65536) }),
  };
  const packet = ip(fields, extended?.[1] ?? payload);
  const isPlain = !hasOptions && (fields.fragment & 0x3fff) === 0 && fields.version === family;
  if (one(random, 20)) return padded(packet, packet.length + random.below(60));
  return isPlain && !one(random, 6) ? sealed(packet) : packet;
}

function padded(packet: Uint8Array, length: number): Uint8Array {
  const bytes = new Uint8Array(Math.max(length, packet.length));
  bytes.set(packet);
  return bytes;
}

const ethertypes = { 4: 0x0800, 6: 0x86dd } as const;
const otherMacs = ['ff:ff:ff:ff:ff:ff', '33:33:00:00:00:01', '02:00:00:00:00:03', '00:00:00:00:00:01'];

const macs = (random: Random, { family }: Cast): EthernetFields => ({
  dst: one(random, 30) ? random.pick(otherMacs) : TEST_RUN_MAC,
  src: '0a:00:00:00:00:10',
  type: ethertypes[family],
});

function fromPod(random: Random, cast: Cast): Uint8Array {
  const src = mostly(random, [mostly(random, cast.trusted, cast.senders)], cast.anyone);
  const receiver = often(random, cast.plain.receiver, cast.receivers);
  const pod = mostly(random, [receiver, ...cast.remotePods.slice(0, 5)], cast.anyone);
  const dst = one(random, 20) ? random.pick(cast.nodes) : pod;
  return ethernet(macs(random, cast), ipPacket(random, cast, { src, dst }));
}

function toWire(random: Random, cast: Cast, node: WorldName): Uint8Array {
  const { family, settings } = cast;
  const peer = often(random, cast.plain.peer, cast.peers);
  const dst = mostly(random, [addressAt(peer.podCidr, 7)], cast.anyone);
  const src = mostly(random, cast.pods, cast.anyone);
  const inner = ipPacket(random, cast, { src, dst });
  if (node === 'direct' && one(random, 2)) return ethernet(macs(random, cast), inner);
  const type = odd<number>(random, ethertypes[family], 0x0800, 0x0806, 0x86dd);
  const header = { vni: odd(random, vni, 2, 0x10001), flags: odd(random, 8, 0, 0x88) };
  const innerFrame = ethernet({ dst: peer.vtepMac, src: settings.vtepMac, type }, inner);
  const packet = ip(
    {
      src: mostly(random, [settings.vtepIp], cast.nodes),
      dst: peer.vtepIp,
      protocol: odd<number>(random, protocols.udp, protocols.tcp),
      fragment: odd(random, 0, ...fragments),
    },
    udp({ src: random.below(65536), dst: odd(random, vxlanPort, 53) }, vxlan(header, innerFrame)),
  );
  return ethernet(macs(random, cast), packet);
}

/** What the kernel path sends into the tunnel. */
function toVtep(random: Random, cast: Cast): Uint8Array {
  const peer = often(random, cast.plain.peer, cast.peers);
  const dst = mostly(random, [addressAt(peer.podCidr, 7)], cast.anyone);
  const src = mostly(random, cast.pods, cast.anyone);
  const frame = { ...macs(random, cast), dst: odd(random, peer.vtepMac, ...otherMacs) };
  return ethernet(frame, ipPacket(random, cast, { src, dst }));
}

/** What the kernel path has decapsulated. */
function fromVtep(random: Random, cast: Cast): Uint8Array {
  const src = mostly(random, [addressAt(random.pick(cast.peers).podCidr, 7)], cast.anyone);
  const frame = ethernet(macs(random, cast), ipPacket(random, cast, { src, dst: cast.plain.receiver }));
  if (!one(random, 20)) return frame;
  return Uint8Array.from([...frame.subarray(0, 12), 0x81, 0, 0, 0, ...frame.subarray(12)]);
}

function toPod(random: Random, cast: Cast): Uint8Array {
  const src = mostly(random, [...cast.remotePods, ...cast.pods], cast.anyone);
  const dst = mostly(random, [mostly(random, cast.trusted, cast.senders)], cast.anyone);
  return ethernet(macs(random, cast), ipPacket(random, cast, { src, dst }));
}

/** A plain packet, as nodes on one L2 send it. A short one is padded, as by a NIC. */
function plainFromWire(random: Random, cast: Cast): Uint8Array {
  const src = mostly(random, cast.remotePods, cast.anyone);
  const dst = mostly(random, [often(random, cast.plain.receiver, cast.pods)], cast.anyone);
  const packet = ipPacket(random, cast, { src, dst });
  return ethernet(macs(random, cast), one(random, 4) ? packet : padded(packet, 46));
}

const unsealed = (packet: Uint8Array): Uint8Array => packet;
const seals = [unsealed, unsealed, sealed, sealedAround, unsummed] as const;

function tunnelledFromWire(random: Random, cast: Cast): Uint8Array {
  const { family, settings } = cast;
  const peer = often(random, cast.plain.peer, cast.peers);
  const src = mostly(random, [addressAt(peer.podCidr, 7)], cast.anyone);
  const dst = mostly(random, [often(random, cast.plain.receiver, cast.pods)], cast.anyone);
  const inner = ipPacket(random, cast, { src, dst });
  const type = odd<number>(random, ethertypes[family], 0x0800, 0x0806, 0x86dd, 0x8100);
  const innerMacs = { dst: odd(random, settings.vtepMac, peer.vtepMac, ...otherMacs), src: peer.vtepMac };
  const header = { vni: odd(random, vni, 2, 0x10001), flags: odd(random, 8, 0, 0x88, 0xff) };
  const datagram = udp(
    {
      src: random.below(65536),
      dst: odd(random, vxlanPort, 4789, 53),
      checksum: one(random, 6) ? random.below(65536) : 0,
    },
    vxlan(header, ethernet({ ...innerMacs, type }, inner)),
  );
  const protocol = odd<number>(random, protocols.udp, protocols.tcp, cast.icmp, protocols.noNext);
  const hasOptions = one(random, 40);
  const extended = hasOptions && family === 6 ? withExtension(random, protocol, datagram) : undefined;
  const outer = {
    src: mostly(random, [peer.vtepIp], [cast.noNode, ...cast.nodes]),
    dst: one(random, 40) ? cast.noNode : settings.vtepIp,
    tos: random.below(256),
    ttl: random.pick(ttls),
    protocol: extended?.[0] ?? protocol,
    fragment: odd(random, 0, ...fragments),
    ...(hasOptions && { options: [1, 1, 1, 0] }),
  };
  const packet = ip(outer, extended?.[1] ?? datagram);
  const seal = hasOptions || outer.fragment !== 0 ? unsealed : random.pick(seals);
  return ethernet(macs(random, cast), seal(packet));
}

function fromWire(random: Random, cast: Cast, node: WorldName): Uint8Array {
  const isPlain = node === 'direct' ? one(random, 2) : one(random, 20);
  return (isPlain ? plainFromWire : tunnelledFromWire)(random, cast);
}

const packets: Readonly<Record<Hook, (random: Random, cast: Cast, node: WorldName) => Uint8Array>> = {
  from_pod: fromPod,
  from_vtep: fromVtep,
  from_wire: fromWire,
  to_pod: toPod,
  to_vtep: toVtep,
  to_wire: toWire,
  xdp_from_wire: fromWire,
};
const usualHooks: readonly Hook[] = [
  'from_pod',
  'from_pod',
  'from_wire',
  'from_wire',
  'to_vtep',
  'xdp_from_wire',
];

/** The offsets of the lower bytes of length fields: outer and inner IP, UDP. */
const lengthFields: Readonly<Record<Family, readonly number[]>> = {
  4: [17, 39, 67, 39],
  6: [19, 59, 89, 59],
};

/** Corrupt the packet somewhere, mostly in its headers. */
function mutated(random: Random, packet: Uint8Array, { family }: Cast): Uint8Array {
  let bytes = packet.slice();
  const headers = family === 4 ? 110 : 160;
  for (let left = 1 + random.below(3); left > 0; left--) {
    const at = random.below(Math.min(bytes.length, headers));
    switch (random.below(9)) {
      case 0:
      case 1:
        bytes[at]! ^= 1 << random.below(8);
        break;
      case 2:
        bytes[at] = random.below(256);
        break;
      case 3:
        bytes[at] = random.pick(interesting);
        break;
      case 4: {
        const shortest = Math.min(SHORTEST[family], bytes.length);
        bytes = bytes.slice(0, shortest + random.below(bytes.length - shortest + 1));
        break;
      }
      case 5: // off by a little
        {
          const field = random.pick(lengthFields[family]);
          if (field < bytes.length) bytes[field]! += random.below(9) - 4;
        }
        break;
      case 6: {
        const tag = [0x81, 0, random.below(16), random.below(256)];
        bytes = Uint8Array.from([...bytes.subarray(0, 12), ...tag, ...bytes.subarray(12)]);
        break;
      }
      case 7: {
        const again = bytes.subarray(at, at + 1 + random.below(8));
        bytes = Uint8Array.from([...bytes.subarray(0, at), ...again, ...bytes.subarray(at)]);
        break;
      }
      default:
        bytes.set(
          random.pick([
            [0x86, 0xdd],
            [0x08, 0x06],
            [0x08, 0x00],
          ] as const),
          12,
        );
    }
  }
  return one(random, 3) ? bytes : mended(bytes);
}

/** Correct the IPv4 header checksums, so that they do not reveal every change. */
function mended(bytes: Uint8Array): Uint8Array {
  for (const at of [14, 64]) {
    const header = bytes.subarray(at, at + 20);
    if (header.length < 20 || header[0] !== 0x45) continue;
    header.set([0, 0], 10);
    const sum = checksum(header);
    header.set([sum >>> 8, sum & 255], 10);
  }
  return bytes;
}

function noise(random: Random): Uint8Array {
  const bytes = Uint8Array.from({ length: SHORTEST[4] + random.below(200) }, () => random.below(256));
  if (one(random, 2)) bytes.set([0, 0, 0, 0, 0, 0]);
  const [type, first] = random.pick([
    [[0x08, 0x00], 0x45],
    [[0x86, 0xdd], 0x60],
  ] as const);
  if (!one(random, 4)) bytes.set(type, 12);
  if (one(random, 2)) bytes[14] = first;
  return bytes;
}

/** A super-packet: not yet segmented by the sender's kernel, or merged by the receiver's. */
function superPacket(
  random: Random,
  cast: Cast,
  hook: 'from_pod' | 'from_wire' | 'to_vtep',
  node: WorldName,
): Arrival {
  const protocol = random.pick([protocols.tcp, protocols.udp]);
  const port = { src: random.pick(ports), dst: random.pick(ports) };
  const payload = (protocol === protocols.tcp ? tcp : udp)(port, new Uint8Array(3000));
  const headers = headerLength[cast.family] + transportHeaders[protocol]!;
  const gsoSize = one(random, 4) ? 536 : random.pick(mtuEdges) - headers;
  const common = { protocol, ttl: random.pick(ttls), tos: random.below(256) };
  const peer = random.pick(cast.peers);
  const remote = addressAt(peer.podCidr, 7);
  const inner =
    hook !== 'from_wire'
      ? ip(
          { ...common, src: random.pick(cast.senders), dst: random.pick([...cast.receivers, remote]) },
          payload,
        )
      : ip({ ...common, src: remote, dst: random.pick(cast.pods) }, payload);
  const isTunnelled = hook === 'from_wire' && !(node === 'direct' && one(random, 2));
  const packet = isTunnelled
    ? ip(
        { src: peer.vtepIp, dst: cast.settings.vtepIp, tos: random.below(256) },
        udp(
          { src: 45678, dst: vxlanPort, checksum: random.pick([0, 1]) },
          vxlan({ vni }, ethernet({ dst: cast.settings.vtepMac, src: peer.vtepMac }, inner)),
        ),
      )
    : inner;
  const dst = hook === 'to_vtep' ? peer.vtepMac : TEST_RUN_MAC;
  const frame = ethernet({ ...macs(random, cast), dst }, packet);
  return { node, hook, packet: frame, ifindex: TEST_RUN_IFINDEX, gsoSize, ...met(random, cast, hook, frame) };
}

/** The IP packet whose flow is looked up at this hook: the one inside the tunnel, if there is one. */
function ipIn(hook: Hook, packet: Uint8Array, { family }: Cast): IpPacket | undefined {
  if (familyOf(u16(packet, 12)) !== family) return undefined;
  const inner = packet.subarray(14 + headerLength[family] + 8 + 8 + 14);
  const places =
    hook === 'from_pod' || hook === 'to_pod' || hook === 'to_vtep' || hook === 'from_vtep'
      ? [packet.subarray(14)]
      : [inner, packet.subarray(14)];
  return places.map((place) => readIp(place, family)).find((read) => read !== undefined);
}

function flowIn(hook: Hook, packet: Uint8Array, cast: Cast): Flow | undefined {
  const found = ipIn(hook, packet, cast);
  return found && readFlow(found).flow;
}

/** What a packet meets: its flow in the flow table, mostly valid; and what was noted when it came in. */
function met(
  random: Random,
  cast: Cast,
  hook: Hook,
  packet: Uint8Array,
): Pick<Arrival, 'table' | 'flow' | 'noted' | 'isBehind' | 'sender' | 'isHandedOver' | keyof BesideTunnel> {
  const ip = ipIn(hook, packet, cast);
  const besideIt = besideTunnel(random, cast, hook, packet, ip);
  if (hook === 'from_vtep') {
    const isHandedOver = one(random, 6);
    const sender = isHandedOver && !one(random, 6) ? new Uint8Array(4) : senderOf(random, cast, packet);
    return { table: [], ...besideIt, sender, isHandedOver };
  }
  const flow = ip && readFlow(ip).flow;
  if (!flow) return { table: [], ...besideIt };
  if (hook === 'to_pod' || hook === 'to_wire' || hook === 'to_vtep') {
    const noted = !one(random, 6) && { noted: noteOf(random, flow, packet, cast) };
    const entry = hook === 'to_vtep' && one(random, 3) ? entryOf(random, cast, hook, flow, ip) : undefined;
    return { flow, table: entry ? [{ ...entry, flow }] : [], ...noted, ...besideIt };
  }
  const entry = entryOf(random, cast, hook, flow, ip);
  const isBehind = one(random, entry?.is_settled === 0 ? 2 : 20);
  const table = [
    ...(entry && !one(random, 10) ? [entry] : []),
    ...(entry && one(random, 3)
      ? [random.pick([opposite(entry), { ...entry, flow: beside(random, flow) }])]
      : []),
  ];
  return { flow, table, ...besideIt, ...(isBehind && { isBehind }) };
}

/** The index of a VTEP device that is gone. */
const GONE = 2 ** 30;

type BesideTunnel = Pick<Arrival, 'mark' | 'priority' | 'tunnel'>;

/** What a packet meets that goes into a tunnel or comes out of one: mostly a valid tunnel, or a note of this packet. */
function besideTunnel(
  random: Random,
  cast: Cast,
  hook: Hook,
  packet: Uint8Array,
  ip: IpPacket | undefined,
): BesideTunnel {
  if (!ip || hook === 'from_pod' || hook === 'to_pod') return {};
  const isInward = hook === 'from_wire' || hook === 'from_vtep' || hook === 'xdp_from_wire';
  const [mark, priority] = [odd(random, 0, 7), odd(random, 0, 6)];
  const end = isInward ? ip.src : ip.dst;
  const peer = cast.peers.find(({ podCidr }) => membership(podCidr)(end));
  if (!peer) return { mark, priority };
  const { ttl, tos } = readIp(packet.subarray(14), cast.family) ?? ip;
  const ecn = ip.tos & 3;
  const ends = endsOf(ip);
  const own = tunnelKey(
    peer,
    isInward
      ? { ...ends, mark, is_inward: 1, sender: bytesToMac(packet.subarray(6, 12)), ttl, tos }
      : { ...ends, mark, priority, tos: ecn === 3 ? 2 : ecn },
  );
  const other = (): typeof own =>
    random.pick([
      { ...own, src: random.pick(cast.anyone) },
      { ...own, dst: random.pick(cast.anyone) },
      { ...own, tos: own.tos ^ 1 },
      { ...own, ttl: own.ttl ^ 1 },
      { ...own, sender: '02:00:00:00:00:02' },
      { ...own, mark: own.mark ^ 1 },
      { ...own, priority: own.priority ^ 1 },
      { ...own, is_inward: own.is_inward ^ 1 },
      { ...own, vtep_ip: random.pick(cast.nodes) },
    ]);
  const key = (): typeof own => (one(random, 8) ? other() : own);
  const spoilt = random.pick([{ ageMs: 60_000 }, { epoch: EPOCH - 1 }, { epoch: EPOCH + 1 }]);
  const seen = {
    key: key(),
    epoch: EPOCH,
    ageMs: 2000,
    mtu: random.pick(mtus),
    carried: random.pick([...mtuEdges, ...mtuEdges, 40]),
    ifindex: one(random, 20) ? GONE : TEST_RUN_IFINDEX,
    ...(one(random, 8) && spoilt),
  };
  const noted = { key: key(), epoch: odd(random, EPOCH, EPOCH - 1), isIt: !one(random, 4) };
  const tunnel: MetTunnel = {
    ...(!one(random, 3) && { seen }),
    ...(!one(random, 3) && { noted }),
  };
  return { mark, priority, tunnel };
}

/** The end of an outer source address: mostly of the node that the packet's source belongs to. */
function senderOf(random: Random, cast: Cast, packet: Uint8Array): Uint8Array {
  if (one(random, 8)) return new Uint8Array(4);
  const { src } = readIp(packet.subarray(14), cast.family) ?? { src: 0n };
  const owner = cast.peers.find(({ podCidr }) => membership(podCidr)(src));
  const node = owner && !one(random, 4) ? owner.vtepIp : random.pick([...cast.nodes, cast.noNode]);
  return addressToBytes(node).slice(-4);
}

/** The other direction of a connection, as it comes in. */
function opposite({ flow, out, ...entry }: Entry): Entry {
  const { src, dst, src_port, dst_port, protocol } = { ...flow, ...out };
  return { ...entry, flow: { src: dst, dst: src, src_port: dst_port, dst_port: src_port, protocol } };
}

/** Another flow: the opposite direction, another port, another protocol. */
function beside(random: Random, flow: Flow): Flow {
  return random.pick([
    { ...flow, src: flow.dst, dst: flow.src },
    { ...flow, src_port: flow.src_port ^ 1 },
    { ...flow, dst_port: flow.dst_port ^ 0x100 },
    { ...flow, protocol: flow.protocol ^ 0x17 },
  ]);
}

/** An entry that the programs could have learned of this flow; undefined when they could not. */
function entryOf(
  random: Random,
  cast: Cast,
  hook: Hook,
  flow: Flow,
  { ttl, tos }: IpPacket,
): Entry | undefined {
  const isOut = hook === 'from_pod';
  if (isOut && (!cast.trusted.includes(flow.src) || cast.nodes.includes(flow.dst))) return undefined;
  const hasPorts = flow.protocol === protocols.tcp || flow.protocol === protocols.udp;
  const out = hasPorts && one(random, 3) ? translationOf(random, cast, isOut) : undefined;
  if (!cast.isInNetwork(out?.dst ?? flow.dst)) return undefined;
  const spoilt = random.pick([
    { ageMs: 60_000 },
    { epoch: EPOCH - 1 },
    { epoch: EPOCH + 1 },
    { ifindex: 7 },
    { ttl: ttl ^ 1 },
    { dscp: (tos >> 2) ^ 1 },
  ]);
  return {
    flow,
    epoch: EPOCH,
    ifindex: TEST_RUN_IFINDEX,
    ageMs: 500,
    mtu: random.pick(mtus),
    mark: 0,
    priority: 0,
    is_settled: one(random, 4) ? 0 : 1,
    is_ending: one(random, 4) ? 1 : 0,
    hops: one(random, 4) ? 1 : 0,
    ttl,
    dscp: tos >> 2,
    source_port: random.below(65536),
    ...(out && { out }),
    ...(one(random, 8) && spoilt),
  };
}

/** Where a Service leads, or who an answer comes from. */
function translationOf(random: Random, cast: Cast, isOut: boolean): Partial<Flow> {
  const there = isOut ? [...cast.receivers, ...cast.remotePods] : cast.pods;
  return {
    dst: mostly(random, there, cast.lost),
    ...(one(random, 2) && { src: random.pick(cast.anyone) }),
    ...(one(random, 2) && { src_port: random.below(65536) }),
    ...(one(random, 2) && { dst_port: random.below(65536) }),
  };
}

/** The note of a packet's arrival, mostly as it leaves. */
function noteOf(random: Random, flow: Flow, packet: Uint8Array, { family }: Cast): NotedArrival {
  const { tos, ttl } = readIp(packet.subarray(14), family)!;
  return {
    flow: one(random, 10) ? beside(random, flow) : flow,
    epoch: random.pick([EPOCH, EPOCH - 1]),
    ifindex: random.pick([TEST_RUN_IFINDEX, 7]),
    dscp: odd(random, tos >> 2, 0, 46),
    ttl: (ttl + mostly(random, [0, 1], [2, 255])) & 255,
  };
}

/** Packet `number` of the series of `seed`. It is always the same. */
export function generate(seed: number, number: number): Arrival {
  const random = new Random(seedOf(seed, number));
  const hook: Hook = mostly(random, usualHooks, ['to_pod', 'to_wire', 'from_vtep']);
  const node: WorldName = one(random, 3) ? 'direct' : 'tunnelled';
  const cast = random.pick(casts);
  if ((hook === 'from_pod' || hook === 'from_wire' || hook === 'to_vtep') && one(random, 50))
    return superPacket(random, cast, hook, node);
  const whole = packets[hook](random, cast, node);
  const kind = random.below(20);
  const packet = kind === 0 ? noise(random) : kind < 6 ? mutated(random, whole, cast) : whole;
  const frame = longEnough(packet);
  const meets = met(random, cast, hook, whole);
  const flow = meets.sender ? undefined : (flowIn(hook, frame, cast) ?? meets.flow);
  return {
    node,
    hook,
    packet: frame,
    ifindex: TEST_RUN_IFINDEX,
    gsoSize: 0,
    ...meets,
    ...(flow && { flow }),
  };
}

function longEnough(packet: Uint8Array): Uint8Array {
  const isIpv6 = packet[12] === 0x86 && packet[13] === 0xdd;
  return padded(packet, SHORTEST[isIpv6 ? 6 : 4]);
}
