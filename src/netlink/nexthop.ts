// SPDX-License-Identifier: Apache-2.0
import { addressFamily } from '../net/ip.ts';
import { type Hop, RTNH_F_ONLINK, RTPROT } from './route.ts';
import { CREATE, type Message, type NetlinkSocket, type Request } from './socket.ts';
import { AF, AF_UNSPEC, Writer } from './wire.ts';

/* linux/rtnetlink.h, linux/nexthop.h */
export const RTM_NEWNEXTHOP = 104;
export const RTM_DELNEXTHOP = 105;
const RTM_GETNEXTHOP = 106;
const NHMSG = 8;
const NHA = { id: 1, group: 2, blackhole: 4, oif: 5, gateway: 6 } as const;
const GROUP_ENTRY = 8;

/** A next hop as an object of its own, to which routes refer by its number (ip-nexthop(8), Linux 5.3). */
export interface Nexthop extends Hop {
  readonly id: number;
  readonly protocol: number;
  readonly blackhole: boolean;
  /** The numbers of its members, where it is a group. */
  readonly group: readonly number[] | undefined;
}

export interface NewNexthop {
  readonly id: number;
  readonly gateway?: string;
  readonly ifindex: number;
  readonly onlink?: boolean;
  /** Default: `boot`. */
  readonly protocol?: number;
}

export function listNexthops(socket: NetlinkSocket): Nexthop[] {
  const payload = header(AF_UNSPEC, 0, 0).done();
  return socket.dump({ type: RTM_GETNEXTHOP, payload, what: () => 'list nexthops' }, readNexthop);
}

export function readNexthop({ body }: Message): Nexthop {
  const attributes = body.attributes(NHMSG);
  const group = attributes.get(NHA.group);
  return {
    id: attributes.u32(NHA.id) ?? 0,
    protocol: body.u8(2),
    gateway: attributes.address(NHA.gateway),
    ifindex: attributes.u32(NHA.oif),
    onlink: (body.u32(4) & RTNH_F_ONLINK) !== 0,
    blackhole: attributes.has(NHA.blackhole),
    // An array of `struct nexthop_grp`.
    group: group && Array.from({ length: group.length / GROUP_ENTRY }, (_, i) => group.u32(i * GROUP_ENTRY)),
  };
}

/** Make a nexthop, in place of the one of this number, if there is one; its routes follow. */
export function replaceNexthop(nexthop: NewNexthop): Request {
  const { id, gateway, ifindex, onlink, protocol = RTPROT.boot } = nexthop;
  const family = gateway === undefined ? 4 : (addressFamily(gateway) ?? 4);
  return {
    type: RTM_NEWNEXTHOP,
    flags: CREATE.replace,
    payload: header(AF[family], protocol, onlink ? RTNH_F_ONLINK : 0)
      .u32(NHA.id, id)
      .u32(NHA.oif, ifindex)
      .address(NHA.gateway, gateway)
      .done(),
    what: () => `replace nexthop ${id}`,
  };
}

/** Delete a nexthop and the routes that use it. ENOENT when there is none. */
export function deleteNexthop(id: number): Request {
  const payload = header(AF_UNSPEC, 0, 0).u32(NHA.id, id).done();
  return { type: RTM_DELNEXTHOP, payload, what: () => `delete nexthop ${id}` };
}

/** `struct nhmsg`: family, scope (the kernel's to say), protocol, reserved, flags. */
function header(family: number, protocol: number, flags: number): Writer {
  return new Writer().struct([1, family], [1, 0], [1, protocol], [1, 0], [4, flags]);
}
