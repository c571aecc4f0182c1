// SPDX-License-Identifier: Apache-2.0
/** One of the two labs, with a socket at every place where packets enter or leave. */
import { ipBatch, ipJson } from '../../src/lab/ip.ts';
import { run } from '../../src/host/run.ts';
import { bytesToAddress } from '../../src/net/ip.ts';
import { macToBytes } from '../../src/net/mac.ts';
import {
  type Datapath,
  type Lab,
  labDown,
  labUp,
  netnsPath,
  openLab,
  parseLabOptions,
  underlayNetns,
} from '../../src/lab/index.ts';
import type { Mode } from '../../src/agent/options.ts';
import { hasFlannel } from '../../src/lab/state.ts';
import { setSysctls } from '../../src/lab/netns.ts';
import { type Received, RawSocket } from '../support/raw-socket.ts';
import type { Names } from './dissect.ts';
import type { Macs } from './cases.ts';
import {
  families,
  GATEWAYS,
  isPod,
  isWide,
  type NodeName,
  nodeNames,
  nodeOf,
  NODES,
  type Place,
  type PodName,
  podNames,
  PODS,
  podWith,
  WIDE_MTU,
} from './plan.ts';

export interface DiffLab extends AsyncDisposable {
  readonly name: string;
  readonly datapath: Datapath;
  /** Whether its pods are on a bridge. */
  readonly isBridged: boolean;
  readonly macs: Macs;
  readonly names: Names;
  readonly sockets: ReadonlyMap<Place, RawSocket>;
  /** Empty the nodes' conntrack tables. */
  forgetConnections(): Promise<void>;
  /** All packets that have left since the last call. */
  drain(): { place: Place; received: Received }[];
}

interface LinkInfo {
  ifindex: number;
  ifname: string;
  address: string;
  link_index?: number;
}

/** The kernel's VXLAN device of each family. */
const DEVICES = { 4: 'flannel.1', 6: 'flannel-v6.1' } as const;

/** @param mode how ripstop runs: with `boost`, the pods are on bridges in both labs. */
export async function openDiffLab(name: string, datapath: Datapath, mode: Mode): Promise<DiffLab> {
  try {
    await labUp(parseLabOptions({ name, datapath, mode, nodes: 2, pods: 2, ipv6: true }));
    return await equip(name, datapath);
  } catch (error) {
    await labDown(name);
    throw error;
  }
}

/**
 * The namespaces' names of a lab's nodes and pods.
 * @throws Error when a pod has not the address that it must have
 */
export function netnsIn({ name, state: { nodes } }: Lab): (place: NodeName | PodName) => string {
  const nodeWith = (node: NodeName) => nodes.find((one) => one.name === node)!;
  const podAt = (pod: PodName) => nodeWith(nodeOf(pod)).pods.find((one) => one.name === `pod${pod.at(-1)}`)!;
  for (const pod of podNames) {
    const { ip, ip6 } = podAt(pod);
    if (ip !== PODS[4][pod] || ip6 !== PODS[6][pod])
      throw new Error(
        `${pod} of ${name} has the addresses ${ip} ${ip6}, not ${PODS[4][pod]} ${PODS[6][pod]}`,
      );
  }
  return (place) => (isPod(place) ? podAt(place) : nodeWith(place)).netns;
}

