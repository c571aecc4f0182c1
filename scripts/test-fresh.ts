#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * The README's first two commands on a fresh machine: Debian's required packages, git, Node 20 and npm, with a clone
 * of what is committed here. Whatever set-up forgets is missing there, and fails. Needs root and Debian, and leaves
 * nothing behind.
 *
 *   sudo npm run test:fresh [-- --keep] [-- "npm test" ...]
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { mkdtemp } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs, styleText } from 'node:util';
import { errorText, RipstopError } from '../src/errors.ts';
import { reportFailure } from './failure.ts';
import { CHECKOUT, makeMachine, onMachine } from './fresh/machine.ts';
import { ensureTools } from './image/base.ts';
import { type Execute, hostArch } from './image/chroot.ts';

const root = join(import.meta.dirname, '..');

/** What the README says to run first, without `sudo`. */
function commandsOfReadme(): string[] {
  const text = readFileSync(join(root, 'README.md'), 'utf8');
  const [, block = ''] = /^```sh\n(.*?)^```/ms.exec(text) ?? [];
  const commands = [...block.matchAll(/^sudo (npm .*?) +#/gm)].map(([, command]) => command!);
  if (commands.length < 2)
    throw new RipstopError('README.md does not begin with two commands; teach scripts/test-fresh.ts');
  return commands;
}

/** The lines of skipped tests, except those that need a feature which this kernel lacks. */
function forgotten(output: string): string[] {
  const skipped = [...output.matchAll(/^skipped: .*$/gm)].map(([line]) => line);
  return [...new Set(skipped.filter((line) => !line.includes('this kernel lacks')))];
}

const seconds = (since: number): string => `${((performance.now() - since) / 1000).toFixed(0)} s`;

function note(line: string): void {
  console.log(styleText('bold', `test-fresh: ${line}`));
}

let running: ChildProcess | undefined;
let stopped = false;

/** Runs programs until this script is stopped. @param show print their output as it comes. */
function executor(show: boolean): Execute {
  return async (program, args) => {
    if (stopped) throw new RipstopError('stopped');
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    running = child;
    let output = '';
    for (const stream of ['stdout', 'stderr'] as const)
      child[stream].setEncoding('utf8').on('data', (text: string) => {
        output += text;
        if (show) process[stream].write(text);
      });
    const code = await new Promise<number | null>((resolve, reject) => {
      child.on('error', reject);
      child.on('close', resolve);
    });
    running = undefined;
    if (stopped) throw new RipstopError('stopped');
    if (code === 0) return output;
    const ended = `${program} ended with exit code ${code ?? 'none'}`;
    if (show) throw new RipstopError(ended);
    throw new RipstopError(ended, { details: output.trim().split('\n').slice(-30).join('\n') });
  };
}

async function testCommand(machine: string, command: string): Promise<boolean> {
  note(command);
  const begun = performance.now();
  try {
    const output = await onMachine(machine, `cd ${CHECKOUT} && ${command}`, executor(true));
    const lines = forgotten(output);
    if (lines.length > 0)
      throw new RipstopError(`on a fresh machine nothing may be skipped: ${lines.join('; ')}`);
    note(`${command}: ${styleText('green', 'ok')}, ${seconds(begun)}`);
    return true;
  } catch (error) {
    note(`${command}: ${styleText('red', 'FAILED')}, ${seconds(begun)}: ${errorText(error)}`);
    return false;
  }
}

async function main(): Promise<boolean> {
  const { values, positionals } = parseArgs({
    options: { keep: { type: 'boolean', default: false } },
    allowPositionals: true,
  });
  const commands = positionals.length > 0 ? positionals : commandsOfReadme();
  await ensureTools(hostArch, note);
  // Not in /tmp, which may be memory: it grows to 3 GB.
  const folder = await mkdtemp('/var/tmp/ripstop-fresh-');
  process.once('exit', () => {
    if (values.keep) note(`kept: ${folder}/root`);
    else rmSync(folder, { recursive: true, force: true });
  });
  const machine = join(folder, 'root');
  const begun = performance.now();
  await makeMachine(machine, root, executor(false));
  note(`a fresh machine is there, ${seconds(begun)}`);
  const results: boolean[] = [];
  for (const command of commands) results.push(await testCommand(machine, command));
  return results.every(Boolean);
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.on(signal, () => {
    stopped = true;
    // Its namespaces end with it, and all that is in them.
    running?.kill('SIGKILL');
  });
try {
  process.exitCode = (await main()) ? 0 : 1;
} catch (error) {
  reportFailure('test-fresh', error);
}
