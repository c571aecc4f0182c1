// SPDX-License-Identifier: Apache-2.0
import { checksum, readIp } from '../../src/net/packets.ts';
import { IPV4, IPV6, IPV6_HEADER, ipv6Chain, TCP, u16, u32, UDP, VLAN } from './dissect.ts';
import type { Arrival } from './exchange.ts';
import { finished } from './segments.ts';
import { isVxlan } from './tags.ts';

const [MORE_FRAGMENTS, FRAGMENT_OFFSET] = [0x2000, 0x1fff];

/** FIN and PSH. */
const TCP_OF_THE_LAST = 0x09;

export interface Whole extends Arrival {
  /** For a reassembled datagram: the payload bytes of each fragment, by offset, without repetitions. */
  fragments?: readonly number[];
}

/** A super-packet as the segments that a device would make of it. It does not matter where a lab segments it. */
export function cut(arrival: Arrival): Arrival[] {
  const { frame, gsoSize } = arrival.received;
  const isV6 = u16(frame, 12) === IPV6;
  if (gsoSize === undefined || !(isV6 || u16(frame, 12) === IPV4)) return [arrival];
  const { src, dst, protocol } = readIp(frame);
  if (arrival.place.startsWith('cable') && protocol === UDP && isVxlan(frame.subarray(14))) return [arrival]; // the segments are its inner packet's
  const [transport, end] = isV6
    ? [14 + IPV6_HEADER, 14 + IPV6_HEADER + u16(frame, 18)]
    : [14 + (frame[14]! & 15) * 4, 14 + u16(frame, 16)];
  const headers = transport + (protocol === TCP ? (frame[transport + 12]! >>> 4) * 4 : 8);
  const count = Math.ceil((end - headers) / gsoSize);
  return Array.from({ length: count }, (_, i) => {
    const isLast = i === count - 1;
    const payload = frame.subarray(headers + i * gsoSize, isLast ? end : headers + (i + 1) * gsoSize);
    const segment = Uint8Array.from([...frame.subarray(0, headers), ...payload]);
    const view = new DataView(segment.buffer);
    if (isV6) view.setUint16(18, segment.length - transport);
    else {
      view.setUint16(16, segment.length - 14);
      view.setUint16(18, view.getUint16(18) + i);
      view.setUint16(24, 0);
      view.setUint16(24, checksum(segment.subarray(14, transport)));
    }
    if (protocol === TCP) {
      view.setUint32(transport + 4, view.getUint32(transport + 4) + i * gsoSize);
      if (!isLast) segment[transport + 13]! &= ~TCP_OF_THE_LAST;
    } else view.setUint16(transport + 4, segment.length - transport);
    segment.set(finished({ src, dst, protocol }, segment.subarray(transport)), transport);
    return { ...arrival, received: { frame: segment } };
  });
}

/**
 * Reassemble datagrams, as their receiver does: routers may fragment them as they like (RFC 791).
 * Incomplete ones, and those with overlaps, stay as they are.
 */
export function reassemble(arrivals: readonly Arrival[]): Whole[] {
  const groups = Map.groupBy(arrivals, ({ place, received: { frame } }, i) => {
    const key = datagramOf(frame);
    return key === undefined ? i : `${place} ${key}`;
  });
  return [...groups.values()].flatMap((group) => {
    const whole = isFragment(group[0]!.received.frame) ? join(group) : undefined;
    return whole ? [whole] : group;
  });
}

/** Whether these frames, all of one datagram or not fragmented, are complete, with every repetition. */
export function isComplete(frames: readonly Uint8Array[]): boolean {
  const arrivals = frames.map(
    (frame) => ({ place: 'n1p1', received: { frame: plain(frame) }, isAnswer: false }) as const,
  );
  const wholes = reassemble(arrivals);
  return wholes.every(
    ({ received, fragments }) => !isFragment(received.frame) && (fragments?.length ?? 1) === frames.length,
  );
}

/** The packet in a VLAN or a tunnel, as a plain frame. */
function plain(frame: Uint8Array): Uint8Array {
  if (u16(frame, 12) === VLAN)
    return plain(Uint8Array.from([...frame.subarray(0, 12), ...frame.subarray(16)]));
  const packet = frame.subarray(14);
  if (![IPV4, IPV6].includes(u16(frame, 12)) || !isVxlan(packet)) return frame;
  return packet.subarray((u16(frame, 12) === IPV6 ? ipv6Chain(packet).at : (packet[0]! & 15) * 4) + 16);
}

