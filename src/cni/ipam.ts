// SPDX-License-Identifier: Apache-2.0
import { constants } from 'node:fs';
import { access, readdir, readFile } from 'node:fs/promises';
import { z } from 'zod';
import { addressFamily, cidrContains, parseCidr } from '../net/ip.ts';
import { tryRun } from '../host/run.ts';
import type { AttachmentId } from './plugin.ts';
import { CniCode, CniError, ifnamePattern, namePattern } from './spec.ts';

/**
 * Addresses come from host-local, the plugin that flannel uses too: with the same network name and directory the two
 * share their leases, so a node can change over while pods run.
 */

/** Where to find host-local, and what it shall hand out. */
export interface Pool {
  /** The CNI network's name; host-local keeps its leases in `<dataDir>/<network>`. */
  network: string;
  /**
   * The blocks to take an address from each, e.g. `10.42.1.0/24` and `fd00:42:0:1::/64`, IPv4 first as flannel has them
   * (host-local numbers its ranges). The first address of each is the gateway and never handed out.
   */
  podCidrs: readonly string[];
  /** E.g. `/var/lib/cni/networks`. */
  dataDir: string;
  /** Directories to search for the plugin before {@link defaultCniPath}. */
  cniPath: readonly string[];
}

/** Where host-local keeps its leases when it is not told. */
export const defaultDataDir = '/var/lib/cni/networks';

/** Where distributions install the reference plugins. */
export const defaultCniPath: readonly string[] = ['/opt/cni/bin', '/usr/lib/cni'];

const AddResult = z.object({ ips: z.array(z.object({ address: z.string() })) });
const ErrorResult = z.object({ msg: z.string(), details: z.string().optional() });

/**
 * Take an address of each block, or of none: host-local gives back the first ones when a later block is exhausted.
 * @returns them without prefix lengths, in the order of the blocks.
 * @throws CniError when a block is exhausted, or the attachment has addresses already.
 */
export async function allocateAddresses(pool: Pool, id: AttachmentId, netns: string): Promise<string[]> {
  const output = await delegate('ADD', pool, id, netns);
  const parsed = AddResult.safeParse(decodeJson(output));
  const answered = (parsed.data?.ips ?? []).map(({ address }) => address.split('/')[0]!);
  const ips = pool.podCidrs.flatMap((podCidr) => {
    const block = parseCidr(podCidr);
    return answered.find((ip) => cidrContains(block, ip)) ?? [];
  });
  if (ips.length < pool.podCidrs.length) {
    await releaseAddresses(pool, id);
    const message = `host-local did not answer with an address of ${pool.podCidrs.join(' and one of ')}`;
    throw new CniError(CniCode.ipam, message, { details: output });
  }
  return ips;
}

/** Of networks that nobody has (RFC 5737). host-local releases by the attachment's name alone, but wants a range. */
const ANY_RANGE = '192.0.2.0/24';

/** Give all addresses back; an attachment that has none is no error. @throws CniError when host-local fails. */
export async function releaseAddresses(pool: Omit<Pool, 'podCidrs'>, id: AttachmentId): Promise<void> {
  await delegate('DEL', { ...pool, podCidrs: [ANY_RANGE] }, id);
}

/** Which address belongs to whom. */
export interface Lease extends AttachmentId {
  readonly ip: string;
}

/**
 * The network's leases, as host-local has written them down. Its own CHECK is content with any one lease of the
 * attachment, and it has no GC, so both read them here.
 */
export async function listLeases(pool: Pick<Pool, 'network' | 'dataDir'>): Promise<Lease[]> {
  const dir = `${pool.dataDir}/${pool.network}`;
  // The directory also holds a lock and the address that was handed out last.
  const files = (await readdir(dir).catch(() => [])).filter((name) => addressFamily(name) !== undefined);
  const leases = await Promise.all(
    files.map(async (file): Promise<Lease[]> => {
      // A lease may be released between the listing and the reading.
      const text = await readFile(`${dir}/${file}`, 'utf8').catch(() => '');
      const [containerId = '', ifname = ''] = text.trim().split(/\r?\n/);
      return namePattern.test(containerId) && ifnamePattern.test(ifname)
        ? [{ ip: file, containerId, ifname }]
        : [];
    }),
  );
  return leases.flat();
}

/** Path of the host-local plugin. @throws CniError naming the package that has it. */
export async function findHostLocal(cniPath: readonly string[]): Promise<string> {
  const dirs = [...new Set([...cniPath, ...defaultCniPath])];
  for (const dir of dirs) {
    const path = `${dir}/host-local`;
    const executable = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (executable) return path;
  }
  throw new CniError(
    CniCode.ipam,
    `there is no host-local plugin in ${dirs.join(', ')}; install the package containernetworking-plugins`,
  );
}

/** Execute host-local as a runtime would. @returns its stdout. */
async function delegate(
  command: 'ADD' | 'DEL',
  pool: Pool,
  id: AttachmentId,
  netns?: string,
): Promise<string> {
  const plugin = await findHostLocal(pool.cniPath);
  const { podCidrs, dataDir, network } = pool;
  const { code, stdout, stderr } = await tryRun(plugin, [], {
    env: {
      CNI_COMMAND: command,
      CNI_CONTAINERID: id.containerId,
      CNI_IFNAME: id.ifname,
      CNI_NETNS: netns ?? '',
      CNI_PATH: plugin.slice(0, plugin.lastIndexOf('/')),
    },
    stdin: JSON.stringify({
      // Whatever version the runtime speaks to us: every host-local of the last years knows this one.
      cniVersion: '1.0.0',
      name: network,
      type: 'ripstop',
      ipam: { type: 'host-local', ranges: podCidrs.map((subnet) => [{ subnet }]), dataDir },
    }),
  });
  if (code === 0) return stdout;
  const parsed = ErrorResult.safeParse(decodeJson(stdout));
  const why = parsed.data?.msg ?? (stderr.trim() || `exit code ${code}`);
  const exhausted = why.includes('no IP addresses available');
  // "failed to allocate for range 1: …"
  const podCidr = podCidrs[Number(/for range (\d+)/.exec(why)?.[1] ?? 0)] ?? podCidrs.join(' or ');
  throw new CniError(
    CniCode.ipam,
    exhausted
      ? `all addresses of ${podCidr} are taken; delete pods on this node, or see whether ${dataDir}/${network} holds leases of pods that are gone`
      : `host-local failed at ${command}: ${why}`,
    { details: [parsed.data?.msg, parsed.data?.details, stderr.trim()].filter(Boolean).join('\n') || stdout },
  );
}

function decodeJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
