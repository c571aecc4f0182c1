// SPDX-License-Identifier: Apache-2.0
/** What the kernel path would do with a packet that comes in at a device, as far as the kernel tells without one. */
import {
  type Connection,
  findConnection,
  type Link,
  listFdb,
  listLinks,
  listNeighbours,
  listRules,
  lookUpIncoming,
  lookUpRoutes,
  NetlinkError,
  NetlinkSocket,
  type Route,
  type Rule,
  type Tuple,
} from '#netlink';
import { addressFamily } from '../net/ip.ts';
import { listNft } from './nft.ts';

export interface NextHop {
  readonly device: string;
  /** Undefined: the destination is on the link. */
  readonly gateway?: string;
  /** The MAC of the gateway or the destination, and the state of its entry; undefined: the kernel has to ask for it. */
  readonly neighbour?: { readonly mac: string; readonly state: string };
}

export interface KernelAnswer {
  /** For the destination after translation, where a connection is translated. */
  readonly destination: string;
  /** The device and the gateway, or why there is none. A packet to the node itself has only the type `local`. */
  readonly route:
    | ({ readonly type: string; readonly table: number; readonly mtu?: number } & Partial<NextHop>)
    | { readonly error: string };
  /** The routing rules that lead to that table. Which of them did, the kernel does not tell. */
  readonly rules: readonly string[];
  /** Of a VXLAN device: the tunnel end that its forwarding database names, and the way there. */
  readonly tunnel?: { readonly vtepMac: string; readonly vtepIp?: string; readonly outer?: NextHop };
  /**
   * Null: conntrack knows none, so the packet is a new connection's first, or rules exempt it. Undefined: without ports
   * it cannot be asked.
   */
  readonly connection?: Connection | null;
  /** The base chains of nftables that a forwarded packet passes, in order. What their rules say, only a packet shows. */
  readonly chains: readonly string[];
}

/** The packet as it comes in. */
export interface PacketIn extends Omit<Tuple, 'srcPort' | 'dstPort'> {
  /** Undefined: any. Of an ICMP echo, see {@link Tuple}. */
  readonly ports?: { readonly src: number; readonly dst: number };
  /** The index of the device. */
  readonly iif: number;
  readonly tos: number;
}

/** Ask the kernel, in this process's network namespace. */
export async function askKernel(packet: PacketIn): Promise<KernelAnswer> {
  const { iif, src, protocol, tos, ports } = packet;
  const tuple = ports && { ...packet, srcPort: ports.src, dstPort: ports.dst };
  const connection = tuple && connectionOf(tuple);
  const [dst, dstPort] = connection ? translated(connection, tuple) : [packet.dst, ports?.dst];
  const hasPorts = dstPort !== undefined && protocol !== 1 && protocol !== 58;
  using socket = NetlinkSocket.open('route');
  const found = lookUpIncoming(socket, {
    iif,
    src,
    dst,
    protocol,
    tos,
    ...(hasPorts && { ports: { src: ports?.src ?? 0, dst: dstPort } }),
  });
  const chains = await forwardChains(addressFamily(src) === 6 ? 'ip6' : 'ip');
  const common = { destination: dst, ...(tuple && { connection: connection ?? null }), chains };
  if (found instanceof NetlinkError) return { ...common, route: { error: found.message }, rules: [] };
  const links = new Map(listLinks(socket).map((link) => [link.ifindex, link]));
  const { type, table, mtu } = found;
  const hop = nextHopOf(socket, links, found, dst);
  const tunnel = tunnelOf(socket, links, found, hop);
  return {
    ...common,
    route: { type, table, ...(mtu !== undefined && { mtu }), ...hop },
    rules: listRules(socket, found.family)
      .filter((rule) => rule.action === 'table' && rule.table === table)
      .map(ruleText),
    ...(tunnel && { tunnel }),
  };
}

/** A kernel without conntrack knows none. */
function connectionOf(tuple: Tuple): Connection | undefined {
  using socket = NetlinkSocket.open('netfilter');
  try {
    return findConnection(socket, tuple);
  } catch (error) {
    if (error instanceof NetlinkError && error.code === 'EINVAL') return undefined;
    throw error;
  }
}

/** Where a connection's packet goes: what the other side's packets come from. */
function translated({ original, reply }: Connection, { src, srcPort }: Tuple): [dst: string, port: number] {
  const isOriginal = original.src === src && original.srcPort === srcPort;
  const back = isOriginal ? reply : original;
  return [back.src, back.srcPort];
}

function nextHopOf(
  socket: NetlinkSocket,
  links: ReadonlyMap<number, Link>,
  route: Route,
  dst: string,
): NextHop | undefined {
  const { ifindex, gateway, family, type } = route;
  const device = ifindex === undefined ? undefined : links.get(ifindex);
  if (!device || type !== 'unicast') return undefined;
  const entry = listNeighbours(socket, { family, ifindex: device.ifindex }).find(
    ({ address }) => address === (gateway ?? dst),
  );
  return {
    device: device.name,
    ...(gateway !== undefined && { gateway }),
    ...(entry?.mac !== undefined && { neighbour: { mac: entry.mac, state: entry.state } }),
  };
}

function tunnelOf(
  socket: NetlinkSocket,
  links: ReadonlyMap<number, Link>,
  route: Route,
  hop: NextHop | undefined,
): KernelAnswer['tunnel'] {
  const device = links.get(route.ifindex ?? 0);
  if (!device?.vxlan || !hop?.neighbour) return undefined;
  const vtepMac = hop.neighbour.mac;
  const vtepIp = listFdb(socket, { ifindex: device.ifindex }).find(({ mac }) => mac === vtepMac)?.dst;
  const [outer] = vtepIp === undefined ? [] : lookUpRoutes(socket, [vtepIp]);
  const isRoute = outer !== undefined && !(outer instanceof NetlinkError);
  const outerHop = isRoute ? nextHopOf(socket, links, outer, vtepIp!) : undefined;
  return { vtepMac, ...(vtepIp !== undefined && { vtepIp }), ...(outerHop && { outer: outerHop }) };
}

/** As `ip rule` prints it. */
function ruleText({ priority, not, src, dst, iif, oif, mark, table }: Rule): string {
  const selectors = [
    `${not ? 'not ' : ''}from ${src ?? 'all'}`,
    dst && `to ${dst}`,
    iif && `iif ${iif}`,
    oif && `oif ${oif}`,
    mark && `fwmark 0x${mark.value.toString(16)}/0x${mark.mask.toString(16)}`,
  ];
  return `${priority}: ${selectors.filter(Boolean).join(' ')} lookup ${tableName(table)}`;
}

/** The names that `ip route` gives to the tables that always exist. */
export function tableName(table: number): string {
  return { 253: 'default', 254: 'main', 255: 'local' }[table] ?? String(table);
}

const HOOKS = ['prerouting', 'forward', 'postrouting'];

/** Without nft on the node there is nothing to tell. */
async function forwardChains(family: 'ip' | 'ip6'): Promise<string[]> {
  const chains = (await listNft(['chains']).catch(() => []))
    .flatMap(({ chain }) => (chain?.hook !== undefined && HOOKS.includes(chain.hook) ? [chain] : []))
    .filter((chain) => chain.family === 'inet' || chain.family === family);
  return chains
    .sort((a, b) => HOOKS.indexOf(a.hook!) - HOOKS.indexOf(b.hook!) || (a.prio ?? 0) - (b.prio ?? 0))
    .map(
      ({ hook, family, table, name, policy }) =>
        `${hook}: ${family} ${table} ${name} (${policy ?? 'accept'})`,
    );
}
