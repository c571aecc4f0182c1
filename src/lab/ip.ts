// SPDX-License-Identifier: Apache-2.0
import { RipstopError } from '../errors.ts';
import { run, tryRun, type RunOptions } from '../host/run.ts';

/**
 * Read the kernel with `ip -json` (2–3 ms a call). The caller names the shape it expects; iproute2's JSON is the
 * contract.
 * @throws RipstopError with iproute2's message.
 */
export async function ipJson<T>(args: readonly string[], options: RunOptions = {}): Promise<T[]> {
  return parseRows(await run('ip', ['-json', '-details', ...args], options));
}

/** The same for `bridge -json`. */
export async function bridgeJson<T>(args: readonly string[], options: RunOptions = {}): Promise<T[]> {
  return parseRows(await run('bridge', ['-json', ...args], options));
}

function parseRows<T>(text: string): T[] {
  return text.trim() === '' ? [] : (JSON.parse(text) as T[]);
}

/**
 * Apply many `ip` commands in one process (`ip -batch`, 1,000 routes in about 14 ms), in order, stopping at the first
 * that fails; with `force` the rest is still applied (except after a failed `neigh` command: iproute2 gives up there).
 * Each command is one line without the leading `ip`; write it with {@link line}. No lines: nothing runs.
 * @throws RipstopError naming the first command that failed and why.
 */
export function ipBatch(
  commands: readonly string[],
  options: RunOptions & { force?: boolean } = {},
): Promise<void> {
  return batch('ip', commands, options);
}

/** The same for `bridge -batch`. */
export function bridgeBatch(
  commands: readonly string[],
  options: RunOptions & { force?: boolean } = {},
): Promise<void> {
  return batch('bridge', commands, options);
}

async function batch(
  program: 'ip' | 'bridge',
  commands: readonly string[],
  { force, ...options }: RunOptions & { force?: boolean },
): Promise<void> {
  if (commands.length === 0) return;
  const { code, stderr } = await tryRun(program, [...(force ? ['-force'] : []), '-batch', '-'], {
    ...options,
    stdin: `${commands.join('\n')}\n`,
  });
  if (code === 0) return;
  // Each failure prints its reason and then the number of its line, except where iproute2 exits on the spot.
  const failed = [...stderr.matchAll(/^Command failed -:(\d+)$/gm)];
  const first = failed[0];
  const why =
    (first ? stderr.slice(0, first.index) : stderr).trim().split('\n').at(-1) || `exit code ${code}`;
  const what = first ? `${program} ${commands[Number(first[1]) - 1]}` : `${program} -batch`;
  const others = failed.length > 1 ? ` (and ${failed.length - 1} more of ${commands.length} commands)` : '';
  throw new RipstopError(`${what} failed: ${why.replace(/^(RTNETLINK answers|Error): /, '')}${others}`, {
    details: stderr.trim(),
  });
}

/**
 * One line for a batch: `` line`route replace ${cidr} dev ${name}` ``. Every value must be a single plain word, so text
 * from an annotation can neither end the line nor begin another command.
 * @throws RipstopError when a value is empty or holds white space, a quote, a backslash or `#`.
 */
export function line(parts: TemplateStringsArray, ...values: (string | number)[]): string {
  return parts.reduce((text, part, i) => `${text}${word(values[i - 1]!)}${part}`);
}

function word(value: string | number): string {
  const text = String(value);
  if (!/^[^\s"'\\#]+$/.test(text)) {
    throw new RipstopError(
      `${JSON.stringify(text)} cannot be part of an ip command: it is not one plain word`,
    );
  }
  return text;
}
