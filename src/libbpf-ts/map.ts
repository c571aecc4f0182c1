// SPDX-License-Identifier: Apache-2.0
import { readFileSync, readlinkSync } from 'node:fs';
import {
  entriesOf,
  deleteInBatches,
  isZero,
  lookupInBatches,
  readChunks,
  updateInBatches,
  type RawEntry,
} from './batch.ts';
import { BatchError, checkStatus } from './error.ts';
import { mapCreateOptions } from './calls.ts';
import { libbpf } from './ffi.ts';
import { BpfHandle, closeFd, openPinnedFd } from './handle.ts';
import { possibleCpus } from './host.ts';
import { Info } from './info.ts';
import { MAP_TYPES, nameOf, type MapType } from './names.ts';

export interface MapInfo {
  id: number;
  /** As the kernel keeps it: at most 15 bytes of the name in the object. */
  name: string;
  /** Such as `hash`; a number for a type that is newer than this library. */
  type: string;
  /** Bytes. */
  keySize: number;
  /** Bytes; in a per-CPU map those of one CPU's value. */
  valueSize: number;
  maxEntries: number;
  /** `BPF_F_*` of linux/bpf.h. */
  flags: number;
  /** The BTF that describes it, and the types of its keys and values there; 0 where its maker gave none. */
  btfId: number;
  keyTypeId: number;
  valueTypeId: number;
}

/** `any` writes in any case, `noexist` only a new entry, `exist` only an existing one. */
export type UpdateFlag = 'any' | 'noexist' | 'exist';
const UPDATE_FLAGS: Record<UpdateFlag, number> = { any: 0, noexist: 1, exist: 2 };

const PER_CPU = new Set(['percpu_hash', 'percpu_array', 'lru_percpu_hash', 'percpu_cgroup_storage']);

/** A BPF map, as bytes. Keys and values must have exactly the map's sizes: C would read past shorter ones. */
export class BpfMap extends BpfHandle {
  readonly info: MapInfo;
  readonly #perCpu: boolean;

  private constructor(fd: number) {
    super(fd);
    try {
      this.info = readMapInfo(fd);
    } catch (error) {
      this.close();
      throw error;
    }
    this.#perCpu = PER_CPU.has(this.info.type);
  }

  protected get subject(): string {
    return `map ${this.info.name || this.info.id}`;
  }

  /** Take over a descriptor, which {@link close} then closes. */
  static fromFd(fd: number): BpfMap {
    return new BpfMap(fd);
  }

  /** @throws TypeError when a program or a link is pinned there. */
  static openPinned(path: string): BpfMap {
    const fd = openPinnedFd(path);
    const kind = readlinkSync(`/proc/self/fd/${fd}`).replace('anon_inode:', '');
    if (kind !== 'bpf-map') {
      closeFd(fd);
      throw new TypeError(`${path} is a ${kind}, not a map`);
    }
    return new BpfMap(fd);
  }

  /** Open a map by its id: see {@link info}, a program's `mapIds`, or `bpftool map`. */
  static fromId(id: number): BpfMap {
    return new BpfMap(checkStatus('bpf_map_get_fd_by_id', libbpf().bpf_map_get_fd_by_id(id), `map id ${id}`));
  }

  /** Create a map without an object. `flags` are `BPF_F_*` (an `lpm_trie` needs 1, BPF_F_NO_PREALLOC). */
  static create(
    type: MapType,
    name: string,
    keySize: number,
    valueSize: number,
    maxEntries: number,
    flags = 0,
  ): BpfMap {
    const options = mapCreateOptions.of({ map_flags: flags });
    const number = MAP_TYPES.indexOf(type);
    const fd = libbpf().bpf_map_create(number, name.slice(0, 15), keySize, valueSize, maxEntries, options);
    return new BpfMap(checkStatus('bpf_map_create', fd, `${type} ${name}`));
  }

  /** Whether an entry has a value for each CPU. */
  get isPerCpu(): boolean {
    return this.#perCpu;
  }

