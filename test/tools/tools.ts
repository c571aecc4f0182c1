// SPDX-License-Identifier: Apache-2.0
/** The tools of test/tools, and how each is had. */
import { type DebianProgram, fetchDebianPrograms } from '../support/debian-programs.ts';
import { buildPrograms, missingForPrograms, type Program } from '../support/go-programs.ts';
import { programs } from '../support/peer-programs.ts';

/** Unpacked from Debian's packages, outside the checkout. */
const fromDebian: readonly DebianProgram[] = ['prometheus', 'promtool'];

/** Built from their Go modules. */
const fromGo: readonly Program[] = [programs.helm];

/** Fetch or build what is missing. @throws RipstopError when apt or a build fails. */
export async function fetchTools(note: (line: string) => void): Promise<void> {
  await fetchDebianPrograms(fromDebian, note);
  const missing = await missingForPrograms(fromGo);
  if (missing === undefined) await buildPrograms(fromGo, note);
  else note(missing);
}
