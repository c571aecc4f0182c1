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

/**
 * A pod's link to its node: a veth without a bridge, as the reference plugin `ptp` does it.
 *
 *     pod   eth0          10.42.1.5/32    10.42.1.1 dev eth0 scope link · default via 10.42.1.1
 *     node  veth1a2b3c4d  10.42.1.1/32    10.42.1.5 dev veth1a2b3c4d scope link
 *
 * Every host veth has the gateway's address, so that the node answers ARP for it and speaks to its pods from it, as
 * cni0 would. The kernel path is thus plain routing; the fast path's programs hang on the host veth.
 *
 * IPv6 is the same, with /128 and neighbour discovery. Only there the host veth also has the address fe80::1: a router
 * that looks for a pod asks from an address of its own on that link, and the kernel takes none but a link-local one.
 */

/** The namespaces that a link spans. */
export interface Namespaces {
  /** Path of the pod's network namespace. */
  pod: string;
  /** Path of the node's; the caller's own when left out. */
  node?: string | undefined;
}

/** What there is of a link as soon as it exists. */
export interface Veth {
  hostIfindex: number;
  hostMac: string;
  podMac: string;
}

/** The host veth's name, the same whenever it is asked: DEL must find it with nothing but the runtime's names. */
export function hostVethName({ containerId, ifname }: AttachmentId): string {
  return `veth${createHash('sha256').update(`${containerId}\0${ifname}`).digest('hex').slice(0, 8)}`;
}

/**
 * Create the veth, its far end in the pod's namespace and under its final name from the start.
 * @throws NetlinkError when either name is taken; then nothing was created.
 */
export async function createVeth(
  hostIfname: string,
  ifname: string,
  mtuBytes: number,
  namespaces: Namespaces,
): Promise<Veth> {
  // Addresses of our own choice: udev rewrites the ones that the kernel invents (systemd's MACAddressPolicy), perhaps
  // only after an endpoint has been made of them.
  const [hostMac, podMac] = [randomMac(), randomMac()];
  using node = openNetlink(nodeOptions(namespaces));
  const netns = openSync(namespaces.pod, 'r');
  try {
    const peer = { name: ifname, mtu: mtuBytes, mac: podMac, netns };
    node.write(addLink({ name: hostIfname, kind: 'veth', mtu: mtuBytes, mac: hostMac, peer }));
  } finally {
    closeSync(netns);
  }
  return { hostIfindex: node.indexOf(hostIfname)!, hostMac, podMac };
}

/**
 * Give both ends their addresses and the pod its routes, and bring them up. The node's route to the pod is part of its
 * attachment, which the agent makes and keeps.
 * @throws NetlinkError with the kernel's reason.
 */
export async function configureVeth(
  hostIfname: string,
  ifname: string,
  addresses: readonly PodAddress[],
  namespaces: Namespaces,
): Promise<void> {
  const node = nodeOptions(namespaces);
  const pod = { netns: namespaces.pod };
  const ipv6 = addresses.some(({ ip }) => addressFamily(ip) === 6);
  await ensureSysctls(
    [...(ipv6 ? hostIpv6Sysctls(hostIfname) : []), ...podVethSysctls(hostIfname, [4, 6])],
    node,
  );
  if (ipv6) await ensureSysctls(podIpv6Sysctls(ifname), pod);
  using host = openNetlink(node);
  using inside = openNetlink(pod);
  setUpHostEnd(host, hostIfname, addresses);
  setUpPodEnd(inside, ifname, addresses);
  const deadline = performance.now() + IN_USE_MS;
  const gateways = addresses.map(({ gateway }) => gateway);
  const ips = addresses.map(({ ip }) => ip);
  while (!isInUse(host, hostIfname, gateways) || !isInUse(inside, ifname, ips)) {
    if (performance.now() > deadline) return;
    await sleep(1);
  }
}

/** Longer than this nobody waits for what the kernel does in the background: a first packet may be lost, no more. */
const IN_USE_MS = 200;

/**
 * Whether the kernel sends from a device and takes packets for its addresses. It begins with both in the background, a
 * millisecond after they were asked for; a packet that comes too early is lost, and asked for again after a second.
 */
