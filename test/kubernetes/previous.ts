// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { buildImage } from '../../scripts/image.ts';
import { cacheDir } from '../support/go-programs.ts';
import { extractRelease, PREVIOUS } from '../support/release.ts';
import type { NodeImage } from './state.ts';

const ROOT = join(import.meta.dirname, '../..');
/** Programs that it calls and today's agent does not. */
const PACKAGES = 'iproute2 containernetworking-plugins';

export interface Release {
  readonly image: NodeImage;
  /** Its own manifest, with that image. */
  readonly manifest: string;
}

/**
 * The previous release. No image of it was published, so it is built, if necessary, from its sources with today's
 * Dockerfile. @throws RipstopError when the repository has no history.
 */
export async function previousRelease(note: (line: string) => void): Promise<Release> {
  const { version, commit } = PREVIOUS;
  const context = await sourcesOf(commit);
  const name = `ripstop:${version}-previous`;
  // It is built once for each Dockerfile, since several stories use it.
  const text = readFileSync(join(ROOT, 'deploy/Dockerfile'), 'utf8')
    .replace(' nftables ', ` nftables ${PACKAGES} `)
    .replace(
      'RUN rm -r /opt',
      'RUN find /usr/lib/cni -type f ! -name host-local -delete && rm -r /usr/lib/*/tc/q_atm.so /opt',
    );
  const recipe = createHash('sha256').update(text).digest('hex');
  const archive = join(
    cacheDir('kubernetes/images'),
    `previous-${commit.slice(0, 12)}-${recipe.slice(0, 12)}.tar`,
  );
  if (!existsSync(archive)) {
    mkdirSync(dirname(archive), { recursive: true });
    const dockerfile = `${archive}.Dockerfile`;
    writeFileSync(dockerfile, text);
    copyFileSync(join(ROOT, 'deploy/Dockerfile.dockerignore'), `${dockerfile}.dockerignore`);
    const built = await buildImage({ context, dockerfile, name: `docker.io/library/${name}`, note });
    copyFileSync(built, `${archive}.tmp`);
    renameSync(`${archive}.tmp`, archive);
  }
  const manifest = readFileSync(join(context, 'deploy/ripstop.yml'), 'utf8');
  return {
    image: { archive, names: [`docker.io/library/${name}`] },
    manifest: manifest.replaceAll(`image: ripstop:${version}`, `image: ${name}`),
  };
}

async function sourcesOf(commit: string): Promise<string> {
  const dir = join(cacheDir('kubernetes/sources'), commit.slice(0, 12));
  if (existsSync(dir)) return dir;
  mkdirSync(dirname(dir), { recursive: true });
  const fresh = mkdtempSync(`${dir}-`);
  await extractRelease(fresh);
  renameSync(fresh, dir);
  return dir;
}
