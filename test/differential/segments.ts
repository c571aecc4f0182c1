// SPDX-License-Identifier: Apache-2.0
/** The payloads of IP packets, made before their IP headers, so that they can be fragmented. */
import { addressFamily, addressToBytes } from '../../src/net/ip.ts';
import { checksum, icmp, tcp } from '../../src/net/packets.ts';
import { ICMP, ICMPV6, TCP, UDP } from './dissect.ts';

interface Ends {
  src: string;
  dst: string;
  protocol: number;
}

/** The offset of the checksum field, by protocol. */
const CHECKSUM_AT: Readonly<Record<number, number>> = { [ICMP]: 2, [TCP]: 16, [UDP]: 6, [ICMPV6]: 2 };

/**
 * Set the correct checksum (RFC 9293, 768, 792, 4443).
 * @param partial set only the pseudo header's sum, for a device that adds the rest
 */
export function finished({ src, dst, protocol }: Ends, segment: Uint8Array, partial = false): Uint8Array {
  const at = CHECKSUM_AT[protocol];
  if (at === undefined || segment.length < at + 2) return segment;
  const out = segment.slice();
  out.set([0, 0], at);
  // IPv6's fields for these are wider, with the same sum.
  const lengthAndProtocol = [out.length >>> 8, out.length & 255, 0, protocol];
  const pseudo =
    protocol === ICMP ? [] : [...addressToBytes(src), ...addressToBytes(dst), ...lengthAndProtocol];
  const sum = partial
    ? ~checksum(Uint8Array.from(pseudo)) & 0xffff
    : checksum(Uint8Array.from([...pseudo, ...out])) || 0xffff;
  out.set([sum >>> 8, sum & 255], at);
  return out;
}

/** A segment with these sequence and acknowledgment numbers; its checksum is zero. */
export function numberedTcp(
  fields: { src: number; dst: number; flags?: number; seq?: number; ack?: number },
  payload: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const { seq = 0, ack = 0 } = fields;
  const segment = tcp(fields, Uint8Array.from(payload));
  const view = new DataView(segment.buffer, segment.byteOffset);
  view.setUint32(4, seq);
  view.setUint32(8, ack);
  return segment;
}

/**
 * ICMP with its checksum; between IPv6 addresses ICMPv6, whose checksum covers them. `rest` is the header's second
 * word, e.g. an echo's id and sequence number.
 */
export function icmpMessage(
  { type, code = 0, rest = 0 }: { type: number; code?: number; rest?: number },
  payload: Uint8Array,
  { src, dst }: { src: string; dst: string },
): Uint8Array {
  const message = icmp(type, Uint8Array.from([0, 0, 0, 0, ...payload]));
  message[1] = code;
  new DataView(message.buffer, message.byteOffset).setUint32(4, rest);
  return finished({ src, dst, protocol: addressFamily(src) === 6 ? ICMPV6 : ICMP }, message);
}
