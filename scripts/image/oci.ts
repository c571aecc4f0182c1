// SPDX-License-Identifier: Apache-2.0
/** A container image from a folder, without a container engine: the OCI image layout, as one archive. */
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
  /** With registry and tag, as container runtimes want it: `docker.io/library/ripstop:0.1.0`. */
  readonly name: string;
  readonly entrypoint?: readonly string[];
  readonly cmd?: readonly string[];
  /** Variables beside PATH, which every image has (and which may be given another value here). */
  readonly env?: Readonly<Record<string, string>>;
  /** The folder that the entry point starts in; `/` when left out. */
  readonly workdir?: string;
  readonly arch: Arch;
  /** The file to write. */
  readonly target: string;
}

export const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

const MEDIA = 'application/vnd.oci.image';
const TAR_TIMEOUT_MS = 300_000;

/** The same folder gives the same bytes: sorted, with owners as numbers, and all of one time. */
const REPRODUCIBLE = [
  '--sort=name',
  '--mtime=@0',
  '--numeric-owner',
  '--format=posix',
  '--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime',
];

/**
 * Write an image of one layer; `ctr -n k8s.io images import` takes it, under its name. Other file systems that are mounted
 * in the folder, and what is in its /dev, /proc, /sys and /run, stay out.
 * @returns the archive's path, which is `target`. @throws RipstopError when tar cannot read or write something.
 */
export async function ociArchive(image: OciImage): Promise<string> {
  const { target, arch } = image;
  await mkdir(dirname(target), { recursive: true });
  // Beside its target and then renamed: nobody ever reads half an archive.
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
    // containerd takes the first, tools that follow the OCI's words the second.
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

/** Move a file to where the layout keeps it: a blob is named by its digest. */
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
