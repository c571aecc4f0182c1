// SPDX-License-Identifier: Apache-2.0
import { BatchError, checkStatus, ENOTSUPP } from './error.ts';
import { libbpf } from './ffi.ts';

export type RawEntry = [key: Uint8Array, value: Uint8Array];
interface Sizes {
  keySize: number;
  valueSize: number;
  maxEntries: number;
}

const ENOENT = 2;
const EINTR = 4;
const ENOSPC = 28;
/** Entries for each system call, during which the kernel holds locks and memory. */
const CHUNK = 4096;

/** A part of a map's entries: `count` keys and values, one after the other. */
interface Chunk {
  readonly keys: Uint8Array;
  readonly values: Uint8Array;
  readonly count: number;
}

/**
 * Every entry of a map; undefined where the map's type does not support batches.
 * @param skipZero leave out values that are all zero, as most of a large array's are
 */
export function lookupInBatches(
  fd: number,
  map: Sizes,
  subject: string,
  skipZero: boolean,
): RawEntry[] | undefined {
  const entries: RawEntry[] = [];
  for (const chunk of readChunks(fd, map, subject, 'keep')) {
    if (chunk === undefined) return undefined;
    for (const entry of entriesOf(chunk, map))
      if (!skipZero || !isZero(entry[1], 0, map.valueSize)) entries.push(entry);
  }
  return entries;
}

/** The keys and values of a chunk, as views of it. */
export function* entriesOf(
  { keys, values, count }: Chunk,
  { keySize, valueSize }: Sizes,
): Generator<RawEntry> {
  for (let i = 0; i < count; i++)
    yield [
      keys.subarray(i * keySize, (i + 1) * keySize),
      values.subarray(i * valueSize, (i + 1) * valueSize),
    ];
}

/**
 * All entries, one chunk after the other; a chunk that is undefined, and the last one: the map's type does not support
 * batches, or no longer.
 * @param memory whether the memory of a chunk is kept, or used for the next one.
 */
export function* readChunks(
  fd: number,
  map: Sizes,
  subject: string,
  memory: 'keep' | 'reuse',
): Generator<Chunk | undefined> {
  // The position is a bucket number in a hash and a key elsewhere.
  const position = new Uint8Array(Math.max(map.keySize, 8));
  const count = new Uint32Array(1);
  let room = Math.min(map.maxEntries, CHUNK);
  const allocate = () => ({
    keys: new Uint8Array(room * map.keySize),
    values: new Uint8Array(room * map.valueSize),
  });
  let { keys, values } = allocate();
  for (let first = true; ;) {
    count[0] = room;
    const from = first ? null : position;
    const status = libbpf().bpf_map_lookup_batch(fd, from, position, keys, values, count, null);
    if (status === -ENOSPC) {
      // One hash bucket holds more than a whole chunk, so the kernel has returned nothing.
      room *= 2;
      ({ keys, values } = allocate());
      continue;
    }
    // EINTR: in maps other than hashes a key has vanished during the walk. A walk one by one copes with that.
    if (status === -ENOTSUPP || status === -EINTR) {
      yield undefined;
      return;
    }
    if (status !== -ENOENT) checkStatus('bpf_map_lookup_batch', status, subject);
    yield { keys, values, count: count[0] };
    // ENOENT marks the last chunk; its count is valid.
    if (status === -ENOENT) return;
    if (memory === 'keep') ({ keys, values } = allocate());
    first = false;
  }
}

export function isZero(bytes: Uint8Array, from: number, length: number): boolean {
  for (let i = from; i < from + length; i++) if (bytes[i] !== 0) return false;
  return true;
}

/** Write every entry. Returns false where the map's type does not support batches. */
export function updateInBatches(
  fd: number,
  map: Sizes,
  subject: string,
  entries: readonly (readonly [key: Uint8Array, value: Uint8Array])[],
): boolean {
  const keys = concatenate(
    entries.map(([key]) => key),
    map.keySize,
  );
  const values = concatenate(
    entries.map(([, value]) => value),
    map.valueSize,
  );
  const count = new Uint32Array(1);
  for (let done = 0; done < entries.length; done += CHUNK) {
    count[0] = Math.min(entries.length - done, CHUNK);
    const status = libbpf().bpf_map_update_batch(
      fd,
      keys.subarray(done * map.keySize),
      values.subarray(done * map.valueSize),
      count,
      null,
    );
    if (status === -ENOTSUPP) return false;
    if (status < 0) throw new BatchError('bpf_map_update_batch', -status, subject, done + count[0]);
  }
  return true;
}

/** Delete these keys. Returns how many existed; undefined where the map's type does not support batches. */
export function deleteInBatches(
  fd: number,
  map: Sizes,
  subject: string,
  keys: readonly Uint8Array[],
): number | undefined {
  const bytes = concatenate(keys, map.keySize);
  const count = new Uint32Array(1);
  let deleted = 0;
  for (let done = 0; done < keys.length;) {
    count[0] = Math.min(keys.length - done, CHUNK);
    const status = libbpf().bpf_map_delete_batch(fd, bytes.subarray(done * map.keySize), count, null);
    if (status === -ENOTSUPP) return undefined;
    if (status < 0 && status !== -ENOENT) {
      throw new BatchError('bpf_map_delete_batch', -status, subject, done + count[0]);
    }
    deleted += count[0];
    // ENOENT: the batch has stopped at a key that does not exist. Continue after it.
    done += count[0] + (status === -ENOENT ? 1 : 0);
  }
  return deleted;
}

function concatenate(parts: readonly Uint8Array[], size: number): Uint8Array {
  const bytes = new Uint8Array(parts.length * size);
  for (const [index, part] of parts.entries()) bytes.set(part, index * size);
  return bytes;
}
