// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { RipstopError } from '../errors.ts';

export interface RunOptions {
  /** Path of the network namespace to run in, such as `/run/netns/x` or `/proc/1/ns/net`. Default: the caller's own. */
  netns?: string | undefined;
  /** Text for the program's standard input. */
  stdin?: string;
  /** Environment. Default: the caller's own. */
  env?: NodeJS.ProcessEnv;
  /** Kill the program after this long. Default 30 s. */
  timeoutMs?: number;
}

export interface RunResult {
  code: number;
  stdout: string;
  stderr: string;
}

/** The arguments that run a program in a network namespace; in the caller's own when `netns` is undefined. */
export function commandIn(
  netns: string | undefined,
  program: string,
  args: readonly string[],
): [string, ...string[]] {
  return netns ? ['nsenter', `--net=${netns}`, '--', program, ...args] : [program, ...args];
}

/**
 * Run a program to its end and return what it printed, whatever its exit code. No shell is involved, so text from
 * annotations or CNI input can do no harm in arguments.
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
    const { timeoutMs = 30_000 } = options;
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      reject(
        new RipstopError(
          `${program} did not finish within ${timeoutMs / 1000} s; run it by hand to see whether it hangs`,
          { details: [program, ...args].join(' ') },
        ),
      );
    }, timeoutMs);
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
    // A program that ends without reading its input closes the pipe. Its exit code matters, not the EPIPE.
    child.stdin.on('error', () => {});
    child.stdin.end(options.stdin ?? '');
  });
}

/**
 * Run a program that must succeed and return its standard output.
 * @throws RipstopError with the last line of its output when it exits non-zero; the whole output is in `details`.
 */
export async function run(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const { code, stdout, stderr } = await tryRun(program, args, options);
  if (code === 0) return stdout;
  const lastLine = (stderr.trim() || stdout.trim()).split('\n').at(-1) ?? '';
  throw new RipstopError(
    `${[program, ...args].join(' ').slice(0, 200)} failed with exit code ${code}: ${lastLine}`,
    { details: `${stdout}\n${stderr}`.trim() },
  );
}
