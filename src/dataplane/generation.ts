// SPDX-License-Identifier: Apache-2.0
/**
 * Generations of the pinned maps. Each has its own directory, `maps:VERSION:SERIAL`, and the symbolic link `maps` leads
 * to the generation that the attached programs use. Maps that must differ are created and filled in a new directory.
 * Then the symbolic link is moved there, atomically, and the old generation is removed.
 */
import { mkdirSync, readdirSync, readlinkSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';

/** The path of the symbolic link `maps`. */
interface MapsPin {
  readonly maps: string;
}

export interface Generation {
  /** Its directory. */
  readonly path: string;
  /** The version of its maps' layout (layout.gen.ts). */
  readonly version: number;
  /** Distinguishes generations of one version, since maps may also differ in their capacity. */
  readonly serial: number;
}

/** The generation in use; undefined before the first. */
export function currentGeneration({ maps }: MapsPin): Generation | undefined {
  let target: string;
  try {
    target = readlinkSync(maps);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    // A directory, from before there were generations.
    if (code === 'EINVAL') return { path: maps, version: 0, serial: 0 };
    throw error;
  }
  const [, version, serial] = target.split(':').map(Number);
  return { path: join(dirname(maps), target), version: version ?? 0, serial: serial ?? 0 };
}

/** Create an empty directory for maps of this version. One that was never used is replaced. */
export function makeGeneration({ maps }: MapsPin, version: number): Generation {
  const serial = (currentGeneration({ maps })?.serial ?? 0) + 1;
  const path = `${maps}:${version}:${serial}`;
  rmSync(path, { recursive: true, force: true });
  mkdirSync(path, { mode: 0o700 });
  return { path, version, serial };
}

/**
 * Make this generation the one in use, atomically, and remove all others. Maps that attached programs still use stay in
 * the kernel.
 */
export function useGeneration({ maps }: MapsPin, { path }: Generation): void {
  const current = currentGeneration({ maps });
  if (current?.path === maps) renameSync(maps, `${maps}:0:0`);
  const fresh = `${maps}:new`;
  rmSync(fresh, { force: true });
  symlinkSync(basename(path), fresh);
  renameSync(fresh, maps);
  removeGenerations({ maps }, path);
}

/** Remove all generations except the one with this path; without a path, all of them and the symbolic link. */
export function removeGenerations({ maps }: MapsPin, except?: string): void {
  const root = dirname(maps);
  if (except === undefined) rmSync(maps, { recursive: true, force: true });
  for (const name of readdirSync(root)) {
    const path = join(root, name);
    if (name.startsWith(`${basename(maps)}:`) && path !== except)
      rmSync(path, { recursive: true, force: true });
  }
}
