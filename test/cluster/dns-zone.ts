// SPDX-License-Identifier: Apache-2.0
import { addressToBytes } from '../../src/net/ip.ts';

export type RecordType = 'A' | 'AAAA';

/** The names of a cluster, in the forms that kubelet's resolv.conf lets pods use. */
export const SEARCH = ['default.svc.cluster.local', 'svc.cluster.local', 'cluster.local'];

const numbered = (count: number, make: (i: number) => string): string[] =>
  Array.from({ length: count }, (_, i) => make(i + 1));

/** A Service, and a headless one whose answer is too large for UDP (100 addresses: 1.6 and 2.8 KB). */
export const ZONE: Readonly<Record<string, Record<RecordType, readonly string[]>>> = {
  [`web.${SEARCH[0]}`]: { A: ['10.43.0.80'], AAAA: ['fd00:43::80'] },
  [`many.${SEARCH[0]}`]: {
    A: numbered(100, (i) => `10.42.7.${i}`),
    AAAA: numbered(100, (i) => `fd00:42:0:7::${i.toString(16)}`),
  },
};

/** The RDATA of a name's records; undefined when there is no such name. */
export function answersOf(name: string): Record<RecordType, Buffer[]> | undefined {
  const found = ZONE[name];
  const bytes = (addresses: readonly string[]) => addresses.map((one) => Buffer.from(addressToBytes(one)));
  return found && { A: bytes(found.A), AAAA: bytes(found.AAAA) };
}
