// SPDX-License-Identifier: Apache-2.0
import { chmod, mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errorText, RipstopError } from '../errors.ts';

/** A file's text, or undefined when there is no such file. @throws RipstopError when it cannot be read. */
export async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw new RipstopError(`cannot read ${path}: ${errorText(error)}`, { cause: error });
  }
}

/** As {@link writeAtomically}, but a file that holds the text already is left as it is. @returns whether it was written. */
export async function writeIfDifferent(path: string, text: string, mode = 0o644): Promise<boolean> {
  if ((await readIfThere(path)) === text) return false;
  await writeAtomically(path, text, mode);
  return true;
}

/**
 * Make a file hold this text, given whole or in pieces: a reader sees the old or the new one whole, also after a crash. Its
 * directory is made where it is missing.
 * @throws RipstopError when the file system refuses.
 */
export async function writeAtomically(
  path: string,
  text: string | Iterable<string>,
  mode = 0o644,
): Promise<void> {
  const draft = `${path}.${process.pid}.tmp`;
  try {
    await mkdir(dirname(path), { recursive: true });
    await writeSynced(draft, text, mode);
    // The umask may have narrowed the mode.
    await chmod(draft, mode);
    await rename(draft, path);
    await using directory = await open(dirname(path), 'r');
    await directory.sync();
  } catch (error) {
    await rm(draft, { force: true }).catch(() => {});
    throw new RipstopError(`cannot write ${path}: ${errorText(error)}`, { cause: error });
  }
}

async function writeSynced(path: string, text: string | Iterable<string>, mode: number): Promise<void> {
  await using file = await open(path, 'w', mode);
  await file.writeFile(text);
  await file.sync();
}
