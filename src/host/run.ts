// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { RipstopError } from '../errors.ts';

export interface RunOptions {
  /** Path of a network namespace (`/run/netns/x`, `/proc/1/ns/net`) to run in; the caller's own when left out. */
  netns?: string;
  /** Text for the program's standard input. */
  stdin?: string;
  /** Environment; the caller's own when left out. */
  env?: NodeJS.ProcessEnv;
  /** Kill the program after this long. Default 30 s. */
  timeoutMs?: number;
}

export interface RunResult {
  code: number;
  stdout: string;
  stderr: string;
}

/** The argument vector that runs a program in a network namespace, or in the caller's own when `netns` is left out. */
export function commandIn(
  netns: string | undefined,
  program: string,
  args: readonly string[],
): [string, ...string[]] {
  return netns ? ['nsenter', `--net=${netns}`, '--', program, ...args] : [program, ...args];
}

/**
 * Run a program to its end and return what it printed, whatever its exit code. Arguments go to `execve` as they are:
 * no shell ever sees them, so text from annotations or CNI input can do no harm here.
 * @throws RipstopError when the program cannot be started or outlives `timeoutMs`.
 */
export function tryRun(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  const [file, ...argv] = commandIn(options.netns, program, args);
  return new Promise((resolve, reject) => {
    const child = spawn(file, argv, { env: options.env ?? process.env, stdio: ['pipe', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      reject(
        new RipstopError(
          `${program} did not finish in ${(options.timeoutMs ?? 30_000) / 1000} s; see whether it hangs by hand`,
          {
            details: [program, ...args].join(' '),
          },
        ),
      );
    }, options.timeoutMs ?? 30_000);
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.on('error', (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      const why =
        error.code === 'ENOENT' ? 'it is not installed (or not on PATH); install it' : error.message;
      reject(new RipstopError(`cannot run ${file}: ${why}`, { cause: error }));
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code: code ?? (signal ? 128 : 1), stdout, stderr });
    });
    // A program that ends without reading its input closes the pipe; its exit code tells the story, not EPIPE.
    child.stdin.on('error', () => {});
    child.stdin.end(options.stdin ?? '');
  });
}

/**
 * Run a program that must succeed and return its standard output.
 * @throws RipstopError with the program's last words when it exits non-zero; the whole output is in `details`.
 */
export async function run(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const { code, stdout, stderr } = await tryRun(program, args, options);
  if (code === 0) return stdout;
  const lastWords = (stderr.trim() || stdout.trim()).split('\n').at(-1) ?? '';
  throw new RipstopError(
    `${[program, ...args].join(' ').slice(0, 200)} failed with exit code ${code}: ${lastWords}`,
    { details: `${stdout}\n${stderr}`.trim() },
  );
}
