// SPDX-License-Identifier: Apache-2.0
/**
 * The verdict on a packet as the specification has it: the one rule ("take a packet only when sure"), what bpf/types.h
 * says of each reason, and RFC 791 (IPv4), 768 (UDP), 7348 (VXLAN), 6040 (ECN over tunnels) and 1624 (checksum updates).
 * Written apart from the programs, so that the two can be compared: neither may be made to follow the other.
 *
 * Where several reasons hold, the order is: what the packet is, from the outermost header inwards; then whether its
 * sender may send it; then where it goes, in the order in which bpf/types.h lists the reasons.
 */
import { ENCAP_BYTES, type Endpoint, peerSlot, podMtu } from '../../src/dataplane/desired.ts';
import { addressToBytes, cidrContains } from '../../src/net/ip.ts';
import { macToBytes } from '../../src/net/mac.ts';
import { checksum } from '../support/packets.ts';
import type { World } from './world.ts';

export type Hook = 'from_pod' | 'from_wire' | 'to_pod' | 'to_vtep';

export interface Arrival {
  readonly hook: Hook;
  /** From the Ethernet header on. */
  readonly packet: Uint8Array;
  readonly ifindex: number;
  /** Payload of each segment of a GSO super-packet, bytes; 0 is no such packet. */
  readonly gsoSize: number;
}

export interface Decision {
  /** As the counters name it: the verdict and its reason, such as `stack truncated`. */
  readonly outcome: string;
  /** What leaves; of an encapsulated packet as {@link withoutChoices} shows it. The packet as it came when not fast. */
  readonly out: Uint8Array;
}

const ETHER = 14;
const [TCP, UDP, SCTP] = [6, 17, 132];
const IPV4 = 0x0800;
const [MORE_FRAGMENTS, FRAGMENT_OFFSET] = [0x2000, 0x1fff];
const [ECT1, CE] = [1, 3];

const u16 = (bytes: Uint8Array, at: number): number => (bytes[at]! << 8) | bytes[at + 1]!;
const address = (bytes: Uint8Array, at: number): string =>
  `${bytes[at]}.${bytes[at + 1]}.${bytes[at + 2]}.${bytes[at + 3]}`;

function setU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value & 255;
}

/** An IPv4 header without options, and what follows it in the packet. */
interface Ip {
  readonly tos: number;
  readonly totalLength: number;
  readonly fragment: number;
  readonly ttl: number;
  readonly protocol: number;
  readonly src: string;
  readonly dst: string;
  /** Absent in fragments, in other protocols than TCP and UDP, and where they are cut off. */
  readonly ports?: readonly [src: number, dst: number];
}

/** The IPv4 packet at `at`, whose room ends with the bytes; or why it is not understood. */
function readIp(bytes: Uint8Array, at: number): Ip | 'truncated' | 'ip_options' {
  if (bytes.length < at + 20) return 'truncated';
  if (bytes[at] !== 0x45) return 'ip_options';
  const totalLength = u16(bytes, at + 2);
  if (totalLength < 20 || totalLength > bytes.length - at) return 'truncated';
  const fragment = u16(bytes, at + 6);
  const protocol = bytes[at + 9]!;
  const whole = (fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET)) === 0;
  const hasPorts = whole && (protocol === TCP || protocol === UDP) && totalLength >= 24;
  return {
    tos: bytes[at + 1]!,
    totalLength,
    fragment,
    ttl: bytes[at + 8]!,
    protocol,
    src: address(bytes, at + 12),
    dst: address(bytes, at + 16),
    ...(hasPorts && { ports: [u16(bytes, at + 20), u16(bytes, at + 22)] as const }),
  };
}

/** RFC 1624, equation 3, for the header word at `word` of the IPv4 header at `at`. */
function changeWord(bytes: Uint8Array, at: number, word: number, value: number): void {
  let sum = (~u16(bytes, at + 10) & 0xffff) + (~u16(bytes, at + word) & 0xffff) + value;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  setU16(bytes, at + 10, ~sum & 0xffff);
  setU16(bytes, at + word, value);
}

