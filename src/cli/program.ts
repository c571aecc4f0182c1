// SPDX-License-Identifier: Apache-2.0
import { Command, CommanderError, Option, type OutputConfiguration } from 'commander';
import packageJson from '../../package.json' with { type: 'json' };
import { errorText, RipstopError } from '../errors.ts';
import { addAgentCommand } from './agent.ts';
import { addCheckCommand } from './check.ts';
import { addDoctorCommand } from './doctor-command.ts';
import { addInspectCommands } from './inspect.ts';
import { addCompletionCommand } from './completion.ts';
import { addLabCommands } from './lab.ts';
import { addReaderCommands } from './readers.ts';
import { addUninstallCommand } from './uninstall.ts';

/** The whole command line. Each subcommand loads its modules when it runs. */
export function createProgram(output: OutputConfiguration = {}): Command {
  const program = new Command('ripstop')
    .description('An eBPF data plane for flannel clusters')
    .version(packageJson.version)
    .addOption(new Option('--verbose', 'show the details behind an error').env('RIPSTOP_VERBOSE'))
    .enablePositionalOptions()
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({
      // One line, like every other error. commander puts its suggestions on a second line.
      outputError: (text, write) => write(`ripstop: ${errorText(text.trim().replace(/^error: /, ''))}\n`),
      ...output,
    })
    .exitOverride();
  addAgentCommand(program);
  addReaderCommands(program);
  addInspectCommands(program);
  addCheckCommand(program);
  addDoctorCommand(program);
  addUninstallCommand(program);
  addLabCommands(program);
  addCompletionCommand(program);
  return program;
}

/**
 * Run one command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage. Never throws; an error is written as
 * one line, and with `--verbose` its details too.
 */
export async function runCommandLine(
  argv: readonly string[],
  output: OutputConfiguration = {},
): Promise<number> {
  const program = createProgram(output);
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    const say = (text: string): void => program.configureOutput().writeErr?.(text);
    say(`ripstop: ${errorText(error)}\n`);
    const details =
      error instanceof RipstopError ? error.details : error instanceof Error ? error.stack : undefined;
    if (details !== undefined && program.opts<{ verbose?: boolean }>().verbose) say(`${details}\n`);
    return error instanceof RipstopError ? error.exitCode : 1;
  }
}
