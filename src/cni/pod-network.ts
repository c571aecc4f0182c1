// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import { closeSync, existsSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  addAddress,
  addLink,
  addRoute,
  listRoutes,
  type NetlinkSocket,
  type NewAddress,
  removeLink,
  RT_TABLE,
  setLink,
} from '#netlink';
import { readLinkIfThere } from '../host/links.ts';
import { ifindexes, openNetlink } from '../host/netlink.ts';
import { ensureSysctls, podVethSysctls, type Sysctl } from '../host/sysctl.ts';
import { addressFamily, hostCidr } from '../net/ip.ts';
import { randomMac } from '../net/mac.ts';
import type { AttachmentId, PodAddress } from './plugin.ts';
import { isPodDevice, type PodDevice } from './pod-device.ts';
import type { Steps } from './steps.ts';

/**
 * The veth pair of a pod, routed and without a bridge, as the reference plugin `ptp` makes it.
 *
 *     pod   eth0          10.42.1.5/32    10.42.1.1 dev eth0 scope link · default via 10.42.1.1
 *     node  veth1a2b3c4d  10.42.1.1/32    10.42.1.5 dev veth1a2b3c4d scope link
 *
 * Every host veth has the gateway's address, so that the node answers ARP requests for it and uses it as its source
 * address towards pods, as with cni0. So the kernel path is plain routing. The programs of the fast path are attached
 * to the host veth.
 *
 * IPv6 works alike, with /128 and neighbour discovery. There the host veth also has the address fe80::1: the kernel
 * sends neighbour solicitations for a pod only from a link-local address of the interface.
 */

/** The network namespaces of a veth pair. */
export interface Namespaces {
  /** Path of the pod's network namespace. */
  pod: string;
  /** Path of the node's network namespace. Default: the caller's own. */
  node?: string | undefined;
}

/** A new veth pair. */
export interface Veth {
  hostIfindex: number;
  hostMac: string;
  podMac: string;
}

/** The name of the host veth. It depends only on the attachment's ID, since DEL knows nothing else. */
export function hostVethName({ containerId, ifname }: AttachmentId): string {
  return `veth${createHash('sha256').update(`${containerId}\0${ifname}`).digest('hex').slice(0, 8)}`;
}

/**
 * Create the veth pair, or a netkit pair in its place: with MAC addresses, and under the same names, by which rules of
 * ours and of others know pods. The pod's end is created in the pod's namespace, with its final name.
 * @throws NetlinkError when either name is taken; then nothing was created.
 */
export async function createVeth(
  hostIfname: string,
  ifname: string,
  mtuBytes: number,
  namespaces: Namespaces,
  { kind = 'veth', podMac = randomMac() }: { kind?: PodDevice | undefined; podMac?: string | undefined } = {},
): Promise<Veth> {
  // With explicit MAC addresses: udev changes those that the kernel generates (systemd's MACAddressPolicy), perhaps
  // only after the endpoint was written.
  const hostMac = randomMac();
  using node = openNetlink({ netns: namespaces.node });
  const netns = openSync(namespaces.pod, 'r');
  try {
    const peer = { name: ifname, mtu: mtuBytes, mac: podMac, netns };
    const mode = kind === 'netkit' && ({ netkitMode: 'l2' } as const);
    node.write(addLink({ name: hostIfname, kind, ...mode, mtu: mtuBytes, mac: hostMac, peer }));
  } finally {
    closeSync(netns);
  }
  return { hostIfindex: node.indexOf(hostIfname)!, hostMac, podMac };
}

/**
 * Add the addresses of both ends and the routes of the pod, and bring both ends up. The agent's targets add the node's
 * route to the pod.
 * @throws NetlinkError with the kernel's reason.
 */
