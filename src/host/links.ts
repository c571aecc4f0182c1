// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import type { Family } from '../net/ip.ts';
import { ipJson } from './ip.ts';
import type { RunOptions } from './run.ts';

/** An address on a link. */
export interface LinkAddress {
  family: Family;
  ip: string;
  /** Prefix length in bits. */
  length: number;
  scope: string;
  /** Neither secondary nor temporary nor deprecated nor another host's (DAD failed): fit to be a node's own address. */
  primary: boolean;
}

/** What a VXLAN device was made with. */
export interface VxlanDetails {
  vni: number;
  /** UDP destination port. */
  port: number;
  local: string | undefined;
  /** Name of the device that the tunnel is bound to. */
  uplink: string | undefined;
  learning: boolean;
  /** Outer UDP checksums of zero over IPv6, which RFC 6935 allows to those who agree on them: sends and accepts them. */
  zeroChecksum6: { tx: boolean; rx: boolean };
  /** Settings that a flannel device never has, by iproute2's names: `group`, `remote`, `gbp`, `external`, `proxy`, … */
  extras: string[];
}

export interface Link {
  name: string;
  ifindex: number;
  /** Lower case; undefined for devices without a link-layer address of six bytes. */
  mac: string | undefined;
  mtu: number;
  /** Administratively up. */
  up: boolean;
  /** Up and with a carrier. */
  running: boolean;
  /** `veth`, `vxlan`, `bridge`, `bond`, …; undefined for hardware and loopback. */
  kind: string | undefined;
  loopback: boolean;
  /** Name of the bridge, bond or VRF that it is enslaved to. */
  master: string | undefined;
  /** A veth's peer or a VLAN's parent: its name when it lives in the same namespace, else its index there. */
  peer: { name: string } | { ifindex: number; netnsId: number } | undefined;
  vxlan: VxlanDetails | undefined;
  addresses: LinkAddress[];
}

/** The part of `ip -json -details addr show` that is read here. */
interface IpAddrRow {
  ifindex: number;
  ifname: string;
  link?: string;
  link_index?: number;
  link_netnsid?: number;
  flags: string[];
  mtu: number;
  master?: string;
  address?: string;
  linkinfo?: { info_kind?: string; info_data?: Record<string, unknown> };
  addr_info?: {
    family: string;
    local?: string;
    prefixlen: number;
    scope: string;
    secondary?: boolean;
    temporary?: boolean;
    deprecated?: boolean;
    dadfailed?: boolean;
  }[];
}

/**
 * Every link of the namespace with its addresses, by name, from one listing of the kernel.
 * @throws RipstopError when `ip` cannot run.
 */
export async function listLinks(options: RunOptions = {}): Promise<Map<string, Link>> {
  const rows = await ipJson<IpAddrRow>(['addr', 'show'], options);
  return new Map(rows.map((row) => [row.ifname, toLink(row)]));
}

/** One link, or undefined. */
export async function readLinkIfThere(name: string, options: RunOptions = {}): Promise<Link | undefined> {
  return (await listLinks(options)).get(name);
}

/**
 * One link that must be there.
 * @throws RipstopError when it is not.
 */
export async function readLink(name: string, options: RunOptions = {}): Promise<Link> {
  const link = (await listLinks(options)).get(name);
  if (!link) throw new RipstopError(`there is no network device ${name}; see "ip link"`);
  return link;
}

function toLink(row: IpAddrRow): Link {
  return {
    name: row.ifname,
    ifindex: row.ifindex,
    mac: row.address?.length === 17 ? row.address : undefined,
    mtu: row.mtu,
    up: row.flags.includes('UP'),
    running: row.flags.includes('LOWER_UP'),
    kind: row.linkinfo?.info_kind,
    loopback: row.flags.includes('LOOPBACK'),
    master: row.master,
    peer: peerOf(row),
    vxlan: row.linkinfo?.info_kind === 'vxlan' ? toVxlan(row.linkinfo.info_data ?? {}) : undefined,
    addresses: (row.addr_info ?? []).flatMap((address) =>
      address.local === undefined
        ? []
        : [
            {
              family: address.family === 'inet6' ? 6 : 4,
              ip: address.local,
              length: address.prefixlen,
              scope: address.scope,
              primary: !address.secondary && !address.temporary && !address.deprecated && !address.dadfailed,
            },
          ],
    ),
  };
}

function peerOf(row: IpAddrRow): Link['peer'] {
  if (row.link_index !== undefined && row.link_netnsid !== undefined) {
    return { ifindex: row.link_index, netnsId: row.link_netnsid };
  }
  return row.link === undefined ? undefined : { name: row.link };
}

const FOREIGN_VXLAN_SETTINGS = [
  'group',
  'group6',
  'remote',
  'remote6',
  'gbp',
  'gpe',
  'external',
  'vnifilter',
  'l2miss',
  'l3miss',
  'proxy',
  'rsc',
] as const;

function toVxlan(data: Record<string, unknown>): VxlanDetails {
  const text = (value: unknown): string | undefined => (typeof value === 'string' ? value : undefined);
  return {
    vni: Number(data['id']),
    port: Number(data['port']),
    local: text(data['local']) ?? text(data['local6']),
    uplink: text(data['link']),
    learning: data['learning'] === true,
    zeroChecksum6: { tx: data['udp_zero_csum6_tx'] === true, rx: data['udp_zero_csum6_rx'] === true },
    extras: FOREIGN_VXLAN_SETTINGS.filter((name) => data[name] !== undefined && data[name] !== false),
  };
}

/** Whether this is the name of a host veth that ripstop's CNI plugin has made (see cni/pod-network.ts). */
export function isPodVeth(name: string): boolean {
  return /^veth[0-9a-f]{8}$/.test(name);
}
