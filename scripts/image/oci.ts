// SPDX-License-Identifier: Apache-2.0
/** Makes a container image of a folder, without a container engine: the OCI image layout, as one archive. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, mkdtemp, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { run } from '../../src/host/run.ts';

/** Architectures, by the names that Debian, Go and the OCI share. */
export type Arch = 'amd64' | 'arm64';

export interface OciImage {
  /** The folder that becomes the image's root. */
  readonly rootfs: string;
  /** With registry and tag, as container runtimes need it: `docker.io/library/ripstop:0.1.0`. */
  readonly name: string;
  readonly entrypoint?: readonly string[];
  readonly cmd?: readonly string[];
  /** Variables besides PATH, which every image has (and which can be replaced here). */
  readonly env?: Readonly<Record<string, string>>;
  /** The folder that the entry point starts in. The default is `/`. */
  readonly workdir?: string;
  readonly arch: Arch;
  /** The file to write. */
  readonly target: string;
}

export const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

const MEDIA = 'application/vnd.oci.image';
const TAR_TIMEOUT_MS = 300_000;

/** Makes the archive reproducible: sorted, with numeric owners, and one modification time. */
const REPRODUCIBLE = [
  '--sort=name',
  '--mtime=@0',
  '--numeric-owner',
  '--format=posix',
  '--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime',
];

/**
 * Write an image of one layer, for `ctr -n k8s.io images import`. File systems that are mounted in the folder, and the
 * contents of its /dev, /proc, /sys and /run, are left out.
 * @returns `target`. @throws RipstopError when tar fails.
 */
export async function ociArchive(image: OciImage): Promise<string> {
  const { target, arch } = image;
  await mkdir(dirname(target), { recursive: true });
  // It is written beside its target and then renamed, so that nobody reads an incomplete archive.
  const layout = await mkdtemp(`${target}.`);
  try {
    await mkdir(join(layout, 'blobs/sha256'), { recursive: true });
    const layer = await addLayer(layout, image.rootfs);
    const { entrypoint, cmd, env, workdir = '/' } = image;
    const config = await addJson(layout, `${MEDIA}.config.v1+json`, {
      architecture: arch,
      os: 'linux',
      config: {
        Env: Object.entries({ PATH: DEFAULT_PATH, ...env }).map(([name, value]) => `${name}=${value}`),
        ...(entrypoint && { Entrypoint: entrypoint }),
        ...(cmd && { Cmd: cmd }),
        WorkingDir: workdir,
      },
      rootfs: { type: 'layers', diff_ids: [layer.digest] },
    });
    const mediaType = `${MEDIA}.manifest.v1+json`;
    const manifest = await addJson(layout, mediaType, {
      schemaVersion: 2,
      mediaType,
      config,
      layers: [layer],
    });
    await writeFile(join(layout, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }));
    await writeFile(join(layout, 'index.json'), JSON.stringify(index(image, manifest)));
    const archive = join(layout, 'archive.tar');
    await tar(archive, layout, ['oci-layout', 'index.json', 'blobs']);
    await rename(archive, target);
    return target;
  } finally {
    await rm(layout, { recursive: true });
  }
}

interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
}

function index({ name, arch }: OciImage, manifest: Descriptor): object {
  const annotations = {
    // containerd reads the first, tools that follow the OCI specification the second.
    'io.containerd.image.name': name,
    'org.opencontainers.image.ref.name': name.slice(name.lastIndexOf(':') + 1),
  };
  const platform = { architecture: arch, os: 'linux' };
  return {
    schemaVersion: 2,
    mediaType: `${MEDIA}.index.v1+json`,
    manifests: [{ ...manifest, platform, annotations }],
  };
}

async function addLayer(layout: string, rootfs: string): Promise<Descriptor> {
  const options = [
    '--one-file-system',
    '--xattrs',
    '--xattrs-include=security.capability',
    ...['dev', 'proc', 'sys', 'run'].map((folder) => `--exclude=./${folder}/*`),
  ];
  const path = join(layout, 'layer.tar');
  await tar(path, rootfs, [...options, '.']);
  return addBlob(layout, `${MEDIA}.layer.v1.tar`, path);
}

async function addJson(layout: string, mediaType: string, value: object): Promise<Descriptor> {
  const path = join(layout, 'blob.json');
  await writeFile(path, JSON.stringify(value));
  return addBlob(layout, mediaType, path);
}

/** Move a file to its place in the layout: a blob is named for its digest. */
async function addBlob(layout: string, mediaType: string, path: string): Promise<Descriptor> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  const hex = hash.digest('hex');
  const { size } = await stat(path);
  await rename(path, join(layout, 'blobs/sha256', hex));
  return { mediaType, digest: `sha256:${hex}`, size };
}

async function tar(target: string, folder: string, what: readonly string[]): Promise<void> {
  const argv = ['--create', `--file=${target}`, `--directory=${folder}`, ...REPRODUCIBLE, ...what];
  await run('tar', argv, { timeoutMs: TAR_TIMEOUT_MS });
}
