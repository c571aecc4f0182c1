// SPDX-License-Identifier: Apache-2.0
// Helpers of the tests of this folder, and of others that load BPF programs.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const HERE = import.meta.dirname;
const clang = ['clang-19', 'clang'].find((name) => spawnSync(name, ['--version']).status === 0);

/** Why the fixtures cannot be compiled here; undefined when they can. */
export const noCompiler = clang === undefined ? 'needs clang-19 to compile its BPF fixtures' : undefined;

/** Why nothing can be loaded here; undefined when it can. */
export const noKernel =
  noCompiler ?? (process.getuid?.() === 0 ? undefined : 'needs root to load BPF programs and mount a bpffs');

const compiled = new Map<string, Uint8Array>();

/** The object of NAME.bpf.c in `sources`, compiled. */
export function fixture(name: string, sources = join(HERE, 'fixtures')): Uint8Array {
  let object = compiled.get(name);
  if (object === undefined) {
    const folder = mkdtempSync(join(tmpdir(), 'libbpf-ts-'));
    try {
      const output = join(folder, `${name}.o`);
      const machine = { x64: 'x86_64', arm64: 'aarch64' }[process.arch as string] ?? process.arch;
      const include = `-I/usr/include/${machine}-linux-gnu`;
      const flags = ['-O2', '-g', '-target', 'bpf', '-Wall', '-Werror', include];
      execFileSync(clang!, [...flags, '-c', join(sources, `${name}.bpf.c`), '-o', output]);
      object = new Uint8Array(readFileSync(output));
    } finally {
      rmSync(folder, { recursive: true });
    }
    compiled.set(name, object);
  }
  return object;
}

/** A bpffs of the test's own. It goes at the latest when the process ends, also by process.exit(). */
export class TemporaryBpffs {
  readonly path = mkdtempSync(join(tmpdir(), 'libbpf-ts-bpffs-'));
  readonly #atExit = () => this[Symbol.dispose]();

  constructor() {
    try {
      execFileSync('mount', ['-t', 'bpf', 'bpf', this.path]);
    } catch (error) {
      rmSync(this.path, { recursive: true });
      throw error;
    }
    process.once('exit', this.#atExit);
  }

  file(name: string): string {
    return join(this.path, name);
  }

  [Symbol.dispose](): void {
    process.off('exit', this.#atExit);
    execFileSync('umount', [this.path]);
    rmSync(this.path, { recursive: true });
  }
}

export const u32 = (value: number): Uint8Array => new Uint8Array(new Uint32Array([value]).buffer);
export const u64 = (value: number | bigint): Uint8Array =>
  new Uint8Array(new BigUint64Array([BigInt(value)]).buffer);
