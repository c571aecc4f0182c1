// SPDX-License-Identifier: Apache-2.0
/**
 * `node scripts/build-agent.ts` bundles the `ripstop` command into build/js, for images and for agents that run for
 * long. The bundle leaves out the types, the code that strips types, and most of @kubernetes/client-node: two thirds of
 * the agent's memory and most of its start-up time.
 */
import { readFileSync } from 'node:fs';
import { cp, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown } from 'rolldown';
import { PAGE_PARTS } from '../src/agent/page/page.ts';

const root = dirname(import.meta.dirname);
/** As deep below the root as the sources, which find build/ by `../../build`. */
const directory = join(root, 'build/js');
/** Which npm packages are in the bundle: for the image's bill of materials. */
export const BUNDLED_PACKAGES = 'build/js/packages.json';

/** A package of npm, by its package.json. */
export interface NpmPackage {
  readonly name: string;
  readonly version: string;
  readonly license: string;
}

/** Bundle it. @returns the program to run. */
export async function buildAgent(): Promise<string> {
  const bundle = await rolldown({
    input: join(root, 'src/cli/main.ts'),
    platform: 'node',
    external: [
      // Native code, which is found relative to its own files.
      /^koffi/,
      // It needs the sources, which it starts as programs.
      /\/src\/lab\/index\.ts$/,
    ],
    treeshake: {
      // Its modules have no side effects, but it does not declare that; otherwise all models of the API would stay.
      moduleSideEffects: (id) => !id.includes('/@kubernetes/client-node/'),
    },
  });
  await rm(directory, { recursive: true, force: true });
  const { output } = await bundle.write({
    dir: directory,
    format: 'esm',
    codeSplitting: true,
    entryFileNames: 'main.js',
    // The text stays in memory while the program runs, so comments are removed. Names stay, for stack traces.
    minify: { compress: false, mangle: false, codegen: true },
  });
  await bundle.close();
  const modules = output.flatMap((part) => (part.type === 'chunk' ? part.moduleIds : []));
  await writeFile(join(root, BUNDLED_PACKAGES), `${JSON.stringify(packagesOf(modules), undefined, 2)}\n`);
  for (const part of PAGE_PARTS) await cp(join(root, 'src/agent/page/browser', part), join(directory, part));
  return join(directory, 'main.js');
}

/** The npm packages that these modules are from, each once, wherever it is installed. */
function packagesOf(modules: readonly string[]): NpmPackage[] {
  const found = new Map<string, NpmPackage>();
  for (const id of modules) {
    const folder = /^.*\/node_modules\/(?:@[^/]+\/)?[^/]+/.exec(id)?.[0];
    if (folder === undefined) continue;
    const { name, version, license } = JSON.parse(
      readFileSync(join(folder, 'package.json'), 'utf8'),
    ) as NpmPackage;
    found.set(`${name}@${version}`, { name, version, license });
  }
  return [...found.keys()].toSorted().map((key) => found.get(key)!);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.error(`build-agent: ${await buildAgent()}`);
