// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import {
  addressAt,
  addressFamily,
  addressToBytes,
  bytesToAddress,
  canonicalAddress,
  type Cidr,
  cidrContains,
  type Family,
  formatCidr,
} from '../net/ip.ts';
import { Fields, type NetConf, parseNetConf } from './net-conf.ts';

/** The subnets of one family that nodes choose from: those of this length with a base from `min` to `max`. */
export interface SubnetRange {
  readonly family: Family;
  readonly length: number;
  readonly min: string;
  readonly max: string;
}

export interface EtcdSubnets {
  readonly v4: SubnetRange;
  /** Present when IPv6 is enabled. */
  readonly v6?: SubnetRange;
}

/** net-conf.json as it is in etcd, where nodes choose their subnets themselves. */
export interface EtcdNetConf extends NetConf {
  readonly subnets: EtcdSubnets;
}

/**
 * Parse the configuration that flannel keeps in etcd: net-conf.json with SubnetLen, SubnetMin, SubnetMax and their IPv6
 * twins, which default as flannel's do.
 * @param source how to name the text in errors.
 * @throws RipstopError that lists every mistake by its key.
 */
export function parseEtcdNetConf(text: string, source: string): EtcdNetConf {
  const netConf = parseNetConf(text, source);
  const mistakes: string[] = [];
  const fields = new Fields(JSON.parse(text), '', mistakes);
  const { network, ipv6Network } = netConf;
  if (!network) {
    mistakes.push('EnableIPv4 false is not possible with etcd, whose leases are named by an IPv4 subnet');
  }
  const v4 = network && parseRange(network, '', fields, mistakes);
  const v6 = ipv6Network && parseRange(ipv6Network, 'IPv6', fields, mistakes);
  if (mistakes.length > 0 || !v4) throw new RipstopError(`${source}: ${mistakes.join('; ')}`);
  return { ...netConf, subnets: { v4, ...(v6 && { v6 }) } };
}

function parseRange(
  network: Cidr,
  prefix: '' | 'IPv6',
  fields: Fields,
  mistakes: string[],
): SubnetRange | undefined {
  const { family } = network;
  const bits = family === 4 ? 32 : 128;
  const common = family === 4 ? 24 : 64;
  // The first subnet stays unused, so two nodes need a network of four subnets; each has at least four addresses.
  const [least, most] = [network.length + 2, bits - 2];
  if (least > most) {
    mistakes.push(
      `${prefix}Network ${formatCidr(network)} is too small to be split: it may be a /${bits - 4} at most`,
    );
    return undefined;
  }
  // 0 is left out, as Go's decoder has it.
  const given = fields.get(`${prefix}SubnetLen`) === 0 ? undefined : fields.get(`${prefix}SubnetLen`);
  const length =
    given === undefined ? Math.max(common, least) : fields.integer(`${prefix}SubnetLen`, least, least, most);
  const before = mistakes.length;
  const size = 2 ** (bits - length);
  const min = parseEnd('SubnetMin', addressAt(network, size));
  const max = parseEnd('SubnetMax', lastSubnet(network, length));
  if (mistakes.length > before) return undefined;
  if (Buffer.compare(addressToBytes(min), addressToBytes(max)) > 0) {
    mistakes.push(`${prefix}SubnetMin ${min} is above ${prefix}SubnetMax ${max}`);
    return undefined;
  }
  return { family, length, min, max };

  function parseEnd(name: string, fallback: string): string {
    const key = prefix + name;
    const value = fields.get(key);
    if (value === undefined || value === '') return fallback;
    const fail = (why: string): string => {
      mistakes.push(`${key} ${JSON.stringify(value)} ${why}`);
      return fallback;
    };
    if (typeof value !== 'string' || addressFamily(value) !== family) {
      return fail(`is not an IPv${family} address`);
    }
    if (!cidrContains(network, value)) return fail(`is not in ${prefix}Network ${formatCidr(network)}`);
    const base = baseOf(value, length);
    return base === canonicalAddress(value)
      ? base
      : fail(`is not where a /${length} begins; did you mean ${base}?`);
  }
}

/** The base of the block of this length that holds the address. */
function baseOf(address: string, length: number): string {
  return bytesToAddress(
    addressToBytes(address).map(
      (byte, i) => byte & (0xff00 >> Math.min(8, Math.max(0, length - i * 8))) & 0xff,
    ),
  );
}

/** The base of the network's last subnet. */
function lastSubnet(network: Cidr, length: number): string {
  const ones = addressToBytes(network.base).map(
    (byte, i) => byte | (0xff >> Math.min(8, Math.max(0, network.length - i * 8))),
  );
  return baseOf(bytesToAddress(ones), length);
}
