// SPDX-License-Identifier: Apache-2.0
import {
  type Address,
  getLink,
  type Link as KernelLink,
  listAddresses,
  listLinks as listKernelLinks,
  type VxlanInfo,
} from '#netlink';
import { RipstopError } from '../errors.ts';
import type { Family } from '../net/ip.ts';
import { openNetlink, type Where } from './netlink.ts';

/** An address on a link. */
export interface LinkAddress {
  family: Family;
  ip: string;
  /** Prefix length in bits. */
  length: number;
  scope: string;
  /** Whether it can be the node's own address: not secondary, temporary or deprecated, and DAD did not fail. */
  primary: boolean;
}

/** The settings of a VXLAN device. */
export interface VxlanDetails {
  vni: number;
  /** UDP destination port. */
  port: number;
  local: string | undefined;
  /** Name of the device that the tunnel is bound to. */
  uplink: string | undefined;
  learning: boolean;
  /** Whether it sends and accepts outer UDP checksums of zero over IPv6 (RFC 6935). */
  zeroChecksum6: { tx: boolean; rx: boolean };
  /** Names (as in iproute2) of settings that flannel never makes: `group`, `gbp`, `external`, `proxy`, … */
  extras: string[];
}

export interface Link {
  name: string;
  ifindex: number;
  /** Lower case; undefined for devices without a MAC address of six bytes. */
  mac: string | undefined;
  mtu: number;
  /** The most segments of a super-packet that its driver takes. */
  gsoMaxSegs: number;
  /** Administratively up. */
  up: boolean;
  /** Up and with a carrier. */
  running: boolean;
  /** `veth`, `vxlan`, `bridge`, `bond`, …; undefined for hardware and loopback. */
  kind: string | undefined;
  loopback: boolean;
  /** Name of the bridge, bond or VRF that it is a port of. */
  master: string | undefined;
  /** A veth's peer or a VLAN's parent: its name when it is in the same namespace, else its index in the other. */
  peer: { name: string } | { ifindex: number; netnsId: number } | undefined;
  vxlan: VxlanDetails | undefined;
  addresses: LinkAddress[];
}

/** Every link of the namespace with its addresses, by name. @throws Error with `code` without such a namespace. */
export async function listLinks(where: Where = {}): Promise<Map<string, Link>> {
  using socket = openNetlink(where);
  const links = listKernelLinks(socket);
  const names = new Map(links.map(({ ifindex, name }) => [ifindex, name]));
  const addresses = Map.groupBy(listAddresses(socket), ({ ifindex }) => ifindex);
  return new Map(
    links.map((link) => [
      link.name,
      toLink(link, addresses.get(link.ifindex) ?? [], (index) => names.get(index)),
    ]),
  );
}

/** One link, by name or index; undefined when it does not exist. */
export async function readLinkIfThere(name: string | number, where: Where = {}): Promise<Link | undefined> {
  using socket = openNetlink(where);
  const link = getLink(socket, name);
  if (!link) return undefined;
  return toLink(
    link,
    listAddresses(socket, { ifindex: link.ifindex }),
    (index) => getLink(socket, index)?.name,
  );
}

/** Whether there is a link of this name. */
export function hasLink(name: string, where: Where = {}): boolean {
  using socket = openNetlink(where);
  return getLink(socket, name) !== undefined;
}

/**
 * One link that must be there.
 * @throws RipstopError when it is not.
 */
export async function readLink(name: string, where: Where = {}): Promise<Link> {
  const link = await readLinkIfThere(name, where);
  if (!link) throw new RipstopError(`there is no network device ${name}; see "ip link"`);
  return link;
}

function toLink(
  link: KernelLink,
  addresses: readonly Address[],
  nameOf: (ifindex: number) => string | undefined,
): Link {
  const { name, ifindex, mac, mtu, gsoMaxSegs, up, running, kind, loopback, master, vxlan } = link;
  return {
    name,
    ifindex,
    mac,
    mtu,
    gsoMaxSegs,
    up,
    running,
    kind,
    loopback,
    master: master === undefined ? undefined : nameOf(master),
    peer: peerOf(link, nameOf),
    vxlan: vxlan && toVxlan(vxlan, nameOf),
    addresses: addresses.map(({ family, address, length, scope, secondary, deprecated, dadFailed }) => ({
      family,
      ip: address,
      length,
      scope,
      primary: !secondary && !deprecated && !dadFailed,
    })),
  };
}

function peerOf({ parent }: KernelLink, nameOf: (ifindex: number) => string | undefined): Link['peer'] {
  if (!parent) return undefined;
  const { ifindex, netnsId } = parent;
  if (netnsId !== undefined) return { ifindex, netnsId };
  const name = nameOf(ifindex);
  return name === undefined ? undefined : { name };
}

function toVxlan(info: VxlanInfo, nameOf: (ifindex: number) => string | undefined): VxlanDetails {
  const { vni, port, local, lower, learning, zeroChecksum6 } = info;
  return {
    vni,
    port,
    local,
    uplink: lower === undefined ? undefined : nameOf(lower),
    learning,
    zeroChecksum6,
    extras: FOREIGN_VXLAN_SETTINGS.filter((name) => info[name] !== undefined && info[name] !== false),
  };
}

const FOREIGN_VXLAN_SETTINGS = [
  'group',
  'gbp',
  'gpe',
  'external',
  'vnifilter',
  'l2miss',
  'l3miss',
  'proxy',
  'rsc',
] as const satisfies (keyof VxlanInfo)[];

/** Whether ripstop's CNI plugin gives host veths names such as this one (see cni/pod-network.ts). */
export function isPodVeth(name: string): boolean {
  return /^veth[0-9a-f]{8}$/.test(name);
}
