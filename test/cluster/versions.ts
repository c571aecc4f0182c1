// SPDX-License-Identifier: Apache-2.0
import {
  cpSync,
  existsSync,
  globSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run } from '../../src/host/run.ts';
import { extractRelease } from '../support/release.ts';

const ROOT = join(import.meta.dirname, '../..');

/** Another version of ripstop: this checkout with changes, built by its scripts. */
export class Version implements Disposable {
  readonly root: string;

  /** @param from the version to change. Default: this checkout. */
  constructor(from: { readonly root: string } = { root: ROOT }) {
    this.root = mkdtempSync(join(tmpdir(), 'ripstop-version-'));
    for (const part of ['src', 'bpf', 'scripts', 'build', 'package.json'])
      if (existsSync(join(from.root, part)))
        cpSync(join(from.root, part), join(this.root, part), { recursive: true, preserveTimestamps: true });
    symlinkSync(join(ROOT, 'node_modules'), join(this.root, 'node_modules'));
  }

  /** The previous release, with this checkout's packages. */
  static async previous(): Promise<Version> {
    const sources = mkdtempSync(join(tmpdir(), 'ripstop-previous-'));
    try {
      await extractRelease(sources);
      return new Version({ root: sources });
    } finally {
      rmSync(sources, { recursive: true, force: true });
    }
  }

  get main(): string {
    return join(this.root, 'src/cli/main.ts');
  }

  /** Replace a text in the files of a pattern. At least one must contain it. */
  change(pattern: string, from: string | RegExp, to: string): this {
    let hits = 0;
    for (const file of globSync(pattern, { cwd: this.root })) {
      const path = join(this.root, file);
      const before = readFileSync(path, 'utf8');
      const after = before.replaceAll(from, to);
      if (after === before) continue;
      writeFileSync(path, after);
      hits++;
    }
    if (hits === 0) throw new Error(`no file ${pattern} has ${String(from)}`);
    return this;
  }

  async build(): Promise<this> {
    for (const script of ['build-bpf.ts', 'gen-layout.ts'])
      await run(process.execPath, [join(this.root, 'scripts', script)]);
    return this;
  }

  [Symbol.dispose](): void {
    rmSync(this.root, { recursive: true, force: true });
  }
}