  /** The kernel's memory that it takes, in bytes. It grows with the entries of a hash that is not allocated at once. */
  get memoryBytes(): number {
    const { memlock } = /^memlock:\s*(?<memlock>\d+)$/m.exec(
      readFileSync(`/proc/self/fdinfo/${this.fd}`, 'utf8'),
    )?.groups ?? { memlock: '0' };
    return Number(memlock);
  }

  /** A copy of the value, or undefined without such an entry. */
  lookup(key: Uint8Array): Uint8Array | undefined {
    const value = new Uint8Array(this.info.valueSize);
    return this.lookupInto(key, value) ? value : undefined;
  }

  /** {@link lookup} into the caller's memory, for hot paths; false without such an entry. */
  lookupInto(key: Uint8Array, value: Uint8Array): boolean {
    if (this.#perCpu) throw new TypeError(`${this.subject} is per CPU: use lookupPerCpu`);
    this.#checkSizes(key, value);
    return this.#lookup(key, value);
  }

  /** One value for each possible CPU, or undefined without such an entry. */
  lookupPerCpu(key: Uint8Array): Uint8Array[] | undefined {
    if (!this.#perCpu) throw new TypeError(`${this.subject} is not per CPU: use lookup`);
    this.#checkSizes(key);
    const { valueSize } = this.info;
    const stride = perCpuStride(valueSize);
    const values = new Uint8Array(stride * possibleCpus());
    if (!this.#lookup(key, values)) return undefined;
    return Array.from({ length: possibleCpus() }, (_, cpu) =>
      values.subarray(cpu * stride, cpu * stride + valueSize),
    );
  }

  /**
   * Write an entry; in a per-CPU map every CPU gets this value.
   * @throws BpfError: E2BIG when the map is full, EEXIST or ENOENT when `flag` forbids it.
   */
  update(key: Uint8Array, value: Uint8Array, flag: UpdateFlag = 'any'): void {
    this.#checkSizes(key, value);
    checkStatus('bpf_map_update_elem', this.#update(key, value, flag), this.subject);
  }

  /** Write an entry of a per-CPU map: a value for each possible CPU, as {@link lookupPerCpu} returns them. */
  updatePerCpu(key: Uint8Array, values: readonly Uint8Array[]): void {
    if (!this.#perCpu) throw new TypeError(`${this.subject} is not per CPU: use update`);
    if (values.length !== possibleCpus())
      throw new RangeError(`${this.subject}: ${values.length} values, and ${possibleCpus()} possible CPUs`);
    for (const value of values) this.#checkSizes(key, value);
    const status = libbpf().bpf_map_update_elem(this.fd, key, padded(values), UPDATE_FLAGS.any);
    checkStatus('bpf_map_update_elem', status, this.subject);
  }

  /** Whether there was such an entry. An array's entries cannot be deleted (EINVAL). */
  delete(key: Uint8Array): boolean {
    this.#checkSizes(key);
    return checkFound('bpf_map_delete_elem', libbpf().bpf_map_delete_elem(this.fd, key), this.subject);
  }

  /**
   * All keys, in the kernel's order. The caller may delete each key as it gets it. When another process deletes keys,
   * the kernel may start again and return some twice.
   */
  *keys(): Generator<Uint8Array> {
    let key = this.#nextKey(null);
    while (key !== undefined) {
      const next = this.#nextKey(key);
      yield key;
      key = next;
    }
  }

  /** All entries, one at a time; see {@link keys}. {@link lookupBatch} is many times faster. */
  *entries(): Generator<RawEntry> {
    for (const key of this.keys()) {
      const value = this.lookup(key);
      if (value !== undefined) yield [key, value];
    }
  }

  [Symbol.iterator](): Generator<RawEntry> {
    return this.entries();
  }

  /**
   * All entries, in as few system calls as the map allows (since Linux 5.6; one by one where its type does not support
   * batches).
   * @param skipZero leave out values that are all zero, such as unused entries of an array
   */
  lookupBatch({ skipZero = false }: { skipZero?: boolean } = {}): RawEntry[] {
    if (this.#perCpu) throw new TypeError(`${this.subject} is per CPU: use keys and lookupPerCpu`);
    return (
      lookupInBatches(this.fd, this.info, this.subject, skipZero) ??
      [...this.entries()].filter(([, value]) => !skipZero || !isZero(value, 0, value.length))
    );
  }

  /**
   * All entries of a hash, read in batches as {@link lookupBatch} does, but with room for one batch alone: an entry is
   * a view of memory that is used again, so keep none of it.
   */
  *scan(): Generator<RawEntry> {
    if (this.#perCpu) throw new TypeError(`${this.subject} is per CPU: use keys and lookupPerCpu`);
    for (const chunk of readChunks(this.fd, this.info, this.subject, 'reuse')) {
      if (chunk === undefined)
        throw new TypeError(`${this.subject} (${this.info.type}) cannot be read in batches`);
      yield* entriesOf(chunk, this.info);
    }
  }

  /**
   * Write many entries in as few system calls as the map allows.
   * @throws BatchError with the number of entries written, when the kernel refuses the next one
   */
  updateBatch(entries: Iterable<readonly [key: Uint8Array, value: Uint8Array]>): void {
    const checked = [...entries];
    for (const [key, value] of checked) this.#checkSizes(key, value);
    if (!this.#perCpu && updateInBatches(this.fd, this.info, this.subject, checked)) return;
    for (const [done, [key, value]] of checked.entries()) {
      const status = this.#update(key, value, 'any');
      if (status < 0) throw new BatchError('bpf_map_update_elem', -status, this.subject, done);
    }
  }

  /** Delete many keys, and return how many existed. */
  deleteBatch(keys: Iterable<Uint8Array>): number {
    const checked = [...keys];
    for (const key of checked) this.#checkSizes(key);
    return (
      deleteInBatches(this.fd, this.info, this.subject, checked) ??
      checked.reduce((count, key) => count + Number(this.delete(key)), 0)
    );
  }

  #lookup(key: Uint8Array, value: Uint8Array): boolean {
    return checkFound('bpf_map_lookup_elem', libbpf().bpf_map_lookup_elem(this.fd, key, value), this.subject);
  }

  #update(key: Uint8Array, value: Uint8Array, flag: UpdateFlag): number {
    const bytes = this.#perCpu ? padded(Array.from({ length: possibleCpus() }, () => value)) : value;
    return libbpf().bpf_map_update_elem(this.fd, key, bytes, UPDATE_FLAGS[flag]);
  }

  #nextKey(key: Uint8Array | null): Uint8Array | undefined {
    const next = new Uint8Array(this.info.keySize);
    const status = libbpf().bpf_map_get_next_key(this.fd, key, next);
    return checkFound('bpf_map_get_next_key', status, this.subject) ? next : undefined;
  }

  #checkSizes(key: Uint8Array, value?: Uint8Array): void {
    const { keySize, valueSize } = this.info;
    if (key.length !== keySize) {
      throw new RangeError(`${this.subject}: the key has ${key.length} bytes, not ${keySize}`);
    }
    if (value !== undefined && value.length !== valueSize) {
      throw new RangeError(`${this.subject}: the value has ${value.length} bytes, not ${valueSize}`);
    }
  }
}

const ENOENT = 2;

/** Check the result of a call for which ENOENT means that there is no such entry. */
function checkFound(call: string, status: number, subject: string): boolean {
  if (status === -ENOENT) return false;
  checkStatus(call, status, subject);
  return true;
}

/** In C a per-CPU entry is an array of values, each padded to 8 bytes. */
function perCpuStride(valueSize: number): number {
  return Math.ceil(valueSize / 8) * 8;
}

function padded(values: readonly Uint8Array[]): Uint8Array {
  const stride = perCpuStride(values[0]!.length);
  const bytes = new Uint8Array(stride * values.length);
  for (const [i, value] of values.entries()) bytes.set(value, i * stride);
  return bytes;
}

/** `struct bpf_map_info`. */
function readMapInfo(fd: number): MapInfo {
  const info = new Info().fill(fd, 'map');
  return {
    id: info.u32(4),
    name: info.name(24),
    type: nameOf(MAP_TYPES, info.u32(0)),
    keySize: info.u32(8),
    valueSize: info.u32(12),
    maxEntries: info.u32(16),
    flags: info.u32(20),
    btfId: info.u32(64),
    keyTypeId: info.u32(68),
    valueTypeId: info.u32(72),
  };
}
