// SPDX-License-Identifier: Apache-2.0
import { encapBytes } from '../dataplane/desired.ts';
import { errorText, RipstopError } from '../errors.ts';
import {
  addAddress,
  addLink,
  deleteAddress,
  deleteLink,
  NetlinkError,
  type NewLink,
  type Request,
  setLink,
} from '#netlink';
import { addressFamily, canonicalAddress, type Family } from '../net/ip.ts';
import { listLinks, type Link } from './links.ts';
import { ifindexes, openNetlink } from './netlink.ts';
import { NO_MAC } from '../net/mac.ts';
import { describePortHolder } from './port-holder.ts';
import { noFailures, type Target } from '../reconcile/target.ts';
import type { RunOptions } from './run.ts';
import { ensureSysctls, vtepSysctls } from './sysctl.ts';

/**
 * flannel's VXLAN device, `flannel.<VNI>` or `flannel-v6.<VNI>`, which every node of the cluster has. ripstop keeps it
 * although BPF programs carry most traffic: it is the tunnel of the kernel path, and only with its UDP socket does the
 * kernel aggregate tunnelled packets (GRO).
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

/** The difference between the actual device and the desired one. */
export interface VtepPlan {
  /** Whether the device must be created, and whether an old one of that name must be deleted before. */
  created: boolean;
  replaces: boolean;
  /** Attributes of the existing device to change. */
  set: { mtu?: number; mac?: string };
  /**
   * To be done after the device's sysctls are set: changes of addresses (with prefix lengths), then whether to bring it
   * up.
   */
  addresses: { remove: string[]; add: string | undefined };
  bringUp: boolean;
  /** Descriptions of all this for the log; none when the device is right. */
  changes: string[];
}

/** The minimum MTU of IPv6 (RFC 8200, section 5); the kernel disables IPv6 on devices with less. */
const IPV6_MIN_MTU = 1280;

/**
 * Compare the desired device with the actual links. Where an attribute differs that the kernel cannot change, or where
 * one is set that flannel never sets, the device is created again; MAC, MTU, address and state are changed in place.
 * @throws RipstopError when the uplink is missing, the MTU does not fit it, or another device holds the VNI.
 */
