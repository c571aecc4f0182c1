// SPDX-License-Identifier: Apache-2.0
/**
 * `node scripts/build-agent.ts` bundles the `ripstop` command into build/js, for images and for agents that run for
 * long. The bundle leaves out the types, the code that strips types, and most of @kubernetes/client-node: two thirds of
 * the agent's memory and most of its start-up time.
 */
import { rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown } from 'rolldown';

const root = dirname(import.meta.dirname);
/** As deep below the root as the sources, which find build/ by `../../build`. */
const directory = join(root, 'build/js');

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
  await bundle.write({
    dir: directory,
    format: 'esm',
    codeSplitting: true,
    entryFileNames: 'main.js',
    // The text stays in memory while the program runs, so comments are removed. Names stay, for stack traces.
    minify: { compress: false, mangle: false, codegen: true },
  });
  await bundle.close();
  return join(directory, 'main.js');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.error(`build-agent: ${await buildAgent()}`);
