// SPDX-License-Identifier: Apache-2.0
import { addressFamily, type Family } from '../net/ip.ts';
import { CREATE, type Message, type NetlinkSocket, type Request } from './socket.ts';
import { AF, AF_UNSPEC, familyOf, Writer } from './wire.ts';

/* linux/rtnetlink.h */
export const RTM_NEWADDR = 20;
export const RTM_DELADDR = 21;
const RTM_GETADDR = 22;
/** linux/if_addr.h */
const IFADDRMSG = 8;
const IFA = { address: 1, local: 2, label: 3, flags: 8 } as const;
const IFA_F = {
  secondary: 0x01,
  nodad: 0x02,
  dadFailed: 0x08,
  deprecated: 0x20,
  tentative: 0x40,
  permanent: 0x80,
  noPrefixRoute: 0x200,
} as const;

/** linux/rtnetlink.h `enum rt_scope_t`. */
export const SCOPES = { global: 0, site: 200, link: 253, host: 254, nowhere: 255 } as const;
export type Scope = keyof typeof SCOPES;

/** The name of a scope; a number of somebody's own counts as global. */
export function scopeOf(value: number): Scope {
  return (Object.keys(SCOPES) as Scope[]).find((name) => SCOPES[name] === value) ?? 'global';
}

/** An address of a link. */
export interface Address {
  readonly ifindex: number;
  readonly family: Family;
  readonly address: string;
  /** Prefix length in bits. */
  readonly length: number;
  /** The other end, of a point-to-point link. */
  readonly peer: string | undefined;
  readonly scope: Scope;
  /** Of IPv4: not the first of its subnet. Of IPv6: temporary (RFC 8981). */
  readonly secondary: boolean;
  readonly deprecated: boolean;
  /** Duplicate address detection found another host with it. */
  readonly dadFailed: boolean;
  /** Not yet in use: duplicate address detection goes on. */
  readonly tentative: boolean;
  readonly permanent: boolean;
  readonly noPrefixRoute: boolean;
}

/** An address to be given to a link. */
export interface NewAddress {
  readonly ifindex: number;
  readonly address: string;
  /** Prefix length in bits. */
  readonly length: number;
  readonly peer?: string;
  readonly scope?: Scope;
  /** IPv6: use it at once, without duplicate address detection. */
  readonly nodad?: boolean;
  /** Without the route to its subnet. */
  readonly noPrefixRoute?: boolean;
}

/** Addresses of both families, or of one, of all links or of one. */
export function listAddresses(
  socket: NetlinkSocket,
  filter: { readonly family?: Family; readonly ifindex?: number } = {},
): Address[] {
  const { family, ifindex = 0 } = filter;
  const payload = new Writer()
    .struct([1, family ? AF[family] : AF_UNSPEC], [1, 0], [1, 0], [1, 0], [4, ifindex])
    .done();
  return socket.dump({ type: RTM_GETADDR, payload, what: () => 'list addresses' }, (message) => {
    const address = readAddress(message);
    // A kernel without strict checking gives them all.
    return ifindex === 0 || address?.ifindex === ifindex ? address : undefined;
  });
}

/** Undefined for an address of another family. */
export function readAddress({ body }: Message): Address | undefined {
  const family = familyOf(body.u8(0));
  if (family === undefined) return undefined;
  const attributes = body.attributes(IFADDRMSG);
  const flags = attributes.u32(IFA.flags) ?? body.u8(2);
  const is = (flag: keyof typeof IFA_F): boolean => (flags & IFA_F[flag]) !== 0;
  const remote = attributes.address(IFA.address);
  const address = attributes.address(IFA.local) ?? remote ?? '';
  return {
    ifindex: body.u32(4),
    family,
    address,
    length: body.u8(1),
    peer: remote === address ? undefined : remote,
    scope: scopeOf(body.u8(3)),
    secondary: is('secondary'),
    deprecated: is('deprecated'),
    dadFailed: is('dadFailed'),
    tentative: is('tentative'),
    permanent: is('permanent'),
    noPrefixRoute: is('noPrefixRoute'),
  };
}

/** Give a link an address. EEXIST when it has it. */
export function addAddress(address: NewAddress): Request {
  return { ...request(RTM_NEWADDR, 'add', address), flags: CREATE.add };
}

/** Take an address from a link. EADDRNOTAVAIL when it does not have it. */
export function deleteAddress(address: Pick<NewAddress, 'ifindex' | 'address' | 'length'>): Request {
  return request(RTM_DELADDR, 'delete', address);
}

function request(type: number, verb: string, given: NewAddress): Request {
  const { ifindex, address, length, peer, scope = 'global', nodad, noPrefixRoute } = given;
  const flags = (nodad ? IFA_F.nodad : 0) | (noPrefixRoute ? IFA_F.noPrefixRoute : 0);
  const payload = new Writer()
    .struct([1, AF[addressFamily(address) ?? 4]], [1, length], [1, 0], [1, SCOPES[scope]], [4, ifindex])
    .address(IFA.local, address)
    .address(IFA.address, peer ?? address)
    .u32(IFA.flags, flags || undefined)
    .done();
  return { type, payload, what: () => `${verb} address ${address}/${length} of link ${ifindex}` };
}
