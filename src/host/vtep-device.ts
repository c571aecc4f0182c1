// SPDX-License-Identifier: Apache-2.0
import { encapBytes } from '../dataplane/desired.ts';
import { errorText, RipstopError } from '../errors.ts';
import {
  addAddress,
  addLink,
  deleteAddress,
  deleteLink,
  type NewLink,
  type Request,
  setLink,
} from '#netlink';
import { addressFamily, canonicalAddress, type Family } from '../net/ip.ts';
import { listLinks, type Link } from './links.ts';
import { ifindexes, openNetlink } from './netlink.ts';
import { NO_MAC } from '../net/mac.ts';
import { noFailures, type Target } from '../reconcile/target.ts';
import type { RunOptions } from './run.ts';
import { ensureSysctls, vtepSysctls } from './sysctl.ts';

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
  /** Whether the device is made anew, and whether another one of its name has to go first. */
  created: boolean;
  replaces: boolean;
  /** What of the device that is there is to be another. */
  set: { mtu?: number; mac?: string };
  /** Once its kernel settings hold: addresses with their lengths, and whether it has to be brought up. */
  addresses: { remove: string[]; add: string | undefined };
  bringUp: boolean;
  /** All of this in words, for the log; none when the device is right. */
  changes: string[];
}

/** The least MTU that a device with IPv6 may have (RFC 8200, section 5); below it the kernel turns IPv6 off there. */
export const IPV6_LEAST_MTU = 1280;

/**
 * Decide how to get the wanted device from the links that are there. Attributes that the kernel cannot change, or that
 * flannel never sets, mean a new device; MAC, MTU, address and state are mended in place.
 * @throws RipstopError when the uplink is missing, the MTU does not fit it, or another device holds the VNI.
 */
export function planVtep(wanted: VtepDevice, links: ReadonlyMap<string, Link>): VtepPlan {
  checkMtu(wanted, links);
  const { name } = wanted;
  const family = addressFamily(wanted.localIp) ?? 4;
  const present = links.get(name);
  const differences = present ? immutableDifferences(wanted, present) : [];
  const created = !present || differences.length > 0;
  const changes: string[] = [];
  if (created) {
    checkVniIsFree(wanted, links);
    changes.push(present ? `re-created ${name}: ${differences.join(', ')}` : `created ${name}`);
  }
  const actual = created ? undefined : present;
  const set: VtepPlan['set'] = {};
  if (actual && actual.mtu !== wanted.mtu) {
    set.mtu = wanted.mtu;
    changes.push(`${name}: MTU ${actual.mtu} → ${wanted.mtu}`);
  }
  if (actual && actual.mac !== wanted.mac) {
    set.mac = wanted.mac;
    changes.push(`${name}: MAC ${actual.mac ?? 'none'} → ${wanted.mac}`);
  }
  const addresses = (actual?.addresses ?? [])
    .filter((one) => one.family === family)
    .map((one) => `${one.ip}/${one.length}`);
  const remove = addresses.filter((one) => one !== wanted.address);
  changes.push(...remove.map((other) => `${name}: removed address ${other}`));
  const add = addresses.includes(wanted.address) ? undefined : wanted.address;
  if (add !== undefined) changes.push(`${name}: added address ${add}`);
  if (actual && !actual.up) changes.push(`${name}: was down, set up`);
  return {
    created,
    replaces: created && present !== undefined,
    set,
    addresses: { remove, add },
    bringUp: !actual?.up,
    changes,
  };
}

/** The device as it is made. */
export function newVtepLink(wanted: VtepDevice, uplinkIndex: number): NewLink {
  const { name, mtu, mac, vni, port, localIp } = wanted;
  return {
    name,
    kind: 'vxlan',
    mtu,
    // An address given at birth counts as set by an administrator: udev's MACAddressPolicy leaves such a device alone.
    mac,
    vxlan: {
      vni,
      port,
      local: localIp,
      lower: uplinkIndex,
      learning: false,
      // Peers that encapsulate with BPF have no way to sum up a packet that is segmented later. Ours to others are summed,
      // since a plain flannel node refuses those that are not.
      ...(addressFamily(localIp) === 6 && { zeroChecksum6: { tx: false, rx: true } }),
    },
  };
}