export function planVtep(desired: VtepDevice, links: ReadonlyMap<string, Link>): VtepPlan {
  checkMtu(desired, links);
  const { name } = desired;
  const family = addressFamily(desired.localIp) ?? 4;
  const present = links.get(name);
  const differences = present ? immutableDifferences(desired, present) : [];
  const created = !present || differences.length > 0;
  const changes: string[] = [];
  if (created) {
    checkVniIsFree(desired, links);
    changes.push(present ? `re-created ${name}: ${differences.join(', ')}` : `created ${name}`);
  }
  const actual = created ? undefined : present;
  const set: VtepPlan['set'] = {};
  if (actual && actual.mtu !== desired.mtu) {
    set.mtu = desired.mtu;
    changes.push(`${name}: MTU ${actual.mtu} → ${desired.mtu}`);
  }
  if (actual && actual.mac !== desired.mac) {
    set.mac = desired.mac;
    changes.push(`${name}: MAC ${actual.mac ?? 'none'} → ${desired.mac}`);
  }
  const addresses = (actual?.addresses ?? [])
    .filter((one) => one.family === family)
    .map((one) => `${one.ip}/${one.length}`);
  const remove = addresses.filter((one) => one !== desired.address);
  changes.push(...remove.map((other) => `${name}: removed address ${other}`));
  const add = addresses.includes(desired.address) ? undefined : desired.address;
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

/** The attributes to create the device with. */
export function newVtepLink(desired: VtepDevice, uplinkIndex: number): NewLink {
  const { name, mtu, mac, vni, port, localIp } = desired;
  return {
    name,
    kind: 'vxlan',
    mtu,
    // udev's MACAddressPolicy leaves a device alone if it was created with a MAC address.
    mac,
    vxlan: {
      vni,
      port,
      local: localIp,
      lower: uplinkIndex,
      learning: false,
      // Accepted from peers, whose BPF programs cannot compute the checksum of a packet that is segmented later. Never
      // sent by this device, since plain flannel nodes refuse packets without a checksum.
      ...(addressFamily(localIp) === 6 && { zeroChecksum6: { tx: false, rx: true } }),
    },
  };
}

/**
 * Create or change the device, with the sysctls that it needs; a second call changes nothing.
 * @param links a fresh listing.
 * @returns the links afterwards, and descriptions of what was changed.
 * @throws RipstopError as {@link planVtep} does, or with the kernel's reason.
 */
export async function ensureVxlan(
  desired: VtepDevice,
  links: ReadonlyMap<string, Link>,
  options: RunOptions = {},
): Promise<{ links: ReadonlyMap<string, Link>; link: Link; changes: string[]; created: boolean }> {
  const plan = planVtep(desired, links);
  const { created, changes } = plan;
  await namingHolder(desired, options, () => writeDevice(desired, plan, options));
  // Before the address, since the node may disable IPv6 on new devices.
  const settings = vtepSysctls(desired.name, addressFamily(desired.localIp) ?? 4);
  const { changed } = await ensureSysctls(settings, options);
  // Links do not contain sysctls.
  const isUnchanged = changes.length === 0;
  for (const { path, before, after } of changed) {
    changes.push(`${path}: ${before} → ${after}`);
  }
  await namingHolder(desired, options, () => writeAddresses(desired, plan, options));
  const after = isUnchanged ? links : await listLinks(options);
  const link = after.get(desired.name);
  const missed = link ? planVtep(desired, after).changes : [`${desired.name} does not exist`];
  if (!link || missed.length > 0) {
    throw new RipstopError(
      `${desired.name} is not as ripstop configured it (${missed.join(', ')}); does another program manage it?`,
    );
  }
  return { links: after, link, changes, created };
}

/** Do this; when the device's UDP port is taken, say by whom. */
async function namingHolder(
  { name, port }: VtepDevice,
  options: RunOptions,
  write: () => void,
): Promise<void> {
  try {
    write();
  } catch (error) {
    if (!(error instanceof NetlinkError) || error.code !== 'EADDRINUSE') throw error;
    const holder = describePortHolder(port, name, await listLinks(options), options);
    throw new RipstopError(`${name} needs UDP port ${port}: ${holder}`, { cause: error });
  }
}

function writeDevice(desired: VtepDevice, { created, replaces, set }: VtepPlan, options: RunOptions): void {
  const { name, uplink } = desired;
  using socket = openNetlink(options);
  if (replaces) socket.write(deleteLink(name));
  if (created) {
    socket.write(
      addLink(newVtepLink(desired, ifindexes(socket)(uplink))),
      // No link-local IPv6 address: with one, the kernel would send router solicitations and the like into the tunnel.
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
    // Duplicate address detection would delay its use by a second, and nobody in the tunnel could answer.
    if (add !== undefined) requests.push(addAddress({ ifindex, ...split(add), nodad: add.includes(':') }));
  }
  if (bringUp) requests.push(setLink(name, { up: true }));
  socket.write(...requests);
}

function split(text: string): { address: string; length: number } {
  const [address = '', length] = text.split('/');
  return { address, length: Number(length) };
}

/**
 * The VTEP devices by name, of any VNI: one that is not desired must go, since it would decapsulate packets of anyone.
 */
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
    return false; // the upsert reports the reason
  }
}

function asFound({ name, vxlan, mtu, mac = NO_MAC }: Link): VtepDevice {
  const { vni = 0, port = 0, local = '', uplink = '' } = vxlan ?? {};
  return { name, vni, port, localIp: local, uplink, mtu, mac, address: '' };
}

/** The name that flannel gives the VTEP device of a family. */
export function vtepDeviceName(family: Family, vni: number): string {
  return family === 4 ? `flannel.${vni}` : `flannel-v6.${vni}`;
}

