#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * Build the container image without a container engine: run each instruction of deploy/Dockerfile in a root of its own,
 * with Debian's and npm's packages, check the result with scripts/image/check.ts, and write an OCI archive with its bill
 * of materials (CycloneDX) beside it.
 *
 *   sudo npm run image [-- --arch amd64 | arm64]
 */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { RipstopError } from '../src/errors.ts';
import { reportFailure } from './failure.ts';
import { ensureTools } from './image/base.ts';
import { checkImage } from './image/check.ts';
import { hostArch, runBeside } from './image/chroot.ts';
import type { Candidate } from './image/inside.ts';
import { type Arch, ociArchive } from './image/oci.ts';
import { checkSbom, sbomOf } from './image/sbom.ts';
import { buildStages, cacheDir } from './image/stages.ts';

const root = join(import.meta.dirname, '..');

export interface ImageOptions {
  /** Default: this machine's. */
  readonly arch?: Arch;
  /** The checkout with the sources. Default: this checkout. */
  readonly context?: string;
  /** Default: this checkout's. */
  readonly dockerfile?: string;
  /** With registry and tag. Default: `docker.io/library/ripstop:<version>`. */
  readonly name?: string;
  /** Gets a line for everything that takes time. */
  readonly note: (line: string) => void;
}

/**
 * Build ripstop's image. Layers that have not changed are not built again.
 * @returns the OCI archive's path, `build/image/ripstop-<version>-<arch>.tar`. Beside it is its bill of materials, `….cdx.json`.
 * @throws RipstopError when an instruction or a check fails, or the machine cannot build images.
 */
export async function buildImage({
  arch = hostArch,
  context = root,
  dockerfile = join(root, 'deploy/Dockerfile'),
  note,
  ...given
}: ImageOptions): Promise<string> {
  const { version } = JSON.parse(await readFile(join(context, 'package.json'), 'utf8')) as {
    version: string;
  };
  const name = given.name ?? `docker.io/library/ripstop:${version}`;
  await ensureTools(arch, note);
  const { layers, env, entrypoint, cmd, workdir } = await buildStages({ arch, context, dockerfile, note });
  const rootfs = await mkdtemp(join(cacheDir, 'rootfs-'));
  try {
    await runBeside(
      arch,
      { source: { layers }, target: { layers: [], upper: rootfs } },
      'cp -a "$source/." "$target"',
    );
    const image = { arch, rootfs, env };
    for (const line of await checkImage(image)) note(`✔ ${line}`);
    const target = join(root, 'build/image', `${basename(name).replace(':', '-')}-${arch}.tar`);
    // An older release does not list what is in its bundle.
    if (context === root) await writeSbom(image, sbomFile(target), note);
    return await ociArchive({
      rootfs,
      name,
      entrypoint,
      cmd,
      env,
      workdir,
      arch,
      target,
    });
  } finally {
    await rm(rootfs, { recursive: true });
  }
}

async function writeSbom(image: Candidate, file: string, note: ImageOptions['note']): Promise<void> {
  const sbom = await sbomOf(image);
  note(`✔ ${checkSbom(image, sbom)}`);
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, `${JSON.stringify(sbom, undefined, 2)}\n`);
}

/** The bill of materials of an archive. */
const sbomFile = (archive: string): string => archive.replace(/tar$/, 'cdx.json');

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { arch: { type: 'string', default: hostArch } } });
  const { arch } = values;
  if (arch !== 'amd64' && arch !== 'arm64') {
    throw new RipstopError(`--arch cannot be "${arch}"; give amd64 or arm64`, { exitCode: 2 });
  }
  const begun = performance.now();
  const path = await buildImage({ arch, note: (line) => console.log(`image: ${line}`) });
  const seconds = ((performance.now() - begun) / 1000).toFixed(0);
  console.log(`image: ${path} and ${basename(sbomFile(path))} (${seconds} s)`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    await main();
  } catch (error) {
    reportFailure('image', error);
  }
}
