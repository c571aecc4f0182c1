// SPDX-License-Identifier: Apache-2.0
import {
  closeSync,
  constants,
  ftruncateSync,
  lstatSync,
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
import { errorText, quote } from '../errors.ts';
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

/** host-local's default directory for leases. */
const defaultDataDir = '/var/lib/cni/networks';

/** An address and the attachment that has it. */
export interface Lease extends AttachmentId {
  readonly ip: string;
  /** When it was taken, in ms since 1970. */
  readonly atMs: number;
}

/** A lease's file as of the last read. */
interface LeaseFile {
  /** Differs when the file was replaced or completed. */
  readonly stamp: string;
  /** Its content: `<containerId>\r\n<ifname>`, or only the container ID if an old host-local wrote it. */
  readonly owner: string;
  /** When it was written, in ms since 1970. */
  readonly atMs: number;
}

/** host-local fills a file right after it created it. */
const JUST_CREATED_MS = 10_000;

/**
 * The pods' address leases, in the directory and format of the plugin host-local: the file `<dataDir>/<network>/<ip>`
 * has the owner of the address, `last_reserved_ip.<n>` the last address that was allocated from the n-th block. flannel
 * uses host-local, so a node can change from one to the other, in either direction, while pods run. The plugin itself
 * is not executed, since starting its process would take half of the time of an ADD.
 *
 * host-local holds flock(2) on the file `lock` while it works; Node has no flock(2). An address has only one owner
 * without the lock, too: both programs create leases with O_EXCL, and the second one tries the next address. The lock
 * protects two more things. One is `last_reserved_ip.<n>`, which is only a hint where to start: after a lost update, an
 * address is reused sooner. The other is a release, which reads a file before it removes it. In between, a host-local
 * that releases the same container could free the address, and another ADD could take it. For that, a second DEL of the
 * container and an ADD would have to come within microseconds, and that address would have to be next; runtimes do not
 * repeat a DEL while one runs.
 *
 * All calls are synchronous, since the files are tiny: so the agent's calls do not interleave. The content of the files
 * is kept in memory; each call compares their stamps, and reads the files that changed.
 */
export class HostLocalStore {
  readonly dataDir: string;
  /** By network and address. */
  readonly #known = new Map<string, ReadonlyMap<string, LeaseFile>>();

  /** @param dataDir host-local's directory. Default: that of flannel's leases. */
  constructor(dataDir: string = defaultDataDir) {
    this.dataDir = dataDir;
  }

  /**
   * Allocate an address from each block, or from none.
   * @param podCidrs such as `10.42.1.0/24` and `fd00:42:0:1::/64`; IPv4 first, as with flannel, since hints are
   * numbered. The first address of each is the gateway, which is never allocated.
   * @param asked addresses that must be among them, in canonical form.
   * @returns the addresses, in the order of the blocks.
   * @throws CniError when a block is exhausted, an address that was asked for cannot be had, or the attachment already
   * has an address of a block.
   */
  allocate(
    network: string,
    podCidrs: readonly string[],
    id: AttachmentId,
    asked: readonly string[] = [],
  ): string[] {
    const dir = join(this.dataDir, network);
    const blocks = podCidrs.map(parseCidr);
    const allocated: string[] = [];
    try {
      mkdirSync(dir, { recursive: true, mode: 0o755 });
      const taken = this.#read(network);
      refuseDuplicate(taken, blocks, id);
      const choices = blocks.map((block) => asked.filter((ip) => cidrContains(block, ip)));
      refuseImpossible(asked, choices, podCidrs);
      for (const [n, block] of blocks.entries()) {
        const hint = join(dir, `last_reserved_ip.${n}`);
        const choice = choices[n]!.length > 0 ? choices[n]! : roundRobin(block, lastReserved(hint));
        const ip = Iterator.from(choice).find(
          (candidate) => !taken.has(candidate) && createLease(join(dir, candidate), ownerOf(id)),
        );
        if (ip === undefined && choice === choices[n]) throw this.#inUse(network, choice[0]!);
        if (ip === undefined) throw exhausted(podCidrs[n]!, dir);
        allocated.push(ip);
        writeHint(hint, ip);
      }
      return allocated;
    } catch (thrown) {
      for (const ip of allocated) rmSync(join(dir, ip), { force: true });
      throw asCniError(thrown, `cannot allocate an address in ${dir}`);
    }
  }

  /** Release all addresses of an attachment, which may have none. @throws CniError when the file system refuses. */
  release(network: string, id: AttachmentId): void {
    const dir = join(this.dataDir, network);
    try {
      const taken = this.#read(network);
      const owned = addressesOf(taken, ownerOf(id));
      for (const ip of owned.length > 0 ? owned : addressesOf(taken, id.containerId)) {
        rmSync(join(dir, ip), { force: true });
      }
    } catch (thrown) {
      throw asCniError(thrown, `cannot release the addresses of container ${id.containerId} in ${dir}`);
    }
  }

  /**
   * The leases of a network. Files that do not name a container and an interface are left out, since they are not ours.
   */
  list(network: string): Lease[] {
    return [...this.#read(network)].flatMap(([ip, { owner, atMs }]) => {
      const [containerId = '', ifname = ''] = owner.split(/\r?\n/);
      const isOurs = namePattern.test(containerId) && ifnamePattern.test(ifname);
      return isOurs ? [{ ip, containerId, ifname, atMs }] : [];
    });
  }

  /** The networks that have leases, or had some. */
  networks(): string[] {
    return namesIn(this.dataDir).filter(
      (name) =>
        namePattern.test(name) &&
        statSync(join(this.dataDir, name), { throwIfNoEntry: false })?.isDirectory() === true,
    );
  }

  /**
   * What is wrong with files that are named by an address and name no container: nobody can use the address, and nobody
   * releases it. One that host-local has only just created may be empty.
   */
  malformed(network: string): string[] {
    const dir = join(this.dataDir, network);
    return [...this.#read(network)].flatMap(([ip, { owner, atMs }]) => {
      const [containerId = ''] = owner.split(/\r?\n/);
      if (namePattern.test(containerId) || Date.now() - atMs < JUST_CREATED_MS) return [];
      return [
        `${join(dir, ip)} names no container, so nobody can use ${ip}; remove it if no pod has that address`,
      ];
    });
  }

  #inUse(network: string, ip: string): CniError {
    const [owner = ''] = this.#read(network).get(ip)?.owner.split('\r\n') ?? [];
    const whose = owner === '' ? 'is in use' : `is that of container ${quote(owner)}`;
    return new CniError(
      CniCode.ipam,
      `the address ${ip} that the runtime asks for ${whose}; see ${join(this.dataDir, network, ip)}`,
    );
  }

  /**
   * All files that are named by an address. The stamp of each file is compared. The directory's alone would not
   * suffice: file times advance in steps of some milliseconds, in which the directory may change twice.
   */
  #read(network: string): ReadonlyMap<string, LeaseFile> {
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

