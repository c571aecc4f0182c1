// SPDX-License-Identifier: Apache-2.0
/** What mode `boost` has changed on a node beside its own files, so that uninstalling can change it back. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { keepConnectionsLiberal } from './conntrack.ts';
import { readIfThere, writeAtomically } from './files.ts';
import { RipstopError } from '../errors.ts';
import { CONNTRACK_LIBERAL, ensureSysctls, readSysctl } from './sysctl.ts';

/** The value of {@link CONNTRACK_LIBERAL} before ripstop came. */
const File = z.object({ conntrackLiberal: z.string() });

const fileOf = (stateDir: string): string => join(stateDir, 'boost.json');

/** Note how the node is, before anything on it is changed. What was noted earlier stays. */
export async function noteBoost(stateDir: string): Promise<void> {
  const file = fileOf(stateDir);
  if ((await readIfThere(file)) !== undefined) return;
  // The kernel's default, if conntrack is not loaded yet.
  const conntrackLiberal = (await readSysctl(CONNTRACK_LIBERAL.path)) ?? '0';
  await writeAtomically(file, `${JSON.stringify({ conntrackLiberal })}\n`, { mode: 0o600 });
}

/** Ripstop is the node's network from now on. */
export async function forgetBoost(stateDir: string): Promise<void> {
  await rm(fileOf(stateDir), { force: true });
}

/** Whether this node was boosted. */
export async function isBoosted(stateDir: string): Promise<boolean> {
  return (await readIfThere(fileOf(stateDir))) !== undefined;
}

/**
 * Change back what boosting has changed, unless somebody else has changed it since.
 * @returns a description of what it did; nothing in a second call.
 * @throws RipstopError when the note is malformed: the setting stays.
 */
export async function undoBoost(stateDir: string): Promise<string[]> {
  const text = await readIfThere(fileOf(stateDir));
  if (text === undefined) return [];
  const noted = File.safeParse(parse(text));
  if (!noted.success) {
    throw new RipstopError(
      `${fileOf(stateDir)} is malformed, so ${CONNTRACK_LIBERAL.path.replaceAll('/', '.')} stays as it is; delete the file`,
    );
  }
  const { path, value: onlyWhen, why } = CONNTRACK_LIBERAL;
  if (noted.data.conntrackLiberal !== onlyWhen) keepConnectionsLiberal();
  const { changed } = await ensureSysctls([{ path, value: noted.data.conntrackLiberal, onlyWhen, why }]);
  return changed.map(({ after }) => `set ${path.replaceAll('/', '.')} back to ${after}`);
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
