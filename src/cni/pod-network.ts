// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { ipBatch, ipJson, line } from '../host/ip.ts';
import { listLinks, readLink } from '../host/links.ts';
import { tryRun } from '../host/run.ts';
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
 * @throws RipstopError when either name is taken; then nothing was created.
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
  const node = nodeOptions(namespaces);
  await ipBatch(
    [
      line`link add name ${hostIfname} mtu ${mtuBytes} address ${hostMac} type veth peer name ${ifname} mtu ${mtuBytes} address ${podMac} netns ${namespaces.pod}`,
    ],
    node,
  );
  const { ifindex } = await readLink(hostIfname, node);
  return { hostIfindex: ifindex, hostMac, podMac };
}

/**
 * Give both ends their addresses and the pod its routes, and bring them up. The node's route to the pod is part of its
 * attachment, which the agent makes and keeps.
 * @throws RipstopError with the kernel's reason.
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
  await ipBatch(
    [
      // No address of the kernel's making, hence no duplicate address detection and no router solicitations to the pod.
      ...(kernelHasIpv6() ? [line`link set dev ${hostIfname} addrgenmode none`] : []),
      ...addresses.map(({ gateway }) => addAddress(gateway, hostIfname)),
      ...(ipv6 ? [line`addr add ${HOST_LINK_LOCAL} dev ${hostIfname} nodad`] : []),
      line`link set dev ${hostIfname} up`,
    ],
    node,
  );
  await ipBatch(
    [
      ...addresses.map(({ ip }) => addAddress(ip, ifname)),
      line`link set dev ${ifname} up`,
      ...addresses.flatMap(({ gateway, routes, routeMtu }) => [
        line`route add ${gateway} dev ${ifname} scope link`,
        ...routes.map(
          (route) =>
            line`route add ${route} via ${gateway} dev ${ifname}` +
            (routeMtu === undefined ? '' : line` mtu ${routeMtu}`),
        ),
      ]),
    ],
    pod,
  );
}

/** The same on every host veth: a link-local address need be unique on its link only, and pods make theirs of their MAC. */
const HOST_LINK_LOCAL = 'fe80::1/64';

/**
 * An address of its own, without a subnet. An IPv6 one would wait a second to see whether somebody else has it (on this
 * link nobody can), and would bring a route to itself, on the host one for each pod.
 */
function addAddress(ip: string, device: string): string {
  const add = line`addr add ${hostCidr(ip)} dev ${device}`;
  return addressFamily(ip) === 6 ? `${add} nodad noprefixroute` : add;
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
 * @throws RipstopError when it is still there afterwards.
 */
export async function deleteVeth(hostIfname: string, node?: string): Promise<void> {
  const options = nodeOptions({ node });
  const { code, stderr } = await tryRun('ip', ['link', 'del', 'dev', hostIfname], options);
  if (code === 0) return;
  // Ask the kernel what is there and not iproute2's wording why it failed; only a link that stays is a failure.
  if ((await listLinks(options)).has(hostIfname)) {
    throw new Error(`cannot delete ${hostIfname}: ${stderr.trim()}`);
  }
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
  const [host, pod, routes] = await Promise.all([
    listLinks(node).then((links) => links.get(hostIfname)),
    listLinks({ netns: namespaces.pod }).then((links) => links.get(ifname)),
    Promise.all(
      ips.map((ip) =>
        ipJson<{ dev?: string }>([`-${addressFamily(ip) ?? 4}`, 'route', 'show', hostCidr(ip)], node),
      ),
    ),
  ]);
  const faults: string[] = [];
  if (!host) faults.push(`the host veth ${hostIfname} is gone`);
  else if (host.ifindex !== hostIfindex) {
    faults.push(`${hostIfname} has index ${host.ifindex} instead of ${hostIfindex}`);
  } else if (!host.up) faults.push(`${hostIfname} is down`);
  for (const [i, ip] of ips.entries()) {
    if (host && !routes[i]?.some((route) => route.dev === hostIfname)) {
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

function nodeOptions({ node }: { node?: string | undefined }): { netns?: string } {
  return node === undefined ? {} : { netns: node };
}

/** Without IPv6 (`ipv6.disable=1`) the kernel refuses to be told of its address generation. */
function kernelHasIpv6(): boolean {
  return existsSync('/proc/sys/net/ipv6');
}