/** @returns `known` when the file has not changed, undefined when it is gone. */
function readLease(path: string, known: LeaseFile | undefined): LeaseFile | undefined {
  // A link that leads to itself cannot be followed.
  const stats = lstatSync(path, { throwIfNoEntry: false });
  if (!stats) return undefined;
  // host-local writes the content after it created the file, so the size is part of the stamp.
  const stamp = `${stats.ino} ${stats.mtimeMs} ${stats.size}`;
  if (known?.stamp === stamp) return known;
  try {
    return { stamp, owner: stats.isFile() ? readFileSync(path, 'utf8').trim() : '', atMs: stats.mtimeMs };
  } catch {
    // Released at this moment, or unreadable: without an owner until the next call reads it again.
    return { stamp: '', owner: '', atMs: Date.now() };
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

/** Whatever keeps it from being read: without the hint, the search starts at the first address. */
function lastReserved(hint: string): string | undefined {
  try {
    return readFileSync(hint, 'utf8').trim();
  } catch {
    return undefined;
  }
}

/** Overwrite in place. If the file were truncated first, ext4 would flush it to the disk on close, which is slow. */
function writeHint(hint: string, ip: string): void {
  // A directory of that name, or a link, costs the hint only.
  if (lstatSync(hint, { throwIfNoEntry: false })?.isFile() === false) return;
  const file = openSync(hint, constants.O_WRONLY | constants.O_CREAT, 0o644);
  try {
    writeSync(file, ip, 0);
    ftruncateSync(file, ip.length);
  } finally {
    closeSync(file);
  }
}

/**
 * The addresses of a block that pods may have, starting after `last`: all but the base, the gateway, and the broadcast
 * address of IPv4.
 */
function* roundRobin(block: Cidr, last: string | undefined): Generator<string> {
  const { first, count } = podAddresses(block);
  const next = last !== undefined && cidrContains(block, last) ? toNumber(last) + 1n - first : 0n;
  const start = next < 0n || next > count ? 0n : next;
  for (let n = 0n; n < count; n++) yield toAddress(first + ((start + n) % count), block.family);
}

/** The first address that a pod may have, and how many there are. */
function podAddresses({ family, base, length }: Cidr): { first: bigint; count: bigint } {
  const size = 1n << BigInt((family === 4 ? 32 : 128) - length);
  return { first: toNumber(base) + 2n, count: size - (family === 4 ? 3n : 2n) };
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
  const what = `container ${containerId} already has the address ${ip} for ${ifname}`;
  throw new CniError(CniCode.ipam, `${what}; the runtime must call DEL before another ADD`);
}

/** @param choices those of `asked` that lie in each block. */
function refuseImpossible(
  asked: readonly string[],
  choices: readonly (readonly string[])[],
  podCidrs: readonly string[],
): void {
  const refuse = (what: string): never => {
    throw new CniError(CniCode.ipam, `the runtime asks for ${what}`);
  };
  const foreign = asked.find((ip) => !choices.flat().includes(ip));
  if (foreign !== undefined) refuse(`the address ${foreign}, which is not in ${podCidrs.join(' or ')}`);
  for (const [n, ips] of choices.entries()) {
    if (ips.length > 1) refuse(`${ips.join(' and ')}, but a pod has one address of ${podCidrs[n]}`);
    const { first, count } = podAddresses(parseCidr(podCidrs[n]!));
    const reserved = ips.find((ip) => toNumber(ip) < first || toNumber(ip) >= first + count);
    if (reserved !== undefined)
      refuse(`the address ${reserved}, which no pod can have: it is the base, gateway or broadcast address`);
  }
}

function exhausted(podCidr: string, dir: string): CniError {
  return new CniError(
    CniCode.ipam,
    `all addresses of ${podCidr} are taken; ` +
      `delete pods on this node, or see whether ${dir} has leases of pods that are gone`,
  );
}

function asCniError(thrown: unknown, what: string): CniError {
  if (thrown instanceof CniError) return thrown;
  return new CniError(CniCode.ipam, `${what}: ${errorText(thrown)}`, { cause: thrown });
}
