// SPDX-License-Identifier: Apache-2.0
import { z } from 'zod';
import { quote } from '../errors.ts';
import { addressFamily, addressToBytes, bytesToAddress } from '../net/ip.ts';
import { CniCode, CniError } from './spec.ts';

/*
 * The addresses that a runtime asks for, in the three ways of the CNI conventions: CNI_ARGS (`IP=` and `MAC=`, as of
 * podman and ocicni), `args.cni`, and the capabilities `ips` and `mac` in `runtimeConfig`. As with host-local and bridge,
 * IP addresses from all three add up, and of MAC addresses the one of the last way counts.
 */

const Asked = z.object({ ips: z.array(z.string()).default([]), mac: z.string().default('') });

/** The fields of a network configuration that ask for addresses. */
export const AskedConfig = {
  args: z.object({ cni: Asked.optional() }).optional(),
  runtimeConfig: Asked.optional(),
};

/** @throws CniError for an address that is none, or that no interface can have. */
export function asAsked(
  args: ReadonlyMap<string, string>,
  { args: { cni } = {}, runtimeConfig }: z.infer<z.ZodObject<typeof AskedConfig>>,
): { ips?: readonly string[]; mac?: string } {
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
    if (asked.mac !== '') mac = parseMac(asked.mac, key, code);
  }
  return { ...(ips.size > 0 && { ips: [...ips] }), ...(mac !== undefined && { mac }) };
}

/** `10.42.1.7`, or with a prefix length, which a routed pod does not need. In Go `::ffff:10.42.1.7` is the same. */
function parseIp(text: string, key: string, code: CniCode): string {
  const [, address = '', length = '0'] = /^([^/]*)(?:\/(\d{1,3}))?$/.exec(text) ?? [];
  const family = addressFamily(address);
  if (family === undefined || Number(length) > (family === 4 ? 32 : 128)) {
    throw new CniError(code, `${key} asks for the IP address ${quote(text)}, which is none`);
  }
  const bytes = addressToBytes(address);
  const isMapped = bytes.length === 16 && bytes.every((byte, i) => i >= 12 || byte === (i < 10 ? 0 : 0xff));
  return bytesToAddress(isMapped ? bytes.subarray(12) : bytes);
}

/** The three spellings of Go's net.ParseMAC. An interface cannot have a multicast address or zeros. */
function parseMac(text: string, key: string, code: CniCode): string {
  const spelling =
    /^[0-9a-f]{2}(?:([:-])[0-9a-f]{2})(?:\1[0-9a-f]{2}){4}$|^[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}$/i;
  const digits = spelling.test(text) ? text.toLowerCase().replaceAll(/[^0-9a-f]/g, '') : '';
  const isUnicast = digits !== '' && (Number(`0x${digits.slice(0, 2)}`) & 1) === 0 && /[^0]/.test(digits);
  if (!isUnicast) {
    throw new CniError(
      code,
      `${key} asks for the MAC address ${quote(text)}, which no interface can have; ` +
        'it must be a unicast one of six bytes, such as 02:00:00:00:00:01',
    );
  }
  return digits.match(/../g)!.join(':');
}
