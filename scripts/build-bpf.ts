// SPDX-License-Identifier: Apache-2.0
/**
 * Compile bpf/*.bpf.c to build/*.bpf.o, when a source is newer than its object; `--force` compiles always. Objects
 * whose source is gone are removed.
 */
import { mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { $, which } from 'zx';

$.verbose = false;
const root = join(import.meta.dirname, '..');
const sources = join(root, 'bpf');
const build = join(root, 'build');

const headers = readdirSync(sources).filter((file) => file.endsWith('.h'));
const newestHeader = Math.max(...headers.map((file) => statSync(join(sources, file)).mtimeMs));

function isStale(source: string, object: string): boolean {
  const built = statSync(object, { throwIfNoEntry: false });
  return !built || built.mtimeMs < Math.max(newestHeader, statSync(source).mtimeMs);
}

async function findClang(): Promise<string> {
  const found = (await which('clang-19', { nothrow: true })) ?? (await which('clang', { nothrow: true }));
  return found ?? fail('no clang found; run `npm run setup` as root, or install clang-19');
}

function fail(why: string): never {
  console.error(`build-bpf: ${why}`);
  process.exit(1);
}

mkdirSync(build, { recursive: true });
const programs = readdirSync(sources)
  .filter((file) => file.endsWith('.bpf.c'))
  .map((file) => ({ source: join(sources, file), object: join(build, file.replace(/\.c$/, '.o')) }));
for (const file of readdirSync(build).filter((name) => name.endsWith('.bpf.o'))) {
  if (!programs.some(({ object }) => object === join(build, file))) rmSync(join(build, file));
}

const stale = programs.filter(
  ({ source, object }) => process.argv.includes('--force') || isStale(source, object),
);

if (stale.length > 0) {
  const clang = await findClang();
  // With BPF as its target, clang does not search the host's directory of <asm/types.h>.
  const triplet = process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu';
  const flags = [
    '-O2 -g -target bpf -mcpu=v3 -fno-strict-aliasing'.split(' '),
    '-Wall -Wextra -Werror -Wno-unused-parameter'.split(' '),
    `-I/usr/include/${triplet}`,
  ].flat();
  for (const { source, object } of stale) {
    const result = await $({ nothrow: true })`${clang} ${flags} -c ${source} -o ${object}`;
    if (result.exitCode !== 0) fail(`${source} does not compile:\n${result.stderr}`);
    console.error(`build-bpf: ${object.slice(root.length + 1)}`);
  }
}
