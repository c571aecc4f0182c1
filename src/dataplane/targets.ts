// SPDX-License-Identifier: Apache-2.0
/** The data plane's targets: maps and links, each with list, upsert and remove. */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { attachTc, BpfError, BpfLink, type BpfProgram, ifindexOf, TcFilter, type TypedMap } from '#libbpf-ts';
import { decode, kindSize, type Struct, type StructName } from './codec.ts';
import type { ProgramName } from './programs.ts';
import type { Tables } from './tables.ts';
import type { Difference, Target } from './target.ts';

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
function slotTarget<V extends object>(name: string, table: Table<number, V>, empty: V): Target<V> {
  return {
    name,
    list: async () =>
      new Map(table.entries({ skipZero: true }).map(([slot, value]) => [String(slot), value])),
    difference: async (desired) => differenceOf(table, Number, desired, { skipZero: true }),
    upsert: async (entries) => table.setMany(entries.entries().map(([slot, value]) => [Number(slot), value])),
    remove: async (entries) => table.setMany(entries.keys().map((slot) => [Number(slot), empty])),
  };
}

/** All zero, which is how an array map says that there is nothing. */
function zero<S extends StructName>(struct: S): Struct<S> {
  return decode({ struct }, new Uint8Array(kindSize({ struct })));
}

export function peersTarget(tables: Tables): Target<Struct<'peer'>> {
  return slotTarget('peers', tables.peers, zero('peer'));
}

export function endpointsTarget(tables: Tables): Target<Struct<'endpoint'>> {
  return slotTarget('endpoints', tables.endpoints, zero('endpoint'));
}

/** A hash map; keys are addresses. */
function addressTarget<V>(name: string, table: Table<string, V>): Target<V> {
  return {
    name,
    list: async () => new Map(table.entries()),
    difference: async (desired) => differenceOf(table, (address) => address, desired),
    upsert: async (entries) => table.setMany(entries),
    remove: async (entries) => void table.deleteMany(entries.keys()),
  };
}

export const peers6Target = (tables: Tables): Target<Struct<'peer6'>> =>
  addressTarget('peers6', tables.peers6);
export const endpoints6Target = (tables: Tables): Target<Struct<'endpoint'>> =>
  addressTarget('endpoints6', tables.endpoints6);
export const vtepsTarget = (tables: Tables): Target<Struct<'vtep'>> => addressTarget('vteps', tables.vteps);

/** A program on a device's hook. Its key, also a link's name in bpffs, is `from_pod@veth1234abcd`. */
export interface Attachment {
  /** The device; 0 when it is gone, and the link or filter with it. */
  readonly ifindex: number;
  readonly programId: number;
}

const places = {
  from_pod: 'ingress',
  from_wire: 'ingress',
  to_pod: 'egress',
  to_vtep: 'egress',
  xdp_from_wire: 'xdp',
} as const;
export type HookName = keyof typeof places;

/** bpffs allows no dots in names, and no interface has a colon in its own. */
export function linkKey(hook: HookName, ifname: string): string {
  return `${hook}@${ifname.replaceAll('.', ':')}`;
}

/** The inverse of {@link linkKey}. */
export function parseLinkKey(key: string): { hook: HookName; ifname: string } {
  const [hook, device = ''] = key.split('@');
  return { hook: hook as HookName, ifname: device.replaceAll(':', '.') };
}

/** The links that should be: every hook on its devices. */
export function desiredLinks(
  programs: Readonly<Record<ProgramName, BpfProgram>>,
  devices: readonly { hook: HookName; ifname: string; ifindex: number }[],
): Map<string, Attachment> {
  return new Map(
    devices.map(({ hook, ifname, ifindex }) => [
      linkKey(hook, ifname),
      { ifindex, programId: programs[hook].info.id },
    ]),
  );
}

/**
 * Before tcx (Linux 6.6) a program hangs in a clsact filter, which is no link that could be pinned. The program is
 * pinned then, under this prefix: that holds nothing in place, it only remembers which devices have a filter of ours.
 */
