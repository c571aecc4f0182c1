// SPDX-License-Identifier: Apache-2.0
/** What all commands that only read have in common: where the pins and the agent are, and in which form to answer. */
import type { Command } from 'commander';
import { bpffsFlag, runDirFlag } from './options.ts';
import { outputFlag } from './output.ts';

export interface ReaderOptions {
  readonly bpffs: string;
  readonly runDir: string;
  readonly output: string;
}

export function addReaderFlags(command: Command): Command {
  return command.addOption(bpffsFlag()).addOption(runDirFlag()).addOption(outputFlag());
}
