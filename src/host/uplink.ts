// SPDX-License-Identifier: Apache-2.0
import { listRoutes, RTPROT } from '#netlink';
import { RipstopError } from '../errors.ts';
import { addressFamily, canonicalAddress, type Family, half } from '../net/ip.ts';
import { isPodVeth, type Link } from './links.ts';
import { lookupNextHops, type NextHop } from './neighbours.ts';
import { linkNames, openNetlink } from './netlink.ts';
import type { RunOptions } from './run.ts';
import { readSysctl } from './sysctl.ts';

/** One address for each family, as far as there is one. */
export interface FamilyIps {
  readonly v4?: string;
  readonly v6?: string;
}

/**
 * How the operator and the Node object say which interface carries the tunnels, in the order in which they are asked. Of
 * the operator's words about interfaces the first that one fits decides. On a dual-stack node one interface carries the
 * tunnels of both families.
 */
export interface UplinkWish {
  /** The families that the cluster has on, IPv4 first. */
  families: readonly Family[];
  /** `--iface`: names, or addresses of the node. */
  iface?: readonly string[] | undefined;
  /** `--iface-regex`: matched against addresses of the families, then against names. */
  ifaceRegex?: readonly string[] | undefined;
  /** `--iface-can-reach`: an address to route to. */
  ifaceCanReach?: string | undefined;
  /**
   * The addresses at which peers are to reach us, each on some interface of this node. They choose the interface when
   * nothing above does, and are our tunnels' source in any case, for peers take nothing from an address that they do not know.
   */
  publicIps?: FamilyIps | undefined;
  /** The Node's InternalIPs. */
  nodeIps?: FamilyIps | undefined;
}

/** What the choice is made from. */
export interface UplinkFacts {
  links: ReadonlyMap<string, Link>;
  /** Default routes: of the first family before the second, of each the best first. */
  defaultRoutes: readonly { dev: string; protocol?: string | undefined }[];
  /** The way to `ifaceCanReach`, when there is one. */
  reach?: NextHop | undefined;
  /** The MTU for IPv6 by interface, where a router advertised a smaller one than the device has (RFC 4861, section 4.6.4). */
  ipv6Mtus: ReadonlyMap<string, number>;
}

export interface Uplink {
  name: string;
  ifindex: number;
  /** The outer source addresses of our tunnels: one for each family that was asked for. */
  ips: FamilyIps;
  /** In bytes, over IPv6 at most what a router advertised. */
  mtu: number;
  /** The devices whose IPv6 default route a router advertised: they have to go on listening to it. */
  advertised: string[];
  /** Why this one, for the log. */
  explanation: string;
}

/**
 * Choose the interface whose network carries the tunnels. Pure.
 * @throws RipstopError naming the candidates when the wish cannot be met.
 */
export function chooseUplink(wish: UplinkWish, facts: UplinkFacts): Uplink {
  const { families, ifaceCanReach: target } = wish;
  if (target !== undefined && !families.some((family) => family === addressFamily(target))) {
    const wanted = families.map((family) => `IPv${family}`).join(' or ');
    throw new RipstopError(`--iface-can-reach "${target}" is not an ${wanted} address`);
  }
  const { name, ip: chosen, why } = decide(wish, facts);
  const link = facts.links.get(name);
  if (!link) throw refusal(wish, facts, `there is no interface ${name} (${why})`);
  if (link.loopback) throw refusal(wish, facts, `${name} is a loopback, which carries no tunnel (${why})`);
  const ips: { v4?: string; v6?: string } = {};
  const notes: string[] = [];
  for (const family of wish.families) {
    const nodeIp = nodeIpOf(wish, family);
    const publicIp = publicIpOf(wish, family, facts);
    const ip =
      publicIp ??
      (chosen !== undefined && addressFamily(chosen) === family ? chosen : ownAddress(link, family, nodeIp));
    if (ip === undefined) throw refusal(wish, facts, `${name} has no ${addressKind(family)} (${why})`);
    ips[half(family)] = ip;
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
    explanation: `${name} (${wish.families.map((family) => ips[half(family)]).join(', ')}): ${why}${notes.join('')}`,
  };
}

/**
 * Read what the choice is made from.
 * @param links as listed just now.
 */
export async function readUplinkFacts(
  { families, ifaceCanReach: target }: Pick<UplinkWish, 'families' | 'ifaceCanReach'>,
  links: ReadonlyMap<string, Link>,
  options: RunOptions = {},
): Promise<UplinkFacts> {
  const canAsk = target !== undefined && addressFamily(target) !== undefined;
  const hops = await lookupNextHops(canAsk ? [target] : [], options);
  const ipv6Mtus = new Map<string, number>();
  for (const { name, loopback, vxlan } of families.includes(6) ? links.values() : []) {
    if (loopback || vxlan || isPodVeth(name)) continue;
    const advertised = Number(await readSysctl(`net/ipv6/conf/${name}/mtu`, options));
    if (advertised > 0) ipv6Mtus.set(name, advertised);
  }
  return {
    links,
    defaultRoutes: families.flatMap((family) => listDefaultRoutes(family, options)),
    reach: target === undefined ? undefined : hops.get(target),
    ipv6Mtus,
  };
}

/** {@link chooseUplink} by the facts of now. */
export async function findUplink(
  wish: UplinkWish,
  links: ReadonlyMap<string, Link>,
  options: RunOptions = {},
): Promise<Uplink> {
  return chooseUplink(wish, await readUplinkFacts(wish, links, options));
}