/**
 * Make the device be there as wanted, with the kernel settings that it needs; a second call changes nothing.
 * @param links as listed just now.
 * @returns the links as they are then, and what was changed; when `created`, its entries must be replayed.
 * @throws RipstopError as {@link planVtep} does, or with the kernel's reason.
 */
export async function ensureVxlan(
  wanted: VtepDevice,
  links: ReadonlyMap<string, Link>,
  options: RunOptions = {},
): Promise<{ links: ReadonlyMap<string, Link>; link: Link; changes: string[]; created: boolean }> {
  const plan = planVtep(wanted, links);
  const { created, changes } = plan;
  writeDevice(wanted, plan, options);
  // Before the address: the node may have IPv6 off for new devices.
  const settings = vtepSysctls(wanted.name, addressFamily(wanted.localIp) ?? 4);
  const { changed } = await ensureSysctls(settings, options);
  // The settings are not part of the links.
  const isSeen = changes.length === 0;
  for (const { path, before, after } of changed) {
    changes.push(`${path}: ${before} → ${after}`);
  }
  writeAddresses(wanted, plan, options);
  const after = isSeen ? links : await listLinks(options);
  const link = after.get(wanted.name);
  const missed = link ? planVtep(wanted, after).changes : [`${wanted.name} is not there`];
  if (!link || missed.length > 0) {
    throw new RipstopError(
      `${wanted.name} did not stay as it was made (${missed.join(', ')}); does another program manage it?`,
    );
  }
  return { links: after, link, changes, created };
}

function writeDevice(wanted: VtepDevice, { created, replaces, set }: VtepPlan, options: RunOptions): void {
  const { name, uplink } = wanted;
  using socket = openNetlink(options);
  if (replaces) socket.write(deleteLink(name));
  if (created) {
    socket.write(
      addLink(newVtepLink(wanted, ifindexes(socket)(uplink))),
      // No link-local IPv6 address: it would only advertise itself into the tunnel.
      setLink(name, { addrGenMode: 'none' }),
    );
  }
  if (set.mtu !== undefined || set.mac !== undefined) socket.write(setLink(name, set));
}

function writeAddresses({ name }: VtepDevice, { addresses, bringUp }: VtepPlan, options: RunOptions): void {
  const requests: Request[] = [];
  using socket = openNetlink(options);
  const { remove, add } = addresses;
  if (remove.length > 0 || add !== undefined) {
    const ifindex = ifindexes(socket)(name);
    requests.push(...remove.map((one) => deleteAddress({ ifindex, ...split(one) })));
    // Duplicate address detection would keep it from use for a second, and nobody in the tunnel could answer it.
    if (add !== undefined) requests.push(addAddress({ ifindex, ...split(add), nodad: add.includes(':') }));
  }
  if (bringUp) requests.push(setLink(name, { up: true }));
  socket.write(...requests);
}

function split(text: string): { address: string; length: number } {
  const [address = '', length] = text.split('/');
  return { address, length: Number(length) };
}