/** Whether this is a VTEP device, of any VNI. */
export function isVtepDevice({ name, vxlan }: { name: string; vxlan: object | undefined }): boolean {
  return vxlan !== undefined && isVtepName(name);
}

/** Whether this is a name of a VTEP device, of any VNI. */
export function isVtepName(name: string): boolean {
  return /^flannel(-v6)?\.\d+$/.test(name);
}

/**
 * Whether this VTEP device accepts IPv6 packets without an outer checksum: those that ripstop creates do, those that
 * flannel creates do not.
 */
export function acceptsZeroChecksum(link: Link | undefined): boolean {
  return link?.vxlan?.zeroChecksum6.rx === true;
}

/**
 * Remove a VTEP device, and with it its neighbours, FDB entries and routes.
 * @throws RipstopError with the kernel's reason.
 */
export async function removeVxlan(name: string, options: RunOptions = {}): Promise<void> {
  using socket = openNetlink(options);
  socket.write(deleteLink(name));
}

function immutableDifferences(desired: VtepDevice, present: Link): string[] {
  const { vxlan } = present;
  if (!vxlan) return [`it is a ${present.kind ?? 'plain'} device, not vxlan`];
  const differences: string[] = [];
  const compare = (what: string, actual: string | number | undefined, value: string | number): void => {
    if (actual !== value) differences.push(`${what} ${actual ?? 'none'} → ${value}`);
  };
  compare('VNI', vxlan.vni, desired.vni);
  compare('port', vxlan.port, desired.port);
  compare('local address', vxlan.local, canonicalAddress(desired.localIp));
  compare('uplink', vxlan.uplink, desired.uplink);
  // A device that flannel created also refuses packets without an outer checksum. It stays: creating it again would
  // interrupt traffic, and peers learn from our lease whether it accepts such packets (see acceptsZeroChecksum).
  if (addressFamily(desired.localIp) === 6 && vxlan.zeroChecksum6.tx) {
    differences.push('it sends packets without an outer checksum');
  }
  if (vxlan.learning) differences.push('it learns addresses from packets');
  if (vxlan.extras.length > 0) differences.push(`it has ${vxlan.extras.join(', ')} set`);
  return differences;
}

function checkMtu(desired: VtepDevice, links: ReadonlyMap<string, Link>): void {
  const uplink = links.get(desired.uplink);
  if (!uplink) {
    throw new RipstopError(
      `cannot create ${desired.name}: its uplink ${desired.uplink} does not exist; choose one with --iface`,
    );
  }
  const overhead = encapBytes[addressFamily(desired.localIp) ?? 4];
  if (desired.mtu > uplink.mtu - overhead) {
    throw new RipstopError(
      `cannot give ${desired.name} an MTU of ${desired.mtu}: ${desired.uplink} has ${uplink.mtu}, ` +
        `and less ${overhead} for VXLAN that leaves ${uplink.mtu - overhead}; raise the MTU of ${desired.uplink}`,
    );
  }
  if (overhead === encapBytes[6] && desired.mtu < IPV6_MIN_MTU) {
    throw new RipstopError(
      `cannot give ${desired.name} an MTU of ${desired.mtu}: IPv6 needs ${IPV6_MIN_MTU}, ` +
        `and so an uplink of ${IPV6_MIN_MTU + overhead}; ` +
        `raise the MTU of ${desired.uplink} or set EnableIPv6 to false`,
    );
  }
}

function checkVniIsFree(desired: VtepDevice, links: ReadonlyMap<string, Link>): void {
  const family = addressFamily(desired.localIp);
  for (const { name, vxlan } of links.values()) {
    if (name === desired.name || vxlan?.vni !== desired.vni || vxlan.port !== desired.port) continue;
    // Each family has its own socket, so flannel.1 and flannel-v6.1 can share a VNI and a port.
    if (vxlan.local !== undefined && addressFamily(vxlan.local) !== family) continue;
    throw new RipstopError(
      `cannot create ${desired.name}: ${name} already uses VNI ${desired.vni} on UDP port ${desired.port}; ` +
        'delete it or set another VNI in net-conf.json',
    );
  }
}
