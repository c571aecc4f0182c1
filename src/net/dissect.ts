// SPDX-License-Identifier: Apache-2.0
/** Frames taken apart, and told on one line as tcpdump does. A captured frame may be cut off anywhere. */
import { bytesToAddress } from './ip.ts';
import { bytesToMac } from './mac.ts';
import { protocols } from './packets.ts';

export interface Dissected {
  /** The frame's length on the wire. */
  readonly length: number;
  readonly ether?: { readonly dst: string; readonly src: string; readonly type: number };
  readonly arp?: { readonly operation: number; readonly sender: string; readonly target: string };
  readonly ip?: DissectedIp;
  readonly vxlan?: { readonly vni: number };
  /** The frame in VXLAN. */
  readonly inner?: Dissected;
}

export interface DissectedIp {
  readonly src: string;
  readonly dst: string;
  readonly protocol: number;
  readonly ttl: number;
  readonly tos: number;
  /** Not the first fragment of its packet; what follows is no transport header. */
  readonly isLaterFragment: boolean;
  /** Of TCP and UDP. */
  readonly ports?: { readonly src: number; readonly dst: number };
  /** Of TCP. */
  readonly flags?: number;
  /** Of ICMP and ICMPv6; an echo has an identifier and a number. */
  readonly icmp?: {
    readonly type: number;
    readonly code: number;
    readonly id: number;
    readonly sequence: number;
  };
  /** Of TCP and UDP: bytes of payload, as the headers tell. Of others: bytes behind the IP header. */
  readonly payload: number;
}

const ETHER = 14;
const ETHERTYPES = { ipv4: 0x0800, arp: 0x0806, ipv6: 0x86dd } as const;

/**
 * @param length of the whole frame, of which `bytes` may be only the beginning.
 * @param vxlanPort UDP to this port is VXLAN.
 */
export function dissect(bytes: Uint8Array, vxlanPort: number, length = bytes.length): Dissected {
  if (bytes.length < ETHER) return { length };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const type = view.getUint16(12);
  const ether = { dst: bytesToMac(bytes.subarray(0, 6)), src: bytesToMac(bytes.subarray(6, 12)), type };
  if (type === ETHERTYPES.arp && bytes.length >= ETHER + 28) {
    const address = (at: number): string => bytesToAddress(bytes.subarray(at, at + 4));
    const arp = {
      operation: view.getUint16(ETHER + 6),
      sender: address(ETHER + 14),
      target: address(ETHER + 24),
    };
    return { length, ether, arp };
  }
  const header = type === ETHERTYPES.ipv4 ? 20 : type === ETHERTYPES.ipv6 ? 40 : Infinity;
  if (bytes.length < ETHER + header) return { length, ether };
  const [ip, transport] = type === ETHERTYPES.ipv4 ? dissectIpv4(bytes, view) : dissectIpv6(bytes, view);
  const inside = transport + 8 + 8;
  if (ip.ports?.dst !== vxlanPort || ip.protocol !== protocols.udp || bytes.length < inside)
    return { length, ether, ip };
  const vxlan = { vni: view.getUint32(transport + 8 + 4) >>> 8 };
  return { length, ether, ip, vxlan, inner: dissect(bytes.subarray(inside), vxlanPort, length - inside) };
}

function dissectIpv4(bytes: Uint8Array, view: DataView): [DissectedIp, transport: number] {
  const at = ETHER;
  const header = (bytes[at]! & 0xf) * 4;
  const isLaterFragment = (view.getUint16(at + 6) & 0x1fff) !== 0;
  const [protocol, rest] = [bytes[at + 9]!, view.getUint16(at + 2) - header];
  const ip = {
    src: bytesToAddress(bytes.subarray(at + 12, at + 16)),
    dst: bytesToAddress(bytes.subarray(at + 16, at + 20)),
    protocol,
    ttl: bytes[at + 8]!,
    tos: bytes[at + 1]!,
    isLaterFragment,
  };
  return [
    { ...ip, ...dissectTransport(view, at + header, isLaterFragment ? -1 : protocol, rest) },
    at + header,
  ];
}

function dissectIpv6(bytes: Uint8Array, view: DataView): [DissectedIp, transport: number] {
  const at = ETHER;
  const [protocol, rest] = [bytes[at + 6]!, view.getUint16(at + 4)];
  const ip = {
    src: bytesToAddress(bytes.subarray(at + 8, at + 24)),
    dst: bytesToAddress(bytes.subarray(at + 24, at + 40)),
    protocol,
    ttl: bytes[at + 7]!,
    tos: (view.getUint16(at) >>> 4) & 0xff,
    isLaterFragment: false,
  };
  return [{ ...ip, ...dissectTransport(view, at + 40, protocol, rest) }, at + 40];
}

