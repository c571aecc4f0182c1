// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { addressFamily, canonicalAddress, type Family } from '../net/ip.ts';
import { ipJson } from './ip.ts';
import type { Link } from './links.ts';
import { lookupNextHops, type NextHop } from './neighbours.ts';
import type { RouteRow } from './routes.ts';
import type { RunOptions } from './run.ts';

/** How the operator and the Node object say which interface carries the tunnels; the first that is given decides. */
export interface UplinkWish {
  family: Family;
  /** `--iface`: a name or one of the node's addresses. */
  iface?: string | undefined;
  /** `--iface-regex`: matched against addresses of the family, then against names. */
  ifaceRegex?: string | undefined;
  /** `--iface-can-reach`: an address to route to. */
  ifaceCanReach?: string | undefined;
  /** The Node's InternalIP of the family. */
  nodeIp?: string | undefined;
}

/** What the choice is made from. */
export interface UplinkFacts {
  links: ReadonlyMap<string, Link>;
  /** Default routes of the family, best first. */
  defaultRoutes: readonly { dev: string; gateway: string | undefined }[];
  /** The way to `ifaceCanReach`, when there is one. */
  reach?: NextHop | undefined;
}

export interface Uplink {
  name: string;
  ifindex: number;
  /** The outer source address of our tunnels. */
  ip: string;
  mtu: number;
  mac: string | undefined;
  /** The default gateway on this interface. */
  gateway: string | undefined;
  /** Why this one, for the log. */
  explanation: string;
}

/**
 * Choose the interface whose network carries the tunnels. Pure.
 * @throws RipstopError naming the candidates when the wish cannot be met.
 */
export function chooseUplink(wish: UplinkWish, facts: UplinkFacts): Uplink {
  const { name, ip, why } = decide(wish, facts);
  const link = facts.links.get(name);
  if (!link) throw refusal(wish, facts, `there is no interface ${name} (${why})`);
  if (link.loopback) throw refusal(wish, facts, `${name} is a loopback, which carries no tunnel (${why})`);
  const address = ip ?? ownAddress(link, wish);
  if (address === undefined) {
    throw refusal(wish, facts, `${name} has no IPv${wish.family} address (${why})`);
  }
  return {
    name,
    ifindex: link.ifindex,
    ip: address,
    mtu: link.mtu,
    mac: link.mac,
    gateway: facts.defaultRoutes.find((route) => route.dev === name)?.gateway,
    explanation: `${name} (${address}): ${why}`,
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
  const target = wish.ifaceCanReach;
  if (target !== undefined && addressFamily(target) !== wish.family) {
    throw new RipstopError(`--iface-can-reach "${target}" is not an IPv${wish.family} address`);
  }
  const [routes, hops] = await Promise.all([
    ipJson<RouteRow>([`-${wish.family}`, 'route', 'show', 'default'], options),
    lookupNextHops(target === undefined ? [] : [target], options),
  ]);
  return chooseUplink(wish, {
    links,
    defaultRoutes: routes
      .sort((a, b) => (a.metric ?? 0) - (b.metric ?? 0))
      .flatMap((row): Pick<RouteRow, 'dev' | 'gateway'>[] => row.nexthops ?? [row])
      .flatMap(({ dev, gateway }) => (dev === undefined ? [] : [{ dev, gateway }])),
    reach: target === undefined ? undefined : hops.get(target),
  });
}

interface Decision {
  name: string;
  ip?: string;
  why: string;
}

function decide(wish: UplinkWish, facts: UplinkFacts): Decision {
  const { iface, ifaceRegex, ifaceCanReach, nodeIp } = wish;
  if (iface !== undefined) {
    if (addressFamily(iface) === undefined) return { name: iface, why: `it is --iface ${iface}` };
    const found = holderOf(iface, facts);
    if (!found) throw refusal(wish, facts, `no interface has the address ${iface} of --iface`);
    return { name: found, ip: canonicalAddress(iface), why: `it has the address of --iface ${iface}` };
  }
  if (ifaceRegex !== undefined) return byRegex(ifaceRegex, wish, facts);
  if (ifaceCanReach !== undefined) {
    if (!facts.reach) throw refusal(wish, facts, `no route leads to ${ifaceCanReach} of --iface-can-reach`);
    const { dev, source } = facts.reach;
    const why = `it leads to ${ifaceCanReach} of --iface-can-reach`;
    return source === undefined ? { name: dev, why } : { name: dev, ip: source, why };
  }
  const holder = nodeIp === undefined ? undefined : holderOf(nodeIp, facts);
  if (nodeIp !== undefined && holder !== undefined) {
    return { name: holder, ip: canonicalAddress(nodeIp), why: `it has the Node's InternalIP ${nodeIp}` };
  }
  const route = facts.defaultRoutes[0];
  if (!route) {
    throw refusal(wish, facts, `the node has no IPv${wish.family} default route to choose the interface by`);
  }
  const unheld = nodeIp === undefined ? '' : `; no interface has the Node's InternalIP ${nodeIp}`;
  return { name: route.dev, why: `it carries the default route${unheld}` };
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
    const address = addressesOf(link, wish.family).find(({ ip }) => pattern.test(ip));
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

/** The Node's InternalIP where the interface has it (and not, say, a virtual IP that came first), else its first address. */
function ownAddress(link: Link, wish: UplinkWish): string | undefined {
  const addresses = addressesOf(link, wish.family);
  const nodeIp = wish.nodeIp === undefined ? undefined : canonicalAddress(wish.nodeIp);
  return (addresses.find(({ ip }) => ip === nodeIp) ?? addresses[0])?.ip;
}

function addressesOf(link: Link, family: Family): Link['addresses'] {
  return link.addresses.filter(
    (address) => address.family === family && address.scope === 'global' && address.primary,
  );
}

/** Interfaces that could carry tunnels: with an address, and neither loopback nor a tunnel themselves. */
function candidates(wish: UplinkWish, facts: UplinkFacts): Link[] {
  return [...facts.links.values()].filter(
    (link) => !link.loopback && !link.vxlan && addressesOf(link, wish.family).length > 0,
  );
}

function refusal(wish: UplinkWish, facts: UplinkFacts, why: string): RipstopError {
  const names = candidates(wish, facts).map(
    (link) => `${link.name} (${addressesOf(link, wish.family)[0]!.ip})`,
  );
  const choose =
    names.length > 0 ? `choose with --iface among ${names.join(', ')}` : 'give one an address first';
  return new RipstopError(`cannot choose the interface for tunnels: ${why}; ${choose}`);
}
