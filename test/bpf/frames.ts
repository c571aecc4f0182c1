// SPDX-License-Identifier: Apache-2.0
/** The frames that the fixtures send through the node: sane unless told otherwise. */
import type { Endpoint, Peer } from '../../src/dataplane/desired.ts';
import {
  ethernet,
  type EthernetFields,
  ipv4,
  type Ipv4Fields,
  tcp,
  udp,
  type UdpFields,
  vxlan,
  type VxlanFields,
} from '../support/packets.ts';
import { peers, pods, settings } from './node.ts';

export const TCP = 6;
export const ICMP = 1;
export const SCTP = 132;

/** What a pod sends: a TCP segment to a pod on node one. */
export function podFrame(
  ip: Partial<Ipv4Fields> = {},
  payload: Uint8Array = tcp({ src: 40000, dst: 80 }),
  ether: Partial<EthernetFields> = {},
): Uint8Array {
  const { sender } = pods;
  return ethernet(
    { dst: sender.hostMac, src: sender.podMac, ...ether },
    ipv4({ src: sender.ip, dst: '10.42.1.7', protocol: TCP, ...ip }, payload),
  );
}

export interface WireFields {
  ether?: Partial<EthernetFields>;
  outer?: Partial<Ipv4Fields>;
  udp?: Partial<UdpFields>;
  vxlan?: VxlanFields;
  innerEther?: Partial<EthernetFields>;
  inner?: Partial<Ipv4Fields>;
}

/** What a wire brings: from a pod on node one, a TCP segment to a pod of ours. */
export function wireFrame(
  fields: WireFields = {},
  payload: Uint8Array = tcp({ src: 80, dst: 40000 }),
): Uint8Array {
  const inner = ipv4(
    { src: '10.42.1.7', dst: pods.near.ip, protocol: TCP, ttl: 63, ...fields.inner },
    payload,
  );
  return tunnelled(peers.one, inner, fields);
}

/** The same around any inner packet. */
export function tunnelled(from: Peer, inner: Uint8Array, fields: WireFields = {}): Uint8Array {
  const innerFrame = ethernet({ dst: settings.vtepMac, src: from.vtepMac, ...fields.innerEther }, inner);
  return ethernet(
    { dst: '02:00:00:00:00:03', src: '02:00:00:00:00:01', ...fields.ether },
    ipv4(
      { src: from.vtepIp, dst: settings.uplink.ip, ...fields.outer },
      udp({ src: 45678, dst: settings.port, ...fields.udp }, vxlan(fields.vxlan ?? {}, innerFrame)),
    ),
  );
}

/** What from_pod must make of an inner packet to a peer: every byte, but for the two that it chooses. */
export function encapsulated(
  to: Peer,
  inner: Uint8Array,
  chosen: { ecn?: number; id: number; sourcePort: number },
): Uint8Array {
  const noMac = '00:00:00:00:00:00'; // the kernel's neighbour table fills these in behind us
  return ethernet(
    { dst: noMac, src: noMac },
    ipv4(
      { src: settings.uplink.ip, dst: to.vtepIp, ttl: 64, tos: chosen.ecn ?? 0, id: chosen.id },
      udp(
        { src: chosen.sourcePort, dst: settings.port },
        vxlan({ vni: settings.vni }, ethernet({ dst: to.vtepMac, src: settings.vtepMac }, inner)),
      ),
    ),
  );
}

/** What the pod must get: the inner packet, in a frame from its veth's host side. */
export function delivered(to: Endpoint, inner: Uint8Array): Uint8Array {
  return ethernet({ dst: to.podMac, src: to.hostMac }, inner);
}

/** The id and the source port of an encapsulated packet. */
export function chosenOf(packet: Uint8Array): { id: number; sourcePort: number } {
  const view = new DataView(packet.buffer, packet.byteOffset);
  return { id: view.getUint16(18), sourcePort: view.getUint16(34) };
}
