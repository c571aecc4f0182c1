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
  /** The block to take addresses from, e.g. `10.42.1.0/24`. Its first address is the gateway and never handed out. */
  podCidr: string;
  /** E.g. `/var/lib/cni/networks`. */
  dataDir: string;
  /** Directories to search for the plugin before {@link defaultCniPath}. */
  cniPath: readonly string[];
}

/** Where host-local keeps its leases when it is not told. */
export const defaultDataDir = '/var/lib/cni/networks';

/** Where distributions install the reference plugins. */
export const defaultCniPath: readonly string[] = ['/opt/cni/bin', '/usr/lib/cni'];

const AddResult = z.object({ ips: z.tuple([z.object({ address: z.string() })]) });
const ErrorResult = z.object({ msg: z.string(), details: z.string().optional() });

/**
 * Take an address.
 * @returns it without a prefix length. @throws CniError when the pool is exhausted, or the attachment has one already.
 */
export async function allocateAddress(pool: Pool, id: AttachmentId, netns: string): Promise<string> {
  const output = await delegate('ADD', pool, id, netns);
  const parsed = AddResult.safeParse(decodeJson(output));
  const ip = parsed.data?.ips[0].address.split('/')[0];
  if (ip === undefined || !cidrContains(parseCidr(pool.podCidr), ip)) {
    const message = `host-local did not answer with an address of ${pool.podCidr}`;
    throw new CniError(CniCode.ipam, message, { details: output });
  }
  return ip;
}

/** Give the address back; an attachment that has none is no error. @throws CniError when host-local fails. */
export async function releaseAddress(pool: Pool, id: AttachmentId): Promise<void> {
  await delegate('DEL', pool, id);
}

/** @throws CniError when the attachment holds no address. */
export async function checkAddress(pool: Pool, id: AttachmentId, netns: string): Promise<void> {
  await delegate('CHECK', pool, id, netns);
}

/** The attachments that hold an address of the network, as host-local has written them down. */
export async function listLeases(pool: Pick<Pool, 'network' | 'dataDir'>): Promise<AttachmentId[]> {
  const dir = `${pool.dataDir}/${pool.network}`;
  // The directory also holds a lock and the address that was handed out last.
  const files = (await readdir(dir).catch(() => [])).filter((name) => addressFamily(name) !== undefined);
  const leases = await Promise.all(
    files.map(async (file): Promise<AttachmentId[]> => {
      // A lease may be released between the listing and the reading.
      const text = await readFile(`${dir}/${file}`, 'utf8').catch(() => '');
      const [containerId = '', ifname = ''] = text.trim().split(/\r?\n/);
      return namePattern.test(containerId) && ifnamePattern.test(ifname) ? [{ containerId, ifname }] : [];
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
  command: 'ADD' | 'DEL' | 'CHECK',
  pool: Pool,
  id: AttachmentId,
  netns?: string,
): Promise<string> {
  const plugin = await findHostLocal(pool.cniPath);
  const { podCidr, dataDir, network } = pool;
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
      ipam: { type: 'host-local', ranges: [[{ subnet: podCidr }]], dataDir },
    }),
  });
  if (code === 0) return stdout;
  const parsed = ErrorResult.safeParse(decodeJson(stdout));
  const why = parsed.data?.msg ?? (stderr.trim() || `exit code ${code}`);
  const exhausted = why.includes('no IP addresses available');
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
