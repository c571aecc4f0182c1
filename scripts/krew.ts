#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * Pack the kubectl plugin for krew: an archive, and the manifest with its checksum.
 *
 *   npm run krew -- --uri https://example.org/kubectl-ripstop.tar.gz
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import packageJson from '../package.json' with { type: 'json' };
import { run } from '../src/host/run.ts';
import { reportFailure } from './failure.ts';

const root = join(import.meta.dirname, '..');

/**
 * @param uri where the archive will be.
 * @returns the paths of the two files, in `directory`.
 */
export async function packPlugin(
  uri: string,
  directory = join(root, 'build/krew'),
): Promise<{ archive: string; manifest: string }> {
  mkdirSync(directory, { recursive: true });
  const archive = join(directory, 'kubectl-ripstop.tar.gz');
  // The same bytes each time.
  const plain = ['--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner', '--mode=go-w'];
  const files = ['-C', join(root, 'deploy/kubectl'), 'kubectl-ripstop', '-C', root, 'LICENSE'];
  await run('tar', [...plain, '--use-compress-program=gzip -n', '-cf', archive, ...files]);
  const manifest = join(directory, 'ripstop.yaml');
  const sha256 = createHash('sha256').update(readFileSync(archive)).digest('hex');
  const text = readFileSync(join(root, 'deploy/kubectl/krew.yaml'), 'utf8')
    .replace('vVERSION', `v${packageJson.version}`)
    .replace('URI', uri)
    .replace('SHA256', sha256);
  writeFileSync(manifest, text);
  return { archive, manifest };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    const { uri } = parseArgs({ options: { uri: { type: 'string' } } }).values;
    if (uri === undefined) throw new Error('give --uri, the address that the archive will have');
    const { archive, manifest } = await packPlugin(uri);
    console.log(`krew: wrote ${manifest} and ${archive}`);
  } catch (error) {
    reportFailure('krew', error);
  }
}
