// SPDX-License-Identifier: Apache-2.0
import {
  closeSync,
  constants,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { errorText } from '../errors.ts';
import {
  addressFamily,
  addressToBytes,
  bytesToAddress,
  type Cidr,
  cidrContains,
  type Family,
  parseCidr,
} from '../net/ip.ts';
import type { AttachmentId } from './plugin.ts';
import { CniCode, CniError, ifnamePattern, namePattern } from './spec.ts';

/** Where host-local keeps its leases when it is not told. */
export const defaultDataDir = '/var/lib/cni/networks';

/** Which address belongs to whom. */
export interface Lease extends AttachmentId {
  readonly ip: string;
}

/** A lease's file, as it was when it was read. */
interface LeaseFile {
  /** Tells a file that was replaced or completed from the one before. */
  readonly stamp: string;
  /** What is in it: `<containerId>\r\n<ifname>`, or the container ID alone if an old host-local wrote it. */
  readonly owner: string;
}

/**
 * The pods' addresses, kept where host-local keeps them and as it does: `<dataDir>/<network>/<ip>` holds the name of
 * the address's owner, `last_reserved_ip.<n>` the address that was handed out last from the n-th block. host-local is
 * the plugin that flannel uses, so a node can change over, in either direction, while pods run. It is not executed:
 * its process alone would take half of an ADD's time.
 *
 * host-local holds flock(2) on the file `lock` while it works, which Node cannot take. Nobody needs it for an address
 * to have one owner: both create a lease with O_EXCL, and who comes second goes on to the next address. The lock
 * guards two things beyond that. One is `last_reserved_ip.<n>`, which is only a hint where to begin: a lost update
 * makes an address come round sooner. The other is a release, which reads a file before it removes it: between the
 * two, a host-local that releases the same container could have freed the address, and another one have taken it. That
 * takes a second DEL of one container and an ADD, within microseconds, in a pool in which that address is next;
 * runtimes call DEL once at a time.
 *
 * All calls are synchronous: the files are tiny, and no other call of this agent comes between. What the files hold is
 * kept in memory; each call looks at their stamps, and reads those that changed.
 */
export class HostLocalStore {
  readonly dataDir: string;
  /** By network and address. */
  readonly #known = new Map<string, ReadonlyMap<string, LeaseFile>>();

  /** @param dataDir host-local's directory; flannel's leases are in its default. */
  constructor(dataDir: string = defaultDataDir) {
    this.dataDir = dataDir;
  }

  /**
   * Take an address of each block, or of none.
   * @param podCidrs e.g. `10.42.1.0/24` and `fd00:42:0:1::/64`, IPv4 first as flannel has them, for the hints are
   * numbered. The first address of each is the gateway and never handed out.
   * @returns the addresses, in the order of the blocks.
   * @throws CniError when a block is exhausted, or the attachment has an address of one already.
   */
  allocate(network: string, podCidrs: readonly string[], id: AttachmentId): string[] {
    const dir = join(this.dataDir, network);
    const blocks = podCidrs.map(parseCidr);
    const allocated: string[] = [];
    try {
      mkdirSync(dir, { recursive: true, mode: 0o755 });
      const taken = this.#look(network);
      refuseDuplicate(taken, blocks, id);
      for (const [n, block] of blocks.entries()) {
        const hint = join(dir, `last_reserved_ip.${n}`);
        const ip = roundRobin(block, lastReserved(hint)).find(
          (candidate) => !taken.has(candidate) && createLease(join(dir, candidate), ownerOf(id)),
        );
        if (ip === undefined) throw exhausted(podCidrs[n]!, dir);
        allocated.push(ip);
        writeHint(hint, ip);
      }
      return allocated;
    } catch (thrown) {
      for (const ip of allocated) rmSync(join(dir, ip), { force: true });
      throw asCniError(thrown, `cannot take an address in ${dir}`);
    }
  }

  /**
   * Give all addresses back; an attachment that has none is no error. @throws CniError when the file system refuses.
   */
  release(network: string, id: AttachmentId): void {
    const dir = join(this.dataDir, network);
    try {
      const taken = this.#look(network);
      const owned = addressesOf(taken, ownerOf(id));
      for (const ip of owned.length > 0 ? owned : addressesOf(taken, id.containerId)) {
        rmSync(join(dir, ip), { force: true });
      }
    } catch (thrown) {
      throw asCniError(thrown, `cannot release the addresses of container ${id.containerId} in ${dir}`);
    }
  }

  /** The network's leases. Files without a container and an interface are left out: they are none of ours. */
  list(network: string): Lease[] {
    return [...this.#look(network)].flatMap(([ip, { owner }]) => {
      const [containerId = '', ifname = ''] = owner.split(/\r?\n/);
      return namePattern.test(containerId) && ifnamePattern.test(ifname) ? [{ ip, containerId, ifname }] : [];
    });
  }

  /**
   * All files that are named by an address. The stamp of each is compared, and not the directory's alone: the kernel's
   * clock for files stands still for some milliseconds, in which the directory may change twice.
   */
  #look(network: string): ReadonlyMap<string, LeaseFile> {
    const dir = join(this.dataDir, network);
    const before = this.#known.get(network);
    const files = new Map<string, LeaseFile>();
    for (const name of namesIn(dir)) {
      const known = before?.get(name);
      // The directory also holds the lock and the hints.
      if (!known && addressFamily(name) === undefined) continue;
      const file = readLease(`${dir}/${name}`, known);
      if (file) files.set(name, file);
    }
    this.#known.set(network, files);
    return files;
  }
}

