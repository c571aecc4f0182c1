// SPDX-License-Identifier: Apache-2.0
/** Addresses that are leased in host-local's store, and whether a pod has them. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { AttachmentStore } from '../../cni/attachments.ts';
import { HostLocalStore } from '../../cni/host-local.ts';
import { findSuspects, isStale } from '../../cni/sweep.ts';
import { openNetlink } from '../../host/netlink.ts';
import { cidrContains, formatCidr } from '../../net/ip.ts';
import { listAddresses } from '#netlink';
import type { Facts, NodeFacts } from './facts.ts';

const NETNS_DIR = '/run/netns';
/** An ADD may be under way that has leased an address, and not given it yet. */
const MIN_AGE_MS = 60_000;
/** Addresses of each /24 that no pod gets: the base, the gateway, the broadcast address. */
const RESERVED = 3;

export async function readLeases(
  dir: string,
  runDir: string,
  { families }: NodeFacts,
): Promise<Facts['leases']> {
  const addresses = new HostLocalStore(dir);
  const store = new AttachmentStore(runDir);
  const blocks = families.map(({ podCidr }) => podCidr);
  const v4 = blocks.find(({ family }) => family === 4) ?? blocks[0];
  const all = addresses
    .networks()
    .flatMap((network) => addresses.list(network))
    .filter(({ ip }) => v4 && cidrContains(v4, ip));
  const place = { families: blocks.map((one) => ({ podCidr: formatCidr(one) })), addresses, store };
  const leaked: string[] = [];
  const suspects = await findSuspects(place, MIN_AGE_MS);
  // Each namespace is looked into once, not once for each address.
  const present = suspects.length > 0 ? addressesOfPods() : new Set<string>();
  for (const lease of suspects) {
    if (present.has(lease.ip)) continue;
    if (await isStale(place, lease)) leaked.push(join(dir, lease.network, lease.ip));
  }
  const bits = v4 ? (v4.family === 4 ? 32 : 128) - v4.length : 0;
  return { dir, used: all.length, size: 2 ** bits - RESERVED, leaked };
}

function addressesOfPods(): Set<string> {
  const found = new Set<string>();
  for (const name of readdirSync(NETNS_DIR)) {
    try {
      using socket = openNetlink({ netns: join(NETNS_DIR, name) });
      for (const { address } of listAddresses(socket)) found.add(address);
    } catch {
      continue; // It has ended, or is no namespace any more.
    }
  }
  return found;
}
