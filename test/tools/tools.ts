// SPDX-License-Identifier: Apache-2.0
/** The tools of test/tools, and how each is had. */
import { existsSync } from 'node:fs';
import { errorText } from '../../src/errors.ts';
import { run } from '../../src/host/run.ts';
import { type DebianProgram, fetchDebianPrograms } from '../support/debian-programs.ts';
import { buildPrograms, missingForPrograms, type Program } from '../support/go-programs.ts';
import { programs } from '../support/peer-programs.ts';

/** Unpacked from Debian's packages, outside the checkout. */
const fromDebian: readonly DebianProgram[] = ['prometheus', 'promtool'];

/** Built from their Go modules. */
const fromGo: readonly Program[] = [programs.helm];

/** Debian's browser. It is installed: it has too many libraries to be unpacked beside the system's. */
export const CHROMIUM = '/usr/bin/chromium';

/** Fetch or build what is missing. @throws RipstopError when apt or a build fails. */
export async function fetchTools(note: (line: string) => void): Promise<void> {
  await fetchDebianPrograms(fromDebian, note);
  const missing = await missingForPrograms(fromGo);
  if (missing === undefined) await buildPrograms(fromGo, note);
  else note(missing);
  if (!existsSync(CHROMIUM)) await installChromium(note);
}

/** Where it cannot be had, its stories are skipped. */
async function installChromium(note: (line: string) => void): Promise<void> {
  note('installing chromium from Debian');
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const install = ['-q', '-y', '--no-install-recommends', 'install', 'chromium'];
  try {
    await run('apt-get', ['-q', 'update'], { timeoutMs: 120_000 });
    await run('apt-get', install, { env, timeoutMs: 600_000 });
  } catch (error) {
    note(`no chromium: ${errorText(error)}`);
  }
}
