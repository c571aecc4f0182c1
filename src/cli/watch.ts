// SPDX-License-Identifier: Apache-2.0
/** `--watch`: read again and again, and tell what has changed. */
import { setTimeout as sleep } from 'node:timers/promises';
import { type Command, InvalidArgumentError, type Option } from 'commander';
import { flag } from './options.ts';

export interface WatchOptions {
  readonly watch?: boolean;
  readonly interval: number;
}

export function addWatchFlags(command: Command, what: string): Command {
  return command.addOption(flag('-w, --watch', what)).addOption(intervalFlag());
}

export function intervalFlag(): Option {
  return flag('--interval <seconds>', 'how often to look').argParser(parseInterval).default(1);
}

function parseInterval(text: string): number {
  const seconds = Number(text);
  if (seconds >= 0.1 && seconds <= 3600) return seconds;
  throw new InvalidArgumentError('Give seconds, from 0.1 to 3600.');
}

/** Call it at once, and then at this interval until the process is stopped. */
export async function repeatedly(seconds: number, act: () => Promise<void>): Promise<void> {
  for (;;) {
    await act();
    await sleep(seconds * 1000);
  }
}