async function equip(name: string, datapath: Datapath): Promise<DiffLab> {
  const lab = openLab(name);
  const netnsOf = netnsIn(lab);

  const roles = new Map<string, string>();
  const macOf = new Map<string, string>();
  const know = (role: string, mac: string): void => {
    roles.set(mac, role);
    macOf.set(role, mac);
  };
  const links = async (place: NodeName | PodName): Promise<LinkInfo[]> =>
    ipJson<LinkInfo>(['link', 'show'], { netns: netnsPath(netnsOf(place)) });
  const named = (all: LinkInfo[], ifname: string) => all.find((link) => link.ifname === ifname);

  const [br0] = await ipJson<LinkInfo>(['link', 'show', 'dev', 'br0'], {
    netns: netnsPath(underlayNetns(name)),
  });
  know('the switch', br0!.address);
  for (const node of nodeNames) {
    const ofNode = await links(node);
    know(`the uplink of ${node}`, named(ofNode, 'eth0')!.address);
    for (const family of families)
      know(`the VTEP of ${node}, IPv${family}`, named(ofNode, DEVICES[family])!.address);
    for (const pod of podNames.filter((pod) => nodeOf(pod) === node)) {
      const eth0 = named(await links(pod), 'eth0')!;
      const hostEnd = ofNode.find((link) => link.ifindex === eth0.link_index)!;
      know(pod, eth0.address);
      roles.set((named(ofNode, 'cni0') ?? hostEnd).address, `the gateway of ${node}`);
      macOf.set(`the gateway of ${pod}`, (named(ofNode, 'cni0') ?? hostEnd).address);
      if (!isWide(pod)) continue;
      await ipBatch([`link set ${hostEnd.ifname} mtu ${WIDE_MTU}`], { netns: netnsPath(netnsOf(node)) });
      await ipBatch([`link set eth0 mtu ${WIDE_MTU}`], { netns: netnsPath(netnsOf(pod)) });
    }
  }

  // conntrack may see several packets of GRO at once as new, and drop all but one. A capture that shares memory
  // with a packet keeps it out of GRO, more often without ripstop's programs than with them. So GRO is off.
  for (const node of nodeNames)
    for (const device of Object.values(DEVICES))
      await run('ethtool', ['-K', device, 'generic-receive-offload', 'off'], {
        netns: netnsPath(netnsOf(node)),
      });
  for (const place of [...nodeNames, ...podNames]) await settle(netnsOf(place), place in PODS[4]);
  await setSysctls(underlayNetns(name), { ...unlimitedIcmp, ...unlabelled, ...forgetful });
  await Promise.all(podNames.map((pod) => meetEveryone(netnsOf(pod))));

  const sockets = new Map<Place, RawSocket>([
    ...podNames.map((pod) => [pod, new RawSocket(netnsPath(netnsOf(pod)), 'eth0')] as const),
    ...nodeNames.map(
      (node) => [`cable of ${node}`, new RawSocket(netnsPath(underlayNetns(name)), node)] as const,
    ),
  ]);

  // Made of the MAC address (RFC 4291 appendix A). For its pods a ripstop node is fe80::1, since it has no bridge.
  const linkLocal = new Map([
    ['fe80::1', 'fe80:: of a gateway'],
    ...[...roles].map(([mac, role]) => {
      const bytes = macToBytes(mac);
      const eui64 = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        bytes[0]! ^ 2,
        bytes[1]!,
        bytes[2]!,
        0xff,
        0xfe,
        ...bytes.subarray(3),
      ];
      const address = bytesToAddress(Uint8Array.from(eui64));
      return [address, `fe80:: of ${role.startsWith('the gateway') ? 'a gateway' : role}`] as const;
    }),
  ]);
  const isBridged = hasFlannel(lab.state.nodes[0]!);
  const get = (role: string): string => macOf.get(role)!;
  const macs: Macs = {
    pod: get,
    gateway: (pod) => get(`the gateway of ${pod}`),
    hop: (from, dst) => {
      const neighbour = podWith(dst);
      // With a bridge the other pods of the node are neighbours. Without one only the node is.
      const bridged = isBridged && neighbour && nodeOf(neighbour) === nodeOf(from);
      return bridged && neighbour !== from ? get(neighbour) : get(`the gateway of ${from}`);
    },
    uplink: (node) => get(`the uplink of ${node}`),
    vtep: (node, family) => get(`the VTEP of ${node}, IPv${family}`),
  };

  return {
    name,
    datapath,
    isBridged,
    macs,
    sockets,
    names: {
      of: (mac) => roles.get(mac) ?? mac,
      address: (ip) => linkLocal.get(ip) ?? ip,
      masked: (hex) =>
        [...roles].reduce((text, [mac, role]) => text.replaceAll(mac.replaceAll(':', ''), `<${role}>`), hex),
    },
    forgetConnections: async () => {
      for (const node of nodeNames) await run('conntrack', ['-F'], { netns: netnsPath(netnsOf(node)) });
    },
    drain: () =>
      [...sockets].flatMap(([place, socket]) => {
        const all: { place: Place; received: Received }[] = [];
        for (let received = socket.receive(); received; received = socket.receive())
          all.push({ place, received });
        return all;
      }),
    async [Symbol.asyncDispose]() {
      for (const socket of sockets.values()) socket[Symbol.dispose]();
      await labDown(name);
    },
  };
}

/** Without these, timing would decide whether there is an answer. The last ones are for both families. */
export const unlimitedIcmp = {
  'ipv6.icmp.ratelimit': 0,
  'ipv4.icmp_ratelimit': 0,
  'ipv4.icmp_msgs_per_sec': 1_000_000,
  'ipv4.icmp_msgs_burst': 1_000_000,
};

/** Packets with a flow label belong to a case. */
const unlabelled = { 'ipv6.auto_flowlabels': 0 };

/** A packet too big from a wide pod would lower the path MTU between the nodes for all later cases. */
const forgetful = { 'ipv6.route.mtu_expires': 0 };

/** With these a case leaves no state for the next one, and answers come quickly. */
async function settle(netns: string, isPod: boolean): Promise<void> {
  const links = await ipJson<{ ifname: string }>(['link', 'show'], { netns: netnsPath(netns) });
  await setSysctls(netns, {
    ...unlimitedIcmp,
    ...unlabelled,
    'ipv4.ipfrag_time': 1,
    'ipv6.ip6frag_time': 1,
    ...(!isPod && { ...forgetful, 'netfilter.nf_conntrack_frag6_timeout': 1 }),
  });
  for (const { ifname } of links.filter(({ ifname }) => ifname !== 'lo')) {
    const path = ifname.replaceAll('.', '/');
    for (const family of ['ipv4', 'ipv6'])
      await setSysctls(netns, {
        [`${family}.neigh.${path}.retrans_time_ms`]: 60,
        ...(isPod && { [`${family}.conf.${path}.accept_redirects`]: 0 }),
      });
  }
  if (isPod)
    await setSysctls(netns, {
      'ipv4.ip_forward': 0,
      'ipv4.conf.all.accept_redirects': 0,
      'ipv6.conf.all.accept_redirects': 0,
    });
}

/**
 * Fill all neighbour tables, and let pods learn the path MTU of the IPv6 tunnel, which ripstop's pods know from their
 * routes, and flannel's from the first packet that is too big.
 */
export async function meetEveryone(netns: string): Promise<void> {
  const ping = async (address: string, ...args: string[]) =>
    run('ping', ['-n', '-q', '-W', '2', '-i', '0.1', ...args, address], { netns: netnsPath(netns) });
  for (const family of families)
    for (const addresses of [PODS, NODES, GATEWAYS])
      for (const address of Object.values(addresses[family])) await ping(address, '-c', '1');
  for (const address of Object.values(PODS[6])) await ping(address, '-c', '4', '-s', '1402');
}
