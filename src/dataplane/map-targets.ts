// SPDX-License-Identifier: Apache-2.0
/** The BPF maps as targets. They call `tables` at each use, since programs, and with them maps, may be loaded again. */
import type { TypedMap } from '#libbpf-ts';
import { type Difference, noFailures, type Target } from '../reconcile/target.ts';
import { decode, kindSize, type Struct, type StructName } from './codec.ts';
import { stateSlot6 } from './desired.ts';
import { layout } from './layout.gen.ts';
import type { Tables } from './tables.ts';

/** The operations of a table that the targets use. */
type Table<K, V> = Pick<TypedMap<K, V>, 'difference' | 'entries' | 'setMany' | 'deleteMany'>;

function differenceOf<K, V>(
  table: Table<K, V>,
  keyOf: (text: string) => K,
  desired: ReadonlyMap<string, V>,
  options: { skipZero?: boolean } = {},
): Difference<V> {
  const { upserts, removals } = table.difference(
    desired.entries().map(([text, value]): [K, V] => [keyOf(text), value]),
    options,
  );
  const textual = (entries: [K, V][]): Map<string, V> =>
    new Map(entries.map(([key, value]) => [String(key), value]));
  return { upserts: textual(upserts), removals: textual(removals) };
}

/** An array map, in which a value of zero bytes means an empty slot. Keys are slot numbers as text. */
function slotTarget<V extends object>(name: string, table: () => Table<number, V>, empty: V): Target<V> {
  return {
    name,
    list: async () =>
      new Map(
        table()
          .entries({ skipZero: true })
          .map(([slot, value]) => [String(slot), value]),
      ),
    difference: async (desired) => differenceOf(table(), Number, desired, { skipZero: true }),
    upsert: async (entries) => {
      table().setMany(entries.entries().map(([slot, value]) => [Number(slot), value]));
      return noFailures;
    },
    remove: async (entries) => {
      table().setMany(entries.keys().map((slot) => [Number(slot), empty]));
      return noFailures;
    },
  };
}

/** The value of an empty slot: all bytes zero. */
function zero<S extends StructName>(struct: S): Struct<S> {
  return decode({ struct }, new Uint8Array(kindSize({ struct })));
}

/** A hash map; keys are addresses. */
function addressTarget<V>(name: string, table: () => Table<string, V>): Target<V> {
  return {
    name,
    list: async () => new Map(table().entries()),
    difference: async (desired) => differenceOf(table(), (address) => address, desired),
    upsert: async (entries) => {
      table().setMany(entries);
      return noFailures;
    },
    remove: async (entries) => {
      table().deleteMany(entries.keys());
      return noFailures;
    },
  };
}

/**
 * Call back once endpoints that are marked for the kernel path have been written. The programs look a sender up only on
 * the kernel path, so a flow that was learned before the mark would go on.
 */
function tellingOfMarks(
  target: Target<Struct<'endpoint'>>,
  onMarked: () => void,
): Target<Struct<'endpoint'>> {
  return {
    ...target,
    upsert: async (entries) => {
      const failures = await target.upsert(entries);
      if (entries.values().some(({ flags }) => flags & layout.enums.endpoint_flags.ENDPOINT_KERNEL_PATH))
        onMarked();
      return failures;
    },
  };
}

/**
 * Clear what the programs keep of an endpoint whenever the endpoint is written: the slot may have been another pod's.
 * What still holds of the same pod they find again. @param slotOf the endpoint's slot in endpoint_state
 */
function clearingState(
  target: Target<Struct<'endpoint'>>,
  state: () => Table<number, Struct<'endpoint_state'>>,
  slotOf: (key: string) => number,
): Target<Struct<'endpoint'>> {
  return {
    ...target,
    upsert: async (entries) => {
      state().setMany(entries.keys().map((key) => [slotOf(key), zero('endpoint_state')]));
      return target.upsert(entries);
    },
  };
}

/** The maps that the agent fills. @param onMarked is called when endpoints have been marked for the kernel path. */
export function mapTargets(tables: () => Tables, onMarked: () => void = () => {}) {
  const state = () => tables().endpoint_state;
  const endpoints = clearingState(
    slotTarget('endpoints', () => tables().endpoints, zero('endpoint')),
    state,
    Number,
  );
  const endpoints6 = clearingState(
    addressTarget('endpoints6', () => tables().endpoints6),
    state,
    (address) => stateSlot6(tables().endpoints.map.info.maxEntries, address),
  );
  return {
    vteps: addressTarget('vteps', () => tables().vteps),
    peers: slotTarget('peers', () => tables().peers, zero('peer')),
    peers6: addressTarget('peers6', () => tables().peers6),
    endpoints: tellingOfMarks(endpoints, onMarked),
    endpoints6: tellingOfMarks(endpoints6, onMarked),
  };
}
