// SPDX-License-Identifier: Apache-2.0
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { listAddresses } from '#netlink';
import { z } from 'zod';
import { readIfThere } from '../host/files.ts';
import { readLinkIfThere } from '../host/links.ts';
import { openNetlink } from '../host/netlink.ts';
import { cidrContains, parseCidr } from '../net/ip.ts';
import type { Attachment, AttachmentStore } from './attachments.ts';
import type { HostLocalStore, Lease } from './host-local.ts';

/*
 * Leases whose pod is gone, and for which no DEL has come: a runtime that was killed in the middle of an ADD, or has lost
 * its state. A runtime's GC would tell which they are, but containerd calls none. So the agent looks itself, for a
 * network namespace that still has the address. It errs on the side of keeping: a lease too many costs an address, a
 * lease too few gives two pods the same one.
 */

/** Where the pods' network namespaces are. */
const NETNS_DIR = '/run/netns';

/** What is looked at on the node. */
interface Place {
  /** This node's blocks of pod addresses. */
  readonly families: readonly { readonly podCidr: string }[];
  readonly addresses: HostLocalStore;
  readonly store: AttachmentStore;
  /** Path of the node's network namespace; the process's own when left out. */
  readonly netns?: string;
}

/** A lease and its network. */
export interface NetworkLease extends Lease {
  readonly network: string;
}

/** The leases of this node's pod addresses that may be stale: old enough, and without a host veth of ours. */
export async function findSuspects(place: Place, minAgeMs: number): Promise<NetworkLease[]> {
  const { addresses, families } = place;
  const blocks = families.map(({ podCidr }) => parseCidr(podCidr));
  const suspects: NetworkLease[] = [];
  for (const network of addresses.networks()) {
    for (const lease of addresses.list(network)) {
      if (Date.now() - lease.atMs < minAgeMs) continue;
      if (!blocks.some((block) => cidrContains(block, lease.ip))) continue;
      const attachment = await place.store.get(lease);
      if (!attachment || !(await hasVeth(place, attachment))) suspects.push({ ...lease, network });
    }
  }
  return suspects;
}

/**
 * Whether nobody can have the address any more. To be asked while no ADD of the container can begin or be under way.
 * @param netnsDir where all pods' namespaces are. @throws Error when that cannot be found out.
 */
export async function isStale(place: Place, lease: NetworkLease, netnsDir = NETNS_DIR): Promise<boolean> {
  const { containerId, ifname, ip, network } = lease;
  const isLeased = place.addresses
    .list(network)
    .some((one) => one.ip === ip && one.containerId === containerId && one.ifname === ifname);
  if (!isLeased) return false;
  const attachment = await place.store.get(lease);
  if (attachment && (await hasVeth(place, attachment))) return false;
  const known = [...(await cachedNamespaces(place, lease)), ...(attachment ? [attachment.netns] : [])];
  // cri-dockerd's are below /proc, where the agent cannot see whether they are there.
  if (known.some((path) => existsSync(path) || !/^(\/var)?\/run\/netns\//.test(path))) return false;
  return !readdirSync(netnsDir).some((name) => hasAddress(join(netnsDir, name), ip));
}

async function hasVeth({ netns }: Place, { hostIfname, hostIfindex }: Attachment): Promise<boolean> {
  const link = await readLinkIfThere(hostIfname, { netns });
  return link?.ifindex === hostIfindex || (await readLinkIfThere(hostIfindex, { netns })) !== undefined;
}

function hasAddress(netns: string, ip: string): boolean {
  try {
    using socket = openNetlink({ netns });
    return listAddresses(socket).some(({ address }) => address === ip);
  } catch (error) {
    // A pod's that has gone right now. What cannot be entered for another reason may have the address.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/** What libcni keeps of an ADD until the DEL, of all versions. */
const Cached = z.object({
  netns: z.string().default(''),
  result: z.object({ interfaces: z.array(z.object({ sandbox: z.string().default('') })).default([]) }),
});

/** The network namespaces in libcni's note of the attachment; none without a note. */
async function cachedNamespaces(
  { addresses }: Place,
  { network, containerId, ifname }: NetworkLease,
): Promise<string[]> {
  const file = join(addresses.dataDir, '../results', `${network}-${containerId}-${ifname}`);
  const text = await readIfThere(file);
  if (text === undefined) return [];
  const { netns, result } = Cached.parse(JSON.parse(text));
  return [netns, ...result.interfaces.map(({ sandbox }) => sandbox)].filter((path) => path !== '');
}