export async function configureVeth(
  hostIfname: string,
  ifname: string,
  addresses: readonly PodAddress[],
  namespaces: Namespaces,
  steps: Steps,
): Promise<void> {
  const node = { netns: namespaces.node };
  const pod = { netns: namespaces.pod };
  const ipv6 = addresses.some(({ ip }) => addressFamily(ip) === 6);
  await ensureSysctls(
    [...(ipv6 ? hostIpv6Sysctls(hostIfname) : []), ...podVethSysctls(hostIfname, [4, 6])],
    node,
  );
  if (ipv6) await ensureSysctls(podIpv6Sysctls(ifname), pod);
  steps.done('sysctls');
  using host = openNetlink(node);
  using inside = openNetlink(pod);
  setUpHostEnd(host, hostIfname, addresses);
  setUpPodEnd(inside, ifname, addresses);
  steps.done('up');
  const deadline = performance.now() + IN_USE_MS;
  const gateways = addresses.map(({ gateway }) => gateway);
  const ips = addresses.map(({ ip }) => ip);
  while (!isInUse(host, hostIfname, gateways) || !isInUse(inside, ifname, ips)) {
    if (performance.now() > deadline) break;
    await sleep(1);
  }
  steps.done('running');
}

/** The longest wait for {@link isInUse}. After that a first packet may be lost, which is harmless. */
const IN_USE_MS = 200;

/**
 * Whether the kernel sends from a device and accepts packets for its addresses. Both start in the background, about a
 * millisecond after the request. A packet that comes earlier is lost, and sent again only after a second.
 */
function isInUse(socket: NetlinkSocket, device: string, addresses: readonly string[]): boolean {
  if (!socket.isRunning(device)) return false;
  const ifindex = ifindexes(socket)(device);
  return addresses
    .filter((address) => addressFamily(address) === 6)
    .every((ip) => {
      // The kernel adds this route when it starts to accept packets for the address.
      const own = { family: 6, table: RT_TABLE.local, ifindex, dst: hostCidr(ip) } as const;
      return listRoutes(socket, own).length > 0;
    });
}

function setUpHostEnd(socket: NetlinkSocket, device: string, addresses: readonly PodAddress[]): void {
  const ifindex = ifindexes(socket)(device);
  const ipv6 = addresses.some(({ ip }) => addressFamily(ip) === 6);
  socket.write(
    // Without generated addresses there is no duplicate address detection, and the pod gets no router solicitations.
    ...(kernelHasIpv6() ? [setLink(ifindex, { addrGenMode: 'none' })] : []),
    ...addresses.map(({ gateway }) => addAddress(ownAddress(gateway, ifindex))),
    ...(ipv6 ? [addAddress({ ifindex, ...HOST_LINK_LOCAL, nodad: true })] : []),
    setLink(ifindex, { up: true }),
  );
}

function setUpPodEnd(socket: NetlinkSocket, device: string, addresses: readonly PodAddress[]): void {
  const ifindex = ifindexes(socket)(device);
  socket.write(
    ...addresses.map(({ ip }) => addAddress(ownAddress(ip, ifindex))),
    setLink(ifindex, { up: true }),
    ...addresses.flatMap(({ gateway, routes, routeMtu }) => [
      addRoute({ dst: hostCidr(gateway), ifindex, scope: 'link' }),
      ...routes.map((dst) => addRoute({ dst, gateway, ifindex, mtu: routeMtu })),
    ]),
  );
}

/**
 * The same on every host veth: a link-local address must be unique only on its link, and pods derive theirs from their
 * MAC.
 */
const HOST_LINK_LOCAL = { address: 'fe80::1', length: 64, scope: 'link' } as const;

/**
 * A /32 or /128 address. An IPv6 one is added without duplicate address detection, which takes a second and is useless
 * on this link, and without a prefix route, of which the host would get one for each pod.
 */
function ownAddress(address: string, ifindex: number): NewAddress {
  const is6 = addressFamily(address) === 6;
  return { ifindex, address, length: is6 ? 128 : 32, nodad: is6, noPrefixRoute: is6 };
}