function isInUse(socket: NetlinkSocket, device: string, addresses: readonly string[]): boolean {
  if (!socket.isRunning(device)) return false;
  const ifindex = ifindexes(socket)(device);
  return addresses
    .filter((address) => addressFamily(address) === 6)
    .every((ip) => {
      // The kernel makes this route when it begins to listen to the address.
      const own = { family: 6, table: RT_TABLE.local, ifindex, dst: hostCidr(ip) } as const;
      return listRoutes(socket, own).length > 0;
    });
}

function setUpHostEnd(socket: NetlinkSocket, device: string, addresses: readonly PodAddress[]): void {
  const ifindex = ifindexes(socket)(device);
  const ipv6 = addresses.some(({ ip }) => addressFamily(ip) === 6);
  socket.write(
    // No address of the kernel's making, hence no duplicate address detection and no router solicitations to the pod.
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

/** The same on every host veth: a link-local address need be unique on its link only, and pods make theirs of their MAC. */
const HOST_LINK_LOCAL = { address: 'fe80::1', length: 64, scope: 'link' } as const;

/**
 * An address of its own, without a subnet. An IPv6 one would wait a second to see whether somebody else has it (on this
 * link nobody can), and would bring a route to itself, on the host one for each pod.
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

/** To be set before the device comes up: then the kernel makes its link-local address and looks for routers. */
function podIpv6Sysctls(device: string): Sysctl[] {
  const off = 'some container runtimes turn IPv6 off in a new network namespace';
  return [
    { path: 'net/ipv6/conf/lo/disable_ipv6', value: '0', why: off },
    { path: `net/ipv6/conf/${device}/disable_ipv6`, value: '0', why: off },
    {
      path: `net/ipv6/conf/${device}/accept_ra`,
      value: '0',
      why: 'its routes come from the plugin: it neither asks for routers nor believes one',
    },
    {
      path: `net/ipv6/conf/${device}/accept_dad`,
      value: '0',
      why: 'the link-local address is fit for use at once',
    },
  ];
}

/**
 * Delete the veth, and with it the pod's end, its addresses and its routes; one that is not there is no error.
 * @throws NetlinkError when the kernel refuses that.
 */
export async function deleteVeth(hostIfname: string, node?: string): Promise<void> {
  await removeLink(hostIfname, node);
}

/**
 * What of a link differs from how it was made, in words; empty when all is well. Anything that later plugins may add or
 * change (other addresses, routes, the MTU) is left alone.
 * @param expected `podMac` undefined: any.
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
  const node = nodeOptions(namespaces);
  const host = await readLinkIfThere(hostIfname, node);
  const pod = await readLinkIfThere(ifname, { netns: namespaces.pod });
  using socket = openNetlink(node);
  const faults: string[] = [];
  if (!host) faults.push(`the host veth ${hostIfname} is gone`);
  else if (host.ifindex !== hostIfindex) {
    faults.push(`${hostIfname} has index ${host.ifindex} instead of ${hostIfindex}`);
  } else if (!host.up) faults.push(`${hostIfname} is down`);
  for (const ip of ips) {
    if (host && !isRouted(socket, ip, host.ifindex)) {
      faults.push(`the host has no route to ${ip} over ${hostIfname}`);
    }
  }
  if (!pod) return [...faults, `the pod has no interface ${ifname}`];
  if (!pod.up) faults.push(`the pod's ${ifname} is down`);
  for (const ip of ips) {
    if (!pod.addresses.some((address) => address.ip === ip)) {
      faults.push(`the pod's ${ifname} has lost ${ip}`);
    }
  }
  if (podMac !== undefined && pod.mac !== podMac.toLowerCase()) {
    faults.push(`the pod's ${ifname} has the MAC address ${pod.mac} instead of ${podMac}`);
  }
  return faults;
}

function isRouted(socket: NetlinkSocket, ip: string, ifindex: number): boolean {
  const family = addressFamily(ip) ?? 4;
  return listRoutes(socket, { family, ifindex, dst: hostCidr(ip) }).length > 0;
}

function nodeOptions({ node }: { node?: string | undefined }): { netns?: string } {
  return node === undefined ? {} : { netns: node };
}

/** Without IPv6 (`ipv6.disable=1`) the kernel refuses to be told of its address generation. */
function kernelHasIpv6(): boolean {
  return existsSync('/proc/sys/net/ipv6');
}
