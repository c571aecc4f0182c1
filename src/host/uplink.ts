// SPDX-License-Identifier: Apache-2.0
import { listRoutes, type NetlinkSocket, RTPROT } from '#netlink';
import { RipstopError } from '../errors.ts';
import {
  addressFamily,
  canonicalAddress,
  type Cidr,
  cidrContains,
  type Family,
  familyKey,
  partsOf,
  type PerFamily,
} from '../net/ip.ts';
import { isPodVeth, type Link } from './links.ts';
import { lookupNextHops, type NextHop } from './neighbours.ts';
import { openNetlink } from './netlink.ts';
import type { RunOptions } from './run.ts';
import { readSysctl } from './sysctl.ts';

/**
 * What the operator and the Node object say about the interface that carries the tunnels, in order of precedence. Of
 * several flags about interfaces, the first that some interface matches decides. On a dual-stack node one interface
 * carries the tunnels of both families.
 */
export interface UplinkRequest {
  /** The families that the cluster has on, IPv4 first. */
  families: readonly Family[];
  /** `--iface`: names, or addresses of the node. */
  iface?: readonly string[] | undefined;
  /** `--iface-regex`: matched against addresses of the families, then against names. */
  ifaceRegex?: readonly string[] | undefined;
  /** `--iface-can-reach`: an address to route to. */
  ifaceCanReach?: string | undefined;
  /**
   * The addresses that we publish for peers to reach us, each on some interface of this node. They choose the interface
   * when none of the above does. They are the source of our tunnels in any case, since peers drop VXLAN from unknown
   * addresses.
   */
  publicIps?: PerFamily<string> | undefined;
  /** The Node's InternalIPs. */
  nodeIps?: PerFamily<string> | undefined;
  /** This node's podCIDRs: an interface with an address in them is one of the pods'. */
  podCidrs?: readonly Cidr[] | undefined;
}

/** What the choice depends on. */
export interface UplinkFacts {
  links: ReadonlyMap<string, Link>;
  /** Default routes: those of the first family before those of the second; in each family the best one first. */
  defaultRoutes: readonly { dev: string; protocol?: string | undefined }[];
  /** The next hop to `ifaceCanReach`, when there is a route. */
  reach?: NextHop | undefined;
  /** The IPv6 MTU of each interface: less than its own MTU where a router advertised less (RFC 4861, section 4.6.4). */
  ipv6Mtus: ReadonlyMap<string, number>;
}

export interface Uplink {
  name: string;
  ifindex: number;
  /** The outer source addresses of our tunnels: one for each requested family. */
  ips: PerFamily<string>;
  /** In bytes; with IPv6 at most what a router advertised. */
  mtu: number;
  /** The interfaces whose IPv6 default route came from a router advertisement: they must keep accepting those. */
  advertised: string[];
  /** Why this one, for the log. */
  explanation: string;
}

/**
 * Choose the interface whose network carries the tunnels. Pure.
 * @throws RipstopError naming the candidates when no interface meets the request.
 */
export function chooseUplink(request: UplinkRequest, facts: UplinkFacts): Uplink {
  const { families, ifaceCanReach: target } = request;
  if (target !== undefined && !families.some((family) => family === addressFamily(target))) {
    const kinds = families.map((family) => `IPv${family}`).join(' or ');
    throw new RipstopError(`--iface-can-reach "${target}" is not an ${kinds} address`);
  }
  const { name, ip: chosen, why } = decide(request, facts);
  const link = facts.links.get(name);
  if (!link) throw refusal(request, facts, `there is no interface ${name} (${why})`);
  if (link.loopback)
    throw refusal(request, facts, `${name} is a loopback interface and carries no tunnel (${why})`);
  const ips: { v4?: string; v6?: string } = {};
  const notes: string[] = [];
  for (const family of request.families) {
    const nodeIp = nodeIpOf(request, family);
    const publicIp = publicIpOf(request, family, facts);
    const ip =
      publicIp ??
      (chosen !== undefined && addressFamily(chosen) === family ? chosen : ownAddress(link, family, nodeIp));
    if (ip === undefined) throw refusal(request, facts, `${name} has no ${addressKind(family)} (${why})`);
    ips[familyKey(family)] = ip;
    if (publicIp !== undefined) {
      const holder = holderOf(publicIp, facts);
      if (holder !== name) notes.push(`; the public IP ${publicIp} is on ${holder}`);
    } else if (nodeIp !== undefined && nodeIp !== ip) {
      const holder = holderOf(nodeIp, facts);
      notes.push(`; ${holder ?? 'no interface'} has the Node's InternalIP ${nodeIp}`);
    }
  }
  return {
    name,
    ifindex: link.ifindex,
    ips,
    mtu: families.includes(6) ? Math.min(link.mtu, facts.ipv6Mtus.get(name) ?? link.mtu) : link.mtu,
    advertised: [
      ...new Set(facts.defaultRoutes.flatMap(({ dev, protocol }) => (protocol === 'ra' ? [dev] : []))),
    ],
    explanation: `${name} (${partsOf(ips).join(', ')}): ${why}${notes.join('')}`,
  };
}

