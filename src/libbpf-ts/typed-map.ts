// SPDX-License-Identifier: Apache-2.0
import type { BpfMap, UpdateFlag } from './map.ts';

/** Converts between values and the kernel's memory. */
export interface Codec<T> {
  /** Bytes, padding included. */
  readonly size: number;
  /** Write into a zeroed view of exactly `size` bytes. */
  encode(value: T, into: Uint8Array): void;
  /** Read exactly `size` bytes. Keep no view of them: their memory is reused. */
  decode(bytes: Uint8Array): T;
}

/** A map of values: a {@link BpfMap} with codecs for keys and values. */
export class TypedMap<K, V> {
  readonly map: BpfMap;
  readonly #key: Codec<K>;
  readonly #value: Codec<V>;
  // There is one operation at a time, so a lookup can use these buffers and allocate nothing.
  readonly #keyBytes: Uint8Array;
  readonly #valueBytes: Uint8Array;

  /** @throws TypeError with both differences when the codecs' sizes are not the map's. */
  constructor(map: BpfMap, key: Codec<K>, value: Codec<V>) {
    const { name, keySize, valueSize } = map.info;
    const differences = [
      ...(key.size === keySize ? [] : [`its keys have ${keySize} bytes, the codec ${key.size}`]),
      ...(value.size === valueSize ? [] : [`its values have ${valueSize} bytes, the codec ${value.size}`]),
    ];
    if (differences.length > 0) throw new TypeError(`map ${name}: ${differences.join('; ')}`);
    this.map = map;
    this.#key = key;
    this.#value = value;
    this.#keyBytes = new Uint8Array(keySize);
    this.#valueBytes = new Uint8Array(valueSize);
  }

  get(key: K): V | undefined {
    const there = this.map.lookupInto(this.#encodeKey(key), this.#valueBytes);
    return there ? this.#value.decode(this.#valueBytes) : undefined;
  }

  has(key: K): boolean {
    return this.map.lookupInto(this.#encodeKey(key), this.#valueBytes);
  }

  /** See {@link BpfMap.update}. */
  set(key: K, value: V, flag: UpdateFlag = 'any'): void {
    this.#valueBytes.fill(0);
    this.#value.encode(value, this.#valueBytes);
    this.map.update(this.#encodeKey(key), this.#valueBytes, flag);
  }

  /** Whether there was such an entry. */
  delete(key: K): boolean {
    return this.map.delete(this.#encodeKey(key));
  }

  /** See {@link BpfMap.keys}. */
  *keys(): Generator<K> {
    for (const key of this.map.keys()) yield this.#key.decode(key);
  }

  /** All entries, read in batches before the first is returned; see {@link BpfMap.lookupBatch}. */
  *entries(options: { skipZero?: boolean } = {}): Generator<[K, V]> {
    for (const [key, value] of this.map.lookupBatch(options))
      yield [this.#key.decode(key), this.#value.decode(value)];
  }

  /**
   * The difference between the map and the desired entries. Bytes are compared, so that equal entries are not decoded.
   */
  difference(
    desired: Iterable<readonly [key: K, value: V]>,
    options: { skipZero?: boolean } = {},
  ): { upserts: [K, V][]; removals: [K, V][] } {
    // Keys and values are turned into text, one character for each byte, which is fast to look up and to compare.
    const there = new Map<string, Uint8Array>();
    for (const [key, value] of this.map.lookupBatch(options)) there.set(textOf(key), value);
    const upserts: [K, V][] = [];
    for (const [key, value] of desired) {
      const text = textOf(this.#encodeKey(key));
      const present = there.get(text);
      there.delete(text);
      this.#valueBytes.fill(0);
      this.#value.encode(value, this.#valueBytes);
      if (!present || Buffer.compare(present, this.#valueBytes) !== 0) upserts.push([key, value]);
    }
    const removals = Array.from(there, ([key, value]): [K, V] => [
      this.#key.decode(Buffer.from(key, 'latin1')),
      this.#value.decode(value),
    ]);
    return { upserts, removals };
  }

  [Symbol.iterator](): Generator<[K, V]> {
    return this.entries();
  }

  /** See {@link BpfMap.updateBatch}. */
  setMany(entries: Iterable<readonly [key: K, value: V]>): void {
    this.map.updateBatch(
      Array.from(entries, ([key, value]) => [encode(this.#key, key), encode(this.#value, value)] as const),
    );
  }

  /** See {@link BpfMap.deleteBatch}. */
  deleteMany(keys: Iterable<K>): number {
    return this.map.deleteBatch(Array.from(keys, (key) => encode(this.#key, key)));
  }

  /** One value for each possible CPU. */
  getPerCpu(key: K): V[] | undefined {
    return this.map.lookupPerCpu(this.#encodeKey(key))?.map((bytes) => this.#value.decode(bytes));
  }

  #encodeKey(key: K): Uint8Array {
    this.#keyBytes.fill(0);
    this.#key.encode(key, this.#keyBytes);
    return this.#keyBytes;
  }
}

function textOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1');
}

function encode<T>(codec: Codec<T>, value: T): Uint8Array {
  const bytes = new Uint8Array(codec.size);
  codec.encode(value, bytes);
  return bytes;
}
