// SPDX-License-Identifier: Apache-2.0
/**
 * `node scripts/build-agent.ts` bundles the `ripstop` command into build/js, for images and everybody who runs the agent for
 * long: what a bundle leaves out (the types, the stripper of types, and of @kubernetes/client-node all but the credentials)
 * would be two thirds of the agent's memory and most of its start.
 */
import { rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown } from 'rolldown';

const root = dirname(import.meta.dirname);
/** As deep below the root as the sources' folders are, for they find build/ by `../../build`. */
const directory = join(root, 'build/js');

/** Bundle it. @returns the program to run. */
export async function buildAgent(): Promise<string> {
  const bundle = await rolldown({
    input: join(root, 'src/cli/main.ts'),
    platform: 'node',
    external: [
      // Native code; it looks for its parts beside itself.
      /^koffi/,
      // Stands on its sources: it starts them as programs.
      /\/src\/lab\/index\.ts$/,
    ],
    treeshake: {
      // It says nothing of side effects, and its modules have none; else each model of the API would stay.
      moduleSideEffects: (id) => !id.includes('/@kubernetes/client-node/'),
    },
  });
  await rm(directory, { recursive: true, force: true });
  await bundle.write({
    dir: directory,
    format: 'esm',
    codeSplitting: true,
    entryFileNames: 'main.js',
    // The text stays in memory for as long as the program runs, so it goes without comments; names stay, for stack traces.
    minify: { compress: false, mangle: false, codegen: true },
  });
  await bundle.close();
  return join(directory, 'main.js');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.error(`build-agent: ${await buildAgent()}`);