/** @param rest the bytes of transport header and payload, as the IP header tells. */
function dissectTransport(
  view: DataView,
  at: number,
  protocol: number,
  rest: number,
): Pick<DissectedIp, 'ports' | 'flags' | 'icmp' | 'payload'> {
  const has = (bytes: number): boolean => view.byteLength >= at + bytes;
  const ports = () => ({ src: view.getUint16(at), dst: view.getUint16(at + 2) });
  if (protocol === protocols.tcp && has(20)) {
    const header = (view.getUint8(at + 12) >> 4) * 4;
    return { ports: ports(), flags: view.getUint8(at + 13), payload: Math.max(0, rest - header) };
  }
  if (protocol === protocols.udp && has(8)) return { ports: ports(), payload: Math.max(0, rest - 8) };
  if ((protocol === protocols.icmp || protocol === protocols.icmpv6) && has(8)) {
    const [type, code] = [view.getUint8(at), view.getUint8(at + 1)];
    return {
      icmp: { type, code, id: view.getUint16(at + 4), sequence: view.getUint16(at + 6) },
      payload: rest,
    };
  }
  return { payload: rest };
}

/** The flow that a packet belongs to, as the flow table has it; undefined where it has none. */
export function flowOf({
  ip,
}: Dissected): { src: string; dst: string; srcPort: number; dstPort: number; protocol: number } | undefined {
  const ends = ip && { src: ip.src, dst: ip.dst, protocol: ip.protocol };
  if (ip?.ports) return { ...ends!, srcPort: ip.ports.src, dstPort: ip.ports.dst };
  if (ip?.icmp) return { ...ends!, srcPort: ip.icmp.id, dstPort: ip.icmp.type };
  return undefined;
}

/** tcpdump's letters of the TCP flags, lowest bit first. */
const FLAGS = ['F', 'S', 'R', 'P', '.', 'U', 'E', 'W'];

/** One line, as tcpdump prints it. */
export function describeFrame({ length, ether, arp, ip, vxlan, inner }: Dissected): string {
  if (arp) {
    return arp.operation === 1
      ? `ARP, Request who-has ${arp.target} tell ${arp.sender}`
      : `ARP, Reply ${arp.sender} is-at ${ether!.src}`;
  }
  if (!ip)
    return ether ? `ethertype 0x${ether.type.toString(16).padStart(4, '0')}, length ${length}` : 'cut off';
  const name = ip.src.includes(':') ? 'IP6' : 'IP';
  const port = (number: number | undefined): string => (number === undefined ? '' : `.${number}`);
  const ends = `${name} ${ip.src}${port(ip.ports?.src)} > ${ip.dst}${port(ip.ports?.dst)}`;
  if (vxlan) return `${ends}: VXLAN vni ${vxlan.vni}: ${inner ? describeFrame(inner) : 'cut off'}`;
  return `${ends}: ${describeTransport(ip)}, length ${ip.payload}`;
}

function describeTransport({ protocol, flags, icmp, isLaterFragment }: DissectedIp): string {
  if (isLaterFragment) return `fragment, protocol ${protocol}`;
  if (flags !== undefined)
    return `Flags [${FLAGS.filter((_, bit) => (flags >> bit) & 1).join('') || 'none'}]`;
  if (protocol === protocols.udp) return 'UDP';
  if (!icmp) return `protocol ${protocol}`;
  const name = protocol === protocols.icmp ? 'ICMP' : 'ICMP6';
  const echo = { 8: 'echo request', 0: 'echo reply', 128: 'echo request', 129: 'echo reply' }[icmp.type];
  if (echo) return `${name}${name === 'ICMP' ? '' : ','} ${echo}, id ${icmp.id}, seq ${icmp.sequence}`;
  return `${name} type ${icmp.type} code ${icmp.code}`;
}

/** Bytes as `tcpdump -XX` prints them: offset, 16 bytes in hex in groups of two. */
export function hexDump(bytes: Uint8Array): string[] {
  const lines: string[] = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const groups =
      Buffer.from(bytes.subarray(at, at + 16))
        .toString('hex')
        .match(/.{1,4}/g) ?? [];
    lines.push(`0x${at.toString(16).padStart(4, '0')}:  ${groups.join(' ')}`);
  }
  return lines;
}
