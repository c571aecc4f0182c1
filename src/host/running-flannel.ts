// SPDX-License-Identifier: Apache-2.0
/** What a flannel has made on this node, as the kernel has it. Nothing here changes anything. */
import { readdir, readFile, readlink } from 'node:fs/promises';
import { listFdb, listNeighbours, listRoutes, type NetlinkSocket } from '#netlink';
import { RipstopError } from '../errors.ts';
import { type Cidr, cidrCovers, type Family, parseCidr } from '../net/ip.ts';
import { NO_MAC } from '../net/mac.ts';
import type { Link } from './links.ts';
import { openNetlink, type Where } from './netlink.ts';
import { vtepDeviceName } from './vtep-device.ts';

/** flannel's VXLAN network on this node. */
export interface FlannelTunnel {
  readonly vni: number;
  /** UDP destination port. */
  readonly port: number;
  /** Name of the interface over which it sends. */
  readonly uplink: string;
}

/**
 * The network of the devices `flannel.<VNI>` and `flannel-v6.<VNI>`; undefined when there is none. A flannel that changes
 * its VNI leaves its former devices there. Then the one counts over which it routes to other nodes.
 * @param routed the indexes of devices with such routes; called only where it matters, since routes may be many.
 * @throws RipstopError when there are several all the same.
 */
export function findFlannelTunnel(
  links: ReadonlyMap<string, Link>,
  routed: () => ReadonlySet<number>,
): FlannelTunnel | undefined {
  const devices = links.values().flatMap(({ name, ifindex, vxlan }) => {
    if (vxlan?.uplink === undefined || !/^flannel(-v6)?\.\d+$/.test(name)) return [];
    return [{ ifindex, tunnel: { vni: vxlan.vni, port: vxlan.port, uplink: vxlan.uplink } }];
  });
  const all = devices.toArray();
  const networksOf = (some: typeof all) => new Map(some.map(({ tunnel }) => [tunnel.vni, tunnel]));
  const found = networksOf(all);
  if (found.size <= 1) return all[0]?.tunnel;
  const inUse = routed();
  const used = networksOf(all.filter(({ ifindex }) => inUse.has(ifindex)));
  if (used.size !== 1) {
    const names = [...found.keys()].map((vni) => vtepDeviceName(4, vni)).join(', ');
    throw new RipstopError(
      `flannel has devices of several networks here: ${names}; delete those of networks that flannel uses no longer`,
    );
  }
  return used.values().next().value;
}

/** The indexes of the devices over which there are routes, by gateways, to parts of these networks. */
export function devicesToPeers(networks: readonly Cidr[], where: Where = {}): Set<number> {
  using socket = openNetlink(where);
  const routes = networks.flatMap((network) =>
    listRoutes(socket, { family: network.family, gateway: true }).filter(({ dst }) =>
      cidrCovers(network, parseCidr(dst)),
    ),
  );
  return new Set(routes.flatMap(({ ifindex }) => (ifindex === undefined ? [] : [ifindex])));
}

/** Another node, as flannel has entered it in this node's kernel. */
export interface EnteredPeer {
  readonly podCidr: Cidr;
  readonly vtepIp: string;
  /** All zero when it is reached without a tunnel. */
  readonly vtepMac: string;
}

/** The peers of one family, from flannel's routes, neighbours and FDB entries. One that lacks any of these is left out. */
export function listEnteredPeers(
  network: Cidr,
  tunnel: { readonly device: number | undefined; readonly uplink: number | undefined },
  where: Where = {},
): EnteredPeer[] {
  using socket = openNetlink(where);
  return [...tunnelledPeers(socket, network, tunnel.device), ...directPeers(socket, network, tunnel.uplink)];
}

function tunnelledPeers(socket: NetlinkSocket, network: Cidr, ifindex: number | undefined): EnteredPeer[] {
  if (ifindex === undefined) return [];
  const macs = new Map(listNeighbours(socket, { ifindex }).map(({ address, mac }) => [address, mac]));
  const addresses = new Map(listFdb(socket, { ifindex }).map(({ mac, dst }) => [mac, dst]));
  return routesInto(socket, network, ifindex).flatMap(({ podCidr, gateway }) => {
    const vtepMac = macs.get(gateway);
    const vtepIp = vtepMac === undefined ? undefined : addresses.get(vtepMac);
    return vtepMac === undefined || vtepIp === undefined ? [] : [{ podCidr, vtepIp, vtepMac }];
  });
}

function directPeers(socket: NetlinkSocket, network: Cidr, ifindex: number | undefined): EnteredPeer[] {
  if (ifindex === undefined) return [];
  return routesInto(socket, network, ifindex).map(({ podCidr, gateway }) => ({
    podCidr,
    vtepIp: gateway,
    vtepMac: NO_MAC,
  }));
}

/** The routes over an interface, by a gateway, to parts of the cluster network. */
function routesInto(
  socket: NetlinkSocket,
  network: Cidr,
  ifindex: number,
): { readonly podCidr: Cidr; readonly gateway: string }[] {
  return listRoutes(socket, { family: network.family, ifindex, gateway: true }).flatMap(
    ({ dst, gateway }) => {
      const podCidr = parseCidr(dst);
      return gateway !== undefined && cidrCovers(network, podCidr) ? [{ podCidr, gateway }] : [];
    },
  );
}

/** Whether flannel routes to other nodes' pods without a tunnel. */
export function hasDirectRoutes(networks: readonly Cidr[], uplink: number, where: Where = {}): boolean {
  using socket = openNetlink(where);
  return networks.some((network) => routesInto(socket, network, uplink).length > 0);
}

/** Programs that are flannel, or have it inside: by their names in /proc. */
const FLANNELS: Readonly<Record<string, string>> = {
  flanneld: 'flanneld',
  k3s: 'k3s',
  'k3s-server': 'k3s',
  'k3s-agent': 'k3s',
};

/**
 * The programs with a flannel that run in this network namespace: `flanneld`, `k3s`. Those of other PID namespaces are
 * not seen: in Kubernetes, the agent's pod needs `hostPID`.
 */
export async function findFlannelPrograms(proc = '/proc'): Promise<string[]> {
  const ownNetns = await readlink(`${proc}/self/ns/net`);
  const pids = (await readdir(proc)).filter((name) => /^\d+$/.test(name));
  const found = await Promise.all(
    pids.map(async (pid) => {
      try {
        const name = FLANNELS[(await readFile(`${proc}/${pid}/comm`, 'utf8')).trim()];
        if (name === undefined) return [];
        return (await readlink(`${proc}/${pid}/ns/net`)) === ownNetns ? [name] : [];
      } catch {
        return []; // It has ended.
      }
    }),
  );
  return [...new Set(found.flat())].toSorted();
}

/** The device of a family, if it is there. */
export function flannelDeviceIndex(
  links: ReadonlyMap<string, Link>,
  family: Family,
  { vni }: FlannelTunnel,
): number | undefined {
  return links.get(vtepDeviceName(family, vni))?.ifindex;
}
