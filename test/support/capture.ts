// SPDX-License-Identifier: Apache-2.0
/** Captures packets of a device with tcpdump, and dissects them. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { startIn } from '../../src/lab/lab.support.ts';
import { bytesToAddress } from '../../src/net/ip.ts';

const ETHER_BYTES = 14;
const VXLAN_BYTES = 8;
const UDP_BYTES = 8;
const UDP = 17;
const TCP = 6;
/** The types of ICMP's and ICMPv6's echoes and answers. */
const ECHOES: Readonly<Record<number, readonly number[]>> = { 1: [8, 0], 58: [128, 129] };

/** The fields of an IP packet, and its ports. */
export interface Packet {
  family: 4 | 6;
  src: string;
  dst: string;
  /** TTL or hop limit. */
  ttl: number;
  /** TOS byte or traffic class: DSCP and ECN. */
  tos: number;
  protocol: number;
  /** IPv4: don't fragment. */
  df: boolean;
  /** IPv4: more fragments, or an offset. */
  fragment: boolean;
  /** For TCP and UDP; otherwise 0. */
  srcPort: number;
  dstPort: number;
  /** For TCP. */
  tcpFlags?: number;
  /** The identifier of an ICMP echo, or of an answer to one. */
  echoId?: number;
  /** For UDP, as on the wire. */
  udpChecksum?: number;
  /** The inner packet of VXLAN. */
  vni?: number;
  inner?: Packet;
}

/** A VXLAN packet with its inner packet. */
export type Tunnelled = Packet & { udpChecksum: number; vni: number; inner: Packet };

export interface Place {
  netns: string;
  device: string;
  /** tcpdump's options and filter. */
  filter: string[];
}

/** The packets at each place during `work`, in order. */
export async function captureDuring(
  places: readonly Place[],
  work: () => Promise<unknown>,
): Promise<Packet[][]> {
  const dir = mkdtempSync(join(tmpdir(), 'ripstop-capture-'));
  try {
    const captures = places.map(({ netns, device, filter }, i) => {
      const to = [
        '-Z',
        'root',
        '-s',
        '256',
        '-B',
        '32768',
        '--immediate-mode',
        '-U',
        '-w',
        join(dir, String(i)),
      ];
      return startIn(netns, 'tcpdump', ...to, '-i', device, ...filter);
    });
    await Promise.all(captures.map((capture) => capture.prints(/listening/)));
    await work();
    await sleep(100); // tcpdump may not have written the last packets yet.
    await Promise.all(captures.map((capture) => capture.stop()));
    return places.map((_, i) => readPackets(readFileSync(join(dir, String(i)))));
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** The IP packets of a capture file: 24 bytes of header, then records of 16 bytes and the frame (pcap-savefile(5)). */
function readPackets(file: Uint8Array): Packet[] {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const packets: Packet[] = [];
  for (let at = 24; at + 16 <= file.length;) {
    const length = view.getUint32(at + 8, true);
    const packet = readPacket(file.subarray(at + 16, at + 16 + length), ETHER_BYTES);
    if (packet) packets.push(packet);
    at += 16 + length;
  }
  return packets;
}

/** The VXLAN packets among these. */
export function tunnelled(packets: readonly Packet[]): Tunnelled[] {
  return packets.filter((packet): packet is Tunnelled => packet.inner !== undefined);
}

/** The IP packet at `at`; undefined when there is none. */
export function readPacket(bytes: Uint8Array, at: number): Packet | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const version = (bytes[at] ?? 0) >> 4;
  const needs = version === 4 ? 20 : 40;
  if ((version !== 4 && version !== 6) || bytes.length < at + needs) return undefined;
  const address = (from: number, length: number) =>
    bytesToAddress(bytes.subarray(at + from, at + from + length));
  const packet: Packet =
    version === 4
      ? {
          family: 4,
          src: address(12, 4),
          dst: address(16, 4),
          ttl: bytes[at + 8]!,
          tos: bytes[at + 1]!,
          protocol: bytes[at + 9]!,
          df: (bytes[at + 6]! & 0x40) !== 0,
          fragment: (view.getUint16(at + 6) & 0x3fff) !== 0,
          srcPort: 0,
          dstPort: 0,
        }
      : {
          family: 6,
          src: address(8, 16),
          dst: address(24, 16),
          ttl: bytes[at + 7]!,
          tos: (view.getUint16(at) >> 4) & 0xff,
          protocol: bytes[at + 6]!,
          df: true,
          fragment: bytes[at + 6] === 44,
          srcPort: 0,
          dstPort: 0,
        };
  const payload = at + (version === 4 ? (bytes[at]! & 15) * 4 : 40);
  if (packet.fragment || bytes.length < payload + UDP_BYTES) return packet;
  if (packet.protocol === TCP || packet.protocol === UDP) {
    packet.srcPort = view.getUint16(payload);
    packet.dstPort = view.getUint16(payload + 2);
  }
  if (packet.protocol === TCP && bytes.length > payload + 13) packet.tcpFlags = bytes[payload + 13]!;
  if (ECHOES[packet.protocol]?.includes(bytes[payload]!)) packet.echoId = view.getUint16(payload + 4);
  if (packet.protocol !== UDP) return packet;
  packet.udpChecksum = view.getUint16(payload + 6);
  const vxlan = payload + UDP_BYTES;
  const inner = packet.dstPort === 8472 ? readPacket(bytes, vxlan + VXLAN_BYTES + ETHER_BYTES) : undefined;
  if (inner) Object.assign(packet, { vni: view.getUint32(vxlan + 4) >>> 8, inner });
  return packet;
}
