// SPDX-License-Identifier: Apache-2.0
/**
 * Packets for the comparison, each of a seed and a number: sane ones of every kind that a node meets, and the same with
 * something wrong. A kind that a reason is about comes often enough that ten thousand packets show every reason.
 */
import { ethernet, type Ipv4Fields, ipv4, tcp, udp, vxlan } from '../support/packets.ts';
import { Random } from '../support/random.ts';
import type { Arrival, Hook } from './model.ts';
import { IFINDEX, ports, world } from './world.ts';

const { settings, peers, endpoints } = world;

const [ICMP, TCP, UDP, SCTP, GRE] = [1, 6, 17, 132, 47];
/** Linux runs no test on less: an Ethernet and an IPv4 header. With the ethertype of IPv6 it wants that header. */
export const SHORTEST = 34;
const SHORTEST_IPV6 = 54;

const podAddresses = endpoints.map(({ ip }) => ip);
const senders = endpoints.filter(({ hostIfindex }) => hostIfindex === IFINDEX).map(({ ip }) => ip);
const receivers = endpoints.filter(({ hostIfindex }) => hostIfindex !== IFINDEX).map(({ ip }) => ip);
const remotePods = ['10.42.1.7', '10.42.2.7', '10.42.9.7', '10.42.1.0', '10.42.200.7'] as const;
const strangers = ['10.42.77.7', '10.42.3.99', '10.42.3.0', '8.8.8.8', '10.43.0.10', '224.0.0.251'] as const;
const nodes = [...peers.map(({ vtepIp }) => vtepIp), settings.uplink.ip];
const anyone = [...podAddresses, ...remotePods, ...strangers, ...nodes];
const noNode = '192.168.0.77';

const sizes = [0, 1, 3, 4, 8, 20, 100, 1240, 1241, 1260, 1410, 1411, 1430, 1431, 1472] as const;
const ttls = [64, 64, 63, 255, 2, 1, 0] as const;
const fragments = [0, 0, 0, 0x4000, 0x2000, 0x00b9, 0x20b9, 0x8000] as const;
/** Bytes that headers are sensitive to. */
const interesting = [0, 1, 3, 0x44, 0x45, 0x46, 0x4f, 0x7f, 0x80, 0xff] as const;

const one = (random: Random, of: number): boolean => random.below(of) === 0;

/** Mostly the first, now and then one of the others. */
const mostly = <T>(random: Random, usual: readonly T[], others: readonly T[]): T =>
  random.pick(one(random, 8) ? others : usual);

function payloadOf(random: Random, protocol: number): Uint8Array {
  const data = new Uint8Array(random.pick(sizes)).fill(random.below(256));
  if (one(random, 10)) return data; // no such header in it
  const port = { src: random.pick(ports), dst: random.pick(ports) };
  if (protocol === TCP) return tcp({ ...port, flags: random.below(64) }, data);
  if (protocol === UDP) return udp(one(random, 6) ? { ...port, dst: settings.port } : port, data);
  return data;
}

function ipPacket(random: Random, fields: Pick<Ipv4Fields, 'src' | 'dst'>): Uint8Array {
  const protocol = mostly(random, [TCP, UDP], [ICMP, SCTP, GRE, random.below(256)]);
  const options = one(random, 20) && { options: Array.from({ length: 4 * (1 + random.below(10)) }, () => 1) };
  const packet = ipv4(
    {
      ...fields,
      protocol,
      tos: random.below(256),
      id: random.below(65536),
      ttl: mostly(random, [64, 63], ttls),
      fragment: mostly(random, [0], fragments),
      ...options,
    },
    payloadOf(random, protocol),
  );
  return one(random, 12) ? Uint8Array.from([...packet, ...new Uint8Array(random.below(60))]) : packet; // padded
}

const macs = () => ({ dst: endpoints[0]!.hostMac, src: endpoints[0]!.podMac });

function fromPod(random: Random): Uint8Array {
  const src = mostly(random, senders, anyone);
  const dst = mostly(random, [...receivers, ...remotePods.slice(0, 3)], anyone);
  return ethernet(macs(), ipPacket(random, { src, dst }));
}

function toVtep(random: Random): Uint8Array {
  const dst = mostly(random, remotePods, anyone);
  return ethernet(macs(), ipPacket(random, { src: mostly(random, podAddresses, anyone), dst }));
}

function toPod(random: Random): Uint8Array {
  const src = mostly(random, [...remotePods, ...podAddresses], anyone);
  return ethernet(macs(), ipPacket(random, { src, dst: mostly(random, podAddresses, anyone) }));
}

