// SPDX-License-Identifier: Apache-2.0
/** `ripstop completion bash|zsh|fish`: scripts that complete commands, flags and their values. */
import tab from '@bomb.sh/tab/commander';
import type { Command } from 'commander';
import { layout } from '../dataplane/layout.gen.ts';
import { examples } from './options.ts';
import { FORMATS, JSONPATH } from './output.ts';

/** Call it last: what is added to the program later is not completed. */
export function addCompletionCommand(program: Command): void {
  const completed = tab(program, { completionCommandName: 'completion' });
  program.commands
    .find((command) => command.name() === 'completion')
    ?.description('the script with which a shell completes ripstop commands')
    .addHelpText('after', SCRIPTS);
  // What nobody types.
  completed.commands.delete('check-prober');
  for (const { options } of completed.commands.values()) {
    const output = options.get('output');
    if (output)
      output.handler = (complete) => [...FORMATS, JSONPATH].forEach((format) => complete(format, ''));
  }
  const map = completed.commands.get('maps')?.arguments.get('name');
  if (map)
    map.handler = (complete) => {
      for (const name of [...Object.keys(layout.maps), 'config']) complete(name, 'a map');
    };
}

const SCRIPTS = examples([
  ['completion bash > /etc/bash_completion.d/ripstop', 'needs the package bash-completion'],
  ['completion zsh > /usr/local/share/zsh/site-functions/_ripstop', 'from the next shell on'],
  ['completion fish > /etc/fish/completions/ripstop.fish', 'from the next shell on'],
]);
