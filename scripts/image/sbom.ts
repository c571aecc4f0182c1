// SPDX-License-Identifier: Apache-2.0
/**
 * The bill of materials of an image, as CycloneDX 1.6 in JSON: Debian's packages, the npm packages in the bundle and
 * beside it, Node with the libraries in it, and ripstop's own parts. It is read from the image's files, so it says what
 * is in there, and has no time of its making: the same image has the same bill.
 */
import { existsSync, globSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { RipstopError } from '../../src/errors.ts';
import { BUNDLED_PACKAGES, type NpmPackage } from '../build-agent.ts';
import { type Candidate, elfFiles, inside } from './inside.ts';

/** A part of the image; the fields that we write of CycloneDX's `component`. */
export interface Component {
  readonly type: 'container' | 'application' | 'library' | 'platform';
  readonly 'bom-ref': string;
  readonly name: string;
  readonly version: string;
  /** The package URL, by which scanners know it. */
  readonly purl?: string;
  readonly licenses?: readonly ({ license: { name: string } } | { expression: string })[];
  /** What is in it. */
  readonly components?: readonly Component[];
  /** Its files in the image, where no package manager knows them. */
  readonly evidence?: { readonly occurrences: readonly { location: string }[] };
}

export interface Sbom {
  readonly bomFormat: 'CycloneDX';
  readonly specVersion: '1.6';
  readonly version: 1;
  readonly metadata: { readonly component: Component };
  readonly components: readonly Component[];
}

/** Where ripstop is in the image. */
const HOME = '/opt/ripstop';

/** The bill of an image. @throws RipstopError when a package has no licence. */
export async function sbomOf(image: Candidate): Promise<Sbom> {
  const { rootfs, arch } = image;
  const { version, license } = JSON.parse(readFileSync(join(rootfs, HOME, 'package.json'), 'utf8')) as {
    version: string;
    license: string;
  };
  const components = [
    ...ownParts(version, license),
    await nodeOf(image),
    ...npmPackages(rootfs),
    ...debianPackages(rootfs),
  ].toSorted((a, b) => (a['bom-ref'] < b['bom-ref'] ? -1 : 1));
  const unlicensed = components.filter(({ licenses }) => !licenses?.every(isSaid)).map(({ name }) => name);
  if (unlicensed.length > 0)
    throw new RipstopError(`the image has packages without a licence: ${unlicensed.join(', ')}`);
  const component: Component = {
    type: 'container',
    'bom-ref': `ripstop-image-${arch}`,
    name: 'ripstop',
    version,
    licenses: [{ expression: license }],
  };
  return { bomFormat: 'CycloneDX', specVersion: '1.6', version: 1, metadata: { component }, components };
}

const isSaid = (one: NonNullable<Component['licenses']>[number]): boolean =>
  typeof ('license' in one ? one.license.name : one.expression) === 'string';

function ownParts(version: string, license: string): Component[] {
  const part = (name: string, expression: string, ...files: string[]): Component => ({
    type: 'application',
    'bom-ref': name,
    name,
    version,
    licenses: [{ expression }],
    evidence: { occurrences: files.map((file) => ({ location: `${HOME}/${file}` })) },
  });
  return [
    part('ripstop', license, 'build/js', 'scripts/ripstop'),
    part('ripstop-bpf', 'GPL-2.0-only OR BSD-2-Clause', 'build/*.bpf.o'),
    // Its C library is linked into it.
    part('ripstop-cni', `${license} AND LGPL-2.1-or-later`, 'build/ripstop-cni'),
  ];
}

/** Node, and the libraries that are linked into it, by what it says itself. */
async function nodeOf(image: Candidate): Promise<Component> {
  const said = await inside(image, ['node', '-p', 'JSON.stringify(process.versions)']);
  const { node = '', ...all } = JSON.parse(said) as Record<string, string>;
  // Those without a version are not in it, and these two are interfaces.
  const libraries = Object.entries(all).filter(
    ([name, version]) => version !== '' && name !== 'modules' && name !== 'napi',
  );
  return {
    type: 'platform',
    'bom-ref': 'node',
    name: 'node',
    version: node,
    purl: `pkg:generic/node@${node}`,
    licenses: [{ expression: 'MIT' }],
    components: libraries.map(([name, version]) => ({
      type: 'library',
      'bom-ref': `node/${name}`,
      name,
      version,
      purl: `pkg:generic/${name}@${encodeURIComponent(version)}`,
    })),
    evidence: { occurrences: [{ location: '/usr/local/bin/node' }] },
  };
}

/** Those in the bundle, by the list beside it, and those beside the bundle, by their files. */
function npmPackages(rootfs: string): Component[] {
  const bundled = JSON.parse(readFileSync(join(rootfs, HOME, BUNDLED_PACKAGES), 'utf8')) as NpmPackage[];
  const beside = npmFiles(rootfs).map((file) => ({
    ...(JSON.parse(readFileSync(join(rootfs, file), 'utf8')) as NpmPackage),
    location: dirname(file),
  }));
  return [...bundled.map((one) => ({ ...one, location: `${HOME}/build/js` })), ...beside].map(
    ({ name, version, license, location }) => ({
      type: 'library',
      'bom-ref': `npm/${name}@${version}`,
      name,
      version,
      purl: `pkg:npm/${name.replace('@', '%40')}@${version}`,
      licenses: [{ expression: license }],
      evidence: { occurrences: [{ location }] },
    }),
  );
}

/** The package.json of each package in the image. */
const npmFiles = (rootfs: string): string[] =>
  globSync(
    [`${HOME}/node_modules/*/package.json`, `${HOME}/node_modules/@*/*/package.json`].map((path) =>
      path.slice(1),
    ),
    {
      cwd: rootfs,
    },
  ).map((path) => `/${path}`);

/** What dpkg has installed in the image. */
function debianPackages(rootfs: string): Component[] {
  return parseStatus(readFileSync(join(rootfs, 'var/lib/dpkg/status'), 'utf8')).map(
    ({ name, version, architecture }) => ({
      type: 'library',
      'bom-ref': `deb/${name}`,
      name,
      version,
      purl: `pkg:deb/debian/${name}@${encodeURIComponent(version)}?arch=${architecture}&distro=debian-12`,
      ...licensesOf(join(rootfs, 'usr/share/doc', name, 'copyright')),
    }),
  );
}

/** The installed packages of dpkg's status. */
export function parseStatus(text: string): { name: string; version: string; architecture: string }[] {
  return text.split('\n\n').flatMap((paragraph) => {
    const field = (name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(paragraph)?.[1] ?? '';
    if (!field('Status').endsWith(' installed')) return [];
    return [{ name: field('Package'), version: field('Version'), architecture: field('Architecture') }];
  });
}

function licensesOf(file: string): Pick<Component, 'licenses'> {
  if (!existsSync(file)) return {};
  return { licenses: parseCopyright(readFileSync(file, 'utf8')).map((name) => ({ license: { name } })) };
}

/** The licences of a Debian copyright file, by Debian's short names. Of one in free words, those that it points to. */
export function parseCopyright(text: string): string[] {
  const common = /\/usr\/share\/common-licenses\/([\w.-]*\w)/g;
  const [first = ''] = text.split('\n\n');
  const machine = /^Format:/m.test(first) ? text.matchAll(/^License:[ \t]*(\S.*)$/gm) : [];
  const names = [...machine].map(([, name]) => name!.trim());
  const found = names.length > 0 ? names : [...text.matchAll(common)].map(([, name]) => name!);
  return found.length > 0 ? [...new Set(found)].toSorted() : ['in free words, in its copyright file'];
}

/**
 * Check that everything in the image is in its bill: each package that dpkg or npm knows by its files, and each program
 * and library that neither knows.
 * @returns a line. @throws RipstopError naming what is not.
 */
export function checkSbom({ rootfs }: Candidate, { components }: Sbom): string {
  const listed = new Set(components.map((one) => one['bom-ref'].replace(/(?<=.)@[^@]*$/, '')));
  const lists = globSync('*.list', { cwd: join(rootfs, 'var/lib/dpkg/info') });
  const debian = lists.map((file) => file.replace(/(?::\w+)?\.list$/, ''));
  const owned = new Set(lists.flatMap((file) => ownedFiles(join(rootfs, 'var/lib/dpkg/info', file))));
  const places = components.flatMap(({ evidence }) => evidence?.occurrences ?? []);
  const isPlaced = (path: string) =>
    places.some(
      ({ location }) => path === location || path.startsWith(`${location}/`) || fits(path, location),
    );
  const missing = [
    ...debian.filter((name) => !listed.has(`deb/${name}`)),
    ...npmFiles(rootfs)
      .map((file) => JSON.parse(readFileSync(join(rootfs, file), 'utf8')) as NpmPackage)
      .flatMap(({ name }) => (listed.has(`npm/${name}`) ? [] : [name])),
    ...elfFiles(rootfs).filter((path) => !owned.has(path) && !isPlaced(path)),
  ];
  if (missing.length === 0)
    return `its bill of materials names ${components.length} packages and parts, with licences`;
  throw new RipstopError(`the image has ${missing.join(', ')}, which its bill of materials does not name`);
}

const fits = (path: string, pattern: string): boolean =>
  pattern.includes('*') && path.startsWith(pattern.split('*')[0]!) && path.endsWith(pattern.split('*')[1]!);

/** The files of a package's list, as they are called since /bin and /lib are links into /usr. */
const ownedFiles = (list: string): string[] =>
  readFileSync(list, 'utf8')
    .split('\n')
    .map((path) => path.replace(/^\/(?=(?:bin|sbin|lib\w*)\/)/, '/usr/'));
