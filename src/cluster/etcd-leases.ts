// SPDX-License-Identifier: Apache-2.0
/** flannel's leases in etcd: what their keys and values say, and which subnet a node may take. Pure. */
import { randomInt } from 'node:crypto';
import { z } from 'zod';
import { errorText, quote, RipstopError } from '../errors.ts';
import {
  addressFamily,
  addressToBytes,
  bytesToAddress,
  canonicalAddress,
  type Cidr,
  cidrContains,
  cidrCovers,
  cidrsOverlap,
  type Family,
  familyKey,
  formatCidr,
  parseCidr,
  perFamily,
  type PerFamily,
} from '../net/ip.ts';
import { NO_MAC } from '../net/mac.ts';
import type { EtcdSubnets, SubnetRange } from './etcd-net-conf.ts';
import type { KeyValue } from './etcd-wire.ts';
import { type LeaseSettings, parseBackendData, type ParsedNode, parsePublicIp } from './node-lease.ts';
import type { LeasePart } from './own-lease.ts';
import type { Peer, PeerNode } from './peer.ts';

/** A node's subnet of each family; flannel's keys always have the IPv4 one. */
export interface SubnetPair extends PerFamily<Cidr> {
  readonly v4: Cidr;
}

/** `10.42.1.0-24`, with IPv6 `10.42.1.0-24&fd00:42:0:1::-64`. */
export function formatSubnetKey({ v4, v6 }: SubnetPair): string {
  const text = (cidr: Cidr): string => `${cidr.base}-${cidr.length}`;
  return v6 ? `${text(v4)}&${text(v6)}` : text(v4);
}

/**
 * The inverse of {@link formatSubnetKey}.
 * @throws RipstopError when the text is no such key.
 */
export function parseSubnetKey(key: string): SubnetPair {
  const match = /^([\d.]{7,15})-(\d{1,2})(?:&([\da-fA-F:.]{2,45})-(\d{1,3}))?$/.exec(key);
  if (!match) throw new RipstopError(`the key ${quote(key)} names no subnet such as 10.42.1.0-24`);
  const [, base4, length4, base6, length6] = match;
  const v4 = ofFamily(4, parseCidr(`${base4}/${length4}`));
  return base6 === undefined ? { v4 } : { v4, v6: ofFamily(6, parseCidr(`${base6}/${length6}`)) };
}

function ofFamily(family: Family, cidr: Cidr): Cidr {
  if (cidr.family === family) return cidr;
  throw new RipstopError(`${formatCidr(cidr)} is not IPv${family}`);
}

/**
 * A lease's value as flannel writes it, byte for byte: compact, members in this order, PublicIPv6 `null` when there is
 * none, and no data for backends without a VTEP.
 */
export function formatLease(
  { v4, v6 }: PerFamily<LeasePart> & { readonly v4: LeasePart },
  { backend, vni }: LeaseSettings,
): string {
  const data = (part: LeasePart | undefined): object | undefined =>
    vni === undefined || part?.vtepMac === undefined ? undefined : { VNI: vni, VtepMAC: part.vtepMac };
  return JSON.stringify({
    PublicIP: v4.publicIp,
    PublicIPv6: v6?.publicIp ?? null,
    BackendType: backend,
    BackendData: data(v4),
    BackendV6Data: data(v6),
  });
}

/** Unknown members are skipped, and Go's decoder takes null for left out. */
const valueSchema = z.object({
  PublicIP: z.string().nullish(),
  PublicIPv6: z.string().nullish(),
  BackendType: z.string().nullish(),
  BackendData: z.unknown().optional(),
  BackendV6Data: z.unknown().optional(),
});

type LeaseValue = z.infer<typeof valueSchema>;

