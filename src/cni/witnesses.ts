// SPDX-License-Identifier: Apache-2.0
/**
 * What files on the node say of the pods on flannel's bridge: host-local's leases, and what libcni keeps of each ADD. Which
 * pods there are, the kernel says. The files are read only to find what contradicts it.
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { readIfThere } from '../host/files.ts';
import { type Cidr, cidrContains } from '../net/ip.ts';
import { normalizeMac } from '../net/mac.ts';
import type { HostLocalStore } from './host-local.ts';

/** A pod's address, where the kernel sends packets for it. */
export interface SeenPod {
  readonly ip: string;
  readonly podMac: string;
  /** The name of its host veth. */
  readonly device: string;
}

/** What libcni has noted of an ADD. */
export interface AddRecord {
  readonly file: string;
  readonly ips: readonly string[];
  /** The MACs of the pod's interfaces, and the names of those on the node: bridge and host veth. */
  readonly podMacs: readonly string[];
  readonly hostIfnames: readonly string[];
}

export interface Testimony {
  /** The addresses that are leased; undefined where nothing is: then somebody else gives out addresses. */
  readonly leased: ReadonlySet<string> | undefined;
  readonly records: readonly AddRecord[];
}

/** What contradicts, in sentences. A file that is missing or silent contradicts nothing. Pure. */
export function contradictions(pods: readonly SeenPod[], { leased, records }: Testimony): string[] {
  const byIp = new Map(records.flatMap((record) => record.ips.map((ip) => [ip, record] as const)));
  return pods.flatMap(({ ip, podMac, device }) => {
    const seen = `the kernel has ${ip} at ${podMac} behind ${device}`;
    const record = byIp.get(ip);
    if (record && record.podMacs.length > 0 && !record.podMacs.includes(podMac))
      return [`${seen}, and by ${record.file} its pod has ${record.podMacs.join(' and ')}`];
    if (record && record.hostIfnames.length > 0 && !record.hostIfnames.includes(device))
      return [`${seen}, and by ${record.file} its pod is behind ${record.hostIfnames.join(' or ')}`];
    if (leased && !leased.has(ip)) return [`${seen}, and host-local has leased that address to nobody`];
    return [];
  });
}

/** Hear the witnesses of the addresses in these blocks. @throws Error when the file system refuses. */
export async function hearWitnesses(
  addresses: HostLocalStore,
  podCidrs: readonly Cidr[],
): Promise<Testimony> {
  const leased = addresses
    .networks()
    .flatMap((network) => addresses.list(network).map(({ ip }) => ip))
    .filter((ip) => podCidrs.some((block) => cidrContains(block, ip)));
  return {
    leased: leased.length > 0 ? new Set(leased) : undefined,
    records: await readRecords(join(addresses.dataDir, '../results')),
  };
}

/** What libcni notes, of all versions of its format that have the interfaces. */
const Noted = z.object({
  result: z.object({
    interfaces: z
      .array(z.object({ name: z.string(), mac: z.string().default(''), sandbox: z.string().default('') }))
      .default([]),
    ips: z.array(z.object({ address: z.string() })).default([]),
  }),
});

async function readRecords(dir: string): Promise<AddRecord[]> {
  const names = await readdir(dir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw error;
  });
  const records = await Promise.all(names.map((name) => readRecord(join(dir, name))));
  return records.filter((record) => record !== undefined);
}

/** Undefined for what is no such note: somebody else's file is silent. */
async function readRecord(file: string): Promise<AddRecord | undefined> {
  const { data } = Noted.safeParse(parsed(await readIfThere(file)));
  if (!data) return undefined;
  const { interfaces, ips } = data.result;
  const isPods = ({ sandbox }: { sandbox: string }): boolean => sandbox !== '';
  return {
    file,
    ips: ips.map(({ address }) => address.split('/')[0]!),
    podMacs: interfaces.filter(isPods).flatMap(({ mac }) => normalizeMac(mac) ?? []),
    hostIfnames: interfaces.filter((one) => !isPods(one)).map(({ name }) => name),
  };
}

function parsed(text: string | undefined): unknown {
  try {
    return JSON.parse(text ?? '');
  } catch {
    return undefined;
  }
}
