// SPDX-License-Identifier: Apache-2.0
/** The BPF maps as targets. `tables` is asked at each use: the programs, and with them the maps, may be loaded anew. */
import type { TypedMap } from '#libbpf-ts';
import { type Difference, noFailures, type Target } from '../reconcile/target.ts';
import { decode, kindSize, type Struct, type StructName } from './codec.ts';
import type { Tables } from './tables.ts';

/** What of a table the targets of maps need. */
type Table<K, V> = Pick<TypedMap<K, V>, 'difference' | 'entries' | 'setMany' | 'deleteMany'>;

function differenceOf<K, V>(
  table: Table<K, V>,
  keyOf: (text: string) => K,
  desired: ReadonlyMap<string, V>,
  options: { skipZero?: boolean } = {},
): Difference<V> {
  const { differing, unwanted } = table.difference(
    desired.entries().map(([text, value]): [K, V] => [keyOf(text), value]),
    options,
  );
  const textual = (entries: [K, V][]): Map<string, V> =>
    new Map(entries.map(([key, value]) => [String(key), value]));
  return { upserts: textual(differing), removals: textual(unwanted) };
}

/** An array map in which all zero means that the slot is empty. Keys are slot numbers as text. */
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

/** All zero, which is how an array map says that there is nothing. */
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

export type MapTargets = ReturnType<typeof mapTargets>;

/** The maps that the agent fills. */
export function mapTargets(tables: () => Tables) {
  return {
    vteps: addressTarget('vteps', () => tables().vteps),
    peers: slotTarget('peers', () => tables().peers, zero('peer')),
    peers6: addressTarget('peers6', () => tables().peers6),
    endpoints: slotTarget('endpoints', () => tables().endpoints, zero('endpoint')),
    endpoints6: addressTarget('endpoints6', () => tables().endpoints6),
  };
}
