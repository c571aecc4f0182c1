// SPDX-License-Identifier: Apache-2.0
import { addressToBytes, type Family } from '../net/ip.ts';
import { CREATE, type Message, type NetlinkSocket, type Request } from './socket.ts';
import { AF, AF_BRIDGE, AF_UNSPEC, familyOf, Writer } from './wire.ts';

/* linux/rtnetlink.h, linux/neighbour.h */
export const RTM_NEWNEIGH = 28;
export const RTM_DELNEIGH = 29;
const RTM_GETNEIGH = 30;
const NDMSG = 12;
const NDA = { dst: 1, lladdr: 2, vlan: 5, ifindex: 8, master: 9, protocol: 12 } as const;
const NTF = { self: 0x02, proxy: 0x08 } as const;
/** NUD_ states. */
const STATES = {
  incomplete: 0x01,
  reachable: 0x02,
  stale: 0x04,
  delay: 0x08,
  probe: 0x10,
  failed: 0x20,
  noarp: 0x40,
  permanent: 0x80,
} as const;
export type NeighbourState = keyof typeof STATES | 'none';

/** An entry of the ARP or NDP cache, or an address that the node answers for (`proxy`). */
export interface Neighbour {
  readonly kind: 'neighbour';
  readonly ifindex: number;
  readonly family: Family;
  readonly address: string;
  readonly mac: string | undefined;
  readonly state: NeighbourState;
  readonly proxy: boolean;
  /** Who made it, as with routes. */
  readonly protocol: number | undefined;
}

/** An entry of a bridge's or a VXLAN device's forwarding database. */
export interface FdbEntry {
  readonly kind: 'fdb';
  readonly ifindex: number;
  readonly mac: string;
  /** Where a VXLAN device sends what is for it. */
  readonly dst: string | undefined;
  readonly vlan: number | undefined;
  /** The bridge that the device is a port of. */
  readonly master: number | undefined;
  readonly state: NeighbourState;
  /** Of the device itself, and not of the bridge that it is a port of. */
  readonly self: boolean;
}

export interface NewNeighbour {
  readonly ifindex: number;
  readonly address: string;
  readonly mac: string;
  /** Default `permanent`. */
  readonly state?: 'permanent' | 'reachable' | 'stale' | 'noarp';
  readonly protocol?: number;
}

export interface NewProxy {
  readonly ifindex: number;
  readonly address: string;
  readonly protocol?: number;
}

/** An FDB entry of a VXLAN device itself. */
export interface NewFdbEntry {
  readonly ifindex: number;
  readonly mac: string;
  readonly dst: string;
}

/**
 * Neighbours of both families, or of one, of all links or of one; with `proxy` the addresses that the node answers
 * for.
 */
export function listNeighbours(
  socket: NetlinkSocket,
  filter: { readonly family?: Family; readonly ifindex?: number; readonly proxy?: boolean } = {},
): Neighbour[] {
  const { family, ifindex, proxy = false } = filter;
  const payload = header(family ? AF[family] : AF_UNSPEC, 0, 0, proxy ? NTF.proxy : 0)
    .u32(NDA.ifindex, ifindex)
    .done();
  return socket.dump({ type: RTM_GETNEIGH, payload, what: () => 'list neighbours' }, (message) => {
    // A kernel without strict checking gives them all.
    if (ifindex !== undefined && message.body.u32(4) !== ifindex) return undefined;
    const entry = readNeighbour(message);
    return entry?.kind === 'neighbour' ? entry : undefined;
  });
}

/** The FDB entries of one device, or of all ports of a bridge (`master`). */
export function listFdb(
  socket: NetlinkSocket,
  {
    ifindex,
    master,
  }:
    | { readonly ifindex: number; readonly master?: never }
    | { readonly master: number; readonly ifindex?: never },
): FdbEntry[] {
  const payload = header(AF_BRIDGE, 0, 0, 0).u32(NDA.ifindex, ifindex).u32(NDA.master, master).done();
  return socket.dump(
    { type: RTM_GETNEIGH, payload, what: () => `list the FDB of link ${ifindex ?? master}` },
    (message) => {
      const entry = readNeighbour(message);
      if (entry?.kind !== 'fdb') return undefined;
      return entry.ifindex === ifindex || (master !== undefined && entry.master === master)
        ? entry
        : undefined;
    },
  );
}

