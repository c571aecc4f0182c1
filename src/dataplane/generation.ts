// SPDX-License-Identifier: Apache-2.0
/**
 * Generations of the pinned maps. Each has a directory of its own, `maps:VERSION:SERIAL`, and the symbolic link `maps`
 * leads to the one that the attached programs use. Maps that must differ are made and filled in a new directory beside it;
 * moving the link is the one step that counts, and what it no longer leads to is dropped then.
 */
import { mkdirSync, readdirSync, readlinkSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

/** Where the link `maps` is. */
interface MapsPin {
  readonly maps: string;
}

export interface Generation {
  /** Its directory. */
  readonly path: string;
  /** Of the layout (layout.gen.ts) that its maps have. */
  readonly version: number;
  /** Tells generations of one version apart: maps may also differ in their capacity. */
  readonly serial: number;
}

/** The one in use; undefined before the first. */
export function currentGeneration({ maps }: MapsPin): Generation | undefined {
  let target: string;
  try {
    target = readlinkSync(maps);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    // From before there were generations.
    if (code === 'EINVAL') return { path: maps, version: 0, serial: 0 };
    throw error;
  }
  const [, version, serial] = target.split(':').map(Number);
  return { path: join(dirname(maps), target), version: version ?? 0, serial: serial ?? 0 };
}

/** An empty directory for maps of this version, in place of one that was never used. */
export function makeGeneration({ maps }: MapsPin, version: number): Generation {
  const serial = (currentGeneration({ maps })?.serial ?? 0) + 1;
  const path = `${maps}:${version}:${serial}`;
  rmSync(path, { recursive: true, force: true });
  mkdirSync(path, { mode: 0o700 });
  return { path, version, serial };
}

/** Let `maps` lead here, at once, and drop all others. What attached programs still use stays in the kernel. */
export function useGeneration({ maps }: MapsPin, { path }: Generation): void {
  const current = currentGeneration({ maps });
  if (current?.path === maps) renameSync(maps, `${maps}:0:0`);
  const fresh = `${maps}:new`;
  rmSync(fresh, { force: true });
  symlinkSync(basename(path), fresh);
  renameSync(fresh, maps);
  dropGenerations({ maps }, path);
}

/** Drop all but one, or all, the link too. */
export function dropGenerations({ maps }: MapsPin, but?: string): void {
  const root = dirname(maps);
  if (but === undefined) rmSync(maps, { recursive: true, force: true });
  for (const name of readdirSync(root)) {
    const path = join(root, name);
    if (name.startsWith(`${basename(maps)}:`) && path !== but) rmSync(path, { recursive: true, force: true });
  }
}
