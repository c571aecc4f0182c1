// SPDX-License-Identifier: Apache-2.0
import { createHash } from 'node:crypto';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ociArchive, type OciImage } from '../../scripts/image/oci.ts';
import { run } from '../../src/host/run.ts';

interface Descriptor {
  mediaType: string;
  digest: string;
  size: number;
}

interface Index {
  manifests: (Descriptor & { platform: object; annotations: Record<string, string> })[];
}

interface Manifest {
  config: Descriptor;
  layers: Descriptor[];
}

let folder: string;
const at = (...names: string[]) => join(folder, ...names);

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ripstop-oci-'));
  for (const name of ['rootfs/bin', 'rootfs/dev', 'rootfs/empty', 'layout', 'unpacked'])
    mkdirSync(at(name), { recursive: true });
  writeFileSync(at('rootfs/bin/hello'), '#!/bin/sh\n');
  chmodSync(at('rootfs/bin/hello'), 0o755);
  symlinkSync('hello', at('rootfs/bin/greet'));
  writeFileSync(at('rootfs/dev/null'), 'the host brings its own');
});
afterEach(() => rmSync(folder, { recursive: true }));

function archive(target: string): Promise<string> {
  const image: OciImage = {
    rootfs: at('rootfs'),
    name: 'docker.io/library/hello:1.2.3',
    entrypoint: ['/bin/hello'],
    cmd: ['world'],
    env: { GREETING: 'moin' },
    arch: 'arm64',
    target: at(target),
  };
  return ociArchive(image);
}

/** A blob of the unpacked layout, checked against its descriptor. */
function blob({ digest, size }: Descriptor): Buffer {
  const content = readFileSync(at('layout/blobs', digest.replace(':', '/')));
  expect(content).toHaveLength(size);
  expect(`sha256:${createHash('sha256').update(content).digest('hex')}`).toBe(digest);
  return content;
}

const json = (content: Buffer): unknown => JSON.parse(content.toString());

describe('an OCI archive', () => {
  it('is a layout with correct digests and sizes', async () => {
    await run('tar', ['-xf', await archive('image.tar'), '-C', at('layout')]);
    expect(json(readFileSync(at('layout/oci-layout')))).toEqual({ imageLayoutVersion: '1.0.0' });
    const { manifests } = json(readFileSync(at('layout/index.json'))) as Index;
    expect(manifests).toHaveLength(1);
    expect(manifests[0]).toMatchObject({
      platform: { architecture: 'arm64', os: 'linux' },
      annotations: {
        'io.containerd.image.name': 'docker.io/library/hello:1.2.3',
        'org.opencontainers.image.ref.name': '1.2.3',
      },
    });
    const manifest = json(blob(manifests[0]!)) as Manifest;
    const [layer] = manifest.layers;
    expect(json(blob(manifest.config))).toEqual({
      architecture: 'arm64',
      os: 'linux',
      config: {
        Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'GREETING=moin'],
        Entrypoint: ['/bin/hello'],
        Cmd: ['world'],
        WorkingDir: '/',
      },
      rootfs: { type: 'layers', diff_ids: [layer!.digest] },
    });
    blob(layer!);
    expect(readdirSync(at('layout/blobs/sha256'))).toHaveLength(3);
  });

  it('has the folder in its layer, without the mounts of container runtimes', async () => {
    await run('tar', ['-xf', await archive('image.tar'), '-C', at('layout')]);
    const { manifests } = json(readFileSync(at('layout/index.json'))) as Index;
    const { layers } = json(blob(manifests[0]!)) as Manifest;
    await run('tar', ['-xf', at('layout/blobs', layers[0]!.digest.replace(':', '/')), '-C', at('unpacked')]);
    const listing = await run('find', [at('unpacked'), '-mindepth', '1', '-printf', '%y %m %P %l\n']);
    expect(
      listing
        .trim()
        .split('\n')
        .map((line) => line.trim())
        .toSorted(),
    ).toEqual(['d 755 bin', 'd 755 dev', 'd 755 empty', 'f 755 bin/hello', 'l 777 bin/greet hello']);
  });

  it('is reproducible', async () => {
    const first = readFileSync(await archive('first.tar'));
    writeFileSync(at('rootfs/bin/hello'), '#!/bin/sh\n');
    expect(readFileSync(await archive('second.tar')).equals(first)).toBe(true);
  });

  it('leaves nothing beside it when tar fails', async () => {
    rmSync(at('rootfs'), { recursive: true });
    await expect(archive('image.tar')).rejects.toThrow(/tar .* failed/);
    expect(readdirSync(folder).toSorted()).toEqual(['layout', 'unpacked']);
  });
});
