// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { addressFamily, canonicalAddress } from '../net/ip.ts';
import { ipBatch, line } from './ip.ts';
import { listLinks, type Link } from './links.ts';
import type { RunOptions } from './run.ts';

/**
 * flannel's VXLAN device, `flannel.<VNI>` or `flannel-v6.<VNI>`, as every node of the cluster makes it. ripstop keeps it
 * also while BPF carries the traffic: it is the path of every packet that BPF leaves alone, and its UDP socket is what
 * makes the kernel aggregate tunnelled packets.
 */
export interface VtepDevice {
  name: string;
  vni: number;
  /** UDP destination port. */
  port: number;
  /** The node's address on the uplink: the outer source. */
  localIp: string;
  /** Name of the uplink. */
  uplink: string;
  /** At most the uplink's MTU − 50, or − 70 over IPv6. */
  mtu: number;
  /** The published VtepMAC. */
  mac: string;
  /** The base of the node's podCIDR, `10.42.1.0/32` or `fd00:0:0:1::/128`. */
  address: string;
}

/** What separates the device that is there from the one that is wanted. */
export interface VtepPlan {
  /** `ip -batch` lines, in order; none when the device is right. */
  commands: string[];
  /** What they change, for the log. */
  changes: string[];
  /** The device is made anew. */
  created: boolean;
}

/** Bytes that VXLAN adds over each underlay: outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14. */
export const VXLAN_OVERHEAD = { 4: 50, 6: 70 } as const;

/**
 * Decide how to get the wanted device from the links that are there. Attributes that the kernel cannot change, or that
 * flannel never sets, mean a new device; MAC, MTU, address and state are mended in place.
 * @throws RipstopError when the uplink is missing, the MTU does not fit it, or another device holds the VNI.
 */
export function planVtep(wanted: VtepDevice, links: ReadonlyMap<string, Link>): VtepPlan {
  checkUplink(wanted, links);
  const { name } = wanted;
  const present = links.get(name);
  const differences = present ? immutableDifferences(wanted, present) : [];
  const created = !present || differences.length > 0;
  const commands: string[] = [];
  const changes: string[] = [];
  let actual = present;
  if (created) {
    checkVniIsFree(wanted, links);
    if (present) commands.push(line`link del dev ${name}`);
    // An address given at birth counts as set by an administrator: udev's MACAddressPolicy leaves such a device alone.
    commands.push(
      line`link add name ${name} mtu ${wanted.mtu} address ${wanted.mac} type vxlan id ${wanted.vni} local ${wanted.localIp} dev ${wanted.uplink} dstport ${wanted.port} nolearning`,
      // No link-local IPv6 address: it would only advertise itself into the tunnel.
      line`link set dev ${name} addrgenmode none`,
    );
    changes.push(present ? `re-created ${name}: ${differences.join(', ')}` : `created ${name}`);
    actual = undefined;
  }
  if (actual && actual.mtu !== wanted.mtu) {
    commands.push(line`link set dev ${name} mtu ${wanted.mtu}`);
    changes.push(`${name}: MTU ${actual.mtu} → ${wanted.mtu}`);
  }
  if (actual && actual.mac !== wanted.mac) {
    commands.push(line`link set dev ${name} address ${wanted.mac}`);
    changes.push(`${name}: MAC ${actual.mac ?? 'none'} → ${wanted.mac}`);
  }
  const family = wanted.address.includes(':') ? 6 : 4;
  const addresses = (actual?.addresses ?? [])
    .filter((address) => address.family === family)
    .map((address) => `${address.ip}/${address.length}`);
  for (const address of addresses) {
    if (address === wanted.address) continue;
    commands.push(line`addr del ${address} dev ${name}`);
    changes.push(`${name}: removed address ${address}`);
  }
  if (!addresses.includes(wanted.address)) {
    commands.push(line`addr add ${wanted.address} dev ${name}`);
    changes.push(`${name}: added address ${wanted.address}`);
  }
  if (!actual?.up) {
    commands.push(line`link set dev ${name} up`);
    if (actual) changes.push(`${name}: was down, set up`);
  }
  return { commands, changes, created };
}

/**
 * Make the device be there as wanted; a second call changes nothing.
 * @param links as listed just now.
 * @returns the links as they are then, and what was changed; when `created`, its entries must be replayed.
 * @throws RipstopError as {@link planVtep} does, or with the kernel's reason.
 */
export async function ensureVxlan(
  wanted: VtepDevice,
  links: ReadonlyMap<string, Link>,
  options: RunOptions = {},
): Promise<{ links: ReadonlyMap<string, Link>; link: Link; changes: string[]; created: boolean }> {
  const { commands, changes, created } = planVtep(wanted, links);
  await ipBatch(commands, options);
  const after = commands.length === 0 ? links : await listLinks(options);
  const link = after.get(wanted.name);
  const missed = link ? planVtep(wanted, after).changes : [`${wanted.name} is not there`];
  if (!link || missed.length > 0) {
    throw new RipstopError(
      `${wanted.name} did not stay as it was made (${missed.join(', ')}); does another program manage it?`,
    );
  }
  return { links: after, link, changes, created };
}

function immutableDifferences(wanted: VtepDevice, present: Link): string[] {
  const { vxlan } = present;
  if (!vxlan) return [`it is a ${present.kind ?? 'plain'} device, not vxlan`];
  const differences: string[] = [];
  const compare = (what: string, is: string | number | undefined, shall: string | number): void => {
    if (is !== shall) differences.push(`${what} ${is ?? 'none'} → ${shall}`);
  };
  compare('VNI', vxlan.vni, wanted.vni);
  compare('port', vxlan.port, wanted.port);
  compare('local address', vxlan.local, canonicalAddress(wanted.localIp));
  compare('uplink', vxlan.uplink, wanted.uplink);
  if (vxlan.learning) differences.push('it learns addresses from packets');
  if (vxlan.extras.length > 0) differences.push(`it has ${vxlan.extras.join(', ')} set`);
  return differences;
}

function checkUplink(wanted: VtepDevice, links: ReadonlyMap<string, Link>): void {
  const uplink = links.get(wanted.uplink);
  if (!uplink) {
    throw new RipstopError(
      `cannot make ${wanted.name}: its uplink ${wanted.uplink} does not exist; choose one with --iface`,
    );
  }
  const overhead = VXLAN_OVERHEAD[addressFamily(wanted.localIp) ?? 4];
  if (wanted.mtu > uplink.mtu - overhead) {
    throw new RipstopError(
      `cannot give ${wanted.name} an MTU of ${wanted.mtu}: ${wanted.uplink} carries ${uplink.mtu}, less ${overhead} for VXLAN leaves ${uplink.mtu - overhead}`,
    );
  }
}

function checkVniIsFree(wanted: VtepDevice, links: ReadonlyMap<string, Link>): void {
  const family = addressFamily(wanted.localIp);
  for (const { name, vxlan } of links.values()) {
    if (name === wanted.name || vxlan?.vni !== wanted.vni || vxlan.port !== wanted.port) continue;
    // The two families have sockets of their own: flannel.1 and flannel-v6.1 share a VNI and a port.
    if (vxlan.local !== undefined && addressFamily(vxlan.local) !== family) continue;
    throw new RipstopError(
      `cannot make ${wanted.name}: the device ${name} already uses VNI ${wanted.vni} on UDP port ${wanted.port}; delete it or set another VNI in net-conf.json`,
    );
  }
}