/**
 * Read what the choice depends on.
 * @param links a fresh listing.
 */
export async function readUplinkFacts(
  { families, ifaceCanReach: target }: Pick<UplinkRequest, 'families' | 'ifaceCanReach'>,
  links: ReadonlyMap<string, Link>,
  options: RunOptions = {},
): Promise<UplinkFacts> {
  const canAsk = target !== undefined && addressFamily(target) !== undefined;
  const nextHops = await lookupNextHops(canAsk ? [target] : [], {}, options);
  const ipv6Mtus = new Map<string, number>();
  for (const { name, loopback, vxlan } of families.includes(6) ? links.values() : []) {
    if (loopback || vxlan || isPodVeth(name)) continue;
    const advertised = Number(await readSysctl(`net/ipv6/conf/${name}/mtu`, options));
    if (advertised > 0) ipv6Mtus.set(name, advertised);
  }
  using socket = openNetlink(options);
  const names = new Map(links.values().map(({ ifindex, name }) => [ifindex, name]));
  return {
    links,
    defaultRoutes: families.flatMap((family) => listDefaultRoutes(socket, names, family)),
    reach: target === undefined ? undefined : nextHops.get(target),
    ipv6Mtus,
  };
}

/** {@link chooseUplink} with the facts as they are now. */
export async function findUplink(
  request: UplinkRequest,
  links: ReadonlyMap<string, Link>,
  options: RunOptions = {},
): Promise<Uplink> {
  return chooseUplink(request, await readUplinkFacts(request, links, options));
}

/** The default routes of a family, best first; one with several next hops counts as several. */
function listDefaultRoutes(
  socket: NetlinkSocket,
  names: ReadonlyMap<number, string>,
  family: Family,
): UplinkFacts['defaultRoutes'] {
  return listRoutes(socket, { family, dst: family === 4 ? '0.0.0.0/0' : '::/0' })
    .sort((a, b) => a.metric - b.metric)
    .flatMap(({ ifindex, hops, protocol }) =>
      (hops ?? [{ ifindex }]).flatMap((hop) => {
        const dev = hop.ifindex === undefined ? undefined : names.get(hop.ifindex);
        return dev === undefined ? [] : [{ dev, protocol: protocol === RTPROT.ra ? 'ra' : undefined }];
      }),
    );
}

interface Decision {
  name: string;
  /** An address that the request names. */
  ip?: string;
  why: string;
}

/** A decision, or why nothing matches. */
type Finding = Decision | string;

function decide(request: UplinkRequest, facts: UplinkFacts): Decision {
  const { families, iface = [], ifaceRegex = [], ifaceCanReach } = request;
  const attempts: (() => Finding)[] = [
    ...iface.map((one) => () => byNameOrAddress(one, facts)),
    ...ifaceRegex.map((one) => () => byRegex(one, request, facts)),
    ...(ifaceCanReach === undefined ? [] : [() => byRoute(ifaceCanReach, request, facts)]),
  ];
  const reasons: string[] = [];
  for (const find of attempts) {
    const found = find();
    if (typeof found !== 'string') return found;
    reasons.push(found);
  }
  if (reasons.length > 0) throw refusal(request, facts, reasons.join(', '));
  // Where a router announces a node's address, the node has it on an interface that leads nowhere: lo, or a dummy.
  const unfit: string[] = [];
  const byAddress = (ip: string | undefined, what: string): Decision | undefined => {
    const holder = ip === undefined ? undefined : holderOf(ip, facts);
    if (holder === undefined) return undefined;
    const why = `it has the ${what} ${ip}`;
    if (
      !leadsNowhere(facts.links.get(holder)!, facts) &&
      !isForPods(facts.links.get(holder)!, request, facts)
    )
      return { name: holder, why };
    unfit.push(`${holder} carries no tunnel, although ${why}, and `);
    return undefined;
  };
  for (const family of families) {
    const found = byAddress(publicIpOf(request, family, facts), 'requested public IP');
    if (found) return found;
  }
  for (const family of families) {
    const found = byAddress(nodeIpOf(request, family), "Node's InternalIP");
    if (found) return found;
  }
  const route = facts.defaultRoutes[0];
  if (!route) {
    const kinds = families.map((family) => `IPv${family}`).join(' or ');
    const why = `${unfit.join('')}the node has no ${kinds} default route to choose the interface by`;
    throw refusal(request, facts, why);
  }
  return { name: route.dev, why: 'it carries the default route' };
}

