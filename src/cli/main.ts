#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
import { Command, CommanderError, Option } from 'commander';
import { errorText, RipstopError } from '../errors.ts';
import { addAgentCommand } from './agent.ts';
import { addLabCommands } from './lab.ts';
import { addReaderCommands } from './readers.ts';

/** The whole command line. Each subcommand loads what it needs when it runs. */
export function createProgram(): Command {
  const program = new Command('ripstop')
    .description('An eBPF data plane for flannel clusters')
    .version('0.1.0')
    .addOption(new Option('--verbose', 'show the details behind an error').env('RIPSTOP_VERBOSE'))
    .enablePositionalOptions()
    .showHelpAfterError('(ripstop COMMAND --help tells more)')
    .configureHelp({ showGlobalOptions: true });
  addAgentCommand(program);
  addReaderCommands(program);
  addLabCommands(program);
  return program;
}

/** Run one command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage. */
async function main(argv: readonly string[]): Promise<number> {
  const program = createProgram();
  const everyCommand = (command: Command, visit: (command: Command) => void): void => {
    visit(command);
    for (const child of command.commands) everyCommand(child, visit);
  };
  everyCommand(program, (command) => command.exitOverride());
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return typeof process.exitCode === 'number' ? process.exitCode : 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    console.error(`ripstop: ${errorText(error)}`);
    const details =
      error instanceof RipstopError ? error.details : error instanceof Error ? error.stack : undefined;
    if (details !== undefined && program.opts<{ verbose?: boolean }>().verbose) console.error(details);
    return error instanceof RipstopError ? error.exitCode : 1;
  }
}

// A reader that is piped into `head` ends quietly.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? 0 : 1));
process.exitCode = await main(process.argv.slice(2));
