// SPDX-License-Identifier: Apache-2.0
import { z } from 'zod';
import { errorText, quote } from '../errors.ts';
import { addressFamily, formatCidr, parseAddress, parseMaskedCidr } from '../net/ip.ts';
import { macToBytes, NO_MAC, parseMac } from '../net/mac.ts';
import { CniCode, CniError } from './spec.ts';

/*
 * The addresses that a runtime asks for, in the three ways of the CNI conventions: CNI_ARGS (`IP=` and `MAC=`, as of
 * podman and ocicni), `args.cni`, and the capabilities `ips` and `mac` in `runtimeConfig`. As with host-local and bridge,
 * IP addresses from all three add up, and of MAC addresses the one of the last way counts. And the blocks that the
 * addresses are to be of, as host-local takes them: the capability `ipRanges`, and `ranges` and `subnet` in `ipam`.
 */

/** What a runtime asks for an attachment. */
export interface AskedAddresses {
  /** The addresses that the runtime asks for, at most one for each family; the others are any free ones. */
  readonly ips?: readonly string[];
  /** The blocks that all addresses are to be of, if it names some. */
  readonly ranges?: readonly string[];
  /** The MAC address that the runtime asks for the pod's interface. */
  readonly mac?: string;
}

const Asked = z.object({ ips: z.array(z.string()).default([]), mac: z.string().default('') });

const Range = z.object({
  subnet: z.string().default(''),
  rangeStart: z.string().default(''),
  rangeEnd: z.string().default(''),
});
const Ranges = z.array(z.array(Range)).default([]);

/** The fields of a network configuration that ask for addresses. */
export const AskedConfig = {
  args: z.object({ cni: Asked.optional() }).optional(),
  runtimeConfig: Asked.extend({ ipRanges: Ranges }).optional(),
  ipam: z.object({ ranges: Ranges, ...Range.shape }).optional(),
};

/** @throws CniError for an address that is none, or that no interface can have; and for a block that is none. */
export function asAsked(
  args: ReadonlyMap<string, string>,
  { args: { cni } = {}, runtimeConfig, ipam }: z.infer<z.ZodObject<typeof AskedConfig>>,
): AskedAddresses {
  const given = [
    { key: 'CNI_ARGS', code: CniCode.environment, ips: [args.get('IP') ?? ''], mac: args.get('MAC') ?? '' },
    { key: 'args.cni', code: CniCode.config, ips: cni?.ips ?? [], mac: cni?.mac ?? '' },
    {
      key: 'runtimeConfig',
      code: CniCode.config,
      ips: runtimeConfig?.ips ?? [],
      mac: runtimeConfig?.mac ?? '',
    },
  ];
  const ips = new Set<string>();
  let mac: string | undefined;
  for (const { key, code, ...asked } of given) {
    for (const text of asked.ips) if (text !== '') ips.add(parseIp(text, key, code));
    if (asked.mac !== '') mac = parseUnicastMac(asked.mac, key, code);
  }
  const ranges = [...(runtimeConfig?.ipRanges ?? []), ...(ipam ? [...ipam.ranges, [ipam]] : [])]
    .flat()
    .filter(({ subnet }) => subnet !== '')
    .map(parseRange);
  return {
    ...(ips.size > 0 && { ips: [...ips] }),
    ...(mac !== undefined && { mac }),
    ...(ranges.length > 0 && { ranges }),
  };
}

/** A block, any address of which will do. Go masks the host bits. */
function parseRange({ subnet, rangeStart, rangeEnd }: z.infer<typeof Range>): string {
  if (rangeStart !== '' || rangeEnd !== '') {
    const what = `the range ${quote(`${rangeStart}-${rangeEnd}`)} of ${quote(subnet)}`;
    throw new CniError(
      CniCode.unsupportedField,
      `${what} is not supported: pods get addresses of the whole podCIDR; leave out rangeStart and rangeEnd`,
    );
  }
  try {
    return formatCidr(parseMaskedCidr(subnet));
  } catch (error) {
    throw new CniError(
      CniCode.config,
      `the network configuration asks for a block of addresses: ${errorText(error)}`,
    );
  }
}

/** `10.42.1.7`, or with a prefix length, which a routed pod does not need. */
function parseIp(text: string, key: string, code: CniCode): string {
  const [, given = '', length = '0'] = /^([^/]*)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  const address = parseAddress(given);
  if (address === undefined || Number(length) > (addressFamily(given) === 4 ? 32 : 128)) {
    throw new CniError(code, `${key} asks for the IP address ${quote(text)}, which is none`);
  }
  return address;
}

/** An interface cannot have a multicast address or zeros. */
function parseUnicastMac(text: string, key: string, code: CniCode): string {
  const mac = parseMac(text);
  if (mac === undefined || mac === NO_MAC || (macToBytes(mac)[0]! & 1) !== 0) {
    throw new CniError(
      code,
      `${key} asks for the MAC address ${quote(text)}, which no interface can have; ` +
        'it must be a unicast one of six bytes, such as 02:00:00:00:00:01',
    );
  }
  return mac;
}