/** The key that all fragments of a datagram share; undefined for other packets. */
function datagramOf(frame: Uint8Array): string | undefined {
  const packet = frame.subarray(14);
  if (u16(frame, 12) === IPV4 && frame.length >= 34 && (u16(frame, 20) & 0x3fff) !== 0)
    return [...packet.subarray(4, 6), packet[9], ...packet.subarray(12, 20)].join(' ');
  if (u16(frame, 12) !== IPV6 || packet.length < IPV6_HEADER) return undefined;
  const { fragmentAt, fragment } = ipv6Chain(packet);
  // Atomic fragments are whole packets (RFC 6946).
  if (fragmentAt === undefined || fragment === 0) return undefined;
  return [u32(packet, fragmentAt + 4), ...packet.subarray(8, 40)].join(' ');
}

const isFragment = (frame: Uint8Array): boolean => datagramOf(frame) !== undefined;

interface Piece {
  frame: Uint8Array;
  /** The offset of the payload. */
  header: number;
  offset: number;
  more: boolean;
  payload: Uint8Array;
}

function pieceOf(frame: Uint8Array): Piece {
  const isV6 = u16(frame, 12) === IPV6;
  const packet = frame.subarray(14);
  const chain = isV6 ? ipv6Chain(packet) : undefined;
  const fragment = chain?.fragment ?? u16(frame, 20);
  const header = chain?.fragmentAt === undefined ? 14 + (frame[14]! & 15) * 4 : 14 + chain.fragmentAt + 8;
  const end = isV6 ? 14 + IPV6_HEADER + u16(frame, 18) : 14 + u16(frame, 16);
  return {
    frame,
    header,
    offset: (fragment & FRAGMENT_OFFSET) * 8,
    more: (fragment & MORE_FRAGMENTS) !== 0,
    payload: frame.subarray(header, end),
  };
}

const isSame = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

function join(group: readonly Arrival[]): Whole | undefined {
  const pieces = group
    .map(({ received: { frame } }) => pieceOf(frame))
    .toSorted((a, b) => a.offset - b.offset)
    .filter(
      (piece, i, all) => piece.offset !== all[i - 1]?.offset || !isSame(piece.payload, all[i - 1]!.payload),
    );
  let end = 0;
  for (const { offset, payload } of pieces) {
    if (offset !== end) return undefined;
    end += payload.length;
  }
  const [first, last] = [pieces[0]!, pieces.at(-1)!];
  if (last.more || first.header + end - 14 > 65535) return undefined;
  const frame = new Uint8Array(first.header + end);
  frame.set(first.frame.subarray(0, first.header));
  for (const { offset, payload } of pieces) frame.set(payload, first.header + offset);
  const whole =
    u16(frame, 12) === IPV6 ? withoutFragmentHeader(frame, first.header) : notFragmented(frame, first.header);
  return {
    ...group[0]!,
    received: { ...group[0]!.received, frame: whole },
    fragments: pieces.map(({ payload }) => payload.length),
  };
}

/** @param header the offset of the payload */
function notFragmented(frame: Uint8Array, header: number): Uint8Array {
  const total = frame.length - 14;
  frame.set([total >>> 8, total & 255], 16);
  frame[20]! &= 0xdf;
  frame.set([0, 0], 24);
  const sum = checksum(frame.subarray(14, header));
  frame.set([sum >>> 8, sum & 255], 24);
  return frame;
}

/** RFC 8200 section 4.5. @param header the offset of the payload, immediately after the fragment header */
function withoutFragmentHeader(frame: Uint8Array, header: number): Uint8Array {
  const whole = Uint8Array.from([...frame.subarray(0, header - 8), ...frame.subarray(header)]);
  const length = whole.length - 14 - IPV6_HEADER;
  whole.set([length >>> 8, length & 255], 18);
  // The last header before it has its number.
  let nextAt = 14 + 6;
  for (let at = 14 + IPV6_HEADER; at < header - 8; at += 8 * (whole[at + 1]! + 1)) nextAt = at;
  whole[nextAt] = frame[header - 8]!;
  return whole;
}