function ownerOf({ containerId, ifname }: AttachmentId): string {
  return `${containerId}\r\n${ifname}`;
}

function addressesOf(taken: ReadonlyMap<string, LeaseFile>, owner: string): string[] {
  return [...taken].filter(([, file]) => file.owner === owner).map(([ip]) => ip);
}

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

/** @returns `known` where the file has not changed, undefined when it has gone. */
function readLease(path: string, known: LeaseFile | undefined): LeaseFile | undefined {
  const stats = statSync(path, { throwIfNoEntry: false });
  if (!stats) return undefined;
  // host-local fills a file after it has created it, so the size belongs to the stamp.
  const stamp = `${stats.ino} ${stats.mtimeMs} ${stats.size}`;
  if (known?.stamp === stamp) return known;
  try {
    return { stamp, owner: stats.isFile() ? readFileSync(path, 'utf8').trim() : '' };
  } catch {
    // Released just now, or unreadable: nobody's, until the next call reads it again.
    return { stamp: '', owner: '' };
  }
}

/** @returns whether the address was free. */
function createLease(path: string, owner: string): boolean {
  let file: number;
  try {
    file = openSync(path, 'wx', 0o644);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
  try {
    writeSync(file, owner);
  } catch (error) {
    unlinkSync(path);
    throw error;
  } finally {
    closeSync(file);
  }
  return true;
}

function lastReserved(hint: string): string | undefined {
  try {
    return readFileSync(hint, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/**
 * Overwrites in place: emptied first, ext4 writes the file to the disk at once, which takes longer than all the rest.
 */
function writeHint(hint: string, ip: string): void {
  const file = openSync(hint, constants.O_WRONLY | constants.O_CREAT, 0o644);
  try {
    writeSync(file, ip, 0);
    ftruncateSync(file, ip.length);
  } finally {
    closeSync(file);
  }
}

/**
 * The addresses that pods may have of a block, beginning after `last`: all but its base, the gateway, and the broadcast
 * address of IPv4.
 */
function* roundRobin(block: Cidr, last: string | undefined): Generator<string> {
  const base = toNumber(block.base);
  const bits = block.family === 4 ? 32 : 128;
  const first = base + 2n;
  const count = (1n << BigInt(bits - block.length)) - (block.family === 4 ? 3n : 2n);
  const next = last !== undefined && cidrContains(block, last) ? toNumber(last) + 1n - first : 0n;
  const start = next < 0n || next > count ? 0n : next;
  for (let n = 0n; n < count; n++) yield toAddress(first + ((start + n) % count), block.family);
}

function toNumber(address: string): bigint {
  return BigInt(`0x${Buffer.from(addressToBytes(address)).toString('hex')}`);
}

function toAddress(value: bigint, family: Family): string {
  const digits = value.toString(16).padStart(family === 4 ? 8 : 32, '0');
  return bytesToAddress(Buffer.from(digits, 'hex'));
}

function refuseDuplicate(
  taken: ReadonlyMap<string, LeaseFile>,
  blocks: readonly Cidr[],
  { containerId, ifname }: AttachmentId,
): void {
  const owned = [ownerOf({ containerId, ifname }), containerId].flatMap((owner) => addressesOf(taken, owner));
  const ip = owned.find((address) => blocks.some((block) => cidrContains(block, address)));
  if (ip === undefined) return;
  const what = `container ${containerId} has the address ${ip} for ${ifname} already`;
  throw new CniError(CniCode.ipam, `${what}; the runtime must call DEL before another ADD`);
}

function exhausted(podCidr: string, dir: string): CniError {
  return new CniError(
    CniCode.ipam,
    `all addresses of ${podCidr} are taken; ` +
      `delete pods on this node, or see whether ${dir} holds leases of pods that are gone`,
  );
}

function asCniError(thrown: unknown, what: string): CniError {
  if (thrown instanceof CniError) return thrown;
  return new CniError(CniCode.ipam, `${what}: ${errorText(thrown)}`, { cause: thrown });
}
