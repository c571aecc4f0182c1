// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { addressFamily, canonicalAddress, type Family, half } from '../net/ip.ts';
import { ipJson } from './ip.ts';
import type { Link } from './links.ts';
import { lookupNextHops, type NextHop } from './neighbours.ts';
import type { RouteRow } from './routes.ts';
import type { RunOptions } from './run.ts';
import { readSysctl } from './sysctl.ts';

/** One address for each family, as far as there is one. */
export interface FamilyIps {
  readonly v4?: string;
  readonly v6?: string;
}

/**
 * How the operator and the Node object say which interface carries the tunnels; the first that is given decides. On a
 * dual-stack node one interface carries those of both families.
 */
export interface UplinkWish {
  /** The families that the cluster has on, IPv4 first. */
  families: readonly Family[];
  /** `--iface`: a name or one of the node's addresses. */
  iface?: string | undefined;
  /** `--iface-regex`: matched against addresses of the families, then against names. */
  ifaceRegex?: string | undefined;
  /** `--iface-can-reach`: an address to route to. */
  ifaceCanReach?: string | undefined;
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
  const { name, ip: chosen, why } = decide(wish, facts);
  const link = facts.links.get(name);
  if (!link) throw refusal(wish, facts, `there is no interface ${name} (${why})`);
  if (link.loopback) throw refusal(wish, facts, `${name} is a loopback, which carries no tunnel (${why})`);
  const ips: { v4?: string; v6?: string } = {};
  const notes: string[] = [];
  for (const family of wish.families) {
    const nodeIp = nodeIpOf(wish, family);
    const ip =
      chosen !== undefined && addressFamily(chosen) === family ? chosen : ownAddress(link, family, nodeIp);
    if (ip === undefined) throw refusal(wish, facts, `${name} has no ${addressKind(family)} (${why})`);
    ips[half(family)] = ip;
    if (nodeIp !== undefined && nodeIp !== ip) {
      const holder = holderOf(nodeIp, facts);
      notes.push(`; ${holder ?? 'no interface'} has the Node's InternalIP ${nodeIp}`);
    }
  }
  return {
    name,
    ifindex: link.ifindex,
    ips,
    mtu: link.mtu,
    advertised: [
      ...new Set(facts.defaultRoutes.flatMap(({ dev, protocol }) => (protocol === 'ra' ? [dev] : []))),
    ],
    explanation: `${name} (${wish.families.map((family) => ips[half(family)]).join(', ')}): ${why}${notes.join('')}`,
  };
}

/**
 * Read the facts that the choice needs and choose.
 * @param links as listed just now.
 * @throws RipstopError as {@link chooseUplink}.
 */
export async function findUplink(
  wish: UplinkWish,
  links: ReadonlyMap<string, Link>,
  options: RunOptions = {},
): Promise<Uplink> {
  const { families, ifaceCanReach: target } = wish;
  if (target !== undefined && !families.some((family) => family === addressFamily(target))) {
    const wanted = families.map((family) => `IPv${family}`).join(' or ');
    throw new RipstopError(`--iface-can-reach "${target}" is not an ${wanted} address`);
  }
  const [routes, hops] = await Promise.all([
    Promise.all(families.map((family) => listDefaultRoutes(family, options))),
    lookupNextHops(target === undefined ? [] : [target], options),
  ]);
  const uplink = chooseUplink(wish, {
    links,
    defaultRoutes: routes.flat(),
    reach: target === undefined ? undefined : hops.get(target),
  });
  return families.includes(6) ? { ...uplink, mtu: await ipv6Mtu(uplink, options) } : uplink;
}

/** The default routes of a family, best first; one with several next hops counts as several. */
async function listDefaultRoutes(family: Family, options: RunOptions): Promise<UplinkFacts['defaultRoutes']> {
  const rows = await ipJson<RouteRow>([`-${family}`, 'route', 'show', 'default'], options);
  return rows
    .sort((a, b) => (a.metric ?? 0) - (b.metric ?? 0))
    .flatMap(({ dev, nexthops, protocol }) =>
      (nexthops ?? [{ dev }]).flatMap((hop) => (hop.dev === undefined ? [] : [{ dev: hop.dev, protocol }])),
    );
}

/** A router may advertise a smaller MTU than the device has, for what travels over IPv6 (RFC 4861, section 4.6.4). */
async function ipv6Mtu({ name, mtu }: Uplink, options: RunOptions): Promise<number> {
  const advertised = Number(await readSysctl(`net/ipv6/conf/${name}/mtu`, options));
  return advertised > 0 ? Math.min(advertised, mtu) : mtu;
}

interface Decision {
  name: string;
  /** The address of its family that the wish asks for. */
  ip?: string;
  why: string;
}

function decide(wish: UplinkWish, facts: UplinkFacts): Decision {
  const { families, iface, ifaceRegex, ifaceCanReach } = wish;
  if (iface !== undefined) {
    if (addressFamily(iface) === undefined) return { name: iface, why: `it is --iface ${iface}` };
    const found = holderOf(iface, facts);
    if (!found) throw refusal(wish, facts, `no interface has the address ${iface} of --iface`);
    return { name: found, ip: canonicalAddress(iface), why: `it has the address of --iface ${iface}` };
  }
  if (ifaceRegex !== undefined) return byRegex(ifaceRegex, wish, facts);
  if (ifaceCanReach !== undefined) {
    if (!facts.reach) throw refusal(wish, facts, `no route leads to ${ifaceCanReach} of --iface-can-reach`);
    return { name: facts.reach.dev, why: `it leads to ${ifaceCanReach} of --iface-can-reach` };
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

function byRegex(ifaceRegex: string, wish: UplinkWish, facts: UplinkFacts): Decision {
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
  throw refusal(wish, facts, `nothing matches --iface-regex ${ifaceRegex}`);
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