/** One hop. */
function decrementTtl(bytes: Uint8Array, at: number): void {
  changeWord(bytes, at, 8, u16(bytes, at + 8) - 0x0100);
}

/** RFC 6040, figure 4: the ECN field that leaves the tunnel, or undefined: drop. */
function ecnOut(inner: number, outer: number): number | undefined {
  if (outer === CE) return inner === 0 ? undefined : CE;
  if (outer === ECT1 && inner === 2) return ECT1;
  return inner;
}

/** All addresses that the world can be asked about, found by their text. */
export class Model {
  readonly #world: World;
  readonly #endpoints: ReadonlyMap<string, Endpoint>;
  readonly #flows: ReadonlySet<string>;
  readonly #flowPods: ReadonlySet<string>;

  constructor(world: World) {
    this.#world = world;
    this.#endpoints = new Map(world.endpoints.map((endpoint) => [endpoint.ip, endpoint]));
    this.#flows = new Set(
      world.flows.map(({ flow: { src, dst, src_port, dst_port, protocol } }) =>
        [src, src_port, dst, dst_port, protocol].join(' '),
      ),
    );
    this.#flowPods = new Set(world.flows.map(({ pod }) => pod));
  }

  decide(arrival: Arrival): Decision {
    const decided = this.#byHook(arrival);
    return typeof decided === 'string' ? { outcome: decided, out: arrival.packet } : decided;
  }

  #byHook(arrival: Arrival): string | Decision {
    if (arrival.packet.length < ETHER + 20) throw new RangeError('no test run takes so short a packet');
    if (u16(arrival.packet, 12) !== IPV4) return 'stack not_ipv4';
    switch (arrival.hook) {
      case 'from_pod':
        return this.#fromPod(arrival);
      case 'from_wire':
        return this.#fromWire(arrival);
      default:
        return this.#fromStack(arrival);
    }
  }

  #fromPod(arrival: Arrival): string | Decision {
    const { packet, ifindex } = arrival;
    const { settings } = this.#world;
    if (this.#isVxlanToNode(packet)) return 'drop vxlan_from_pod';
    const ip = readIp(packet, ETHER);
    if (typeof ip === 'string') return `stack ${ip}`;

    const sender = this.#endpoints.get(ip.src);
    if (sender?.hostIfindex !== ifindex) return 'stack other_source';
    if (!cidrContains(settings.network, ip.dst)) return 'stack outside';

    if (cidrContains(settings.podCidr, ip.dst)) {
      const receiver = this.#endpoints.get(ip.dst);
      if (!receiver || receiver.hostIfindex === ifindex) return 'stack no_endpoint';
      const kept = this.#keptOnStack(ip, sender, receiver);
      if (kept) return kept;
      if (tooBig(arrival, ETHER, ip.totalLength, receiver.mtu)) return 'stack too_big';
      return { outcome: 'fast local', out: delivered(packet.slice(ETHER), receiver) };
    }

    const peer = this.#mappedPeers.find(({ podCidr }) => cidrContains(podCidr, ip.dst));
    if (!peer) return 'stack no_peer';
    const kept = this.#keptOnStack(ip, sender);
    if (kept) return kept;
    if (ip.ttl <= 1) return 'stack ttl';
    if (tooBig(arrival, ETHER, packet.length - ETHER, podMtu(settings))) return 'stack too_big';
    if (arrival.gsoSize > 0) return 'stack no_room'; // a test run's GSO packets have no type, so none may grow
    const inner = packet.slice(ETHER);
    decrementTtl(inner, 0);
    return { outcome: 'fast encap', out: this.#encapsulated(inner, ip.tos & 3, peer) };
  }

  /** UDP to the VXLAN port of a node, IP options or not; later fragments have no port to tell it by. */
  #isVxlanToNode(packet: Uint8Array): boolean {
    const headerLength = (packet[ETHER]! & 15) * 4;
    const port = ETHER + headerLength + 2;
    const { settings, peers } = this.#world;
    const totalLength = u16(packet, ETHER + 2);
    return (
      packet[ETHER]! >>> 4 === 4 &&
      headerLength >= 20 &&
      totalLength >= headerLength + 8 &&
      totalLength <= packet.length - ETHER &&
      packet[ETHER + 9] === UDP &&
      (u16(packet, ETHER + 6) & FRAGMENT_OFFSET) === 0 &&
      u16(packet, port) === settings.port &&
      [settings.uplink.ip, ...peers.map((peer) => peer.vtepIp)].includes(address(packet, ETHER + 16))
    );
  }

  #fromWire(arrival: Arrival): string | Decision {
    const { packet } = arrival;
    const { settings, peers } = this.#world;

    const outer = readIp(packet, ETHER);
    if (outer === 'ip_options') return 'stack ip_options';
    // What is not for us is another's, however long: only from here on do lengths matter.
    if (packet[ETHER + 9] !== UDP || address(packet, ETHER + 16) !== settings.uplink.ip)
      return 'stack not_vxlan';
    if ((u16(packet, ETHER + 6) & (MORE_FRAGMENTS | FRAGMENT_OFFSET)) !== 0) return 'stack outer_fragment';
    const udp = ETHER + 20;
    if (packet.length < udp + 8) return 'stack truncated';
    if (u16(packet, udp + 2) !== settings.port) return 'stack not_vxlan';
    if (outer === 'truncated' || outer.totalLength !== packet.length - ETHER) return 'stack truncated';
    if (u16(packet, udp + 4) !== packet.length - udp) return 'stack truncated';
    if (u16(packet, udp + 6) !== 0) return 'stack outer_checksum';

    const vxlan = udp + 8;
    const innerEther = vxlan + 8;
    const inner = innerEther + ETHER;
    if (packet.length < vxlan + 8) return 'stack truncated';
    const vni = [settings.vni >>> 16, (settings.vni >>> 8) & 255, settings.vni & 255];
    if (!starts(packet, vxlan, [8, 0, 0, 0, ...vni, 0])) return 'stack other_vni';
    if (packet.length < inner) return 'stack truncated';
    if (!starts(packet, innerEther, macToBytes(settings.vtepMac))) return 'stack other_mac';
    if (u16(packet, innerEther + 12) !== IPV4) return 'stack not_ipv4';
    const ip = readIp(packet, inner);
    if (typeof ip === 'string') return `stack ${ip}`;

    const speaker = this.#mappedPeers.find(({ podCidr }) => cidrContains(podCidr, ip.src));
    if (!speaker?.behindNat && speaker?.vtepIp !== outer.src) {
      const node = peers.find((peer) => peer.vtepIp === outer.src);
      if (!node) return 'drop unknown_peer';
      const mayBeItsOwn = !this.#mappedPeers.includes(node) && cidrContains(node.podCidr, ip.src);
      return mayBeItsOwn ? 'stack no_peer' : 'drop spoofed_source';
    }

    const receiver = this.#endpoints.get(ip.dst);
    if (!receiver) return 'stack no_endpoint';
    const kept = this.#keptOnStack(ip, receiver);
    if (kept) return kept;
    if (ip.ttl <= 1) return 'stack ttl';
    if (tooBig(arrival, inner, ip.totalLength, receiver.mtu)) return 'stack too_big';
    const ecn = ecnOut(ip.tos & 3, outer.tos & 3);
    if (ecn === undefined) return 'drop ecn';
    if (arrival.gsoSize > 0) return 'stack no_room';
    const out = packet.slice(inner);
    decrementTtl(out, 0);
    changeWord(out, 0, 0, (u16(out, 0) & ~3) | ecn);
    return { outcome: 'fast decap', out: delivered(out, receiver) };
  }

  /** to_pod and to_vtep let everything go on. */
  #fromStack({ hook, packet }: Arrival): string {
    const { network } = this.#world.settings;
    const ip = readIp(packet, ETHER);
    if (typeof ip === 'string') return `stack ${ip}`;
    if (!cidrContains(network, ip.src) || !cidrContains(network, ip.dst)) return 'stack outside';
    if (!this.#endpoints.has(hook === 'to_pod' ? ip.dst : ip.src)) return 'stack no_endpoint';
    const reply = { ...ip, src: ip.dst, dst: ip.src, ...(ip.ports && { ports: swapped(ip.ports) }) };
    return this.#isRemembered(reply) ? 'stack translated' : 'stack untranslated';
  }

  get #mappedPeers() {
    return this.#world.peers.filter(({ podCidr }) => peerSlot(this.#world.settings, podCidr) !== undefined);
  }

  #isRemembered({ src, dst, ports, protocol }: Ip): boolean {
    return ports !== undefined && this.#flows.has([src, ports[0], dst, ports[1], protocol].join(' '));
  }

  /** Why a packet between these pods of ours stays on the kernel path, if it does. */
  #keptOnStack(ip: Ip, ...pods: readonly Endpoint[]): string | undefined {
    if (pods.some((pod) => pod.slow || this.#world.overflowed.includes(pod.ip))) return 'stack slow';
    if (ip.protocol === SCTP) return 'stack translated'; // its flows are not known
    if (!pods.some((pod) => this.#flowPods.has(pod.ip))) return undefined;
    return ip.ports === undefined || this.#isRemembered(ip) ? 'stack translated' : undefined;
  }

  /** RFC 7348 around an IP packet; MAC addresses are left to the kernel's neighbour table. */
  #encapsulated(inner: Uint8Array, ecn: number, peer: World['peers'][number]): Uint8Array {
    const { uplink, port, vni, vtepMac } = this.#world.settings;
    const out = new Uint8Array(ETHER + ENCAP_BYTES + inner.length);
    setU16(out, 12, IPV4);
    const ip = [0x45, ecn, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0];
    out.set([...ip, ...addressToBytes(uplink.ip), ...addressToBytes(peer.vtepIp)], 14);
    setU16(out, 16, ENCAP_BYTES + inner.length);
    setU16(out, 24, checksum(out.subarray(14, 34)));
    setU16(out, 36, port);
    setU16(out, 38, ENCAP_BYTES - 20 + inner.length);
    out.set([8, 0, 0, 0, vni >>> 16, (vni >>> 8) & 255, vni & 255, 0], 42);
    out.set([...macToBytes(peer.vtepMac), ...macToBytes(vtepMac), 8, 0], 50);
    out.set(inner, 64);
    return out;
  }
}

const swapped = ([src, dst]: readonly [number, number]) => [dst, src] as const;

const starts = (bytes: Uint8Array, at: number, wanted: ArrayLike<number>): boolean =>
  Array.from(wanted).every((byte, i) => bytes[at + i] === byte);

/** Of a GSO super-packet each segment counts: the headers once, and its share of the payload. */
function tooBig({ packet, gsoSize }: Arrival, at: number, size: number, mtu: number): boolean {
  if (gsoSize === 0) return size > mtu;
  const transport = packet[at + 9] === TCP ? (packet[at + 32]! >>> 4) * 4 : 8;
  return 20 + transport + gsoSize > mtu;
}

function delivered(ipPacket: Uint8Array, { podMac, hostMac }: Endpoint): Uint8Array {
  return Uint8Array.from([...macToBytes(podMac), ...macToBytes(hostMac), 8, 0, ...ipPacket]);
}

/**
 * An encapsulated packet with what the sender may choose set to zero: the outer IP id, under a right checksum, and the
 * outer source port, inside its range. A wrong checksum or port is left as it is, and so differs.
 */
export function withoutChoices(packet: Uint8Array, { settings }: World): Uint8Array {
  const out = packet.slice();
  if (checksum(out.subarray(14, 34)) === 0) {
    setU16(out, 18, 0);
    setU16(out, 24, 0);
    setU16(out, 24, checksum(out.subarray(14, 34)));
  }
  const { min, max } = settings.sourcePorts;
  const port = u16(out, 34);
  if (port >= min && port <= max) setU16(out, 34, 0);
  return out;
}