/** @throws RipstopError when the text is no lease. */
function parseValue(text: string): LeaseValue {
  if (text.length > 4096) throw new RipstopError('the value is longer than 4096 characters');
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new RipstopError(`the value ${quote(text)} is no JSON`);
  }
  const parsed = valueSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  const what = parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'the value'}: ${message}`);
  throw new RipstopError(what.slice(0, 3).join(', '));
}

/** A key and the revision that it came with: a subnet that is free and taken again is another node's. */
export function leaseUid({ name, createRevision }: { name: string; createRevision: number }): string {
  return `${name}@${createRevision}`;
}

/**
 * What a key below `subnets/` and its value, which any node may have written, mean for the data plane. The key serves
 * as the node's name, because a lease has no other. Never throws: `reason` says what is wrong.
 * @param key the part after `subnets/`.
 */
export function parseLease(
  key: string,
  kv: Pick<KeyValue, 'value' | 'createRevision' | 'lease'>,
  settings: LeaseSettings,
): ParsedNode {
  const name = key.slice(0, 80);
  const identity = { name, uid: leaseUid({ name, createRevision: kv.createRevision }) };
  try {
    const subnets = parseSubnetKey(key);
    const value = parseValue(kv.value);
    if (value.BackendType !== settings.backend) {
      const what = value.BackendType ? `BackendType ${quote(value.BackendType)}` : 'no BackendType';
      // A subnet reserved for a node that does not exist yet.
      const reserved = !value.BackendType && kv.lease === 0n;
      if (reserved) return { ...identity, kind: 'ignored', reason: 'reserved' };
      const reason = `${what}; this node speaks to ${settings.backend} peers only`;
      return { ...identity, kind: 'ignored', reason, alarm: 'other_backend' };
    }
    const outside = outsideOf(subnets, settings);
    if (outside !== undefined) {
      return { ...identity, kind: 'malformed', reason: outside, alarm: 'podcidr_outside' };
    }
    const parts = perFamily((family) => parsePart(family, name, subnets, value, settings));
    if (!parts.v4 && !parts.v6) {
      const reason = 'the lease is of no address family that this cluster uses';
      return { ...identity, kind: 'ignored', reason, alarm: 'no_lease' };
    }
    const peer: PeerNode = {
      ...identity,
      // Revisions order leases by age, as times do, and are the same for everyone.
      createdAt: kv.createRevision,
      ...parts,
    };
    return { ...identity, kind: 'peer', peer };
  } catch (error) {
    return { ...identity, kind: 'malformed', reason: errorText(error), alarm: 'malformed_lease' };
  }
}

/** What is wrong when a subnet lies outside its network. */
function outsideOf({ v4, v6 }: SubnetPair, { network, ipv6Network }: LeaseSettings): string | undefined {
  if (network && !cidrCovers(network, v4)) {
    return `subnet ${formatCidr(v4)} is outside Network ${formatCidr(network)}`;
  }
  if (ipv6Network && v6 && !cidrCovers(ipv6Network, v6)) {
    return `subnet ${formatCidr(v6)} is outside IPv6Network ${formatCidr(ipv6Network)}`;
  }
  return undefined;
}

function parsePart(
  family: Family,
  name: string,
  subnets: SubnetPair,
  value: LeaseValue,
  settings: LeaseSettings,
): Peer | undefined {
  const podCidr = subnets[familyKey(family)];
  const network = family === 4 ? settings.network : settings.ipv6Network;
  const [publicIp, data, ipKey, dataKey] =
    family === 4
      ? [value.PublicIP, value.BackendData, 'PublicIP', 'BackendData']
      : [value.PublicIPv6, value.BackendV6Data, 'PublicIPv6', 'BackendV6Data'];
  if (!network || !podCidr) return undefined;
  const vtepIp = parsePublicIp(family, ipKey, publicIp ?? undefined);
  if (cidrContains(podCidr, vtepIp)) {
    throw new RipstopError(`${ipKey} ${vtepIp} lies in the node's own subnet ${formatCidr(podCidr)}`);
  }
  const vtepMac =
    settings.vni === undefined
      ? NO_MAC
      : parseBackendData(dataKey, JSON.stringify(data ?? null), settings.vni);
  return { name, podCidr, vtepIp, vtepMac, behindNat: false, zeroChecksum: false };
}

/** Whose a lease is, as far as it can be read; a broken lease still holds its subnet. */
export interface ClaimedLease {
  readonly key: string;
  readonly kv: KeyValue;
  /** Undefined when the key names none: nothing is held. */
  readonly subnets: SubnetPair | undefined;
  readonly publicIp?: string;
  readonly vtepMac: PerFamily<string>;
}

/** Read whose lease this is. Never throws. */
export function claimOf(key: string, kv: KeyValue, settings: LeaseSettings): ClaimedLease {
  const attempt = <T>(read: () => T): T | undefined => {
    try {
      return read();
    } catch {
      return undefined;
    }
  };
  const subnets = attempt(() => parseSubnetKey(key));
  const value = attempt(() => parseValue(kv.value));
  const mac = (data: unknown): string | undefined =>
    settings.vni === undefined
      ? undefined
      : attempt(() => parseBackendData('', JSON.stringify(data ?? null), settings.vni!));
  const ip = value?.PublicIP ?? '';
  return {
    key,
    kv,
    subnets,
    ...(addressFamily(ip) === 4 && { publicIp: canonicalAddress(ip) }),
    vtepMac: perFamily((family) => mac(family === 4 ? value?.BackendData : value?.BackendV6Data)),
  };
}

/** What identifies our own lease. */
export interface OwnMarks {
  readonly publicIp: string;
  /** The previous subnets, as subnet.env has them. */
  readonly previous?: PerFamily<Cidr> | undefined;
  /** The MACs of the VTEP devices that this machine has. */
  readonly vtepMac?: PerFamily<string> | undefined;
}

/** How to get a subnet. */
export type Choice =
  /** Ours already. */
  | { readonly kind: 'reuse'; readonly lease: ClaimedLease & { readonly subnets: SubnetPair } }
  /** Free; `why` for the log. */
  | { readonly kind: 'create'; readonly subnets: SubnetPair; readonly why: string };

