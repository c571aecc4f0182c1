// SPDX-License-Identifier: Apache-2.0
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { createProgram, runCommandLine } from './program.ts';

/** Run a command line to its end. Returns what commander and the error handler have written. */
async function run(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  let out = '';
  let err = '';
  const code = await runCommandLine(argv, {
    writeOut: (text) => (out += text),
    writeErr: (text) => (err += text),
  });
  return { code, out, err };
}

describe('help', () => {
  it('of every command matches the snapshot', async () => {
    let help = '';
    const writeOut = (text: string): void => void (help += text);
    const program = createProgram({ getOutHelpWidth: () => 100, writeOut });
    const show = (command: Command, path: string): void => {
      help += `${help === '' ? '' : '\n'}$ ${path} --help\n`;
      command.outputHelp();
      for (const child of command.commands) show(child, `${path} ${child.name()}`);
    };
    show(program, 'ripstop');
    await expect(help).toMatchFileSnapshot('help.snapshot.txt');
  });

  it('names an environment variable for every flag', () => {
    const silent: string[] = [];
    const visit = (command: Command): void => {
      for (const option of command.options) {
        if (option.envVar === undefined && option.long !== '--version') silent.push(option.flags);
      }
      command.commands.forEach(visit);
    };
    visit(createProgram());
    expect(silent).toEqual([]);
  });
});

/** The commands of the examples in every command's help. */
function examplesOf(command: Command): string[] {
  let help = '';
  command.configureOutput({ writeOut: (text) => void (help += text) });
  command.outputHelp();
  const lines = help.split('\nExamples:\n')[1]?.split('\n') ?? [];
  return [
    ...lines.flatMap((line) => /^ {2}ripstop (?<words>.+?) {2,}/.exec(line)?.groups?.['words'] ?? []),
    ...command.commands.flatMap(examplesOf),
  ];
}

describe('the examples', () => {
  beforeEach(() => {
    vi.stubEnv('RIPSTOP_BPFFS', '/nowhere');
    vi.stubEnv('RIPSTOP_RUN_DIR', '/nowhere');
    // What `check` would send packets in.
    vi.stubEnv('RIPSTOP_LAB', 'no-such-lab');
    vi.stubEnv('RIPSTOP_KUBECONFIG', '/nowhere');
    vi.spyOn(process.stdout, 'write').mockReturnValue(true);
    vi.spyOn(process.stderr, 'write').mockReturnValue(true);
    vi.spyOn(console, 'log').mockReturnValue();
  });
  afterEach(() => {
    vi.unstubAllEnvs();
    vi.restoreAllMocks();
    // doctor finds something here.
    process.exitCode = undefined;
  });

  it.each(examplesOf(createProgram()))('"ripstop %s" is understood', async (words) => {
    const argv = words.replace(/ > .*$/, '').match(/(?:[^\s']|'[^']*')+/g)!;
    const { code, err } = await run(...argv.map((word) => word.replaceAll("'", '')));
    // What reads ripstop's pins fails with 1, as there are none; so does what needs a lab or a cluster.
    const isDone = ['completion', 'doctor'].includes(argv[0]) || argv[1] === '/sys/fs/bpf';
    expect([code, err]).toEqual(
      isDone ? [0, ''] : [1, expect.stringMatching(/pinned|agent|no lab named|\/nowhere/) as unknown],
    );
  });
});

describe('the exit code', () => {
  let empty: string;
  beforeAll(() => {
    empty = mkdtempSync(join(tmpdir(), 'ripstop-cli-'));
  });
  afterAll(() => rmSync(empty, { recursive: true }));

  it.each([['--help'], ['--version'], ['lab', 'up', '--help']])('is 0 for %s %s %s', async (...argv) => {
    const { code, out, err } = await run(...argv);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).not.toBe('');
  });

  it.each<[string, string[], RegExp]>([
    ['no command', [], /^Usage: ripstop/],
    ['an unknown command', ['pears'], /unknown command 'pears'/],
    ['an unknown flag', ['peers', '--colour'], /unknown option '--colour'/],
    ['a missing flag', ['agent'], /--node-name <name>' not specified/],
    ['a wrong choice', ['peers', '-o', 'xml'], /'xml' is invalid.*table, wide, json, yaml/],
    ['one argument too many', ['peers', 'node2'], /too many arguments/],
    ['no command to run in the lab', ['lab', 'exec', 'node1'], /missing required argument 'command'/],
    ['a wrong number of nodes', ['lab', 'up', '--nodes', 'many'], /--nodes cannot be "many"/],
    ['an unknown map', ['maps', 'pears'], /there is no map "pears"; the maps are arrivals, /],
  ])('is 2 for %s', async (_, argv, message) => {
    const { code, out, err } = await run(...argv);
    expect({ code, out }).toEqual({ code: 2, out: '' });
    expect(err).toMatch(message);
  });

  it.each(['status', 'peers', 'endpoints', 'flows', 'stats', 'maps', 'maps peers'])(
    'of %s is 1 where nothing is pinned, with one line that says so',
    async (command) => {
      const { code, out, err } = await run(...command.split(' '), '--bpffs', empty, '--run-dir', empty);
      expect({ code, out }).toEqual({ code: 1, out: '' });
      expect(err).toBe(
        `ripstop: no ripstop maps are pinned below ${empty}; is the agent running on this node, with this --bpffs?\n`,
      );
    },
  );

  it('is 1 for a lab that does not exist', async () => {
    const { code, err } = await run('lab', 'status', '--name', 'no-such-lab');
    expect(err).toMatch(/^ripstop: .*no-such-lab.*\n$/);
    expect(code).toBe(1);
  });
});