/** The VTEP devices by name, whatever VNI they have: one that is not desired would go on decapsulating for anyone. */
export function vtepDevicesTarget(
  onChange: (device: string, changes: readonly string[]) => void,
): Target<VtepDevice> {
  return {
    name: 'vtep-devices',
    list: async () => new Map(),
    difference: async (desired) => {
      const links = await listLinks();
      const upserts = new Map([...desired].filter(([, device]) => !isInPlace(device, links)));
      const others = [...links.values()].filter((link) => isVtepDevice(link) && !desired.has(link.name));
      return { upserts, removals: new Map(others.map((link) => [link.name, asFound(link)])) };
    },
    upsert: async (entries) => {
      const failures = new Map<string, string>();
      for (const [name, device] of entries) {
        try {
          const { changes } = await ensureVxlan(device, await listLinks());
          if (changes.length > 0) onChange(name, changes);
        } catch (error) {
          failures.set(name, errorText(error));
        }
      }
      return failures;
    },
    remove: async (entries) => {
      for (const name of entries.keys()) {
        await removeVxlan(name);
        onChange(name, ['removed: it belongs to an earlier configuration']);
      }
      return noFailures;
    },
  };
}

function isInPlace(device: VtepDevice, links: ReadonlyMap<string, Link>): boolean {
  try {
    return planVtep(device, links).changes.length === 0;
  } catch {
    return false; // to be told by the upsert
  }
}

function asFound({ name, vxlan, mtu, mac = NO_MAC }: Link): VtepDevice {
  const { vni = 0, port = 0, local = '', uplink = '' } = vxlan ?? {};
  return { name, vni, port, localIp: local, uplink, mtu, mac, address: '' };
}

/** flannel's names for them. */
export function vtepDeviceName(family: Family, vni: number): string {
  return family === 4 ? `flannel.${vni}` : `flannel-v6.${vni}`;
}

/** Whether this is a device such as {@link vtepDeviceName} names, of whatever VNI. */
export function isVtepDevice({ name, vxlan }: { name: string; vxlan: object | undefined }): boolean {
  return vxlan !== undefined && isVtepName(name);
}

/** Whether a VTEP device is named so. */
export function isVtepName(name: string): boolean {
  return /^flannel(-v6)?\.\d+$/.test(name);
}

/** Whether this VTEP device takes IPv6 packets without an outer checksum: ours do, one that flannel has made does not. */
export function acceptsZeroChecksum(link: Link | undefined): boolean {
  return link?.vxlan?.zeroChecksum6.rx === true;
}

/** Remove a VTEP device, and with it all that refers to it. @throws RipstopError with the kernel's reason. */
export async function removeVxlan(name: string, options: RunOptions = {}): Promise<void> {
  using socket = openNetlink(options);
  socket.write(deleteLink(name));
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
  // One that flannel has made also refuses packets without an outer checksum. It stays: made anew it would lose traffic,
  // and peers are told what it takes (see acceptsZeroChecksum).
  if (addressFamily(wanted.localIp) === 6 && vxlan.zeroChecksum6.tx) {
    differences.push('it sends packets without an outer checksum');
  }
  if (vxlan.learning) differences.push('it learns addresses from packets');
  if (vxlan.extras.length > 0) differences.push(`it has ${vxlan.extras.join(', ')} set`);
  return differences;
}

function checkMtu(wanted: VtepDevice, links: ReadonlyMap<string, Link>): void {
  const uplink = links.get(wanted.uplink);
  if (!uplink) {
    throw new RipstopError(
      `cannot make ${wanted.name}: its uplink ${wanted.uplink} does not exist; choose one with --iface`,
    );
  }
  const overhead = encapBytes[addressFamily(wanted.localIp) ?? 4];
  if (wanted.mtu > uplink.mtu - overhead) {
    throw new RipstopError(
      `cannot give ${wanted.name} an MTU of ${wanted.mtu}: ${wanted.uplink} carries ${uplink.mtu}, less ${overhead} for VXLAN leaves ${uplink.mtu - overhead}`,
    );
  }
  if (overhead === encapBytes[6] && wanted.mtu < IPV6_LEAST_MTU) {
    throw new RipstopError(
      `cannot give ${wanted.name} an MTU of ${wanted.mtu}: IPv6 needs ${IPV6_LEAST_MTU}, and so an uplink of ${IPV6_LEAST_MTU + overhead}; raise the MTU of ${wanted.uplink} or set EnableIPv6 to false`,
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
