// SPDX-License-Identifier: Apache-2.0
import { encapBytes } from '../dataplane/desired.ts';
import { errorText, RipstopError } from '../errors.ts';
import { noFailures, type Target } from '../reconcile/target.ts';
import { NO_MAC } from '../net/mac.ts';
import { addressFamily, canonicalAddress, type Family } from '../net/ip.ts';
import { ipBatch, line } from './ip.ts';
import { listLinks, type Link } from './links.ts';
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
  /** `ip -batch` lines that make the device and its attributes right; none when they are. */
  device: string[];
  /** Those that give it its address and bring it up, once its kernel settings hold. */
  address: string[];
  /** What they change, for the log. */
  changes: string[];
  /** The device is made anew. */
  created: boolean;
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
  const device: string[] = [];
  const address: string[] = [];
  const changes: string[] = [];
  let actual = present;
  if (created) {
    checkVniIsFree(wanted, links);
    if (present) device.push(line`link del dev ${name}`);
    // An address given at birth counts as set by an administrator: udev's MACAddressPolicy leaves such a device alone.
    const add = line`link add name ${name} mtu ${wanted.mtu} address ${wanted.mac} type vxlan id ${wanted.vni} local ${wanted.localIp} dev ${wanted.uplink} dstport ${wanted.port} nolearning`;
    device.push(
      // Peers that encapsulate with BPF have no way to sum up a packet that is segmented later. Ours to others are summed,
      // since a plain flannel node refuses those that are not.
      family === 6 ? `${add} udp6zerocsumrx` : add,
      // No link-local IPv6 address: it would only advertise itself into the tunnel.
      line`link set dev ${name} addrgenmode none`,
    );
    changes.push(present ? `re-created ${name}: ${differences.join(', ')}` : `created ${name}`);
    actual = undefined;
  }
  if (actual && actual.mtu !== wanted.mtu) {
    device.push(line`link set dev ${name} mtu ${wanted.mtu}`);
    changes.push(`${name}: MTU ${actual.mtu} → ${wanted.mtu}`);
  }
  if (actual && actual.mac !== wanted.mac) {
    device.push(line`link set dev ${name} address ${wanted.mac}`);
    changes.push(`${name}: MAC ${actual.mac ?? 'none'} → ${wanted.mac}`);
  }
  const addresses = (actual?.addresses ?? [])
    .filter((one) => one.family === family)
    .map((one) => `${one.ip}/${one.length}`);
  for (const other of addresses) {
    if (other === wanted.address) continue;
    address.push(line`addr del ${other} dev ${name}`);
    changes.push(`${name}: removed address ${other}`);
  }
  if (!addresses.includes(wanted.address)) {
    const add = line`addr add ${wanted.address} dev ${name}`;
    // Duplicate address detection would keep it from use for a second, and nobody in the tunnel could answer it.
    address.push(family === 6 ? `${add} nodad` : add);
    changes.push(`${name}: added address ${wanted.address}`);
  }
  if (!actual?.up) {
    address.push(line`link set dev ${name} up`);
    if (actual) changes.push(`${name}: was down, set up`);
  }
  return { device, address, changes, created };
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
  const { device, address, changes, created } = planVtep(wanted, links);
  await ipBatch(device, options);
  // Before the address: the node may have IPv6 off for new devices.
  const settings = vtepSysctls(wanted.name, addressFamily(wanted.localIp) ?? 4);
  const { changed } = await ensureSysctls(settings, options);
  for (const { path, before, after } of changed) {
    changes.push(`${path}: ${before} → ${after}`);
  }
  await ipBatch(address, options);
  const after = device.length + address.length === 0 ? links : await listLinks(options);
  const link = after.get(wanted.name);
  const missed = link ? planVtep(wanted, after).changes : [`${wanted.name} is not there`];
  if (!link || missed.length > 0) {
    throw new RipstopError(
      `${wanted.name} did not stay as it was made (${missed.join(', ')}); does another program manage it?`,
    );
  }
  return { links: after, link, changes, created };
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
export function isVtepDevice({ name, vxlan }: Link): boolean {
  return vxlan !== undefined && /^flannel(-v6)?\.\d+$/.test(name);
}

/** Whether this VTEP device takes IPv6 packets without an outer checksum: ours do, one that flannel has made does not. */
export function acceptsZeroChecksum(link: Link | undefined): boolean {
  return link?.vxlan?.zeroChecksum6.rx === true;
}

/** Remove a VTEP device, and with it all that refers to it. @throws RipstopError with the kernel's reason. */
export async function removeVxlan(name: string, options: RunOptions = {}): Promise<void> {
  await ipBatch([line`link del ${name}`], options);
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
