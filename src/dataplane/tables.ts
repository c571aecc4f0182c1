// SPDX-License-Identifier: Apache-2.0
/** The pinned maps as typed tables: for the agent, which fills them, and for readers (CLI, metrics). */
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { type BpfLink, BpfMap, type BpfProgram, TypedMap } from '#libbpf-ts';
import { RipstopError } from '../errors.ts';
import { type Kind, kindCodec, type ValueOf } from './codec.ts';
import { currentGeneration } from './generation.ts';
import { layout } from './layout.gen.ts';

/** The paths below a bpffs mount at which ripstop pins everything. */
export interface PinPaths {
  /** A symbolic link to the generation in use: see generation.ts. */
  readonly maps: string;
  readonly programs: string;
  readonly links: string;
  /** A link for each function of the kernel whose changes move the epoch: see changes.ts. */
  readonly changes: string;
}

export function pinPaths(bpffs: string): PinPaths {
  const root = join(bpffs, 'ripstop');
  return {
    maps: join(root, 'maps'),
    programs: join(root, 'programs'),
    links: join(root, 'links'),
    changes: join(root, 'changes'),
  };
}

/** Create the directories for pins of programs and links, accessible to root only. */
export function makePinDirs({ programs, links, changes }: PinPaths): void {
  for (const directory of [programs, links, changes]) mkdirSync(directory, { recursive: true, mode: 0o700 });
}

/** Pin a program or a link, replacing an earlier pin atomically. */
export function repin(pinned: BpfProgram | BpfLink, path: string): void {
  const fresh = `${path}:new`; // bpffs has no dots in names
  rmSync(fresh, { force: true });
  pinned.pin(fresh);
  renameSync(fresh, path);
}

export type MapName = keyof typeof layout.maps;
export const mapNames = Object.keys(layout.maps) as MapName[];

type Maps = typeof layout.maps;
type Table<M extends MapName> = TypedMap<ValueOf<Maps[M]['key']>, ValueOf<Maps[M]['value']>>;

export type Tables = { readonly [M in MapName]: Table<M> };

/** A map with the codecs of the layout. @throws Error when its key or value size is not that of the layout. */
export function typedTable<M extends MapName>(name: M, map: BpfMap): Table<M> {
  const { key, value }: { key: Kind; value: Kind } = layout.maps[name];
  return new TypedMap(map, kindCodec(key), kindCodec(value)) as unknown as Table<M>;
}

/** @throws RipstopError when no maps are pinned below this bpffs mount. */
export function requirePins(bpffs: string): void {
  if (existsSync(join(pinPaths(bpffs).maps, mapNames[0]!))) return;
  throw new RipstopError(
    `no ripstop maps are pinned below ${bpffs}; is the agent running on this node, with this --bpffs?`,
  );
}

/**
 * Open the pinned maps below a bpffs mount.
 * @throws RipstopError when nothing is pinned there, or maps of another layout than this program knows.
 */
export function openTables(bpffs: string): Tables & Disposable {
  requirePins(bpffs);
  const { maps } = pinPaths(bpffs);
  const version = currentGeneration({ maps })?.version;
  if (version !== layout.version) {
    throw new RipstopError(
      `the pinned maps have layout ${version}, and this ripstop reads layout ${layout.version}: ` +
        'use the ripstop of the agent that runs on this node',
    );
  }
  const opened = mapNames.map((name) => [name, BpfMap.openPinned(join(maps, name))] as const);
  return {
    ...(Object.fromEntries(opened.map(([name, map]) => [name, typedTable(name, map)])) as unknown as Tables),
    [Symbol.dispose]: () => opened.forEach(([, map]) => map.close()),
  };
}