/** The default routes of a family, best first; one with several next hops counts as several. */
function listDefaultRoutes(family: Family, options: RunOptions): UplinkFacts['defaultRoutes'] {
  using socket = openNetlink(options);
  const names = linkNames(socket);
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
  /** The address of its family that the wish asks for. */
  ip?: string;
  why: string;
}

/** What the wish decides, or why it finds nothing. */
type Finding = Decision | string;

function decide(wish: UplinkWish, facts: UplinkFacts): Decision {
  const { families, iface = [], ifaceRegex = [], ifaceCanReach } = wish;
  const asked: (() => Finding)[] = [
    ...iface.map((one) => () => byNameOrAddress(one, facts)),
    ...ifaceRegex.map((one) => () => byRegex(one, wish, facts)),
    ...(ifaceCanReach === undefined ? [] : [() => byRoute(ifaceCanReach, facts)]),
  ];
  const without: string[] = [];
  for (const find of asked) {
    const found = find();
    if (typeof found !== 'string') return found;
    without.push(found);
  }
  if (without.length > 0) throw refusal(wish, facts, without.join(', '));
  for (const family of families) {
    const publicIp = publicIpOf(wish, family, facts);
    if (publicIp !== undefined)
      return { name: holderOf(publicIp, facts)!, why: `it has the public IP ${publicIp} that is asked for` };
  }
  for (const family of families) {
    const nodeIp = nodeIpOf(wish, family);
    const holder = nodeIp === undefined ? undefined : holderOf(nodeIp, facts);
    if (nodeIp !== undefined && holder !== undefined) {
      return { name: holder, why: `it has the Node's InternalIP ${nodeIp}` };
    }
  }
  const route = facts.defaultRoutes[0];
  if (!route) {
    const kinds = families.map((family) => `IPv${family}`).join(' or ');
    throw refusal(wish, facts, `the node has no ${kinds} default route to choose the interface by`);
  }
  return { name: route.dev, why: 'it carries the default route' };
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

function byRegex(ifaceRegex: string, wish: UplinkWish, facts: UplinkFacts): Finding {
  let pattern: RegExp;
  try {
    pattern = new RegExp(ifaceRegex);
  } catch (error) {
    throw new RipstopError(`--iface-regex "${ifaceRegex}" is not a regular expression`, { cause: error });
  }
  const links = candidates(wish, facts);
  for (const link of links) {
    const address = wish.families
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

function byRoute(target: string, { reach }: UplinkFacts): Finding {
  if (!reach) return `no route leads to ${target} of --iface-can-reach`;
  return { name: reach.dev, why: `it leads to ${target} of --iface-can-reach` };
}

function holderOf(ip: string, facts: UplinkFacts): string | undefined {
  const wanted = canonicalAddress(ip);
  for (const link of facts.links.values()) {
    if (link.addresses.some((address) => address.ip === wanted)) return link.name;
  }
  return undefined;
}

/**
 * The Node's InternalIP where the interface has it (and not, say, a virtual IP), else the address that it has had for
 * longest: the kernel lists IPv4 addresses as they came, but IPv6 ones with the newest first.
 */
function ownAddress(link: Link, family: Family, nodeIp: string | undefined): string | undefined {
  const fit = addressesOf(link, family);
  // A second address of an IPv4 subnet lasts as the first does; what is not primary of IPv6 is about to go.
  const held = (family === 4 ? link.addresses : fit).find(({ ip }) => ip === nodeIp);
  return (held ?? fit.at(family === 4 ? 0 : -1))?.ip;
}

function nodeIpOf({ nodeIps }: UplinkWish, family: Family): string | undefined {
  const ip = nodeIps?.[half(family)];
  return ip === undefined ? undefined : canonicalAddress(ip);
}

/** @throws RipstopError when the node does not have it. */
function publicIpOf(wish: UplinkWish, family: Family, facts: UplinkFacts): string | undefined {
  const ip = wish.publicIps?.[half(family)];
  if (ip === undefined) return undefined;
  if (holderOf(ip, facts) === undefined) {
    const [six, wanted] = family === 4 ? ['', ip] : ['v6', canonicalAddress(ip)];
    throw new RipstopError(
      `no interface has the public IP ${wanted} that --public-ip${six} or the Node's annotation node-public-ip${six} asks for; ` +
        `to publish an address that is not this node's own (NAT), annotate the Node with public-ip${six}-overwrite`,
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
    : 'lasting IPv6 address (global, neither temporary nor deprecated nor a duplicate)';
}

/** Interfaces that could carry tunnels: with an address of each family, and neither loopback nor a tunnel themselves. */
function candidates({ families }: UplinkWish, facts: UplinkFacts): Link[] {
  return [...facts.links.values()].filter(
    (link) =>
      !link.loopback && !link.vxlan && families.every((family) => addressesOf(link, family).length > 0),
  );
}

function refusal(wish: UplinkWish, facts: UplinkFacts, why: string): RipstopError {
  const { families } = wish;
  const names = candidates(wish, facts).map((link) => {
    const ips = families.map((family) => ownAddress(link, family, nodeIpOf(wish, family)));
    return `${link.name} (${ips.join(', ')})`;
  });
  const both = families.length > 1 ? ' of each family, which EnableIPv4 and EnableIPv6 ask for' : '';
  const choose =
    names.length > 0
      ? `choose with --iface among ${names.join(', ')}`
      : `give one an address${both || ' first'}`;
  return new RipstopError(`cannot choose the interface for tunnels: ${why}; ${choose}`);
}