/** Interfaces of which nothing goes out to other nodes; a bridge without ports serves people as a dummy. */
function leadsNowhere({ name, loopback, kind }: Link, { links }: UplinkFacts): boolean {
  if (kind === 'bridge') return !links.values().some(({ master }) => master === name);
  return loopback || kind === 'dummy' || kind === 'ifb' || kind === 'nlmon';
}

/** Names that network plugins and container engines give to their devices: pods' ends, bridges, tunnels. */
const CONTAINER_DEVICES = new RegExp(
  '^(' +
    [
      String.raw`veth|cali|lxc|tap_|vmnet|virbr|lxdbr|weave|antrea|cilium|ovn-k8s|ovs-system|kube-|nodelocaldns`,
      String.raw`(cni|cbr|docker|podman|tunl|ip6tnl)\d|docker_gwbridge$|br-[0-9a-f]{12}$|nerdctl`,
      String.raw`flannel|(vxlan|vxlan-v6)\.calico$|(wireguard|wg-v6)\.cali$`,
    ].join('|') +
    ')',
);

/**
 * Whether an interface was made for pods or other containers, by ripstop or by somebody else. What carries a default
 * route was not: a node may be a container itself.
 */
function isForPods(link: Link, request: UplinkRequest, facts: UplinkFacts): boolean {
  const { podCidrs = [] } = request;
  if (facts.defaultRoutes.some(({ dev }) => dev === link.name)) return false;
  if (CONTAINER_DEVICES.test(link.name) || link.kind === 'netkit') return true;
  if (link.addresses.some(({ ip }) => podCidrs.some((podCidr) => cidrContains(podCidr, ip)))) return true;
  if (link.kind !== 'bridge') return false;
  // A bridge that leads anywhere else has a port that is not a pod's.
  const ports = [...facts.links.values()].filter(({ master }) => master === link.name);
  return ports.length > 0 && ports.every((port) => isForPods(port, request, facts));
}

function byNameOrAddress(iface: string, facts: UplinkFacts): Finding {
  if (addressFamily(iface) === undefined) {
    if (!facts.links.has(iface)) return `there is no interface ${iface} of --iface`;
    return { name: iface, why: `it is --iface ${iface}` };
  }
  const name = holderOf(iface, facts);
  if (name === undefined) return `no interface has the address ${iface} of --iface`;
  return { name, ip: canonicalAddress(iface), why: `it has the address of --iface ${iface}` };
}

function byRegex(ifaceRegex: string, request: UplinkRequest, facts: UplinkFacts): Finding {
  let pattern: RegExp;
  try {
    pattern = parseGoRegex(ifaceRegex);
  } catch (error) {
    throw new RipstopError(`--iface-regex "${ifaceRegex}" is not a regular expression`, { cause: error });
  }
  const links = candidates(request, facts);
  for (const link of links) {
    const address = request.families
      .flatMap((family) => addressesOf(link, family))
      .find(({ ip }) => pattern.test(ip));
    if (address) {
      return { name: link.name, ip: address.ip, why: `its address matches --iface-regex ${ifaceRegex}` };
    }
  }
  const link = links.find(({ name }) => pattern.test(name));
  if (link) return { name: link.name, why: `its name matches --iface-regex ${ifaceRegex}` };
  return `nothing matches --iface-regex ${ifaceRegex}`;
}

/** The ASCII classes of Go's regular expressions (RE2), as JavaScript has them within brackets. */
const GO_CLASSES: Readonly<Record<string, string>> = {
  alnum: '0-9A-Za-z',
  alpha: 'A-Za-z',
  digit: '0-9',
  lower: 'a-z',
  punct: '!-\\/:-@[-`{-~',
  space: '\\s',
  upper: 'A-Z',
  word: '\\w',
  xdigit: '0-9A-Fa-f',
};

/**
 * A regular expression in Go's syntax, which flannel's flag has. Where JavaScript's differs, it would take most of it for
 * something else, and say nothing.
 * @throws SyntaxError when it is none, or has what JavaScript lacks.
 */