/** Neighbours and FDB entries are the same kind of message. Undefined for other families. */
export function readNeighbour({ body }: Message): Neighbour | FdbEntry | undefined {
  const af = body.u8(0);
  const family = familyOf(af);
  if (family === undefined && af !== AF_BRIDGE) return undefined;
  const attributes = body.attributes(NDMSG);
  const ifindex = body.u32(4);
  const state = stateOf(body.u16(8));
  const flags = body.u8(10);
  const mac = attributes.mac(NDA.lladdr);
  if (family === undefined) {
    return {
      kind: 'fdb',
      ifindex,
      mac: mac ?? '',
      dst: attributes.address(NDA.dst),
      vlan: attributes.u16(NDA.vlan),
      master: attributes.u32(NDA.master),
      state,
      self: (flags & NTF.self) !== 0,
    };
  }
  return {
    kind: 'neighbour',
    ifindex,
    family,
    address: attributes.address(NDA.dst) ?? '',
    mac,
    state,
    proxy: (flags & NTF.proxy) !== 0,
    protocol: attributes.u8(NDA.protocol),
  };
}

/** `permanent` before all: FDB entries also have NUD_NOARP beside it. */
function stateOf(bits: number): NeighbourState {
  if ((bits & STATES.permanent) !== 0) return 'permanent';
  for (const name in STATES)
    if ((bits & STATES[name as keyof typeof STATES]) !== 0) return name as NeighbourState;
  return 'none';
}

/** Make a neighbour be there with this MAC address and state. */
export function replaceNeighbour(neighbour: NewNeighbour): Request {
  const { ifindex, address, mac, state = 'permanent', protocol } = neighbour;
  const bytes = addressToBytes(address);
  return {
    type: RTM_NEWNEIGH,
    flags: CREATE.replace,
    payload: header(afOf(bytes), ifindex, STATES[state], 0)
      .bytes(NDA.dst, bytes)
      .mac(NDA.lladdr, mac)
      .u8(NDA.protocol, protocol)
      .done(),
    what: () => `replace neighbour ${address} of link ${ifindex}`,
  };
}

/** Delete a neighbour. ENOENT when there is none. */
export function deleteNeighbour({ ifindex, address }: Pick<NewNeighbour, 'ifindex' | 'address'>): Request {
  const bytes = addressToBytes(address);
  return {
    type: RTM_DELNEIGH,
    payload: header(afOf(bytes), ifindex, 0, 0).bytes(NDA.dst, bytes).done(),
    what: () => `delete neighbour ${address} of link ${ifindex}`,
  };
}

/** Answer for an address on a link. */
export function replaceProxy({ ifindex, address, protocol }: NewProxy): Request {
  const bytes = addressToBytes(address);
  return {
    type: RTM_NEWNEIGH,
    flags: CREATE.replace,
    payload: header(afOf(bytes), ifindex, STATES.permanent, NTF.proxy)
      .bytes(NDA.dst, bytes)
      .u8(NDA.protocol, protocol)
      .done(),
    what: () => `replace proxy ${address} of link ${ifindex}`,
  };
}

/** Answer for it no more. ENOENT when the node did not. */
export function deleteProxy({ ifindex, address }: NewProxy): Request {
  const bytes = addressToBytes(address);
  return {
    type: RTM_DELNEIGH,
    payload: header(afOf(bytes), ifindex, 0, NTF.proxy).bytes(NDA.dst, bytes).done(),
    what: () => `delete proxy ${address} of link ${ifindex}`,
  };
}

/** Make a permanent entry of a VXLAN device be there, with this as its only destination. */
export function replaceFdbEntry({ ifindex, mac, dst }: NewFdbEntry): Request {
  return {
    type: RTM_NEWNEIGH,
    flags: CREATE.replace,
    payload: header(AF_BRIDGE, ifindex, STATES.permanent, NTF.self)
      .mac(NDA.lladdr, mac)
      .address(NDA.dst, dst)
      .done(),
    what: () => `replace FDB entry ${mac} of link ${ifindex}`,
  };
}

/** Delete an entry of a VXLAN device, with all its destinations. ENOENT when there is none. */
export function deleteFdbEntry({ ifindex, mac }: Pick<NewFdbEntry, 'ifindex' | 'mac'>): Request {
  return {
    type: RTM_DELNEIGH,
    payload: header(AF_BRIDGE, ifindex, 0, NTF.self).mac(NDA.lladdr, mac).done(),
    what: () => `delete FDB entry ${mac} of link ${ifindex}`,
  };
}

function afOf(bytes: Uint8Array): number {
  return AF[bytes.length === 4 ? 4 : 6];
}

/** `struct ndmsg`: family, three bytes of padding, index, state, flags, type. */
function header(family: number, ifindex: number, state: number, flags: number): Writer {
  return new Writer().struct([4, family], [4, ifindex], [2, state], [1, flags], [1, 0]);
}
