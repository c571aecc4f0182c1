// SPDX-License-Identifier: Apache-2.0
/** The commands that documents in deploy/ give to operators, for tests that run them. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const DEPLOY = join(import.meta.dirname, '../../deploy');

/**
 * The commands of a code block, in order, without comments.
 * @param after text before the block: the first block after it is used
 * @param document in deploy/
 */
export function commandsOf(after: string, document = 'README.md'): string[] {
  const text = readFileSync(join(DEPLOY, document), 'utf8');
  const begin = text.indexOf(after);
  const block = /^ *```sh\n(.*?)^ *```$/ms.exec(text.slice(begin))?.[1];
  if (begin < 0 || block === undefined)
    throw new Error(`deploy/${document} has no commands after "${after}"`);
  return block
    .replaceAll(/\\\n/g, ' ')
    .split('\n')
    .map((line) => line.replace(/ {2,}# .*$/, '').trim())
    .filter((line) => line !== '');
}
