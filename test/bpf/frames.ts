// SPDX-License-Identifier: Apache-2.0
/** The frames that the fixtures send through the node: sane unless told otherwise, of whichever family. */
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
} from '../support/packets.ts';
import { tunnel, type Side, TEST_RUN_MAC } from './node.ts';

export type IpFields = Partial<Ipv4Fields & Ipv6Fields>;

const { tcp: TCP } = protocols;

const ethertypes = { 4: 0x0800, 6: 0x86dd } as const;
/** Bytes of an IP header, without options and extension headers. */
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

/** What a pod sends: a TCP segment to a pod on node one. */
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
  /** What makes the outer UDP checksum right: `sealed` or `sealedAround` of packets.ts; else it is zero unless told. */
  seal?: (packet: Uint8Array) => Uint8Array;
}

/** What a wire brings: from a pod on node one, a TCP segment to a pod of ours. */
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

/** What from_pod must make of an inner packet to a peer: every byte, but for those that it chooses. */
export function encapsulated(
  side: Side,
  to: Peer,
  inner: Uint8Array,
  chosen: { ecn?: number; id: number; sourcePort: number },
): Uint8Array {
  const noMac = '00:00:00:00:00:00'; // the kernel's neighbour table fills these in behind us
  const { vtepMac, vtepIp } = side.settings;
  return ethernet(
    { dst: noMac, src: noMac },
    ip(
      { src: vtepIp, dst: to.vtepIp, ttl: 64, tos: chosen.ecn ?? 0, id: chosen.id },
      udp(
        { src: chosen.sourcePort, dst: tunnel.port },
        vxlan({ vni: tunnel.vni }, ethernet({ dst: to.vtepMac, src: vtepMac }, inner)),
      ),
    ),
  );
}

/** What the pod must get: the inner packet, in a frame from its veth's host side. */
export function delivered(to: Endpoint, inner: Uint8Array): Uint8Array {
  return ethernet({ dst: to.podMac, src: to.hostMac }, inner);
}

/** The id (of IPv4 only) and the source port of an encapsulated packet. */
export function chosenOf({ family }: Side, packet: Uint8Array): { id: number; sourcePort: number } {
  const view = new DataView(packet.buffer, packet.byteOffset);
  return { id: view.getUint16(18), sourcePort: view.getUint16(14 + ipBytes[family]) };
}