function fromWire(random: Random): Uint8Array {
  const peer = random.pick(peers);
  const own = peer.podCidr.base.replace(/\d+$/, '7');
  const inner = ipPacket(random, {
    src: mostly(random, [own], anyone),
    dst: mostly(random, podAddresses, anyone),
  });
  const odd = (usual: number, ...others: number[]): number => (one(random, 40) ? random.pick(others) : usual);
  const innerMacs = { dst: one(random, 40) ? peer.vtepMac : settings.vtepMac, src: peer.vtepMac };
  const innerFrame = ethernet({ ...innerMacs, type: odd(0x0800, 0x0806, 0x86dd, 0x8100) }, inner);
  const vxlanHeader = { vni: odd(settings.vni, 2, 0x10001), flags: odd(8, 0, 0x88, 0xff) };
  const datagram = udp(
    {
      src: random.below(65536),
      dst: odd(settings.port, 4789, 53),
      checksum: odd(0, 1, 0xffff),
    },
    vxlan(vxlanHeader, innerFrame),
  );
  const outer = {
    src: mostly(random, [peer.vtepIp], [noNode, ...nodes]),
    dst: one(random, 40) ? noNode : settings.uplink.ip,
    tos: random.below(256),
    ttl: random.pick(ttls),
    protocol: odd(UDP, TCP, ICMP),
    fragment: odd(0, ...fragments),
    ...(one(random, 40) && { options: [1, 1, 1, 0] }),
  };
  return ethernet({ dst: '02:00:00:00:00:03', src: '02:00:00:00:00:01' }, ipv4(outer, datagram));
}

const packets: Record<Hook, (random: Random) => Uint8Array> = {
  from_pod: fromPod,
  from_wire: fromWire,
  to_pod: toPod,
  to_vtep: toVtep,
};
const usualHooks: readonly Hook[] = ['from_pod', 'from_wire'];

/** Break it somewhere, the headers first. */
function mutated(random: Random, packet: Uint8Array): Uint8Array {
  let bytes = packet.slice();
  for (let left = 1 + random.below(3); left > 0; left--) {
    const at = random.below(Math.min(bytes.length, 110));
    switch (random.below(8)) {
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
      case 4:
        bytes = bytes.slice(0, SHORTEST + random.below(bytes.length - SHORTEST + 1));
        break;
      case 5: // a length field, off by a little: outer or inner IPv4, UDP, either way
        {
          const field = random.pick([17, 39, 67, 39] as const);
          if (field < bytes.length) bytes[field]! += random.below(9) - 4;
        }
        break;
      case 6: {
        const tag = [0x81, 0, random.below(16), random.below(256)];
        bytes = Uint8Array.from([...bytes.subarray(0, 12), ...tag, ...bytes.subarray(12)]);
        break;
      }
      default:
        bytes.set(one(random, 2) ? [0x86, 0xdd] : [0x08, 0x06], 12);
    }
  }
  return bytes;
}

function noise(random: Random): Uint8Array {
  const bytes = Uint8Array.from({ length: SHORTEST + random.below(200) }, () => random.below(256));
  if (!one(random, 4)) bytes.set([0x08, 0x00], 12);
  if (one(random, 2)) bytes[14] = 0x45;
  return bytes;
}

/** The seed of packet `number`: neighbours must not look alike, so that each can be made by itself. */
function seedOf(seed: number, number: number): number {
  let mixed = Math.imul(seed ^ Math.imul(number + 1, 0x9e3779b1), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 15), 0xc2b2ae35);
  return mixed ^ (mixed >>> 13);
}

/** Packet `number` of the series of `seed`, the same each time. */
export function generate(seed: number, number: number): Arrival {
  const random = new Random(seedOf(seed, number));
  const hook: Hook = mostly(random, usualHooks, ['to_pod', 'to_vtep']);
  if (one(random, 50) && hook === 'from_pod') return superPacket(random);
  const whole = packets[hook](random);
  const kind = random.below(20);
  const packet = kind === 0 ? noise(random) : kind < 6 ? mutated(random, whole) : whole;
  return { hook, packet: longEnough(packet), ifindex: IFINDEX, gsoSize: 0 };
}

function longEnough(packet: Uint8Array): Uint8Array {
  const isIpv6 = packet[12] === 0x86 && packet[13] === 0xdd;
  if (!isIpv6 || packet.length >= SHORTEST_IPV6) return packet;
  return Uint8Array.from([...packet, ...new Uint8Array(SHORTEST_IPV6 - packet.length)]);
}

/** TCP that the sender's kernel has not cut into segments yet. */
function superPacket(random: Random): Arrival {
  const fields = {
    src: random.pick(senders),
    dst: random.pick([...receivers, ...remotePods]),
    protocol: TCP,
    ttl: random.pick(ttls),
  };
  const payload = tcp({ src: random.pick(ports), dst: random.pick(ports) }, new Uint8Array(3000));
  const gsoSize = random.pick([536, 1240, 1241, 1410, 1411] as const);
  return { hook: 'from_pod', packet: ethernet(macs(), ipv4(fields, payload)), ifindex: IFINDEX, gsoSize };
}