function hostIpv6Sysctls(device: string): Sysctl[] {
  return [
    {
      path: `net/ipv6/conf/${device}/disable_ipv6`,
      value: '0',
      why: 'the node may have IPv6 off for new devices',
    },
  ];
}

/** To be set before the device comes up, when the kernel adds a link-local address and solicits routers. */
function podIpv6Sysctls(device: string): Sysctl[] {
  const off = 'some container runtimes turn IPv6 off in a new network namespace';
  return [
    { path: 'net/ipv6/conf/lo/disable_ipv6', value: '0', why: off },
    { path: `net/ipv6/conf/${device}/disable_ipv6`, value: '0', why: off },
    {
      path: `net/ipv6/conf/${device}/accept_ra`,
      value: '0',
      why: 'the routes come from the plugin: router advertisements are not needed',
    },
    {
      path: `net/ipv6/conf/${device}/accept_dad`,
      value: '0',
      why: 'the link-local address must be usable at once',
    },
  ];
}

/**
 * Delete the veth pair, and with it addresses and routes.
 * @returns whether there was one.
 * @throws NetlinkError when the kernel refuses.
 */
export function deleteVeth(hostIfname: string, node?: string): Promise<boolean> {
  return removeLink(hostIfname, node);
}

/** The same for one that somebody has renamed: it has its index and MAC address still. */
export async function deleteRenamedVeth(
  { hostIfindex, hostMac }: { hostIfindex: number; hostMac: string },
  node?: string,
): Promise<void> {
  const link = await readLinkIfThere(hostIfindex, { netns: node });
  if (isPodDevice(link?.kind) && link?.mac === hostMac) await removeLink(hostIfindex, node);
}

/**
 * Compare a veth pair with how ADD configured it. What later plugins may add or change (other addresses, routes, the
 * MTU) is not compared.
 * @param expected `podMac` undefined: any.
 * @returns descriptions of the differences.
 */
export async function inspectVeth(
  expected: {
    hostIfname: string;
    hostIfindex: number;
    ifname: string;
    ips: readonly string[];
    podMac: string | undefined;
  },
  namespaces: Namespaces,
): Promise<string[]> {
  const { hostIfname, hostIfindex, ifname, ips, podMac } = expected;
  const node = { netns: namespaces.node };
  const host = await readLinkIfThere(hostIfname, node);
  const pod = await readLinkIfThere(ifname, { netns: namespaces.pod });
  using socket = openNetlink(node);
  const differences: string[] = [];
  if (!host) differences.push(`the host veth ${hostIfname} is gone`);
  else if (host.ifindex !== hostIfindex) {
    differences.push(`${hostIfname} has index ${host.ifindex} instead of ${hostIfindex}`);
  } else if (!host.up) differences.push(`${hostIfname} is down`);
  for (const ip of ips) {
    if (host && !isRouted(socket, ip, host.ifindex)) {
      differences.push(`the host has no route to ${ip} over ${hostIfname}`);
    }
  }
  if (!pod) return [...differences, `the pod has no interface ${ifname}`];
  if (!pod.up) differences.push(`the pod's ${ifname} is down`);
  for (const ip of ips) {
    if (!pod.addresses.some((address) => address.ip === ip)) {
      differences.push(`the pod's ${ifname} has lost ${ip}`);
    }
  }
  if (podMac !== undefined && pod.mac !== podMac.toLowerCase()) {
    differences.push(`the pod's ${ifname} has the MAC address ${pod.mac} instead of ${podMac}`);
  }
  return differences;
}

function isRouted(socket: NetlinkSocket, ip: string, ifindex: number): boolean {
  const family = addressFamily(ip) ?? 4;
  return listRoutes(socket, { family, ifindex, dst: hostCidr(ip) }).length > 0;
}

/** Without IPv6 (`ipv6.disable=1`) the kernel refuses to set `addrGenMode`. */
function kernelHasIpv6(): boolean {
  return existsSync('/proc/sys/net/ipv6');
}
