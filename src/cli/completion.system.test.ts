// SPDX-License-Identifier: Apache-2.0
/** Completion in the real shells. */
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run, tryRun } from '../host/run.ts';

const MAIN = join(import.meta.dirname, 'main.ts');

/** How each shell is asked what it would complete. The first argument is the script, the second the line so far. */
const shells = {
  bash: `source /usr/share/bash-completion/bash_completion && source "$1"
    COMP_LINE=$2 COMP_POINT=\${#2} COMP_WORDS=($2) COMP_CWORD=$((\${#COMP_WORDS[@]} - 1))
    $(complete -p ripstop | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    printf '%s\\n' "\${COMPREPLY[@]}"`,
  fish: 'source $argv[2]; complete -C $argv[3]',
  // A zsh on a terminal, in which Tab is pressed.
  zsh: `zmodload zsh/zpty
    zpty -b z 'zsh -f -i'
    zpty -w z "PS1=; autoload -Uz compinit; compinit -D -u; source $1; print RE''ADY"
    zpty -r z line '*READY*'
    zpty -w -n z "$2"$'\\t\\t'
    out=
    for i in {1..100}; do
      while zpty -r -t z chunk; do out+=$chunk; done
      [[ $out == *peers6* ]] && break
      sleep 0.1
    done
    print -r -- $out
    zpty -d z`,
};

const missing = (
  await Promise.all(
    Object.keys(shells).map(async (shell) => ((await tryRun('which', [shell])).code === 0 ? [] : [shell])),
  )
).flat();

describe.skipIf(missing.length > 0)(
  `the completion${missing.length > 0 ? ` (skipped: needs ${missing.join(', ')})` : ''}`,
  () => {
    let dir: string;
    beforeAll(() => {
      dir = mkdtempSync(join(tmpdir(), 'ripstop-completion-'));
      writeFileSync(join(dir, 'ripstop'), `#!/bin/sh\nexec ${process.execPath} ${MAIN} "$@"\n`);
      chmodSync(join(dir, 'ripstop'), 0o755);
    });
    afterAll(() => rmSync(dir, { recursive: true }));

    const env = () => ({ ...process.env, PATH: `${dir}:${process.env['PATH']}`, HOME: dir, TERM: 'dumb' });

    it.each(Object.entries(shells))('in %s has the maps', async (shell, program) => {
      const script = join(dir, `script.${shell}`);
      writeFileSync(script, await run(join(dir, 'ripstop'), ['completion', shell], { env: env() }));
      const argv = shell === 'fish' ? ['-N', '-c', program, '--', 'fish'] : ['-c', program, shell];
      const { stdout } = await tryRun(shell, [...argv, script, 'ripstop maps pe'], { env: env() });
      expect(stdout).toMatch(/^(.*\s)?peers\b/m);
      expect(stdout).toMatch(/^(.*\s)?peers6\b/m);
      expect(stdout).not.toContain('vteps');
    });

    it.each([
      ['st', ['stats', 'status']],
      ['peers -o', ['-o']],
      ['flows --so', ['--sort']],
      ['flows --sort s', ['source', 'state']],
      ['peers -o j', ['json', 'jsonpath=']],
      ['lab exec --na', ['--name']],
      ['maps di', ['diff']],
    ])('of "ripstop %s" is %j', async (line, words) => {
      const stdout = await run(process.execPath, [MAIN, 'complete', '--', ...line.split(' ')]);
      const found = stdout.split('\n').flatMap((one) => /^[^:\t]+/.exec(one)?.[0] ?? []);
      expect(found.sort()).toEqual(words);
    });
  },
);
