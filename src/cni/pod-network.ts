// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { ipBatch, ipJson, line } from '../host/ip.ts';
import { listLinks, readLink } from '../host/links.ts';
import { tryRun } from '../host/run.ts';
import { ensureSysctls, podVethSysctls } from '../host/sysctl.ts';
import { randomMac } from '../net/mac.ts';
import type { AttachmentId } from './plugin.ts';

/**
 * A pod's link to its node: a veth without a bridge, as the reference plugin `ptp` does it.
 *
 *     pod   eth0          10.42.1.5/32    10.42.1.1 dev eth0 scope link · default via 10.42.1.1
 *     node  veth1a2b3c4d  10.42.1.1/32    10.42.1.5 dev veth1a2b3c4d scope link
 *
 * Every host veth has the gateway's address, so that the node answers ARP for it and speaks to its pods from it, as
 * cni0 would. The kernel path is thus plain routing; the fast path's programs hang on the host veth.
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

/** The addresses and routes of a link. */
export interface PodAddressing {
  /** The pod's address. */
  ip: string;
  gateway: string;
  /** Destinations that the pod routes to the gateway: CIDR blocks. */
  routes: readonly string[];
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
  { ip, gateway, routes }: PodAddressing,
  namespaces: Namespaces,
): Promise<void> {
  const node = nodeOptions(namespaces);
  await ensureSysctls(podVethSysctls(hostIfname, [4, 6]), node);
  await ipBatch(
    [
      // No link-local address, hence no duplicate address detection and no router solicitations towards the pod.
      ...(kernelHasIpv6() ? [line`link set dev ${hostIfname} addrgenmode none`] : []),
      line`addr add ${gateway}/32 dev ${hostIfname}`,
      line`link set dev ${hostIfname} up`,
    ],
    node,
  );
  await ipBatch(
    [
      line`addr add ${ip}/32 dev ${ifname}`,
      line`link set dev ${ifname} up`,
      line`route add ${gateway} dev ${ifname} scope link`,
      ...routes.map((route) => line`route add ${route} via ${gateway} dev ${ifname}`),
    ],
    { netns: namespaces.pod },
  );
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
    ip: string;
    podMac: string | undefined;
  },
  namespaces: Namespaces,
): Promise<string[]> {
  const { hostIfname, hostIfindex, ifname, ip, podMac } = expected;
  const node = nodeOptions(namespaces);
  const [host, pod, routes] = await Promise.all([
    listLinks(node).then((links) => links.get(hostIfname)),
    listLinks({ netns: namespaces.pod }).then((links) => links.get(ifname)),
    ipJson<{ dev?: string }>(['-4', 'route', 'show', `${ip}/32`], node),
  ]);
  const faults: string[] = [];
  if (!host) faults.push(`the host veth ${hostIfname} is gone`);
  else if (host.ifindex !== hostIfindex) {
    faults.push(`${hostIfname} has index ${host.ifindex} instead of ${hostIfindex}`);
  } else if (!host.up) faults.push(`${hostIfname} is down`);
  if (host && !routes.some((route) => route.dev === hostIfname)) {
    faults.push(`the host has no route to ${ip} over ${hostIfname}`);
  }
  if (!pod) return [...faults, `the pod has no interface ${ifname}`];
  if (!pod.up) faults.push(`the pod's ${ifname} is down`);
  if (!pod.addresses.some((address) => address.ip === ip)) faults.push(`the pod's ${ifname} has lost ${ip}`);
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
