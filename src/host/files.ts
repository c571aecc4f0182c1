// SPDX-License-Identifier: Apache-2.0
import { mkdir, open, readFile, rename, rm, rmdir } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errorText, RipstopError } from '../errors.ts';
import { noFailures, type Target } from '../reconcile/target.ts';

/** The text of a file, or undefined when it does not exist. @throws RipstopError when it cannot be read. */
export async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new RipstopError(`cannot read ${path}: ${errorText(error)}`, { cause: error });
  }
}

/**
 * Remove the empty directory in a file's place: a container runtime makes one when a container mounts the path before the
 * file is there. Anything else stays, and whoever writes the file finds out.
 */
export async function removeEmptyDirectory(path: string): Promise<void> {
  await rmdir(path).catch(() => {});
}

export interface WriteOptions {
  /** The file's mode. Default 0o644. */
  readonly mode?: number;
}

/**
 * As {@link writeAtomically}, but a file that already holds the text is not written.
 * @returns whether it was written.
 */
export async function writeIfDifferent(
  path: string,
  text: string,
  options: WriteOptions = {},
): Promise<boolean> {
  await removeEmptyDirectory(path);
  if ((await readIfThere(path)) === text) return false;
  await writeAtomically(path, text, options);
  return true;
}

/**
 * Replace the content of a file by this text, given whole or in pieces. Readers see the old or the new text, complete,
 * also after a power cut. A missing directory is created.
 * @throws RipstopError when the file system refuses.
 */
export async function writeAtomically(
  path: string,
  text: string | Iterable<string>,
  { mode = 0o644 }: WriteOptions = {},
): Promise<void> {
  const draft = `${path}.${process.pid}.tmp`;
  try {
    await mkdir(dirname(path), { recursive: true });
    {
      await using file = await open(draft, 'w', mode);
      await file.writeFile(text);
      // The umask may have narrowed the mode.
      await file.chmod(mode);
      await file.sync();
    }
    await removeEmptyDirectory(path);
    await rename(draft, path);
    await using directory = await open(dirname(path), 'r');
    await directory.sync();
  } catch (error) {
    await rm(draft, { force: true }).catch(() => {});
    throw new RipstopError(`cannot write ${path}: ${errorText(error)}`, { cause: error });
  }
}

/** A file that other programs read. */
export interface FileContent {
  readonly text: string;
  /** What follows when it cannot be written, and what to do. */
  readonly hint: string;
}

/** Files by path, mode 0644. Each is written atomically, and only when it differs. None is ever removed. */
export function filesTarget(): Target<FileContent> {
  return {
    name: 'files',
    list: async () => new Map(),
    difference: async (desired) => {
      const upserts = new Map<string, FileContent>();
      for (const [path, content] of desired) {
        const actual = await readIfThere(path).catch(() => undefined);
        if (actual !== content.text) upserts.set(path, content);
      }
      return { upserts, removals: new Map() };
    },
    upsert: async (entries) => {
      const failures = new Map<string, string>();
      for (const [path, { text, hint }] of entries) {
        await writeAtomically(path, text).catch((error: unknown) =>
          failures.set(path, `${errorText(error)}; ${hint}`),
        );
      }
      return failures;
    },
    remove: async () => noFailures,
  };
}
