// SPDX-License-Identifier: Apache-2.0
/** The pinned maps as typed tables, for the agent that fills them and for every reader (CLI, metrics) alike. */
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { BpfMap, TypedMap } from '#libbpf-ts';
import { RipstopError } from '../errors.ts';
import { type Kind, kindCodec, type ValueOf } from './codec.ts';
import { currentGeneration } from './generation.ts';
import { layout } from './layout.gen.ts';

/** Where everything of ripstop is pinned below a bpffs mount. */
export interface PinPaths {
  /** Leads to the generation in use: see generation.ts. */
  readonly maps: string;
  readonly programs: string;
  readonly links: string;
}

export function pinPaths(bpffs: string): PinPaths {
  const root = join(bpffs, 'ripstop');
  return { maps: join(root, 'maps'), programs: join(root, 'programs'), links: join(root, 'links') };
}

/** Make the directories for pins of programs and links, for root only. */
export function makePinDirs({ programs, links }: PinPaths): void {
  for (const directory of [programs, links]) mkdirSync(directory, { recursive: true, mode: 0o700 });
}

export type MapName = keyof typeof layout.maps;
export const mapNames = Object.keys(layout.maps) as MapName[];

type Maps = typeof layout.maps;
type Table<M extends MapName> = TypedMap<ValueOf<Maps[M]['key']>, ValueOf<Maps[M]['value']>>;

export type Tables = { readonly [M in MapName]: Table<M> };

/** Put the layout's codecs on a map. @throws when the map's key or value size is not the layout's. */
export function typedTable<M extends MapName>(name: M, map: BpfMap): Table<M> {
  const { key, value }: { key: Kind; value: Kind } = layout.maps[name];
  return new TypedMap(map, kindCodec(key), kindCodec(value)) as unknown as Table<M>;
}

/**
 * Open the pinned maps below a bpffs mount.
 * @throws RipstopError when nothing is pinned there, or maps of another layout than this program knows.
 */
export function openTables(bpffs: string): Tables & Disposable {
  const { maps } = pinPaths(bpffs);
  if (!existsSync(join(maps, mapNames[0]!))) {
    throw new RipstopError(
      `no ripstop maps are pinned below ${bpffs}; is the agent running on this node, with this --bpffs?`,
    );
  }
  const version = currentGeneration({ maps })?.version;
  if (version !== layout.version) {
    throw new RipstopError(
      `the pinned maps have layout ${version}, and this ripstop reads layout ${layout.version}: use the one of the agent that runs on this node`,
    );
  }
  const opened = mapNames.map((name) => [name, BpfMap.openPinned(join(maps, name))] as const);
  return {
    ...(Object.fromEntries(opened.map(([name, map]) => [name, typedTable(name, map)])) as unknown as Tables),
    [Symbol.dispose]: () => opened.forEach(([, map]) => map.close()),
  };
}