function parseGoRegex(text: string): RegExp {
  // Flags for the whole expression, such as (?i), are not in its text here.
  const [, flags = '', rest = ''] = /^(?:\(\?([ims]+)\))?(.*)$/s.exec(text) ?? [];
  const translated = rest.replaceAll(
    /\\Q(.*?)(?:\\E|$)|\\(.)|\[:(\w+):\]|\(\?P</gs,
    (all, quoted?: string, escaped?: string, name?: string) => {
      if (quoted !== undefined) return quoted.replaceAll(/[^\w\s]/g, '\\$&');
      if (escaped !== undefined) return { A: '(?<![^])', z: '(?![^])' }[escaped] ?? all;
      return name === undefined ? '(?<' : (GO_CLASSES[name] ?? all);
    },
  );
  return new RegExp(translated, flags);
}

/** Whether other nodes may be reached through it, and not pods. */
function leadsToNodes(link: Link, request: UplinkRequest, facts: UplinkFacts): boolean {
  return !link.vxlan && !leadsNowhere(link, facts) && !isForPods(link, request, facts);
}

function byRoute(target: string, request: UplinkRequest, facts: UplinkFacts): Finding {
  if (!facts.reach) return `no route leads to ${target} of --iface-can-reach`;
  const { dev } = facts.reach;
  const link = facts.links.get(dev);
  if (link && !leadsToNodes(link, request, facts))
    return `the route to ${target} of --iface-can-reach leads to ${dev}, and not to other nodes`;
  return { name: dev, why: `it leads to ${target} of --iface-can-reach` };
}

function holderOf(ip: string, facts: UplinkFacts): string | undefined {
  const canonical = canonicalAddress(ip);
  for (const link of facts.links.values()) {
    if (link.addresses.some((address) => address.ip === canonical)) return link.name;
  }
  return undefined;
}

/**
 * The Node's InternalIP if the interface has it (so that a virtual IP is not taken), else the interface's oldest
 * address: the kernel lists IPv4 addresses oldest first, but IPv6 addresses newest first.
 */
function ownAddress(link: Link, family: Family, nodeIp: string | undefined): string | undefined {
  const usable = addressesOf(link, family);
  // A secondary IPv4 address lasts as long as the primary one; an IPv6 address that is not primary is temporary.
  const internal = (family === 4 ? link.addresses : usable).find(({ ip }) => ip === nodeIp);
  return (internal ?? usable.at(family === 4 ? 0 : -1))?.ip;
}

function nodeIpOf({ nodeIps }: UplinkRequest, family: Family): string | undefined {
  const ip = nodeIps?.[familyKey(family)];
  return ip === undefined ? undefined : canonicalAddress(ip);
}

/** @throws RipstopError when the node does not have it. */
function publicIpOf(request: UplinkRequest, family: Family, facts: UplinkFacts): string | undefined {
  const ip = request.publicIps?.[familyKey(family)];
  if (ip === undefined) return undefined;
  if (holderOf(ip, facts) === undefined) {
    const suffix = family === 4 ? '' : 'v6';
    throw new RipstopError(
      `no interface has the public IP ${canonicalAddress(ip)} ` +
        `that --public-ip${suffix} or the Node's annotation node-public-ip${suffix} asks for; to publish an address ` +
        `that is not this node's own (NAT), annotate the Node with public-ip${suffix}-overwrite`,
    );
  }
  return canonicalAddress(ip);
}

function addressesOf(link: Link, family: Family): Link['addresses'] {
  return link.addresses.filter(
    (address) => address.family === family && address.scope === 'global' && address.primary,
  );
}

function addressKind(family: Family): string {
  return family === 4
    ? 'IPv4 address'
    : 'permanent IPv6 address (global, not temporary, not deprecated, no duplicate)';
}

/**
 * Interfaces that could carry tunnels: they have an address of each family, lead to other nodes, and are neither VXLAN
 * nor made for pods.
 */
function candidates(request: UplinkRequest, facts: UplinkFacts): Link[] {
  return [...facts.links.values()].filter(
    (link) =>
      leadsToNodes(link, request, facts) &&
      request.families.every((family) => addressesOf(link, family).length > 0),
  );
}

function refusal(request: UplinkRequest, facts: UplinkFacts, why: string): RipstopError {
  const { families } = request;
  const names = candidates(request, facts).map((link) => {
    const ips = families.map((family) => ownAddress(link, family, nodeIpOf(request, family)));
    return `${link.name} (${ips.join(', ')})`;
  });
  const both = families.length > 1 ? ' of each family, which EnableIPv4 and EnableIPv6 ask for' : '';
  const choose =
    names.length > 0
      ? `choose with --iface among ${names.join(', ')}`
      : `give one an address${both || ' first'}`;
  return new RipstopError(`cannot choose the interface for tunnels: ${why}; ${choose}`);
}