/**
 * The subnet that this node gets: the one that it has, else the one that it had, else a free one.
 * @throws RipstopError when none is free.
 */
export function chooseSubnet(
  leases: readonly ClaimedLease[],
  ranges: EtcdSubnets,
  own: OwnMarks,
  random: (below: number) => number = randomInt,
): Choice {
  const fits = (subnets: SubnetPair | undefined): subnets is SubnetPair =>
    subnets !== undefined && fitsRanges(subnets, ranges);
  const previous: SubnetPair | undefined = own.previous?.v4 && {
    v4: own.previous.v4,
    ...(own.previous.v6 && { v6: own.previous.v6 }),
  };
  const previousKey = previous && formatSubnetKey(previous);
  const ours = leases.filter(
    ({ key, publicIp, vtepMac }) =>
      publicIp === own.publicIp ||
      // Our address has changed since then; the device still has the lease's MAC.
      (key === previousKey && vtepMac.v4 !== undefined && own.vtepMac?.v4 === vtepMac.v4),
  );
  // Pods may have addresses from the previous one, so it comes first; then the oldest.
  ours.sort(
    (a, b) =>
      Number(b.key === previousKey) - Number(a.key === previousKey) ||
      a.kv.createRevision - b.kv.createRevision,
  );
  for (const lease of ours) {
    if (fits(lease.subnets)) return { kind: 'reuse', lease: { ...lease, subnets: lease.subnets } };
  }
  // Those of ours that no longer fit are given up, so they do not count as taken.
  const taken = leases.filter((lease) => !ours.includes(lease)).flatMap(({ subnets }) => subnets ?? []);
  if (fits(previous) && !taken.some((other) => overlap(previous, other))) {
    return { kind: 'create', subnets: previous, why: 'it is the previous one' };
  }
  const v4 = freeSubnet(
    ranges.v4,
    taken.map((pair) => pair.v4),
    random,
  );
  const v6 =
    ranges.v6 &&
    freeSubnet(
      ranges.v6,
      taken.flatMap((pair) => pair.v6 ?? []),
      random,
    );
  return { kind: 'create', subnets: { v4, ...(v6 && { v6 }) }, why: 'it is free' };
}

/** Whether a node may have these subnets as the configuration is now. */
export function fitsRanges(subnets: SubnetPair, ranges: EtcdSubnets): boolean {
  const fits = (cidr: Cidr | undefined, range: SubnetRange | undefined): boolean =>
    cidr === undefined || range === undefined
      ? cidr === undefined && range === undefined
      : cidr.length === range.length &&
        toInt(cidr.base) >= toInt(range.min) &&
        toInt(cidr.base) <= toInt(range.max);
  return fits(subnets.v4, ranges.v4) && fits(subnets.v6, ranges.v6);
}

/** Whether two nodes with these subnets would share an address. */
export function overlap(a: SubnetPair, b: SubnetPair): boolean {
  return cidrsOverlap(a.v4, b.v4) || (a.v6 !== undefined && b.v6 !== undefined && cidrsOverlap(a.v6, b.v6));
}

/**
 * A free subnet of the range: the first one after a random place, so that nodes choose different ones at the same time.
 * @throws RipstopError when there is none.
 */
function freeSubnet(range: SubnetRange, taken: readonly Cidr[], random: (below: number) => number): Cidr {
  const { family, length, min, max } = range;
  const shift = BigInt((family === 4 ? 32 : 128) - length);
  const [first, last] = [toInt(min) >> shift, toInt(max) >> shift];
  // In units of one subnet: what is taken, as intervals in order.
  const intervals = taken
    .map(({ base, length: bits }) => {
      const start = toInt(base);
      const size = 1n << BigInt((family === 4 ? 32 : 128) - bits);
      return { start: start >> shift, end: (start + size - 1n) >> shift };
    })
    .sort((a, b) => (a.start < b.start ? -1 : 1));
  const freeFrom = (begin: bigint): bigint | undefined => {
    let at = begin;
    for (const { start, end } of intervals) if (start <= at && end >= at) at = end + 1n;
    return at <= last ? at : undefined;
  };
  const count = last - first + 1n;
  const offset = BigInt(random(Number(count > 0xffff_ffffn ? 0xffff_ffffn : count)));
  const slot = freeFrom(first + offset) ?? freeFrom(first);
  if (slot === undefined) {
    throw new RipstopError(
      `all subnets from ${min}/${length} to ${max}/${length} are taken: ` +
        `widen the network or the range in the configuration, or delete leases of nodes that are gone`,
    );
  }
  return { family, base: fromInt(slot << shift, family), length };
}

function toInt(address: string): bigint {
  return BigInt(`0x${Buffer.from(addressToBytes(address)).toString('hex')}`);
}

function fromInt(value: bigint, family: Family): string {
  const bytes = family === 4 ? 4 : 16;
  return bytesToAddress(Buffer.from(value.toString(16).padStart(bytes * 2, '0'), 'hex'));
}
