// SPDX-License-Identifier: Apache-2.0
/** The frames that the fixtures send through the node, of both families: valid by default. */
import type { Endpoint, Peer } from '../../src/dataplane/desired.ts';
import {
  ethernet,
  type EthernetFields,
  ip,
  type Ipv4Fields,
  ipv6Extension,
  type Ipv6Fields,
  protocols,
  tcp,
  udp,
  type UdpFields,
  vxlan,
  type VxlanFields,
} from '../../src/net/packets.ts';
import { type Flow, type Side, SOURCE_PORT, TEST_RUN_MAC, tunnel } from './node.ts';

export type IpFields = Partial<Ipv4Fields & Ipv6Fields>;

const { tcp: TCP } = protocols;

const ethertypes = { 4: 0x0800, 6: 0x86dd } as const;
/** The length of an IP header without options and extension headers. */
export const ipBytes = { 4: 20, 6: 40 } as const;
/** The same packet with options: in IPv4's header, or in an extension header of IPv6. */
export function withOptions(
  { family }: Side,
  fields: IpFields = {},
  payload: Uint8Array = tcp({ src: 40000, dst: 80 }),
): [fields: IpFields, payload: Uint8Array] {
  if (family === 4) return [{ ...fields, options: [1, 1, 1, 0] }, payload];
  const { protocol = TCP } = fields;
  return [{ ...fields, protocol: protocols.destinationOptions }, ipv6Extension(protocol, payload)];
}

/** The flow that a packet with these fields belongs to, however little of its transport header there is. */
export function flowOf(
  { src, dst, protocol = TCP }: Pick<IpFields, 'protocol'> & { src: string; dst: string },
  payload: Uint8Array,
): Flow {
  const word = (at: number): number => ((payload[at] ?? 0) << 8) | (payload[at + 1] ?? 0);
  const isIcmp = protocol === protocols.icmp || protocol === protocols.icmpv6;
  const ports = isIcmp ? [word(4), payload[0] ?? 0] : [word(0), word(2)];
  return { src, dst, src_port: ports[0]!, dst_port: ports[1]!, protocol };
}

/** The flow of {@link podFrame}'s packet. */
export const podFlow = (
  { pods, podOf }: Side,
  fields: IpFields = {},
  payload: Uint8Array = tcp({ src: 40000, dst: 80 }),
): Flow => flowOf({ src: pods.sender.ip, dst: podOf(1, 7), ...fields }, payload);

/** The flow of the packet inside {@link wireFrame}. */
export const wireFlow = (
  { pods, podOf }: Side,
  inner: IpFields = {},
  payload: Uint8Array = tcp({ src: 80, dst: 40000 }),
): Flow => flowOf({ src: podOf(1, 7), dst: pods.near.ip, ...inner }, payload);

/** A frame from a pod: a TCP segment to a pod on node one. */
export function podFrame(
  { family, pods, podOf }: Side,
  fields: IpFields = {},
  payload: Uint8Array = tcp({ src: 40000, dst: 80 }),
  ether: Partial<EthernetFields> = {},
): Uint8Array {
  const { sender } = pods;
  return ethernet(
    { dst: TEST_RUN_MAC, src: sender.podMac, type: ethertypes[family], ...ether },
    ip({ src: sender.ip, dst: podOf(1, 7), protocol: TCP, ...fields }, payload),
  );
}

export interface WireFields {
  ether?: Partial<EthernetFields>;
  outer?: IpFields;
  udp?: Partial<UdpFields>;
  vxlan?: VxlanFields;
  innerEther?: Partial<EthernetFields>;
  inner?: IpFields;
  /** Sets the outer UDP checksum: `sealed` or `sealedAround` of packets.ts. By default it is zero. */
  seal?: (packet: Uint8Array) => Uint8Array;
}

/** A frame from the wire: a TCP segment of a pod on node one to a local pod, in VXLAN. */
export function wireFrame(
  side: Side,
  fields: WireFields = {},
  payload: Uint8Array = tcp({ src: 80, dst: 40000 }),
): Uint8Array {
  const ends = { src: side.podOf(1, 7), dst: side.pods.near.ip };
  const inner = ip({ ...ends, protocol: TCP, ttl: 63, ...fields.inner }, payload);
  return tunnelled(side, side.peers.one, inner, fields);
}

/** The same around any inner packet. */
export function tunnelled(side: Side, from: Peer, inner: Uint8Array, fields: WireFields = {}): Uint8Array {
  const { vtepMac, vtepIp } = side.settings;
  const type = ethertypes[side.family];
  const innerFrame = ethernet({ dst: vtepMac, src: from.vtepMac, type, ...fields.innerEther }, inner);
  const outer = ip(
    { src: from.vtepIp, dst: vtepIp, ...fields.outer },
    udp({ src: 45678, dst: tunnel.port, ...fields.udp }, vxlan(fields.vxlan ?? {}, innerFrame)),
  );
  return ethernet(
    { dst: TEST_RUN_MAC, src: '02:00:00:00:00:01', type, ...fields.ether },
    fields.seal ? fields.seal(outer) : outer,
  );
}

/** The encapsulated packet that from_pod must send to a peer, except for the bytes that it may choose. */
export function encapsulated(
  side: Side,
  to: Peer,
  inner: Uint8Array,
  { ecn = 0, id, sourcePort = SOURCE_PORT }: { ecn?: number; id: number; sourcePort?: number },
): Uint8Array {
  const noMac = '00:00:00:00:00:00'; // filled in later from the kernel's neighbour table
  const { vtepMac, vtepIp } = side.settings;
  return ethernet(
    { dst: noMac, src: noMac },
    ip(
      { src: vtepIp, dst: to.vtepIp, ttl: 64, tos: ecn, id },
      udp(
        { src: sourcePort, dst: tunnel.port },
        vxlan({ vni: tunnel.vni }, ethernet({ dst: to.vtepMac, src: vtepMac }, inner)),
      ),
    ),
  );
}

/** The frame that the kernel path sends to a peer through the VTEP device. */
export function toVtep({ settings, peers }: Side, inner: Uint8Array, to = peers.one): Uint8Array {
  return ethernet({ dst: to.vtepMac, src: settings.vtepMac }, inner);
}

/** The frame that the pod must receive: the inner packet, from its host veth. */
export function delivered(to: Endpoint, inner: Uint8Array): Uint8Array {
  return ethernet({ dst: to.podMac, src: to.hostMac }, inner);
}

/** What the programs choose of an encapsulated packet: the id, of IPv4 only. */
export function chosenOf(packet: Uint8Array): { id: number } {
  return { id: new DataView(packet.buffer, packet.byteOffset).getUint16(18) };
}
