// SPDX-License-Identifier: Apache-2.0
import { mkdir, rename, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { $, which } from 'zx';
import { RipstopError } from '../src/errors.ts';

const root = dirname(import.meta.dirname);
const source = `${root}/src/cni/shim/ripstop-cni.c`;

/** The path of the CNI plugin's binary. */
const cniBinary = `${root}/build/ripstop-cni`;

/**
 * Compile the CNI plugin's shim, unless the binary is newer than its source.
 * @returns the binary's path. @throws RipstopError without a C compiler, or with its messages in `details`.
 */
export async function buildCni(): Promise<string> {
  const [from, to] = await Promise.all([stat(source), stat(cniBinary).catch(() => undefined)]);
  if (to && to.mtimeMs > from.mtimeMs) return cniBinary;
  await compileShim(cniBinary);
  console.error('build-cni: build/ripstop-cni');
  return cniBinary;
}

/** Compile the shim to `target`. `defines` (`DEADLINE_MS=500`) are for tests. */
export async function compileShim(target: string, defines: readonly string[] = []): Promise<void> {
  const compiler = (await which('clang-19', { nothrow: true })) ?? (await which('cc', { nothrow: true }));
  if (!compiler) {
    throw new RipstopError(
      'cannot build the CNI plugin: no C compiler; install clang-19 (or gcc) and libc6-dev',
    );
  }
  await mkdir(dirname(target), { recursive: true });
  // It is written beside its target and then renamed, so that nobody executes an incomplete binary.
  const partial = `${target}.${process.pid}.tmp`;
  const strict = ['-std=c11', '-Wall', '-Wextra', '-Werror'];
  const flags = [...strict, '-static', '-Os', '-s', ...defines.map((define) => `-D${define}`)];
  const result = await $({ nothrow: true, quiet: true })`${compiler} ${flags} -o ${partial} ${source}`;
  if (result.exitCode !== 0) {
    throw new RipstopError(`cannot build the CNI plugin: ${compiler} failed`, { details: result.stderr });
  }
  await rename(partial, target);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await buildCni();