const filterPin = 'clsact:';
/** Our filter among others of the device, its handle "rips" in ASCII: before those that were given no priority. */
const filterPlace = { handle: 0x72697073, priority: 100 };

/**
 * Programs on devices, as tcx links or clsact filters. One that is on the right device is replaced atomically, so no
 * packet misses the hook; one that lost its device (deleted, or created anew under the same name) is attached anew.
 * @param attach the way to attach: what the kernel has, unless a test wants the older one on a newer kernel.
 */
export function linksTarget(
  pinDir: string,
  programs: Readonly<Record<ProgramName, BpfProgram>>,
  attach: typeof attachTc = attachTc,
): Target<Attachment> {
  return {
    name: 'links',
    list: async () => listLinks(pinDir),
    upsert: async (entries) => {
      for (const [key, { ifindex }] of entries) {
        const { hook } = parseLinkKey(key);
        attachOrReplace(pinDir, key, programs[hook], ifindex, attach);
      }
    },
    remove: async (entries) => entries.forEach((_, key) => detach(pinDir, key)),
  };
}

/** What is attached, by key. Filters are looked for in the network namespace of this process. */
export function listLinks(pinDir: string): Map<string, Attachment> {
  const found = new Map<string, Attachment>();
  if (!existsSync(pinDir)) return found;
  for (const pin of readdirSync(pinDir)) {
    if (pin.startsWith(filterPin)) {
      const key = pin.slice(filterPin.length);
      const filter = findFilter(key);
      found.set(key, { ifindex: filter?.ifindex ?? 0, programId: filter?.programId() ?? 0 });
    } else {
      using link = BpfLink.openPinned(join(pinDir, pin));
      const { ifindex, programId } = link.info();
      found.set(pin, { ifindex: ifindex ?? 0, programId });
    }
  }
  return found;
}

/** Take all programs off their devices; XDP first, since only from_wire knows what to do with the frames that it leaves. */
export function removeLinks(pinDir: string): void {
  const keys = [...listLinks(pinDir).keys()];
  const isXdp = (key: string): number => (places[parseLinkKey(key).hook] === 'xdp' ? 0 : 1);
  for (const key of keys.sort((a, b) => isXdp(a) - isXdp(b))) detach(pinDir, key);
}

function attachOrReplace(
  pinDir: string,
  key: string,
  program: BpfProgram,
  ifindex: number,
  attach: typeof attachTc,
): void {
  const pin = join(pinDir, key);
  const place = places[parseLinkKey(key).hook];
  if (existsSync(pin)) {
    using link = BpfLink.openPinned(pin);
    try {
      if (link.info().ifindex === ifindex) return link.update(program);
    } catch (error) {
      // The device's MTU has become too large for XDP: the driver says so now, and drops what the old program cannot have.
      if (place !== 'xdp') throw error;
      link.detach();
    }
    rmSync(pin);
  }
  if (place === 'xdp') {
    using link = BpfLink.attachXdp(program, ifindex, 'native');
    return link.pin(pin);
  }
  // A filter takes the place of the one before by itself.
  using attached = attach(program, ifindex, place, filterPlace);
  if (attached instanceof BpfLink) return attached.pin(pin);
  const memory = join(pinDir, `${filterPin}${key}`);
  rmSync(memory, { force: true });
  program.pin(memory);
}

function detach(pinDir: string, key: string): void {
  rmSync(join(pinDir, key), { force: true });
  const memory = join(pinDir, `${filterPin}${key}`);
  if (!existsSync(memory)) return;
  findFilter(key)?.detach();
  rmSync(memory);
}

/** Our filter of this key, as far as device and filter are (still) there. */
function findFilter(key: string): TcFilter | undefined {
  const { hook, ifname } = parseLinkKey(key);
  const place = places[hook];
  if (place === 'xdp') return undefined;
  try {
    return TcFilter.find(ifindexOf(ifname), place, filterPlace);
  } catch (error) {
    if (error instanceof BpfError && error.code === 'ENODEV') return undefined;
    throw error;
  }
}
