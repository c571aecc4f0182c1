// SPDX-License-Identifier: Apache-2.0
/**
 * Carries a Dockerfile out as a container engine does, without one. Each instruction that writes files makes a layer, which
 * is kept under a hash of all that it came from: what has not changed is not done again.
 */
import { createHash } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, utimes } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join, relative, resolve } from 'node:path';
import { quote } from 'zx';
import { RipstopError } from '../../src/errors.ts';
import { makeBase, SLIM_IMAGE } from './base.ts';
import { runBeside, runInside } from './chroot.ts';
import {
  type Copy,
  type Instruction,
  isIgnored,
  parseCopy,
  parseDockerfile,
  parseEnv,
  parseWords,
} from './dockerfile.ts';
import { type Arch, DEFAULT_PATH } from './oci.ts';

const WEEK_MS = 7 * 86_400_000;

/** A stage as far as it has been built. */
export interface Built {
  /** Folders of files, the undermost first. */
  readonly layers: readonly string[];
  /** What stands for the whole history. */
  readonly key: string;
  readonly env: Readonly<Record<string, string>>;
  readonly workdir: string;
  readonly entrypoint: readonly string[];
  readonly cmd: readonly string[];
}

export interface Recipe {
  readonly arch: Arch;
  /** The folder that COPY copies from. */
  readonly context: string;
  /** Its ignore file is beside it, and has its name with `.dockerignore`. */
  readonly dockerfile: string;
  /** Is told in one line what is done, where it was not done before. */
  readonly note: (line: string) => void;
}

/** Layers are outside of the repository: all checkouts share them. */
export const cacheDir = join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'ripstop', 'image');

/** Build every stage. @returns the last one. @throws RipstopError naming the instruction that failed. */
export async function buildStages(recipe: Recipe): Promise<Built> {
  await mkdir(cacheDir, { recursive: true });
  const stages = parseDockerfile(await readFile(recipe.dockerfile, 'utf8'));
  const done = new Map<string, Built>();
  let built: Built | undefined;
  for (const { base, name, instructions } of stages) {
    built = done.get(base) ?? (await begin(recipe, base));
    for (const instruction of instructions) built = await carryOut(recipe, name, instruction, built, done);
    done.set(name, built);
  }
  if (built === undefined) throw new RipstopError(`${recipe.dockerfile} has no FROM`);
  await forgetOld();
  return built;
}

async function begin({ arch, note }: Recipe, base: string): Promise<Built> {
  const empty = { layers: [], key: base, env: { PATH: DEFAULT_PATH }, workdir: '/', entrypoint: [], cmd: [] };
  if (base === 'scratch') return empty;
  if (base !== SLIM_IMAGE) {
    throw new RipstopError(
      `FROM ${base}: only ${SLIM_IMAGE}, scratch and earlier stages can be had without a registry`,
    );
  }
  // A base of this week: Debian mends its packages.
  const key = hash([base, arch, String(Math.floor(Date.now() / WEEK_MS))]);
  return addLayer({ ...empty, key: '' }, key, async (target) => {
    note(`FROM ${base}, from Debian's packages for ${arch}`);
    await makeBase(arch, target).catch((cause: unknown) => {
      throw failed(`FROM ${base}`, cause);
    });
  });
}

async function carryOut(
  recipe: Recipe,
  stage: string,
  { name, args }: Instruction,
  built: Built,
  done: ReadonlyMap<string, Built>,
): Promise<Built> {
  const { env, workdir } = built;
  const note = () => recipe.note(`${stage === '' ? '' : `${stage}: `}${name} ${args}`.slice(0, 110));
  if (name === 'ENV') return { ...built, env: { ...env, ...parseEnv(args, env) } };
  if (name === 'ENTRYPOINT') return { ...built, entrypoint: parseWords(args) };
  if (name === 'CMD') return { ...built, cmd: parseWords(args) };
  if (name === 'WORKDIR') return { ...built, workdir: resolve(workdir, args) };
  try {
    if (name === 'COPY') return await copy(recipe, built, parseCopy(args), done, note);
    const key = hash([built.key, name, args, workdir, JSON.stringify(env)]);
    return await addLayer(built, key, async (upper) => {
      note();
      const line = `mkdir -p ${quote(workdir)} && cd ${quote(workdir)} && ${args}`;
      await runInside(recipe.arch, { layers: built.layers, upper }, ['sh', '-c', line], {
        HOME: '/root',
        ...env,
      });
    });
  } catch (cause) {
    throw failed(`${name} ${args.slice(0, 60)}`, cause);
  }
}

/** An error of a line of the recipe, with the last words of what it called. */
function failed(line: string, cause: unknown): unknown {
  if (!(cause instanceof RipstopError)) return cause;
  const lastWords = (cause.details ?? cause.message).trim().split('\n').at(-1);
  const details = cause.details === undefined ? {} : { details: cause.details };
  return new RipstopError(`the image's instruction \`${line}\` failed: ${lastWords}`, { cause, ...details });
}

async function copy(
  { arch, context, dockerfile }: Recipe,
  built: Built,
  { from, sources, target }: Copy,
  done: ReadonlyMap<string, Built>,
  note: () => void,
): Promise<Built> {
  const to = target.endsWith('/') ? `${resolve(built.workdir, target)}/` : resolve(built.workdir, target);
  const stage = from === undefined ? undefined : done.get(from);
  if (from !== undefined && stage === undefined)
    throw new RipstopError(`there is no stage ${from} before it`);
  const files = stage
    ? []
    : await filesOf(context, sources, await readFile(`${dockerfile}.dockerignore`, 'utf8'));
  const contents = stage ? [stage.key] : await Promise.all(files.map((file) => fingerprint(context, file)));
  const key = hash([built.key, 'COPY', ...sources, to, ...contents]);
  return addLayer(built, key, async (upper) => {
    note();
    const staged = stage ? undefined : await stageFiles(context, files);
    try {
      const source = stage ? { layers: stage.layers } : { layers: [staged!] };
      const roots = { source, target: { layers: built.layers, upper } };
      await runBeside(arch, roots, sources.map((path) => copyLines(path, to)).join('\n'));
    } finally {
      if (staged !== undefined) await rm(staged, { recursive: true });
    }
  });
}

/** Of a folder its contents are copied, of a file the file itself: into a folder where the target ends in `/`. */
function copyLines(source: string, target: string): string {
  const [from, to] = [`"$source"${quote(join('/', source))}`, `"$target"${quote(target)}`];
  return `if [ -d ${from} ]; then mkdir -p ${to}; cp -a ${from}/. ${to}; else
  mkdir -p ${target.endsWith('/') ? to : `"$target"${quote(dirname(target))}`}; cp -a ${from} ${to}; fi`;
}

/** The files at and below these paths that the ignore file lets through, relative to the context. */
async function filesOf(context: string, sources: readonly string[], ignore: string): Promise<string[]> {
  const files: string[] = [];
  for (const source of sources) {
    const path = join(context, source);
    if (!existsSync(path)) throw new RipstopError(`there is no ${source}`);
    if (!statSync(path).isDirectory()) files.push(source);
    else {
      const entries = await readdir(path, { recursive: true, withFileTypes: true });
      for (const entry of entries.filter((entry) => !entry.isDirectory()))
        files.push(relative(context, join(entry.parentPath, entry.name)));
    }
  }
  return files.filter((file) => !isIgnored(file, ignore)).toSorted();
}

async function fingerprint(context: string, file: string): Promise<string> {
  const path = join(context, file);
  return hash([file, String((await stat(path)).mode & 0o111), await readFile(path)]);
}

/** A folder with these files of the context, which belong to root there. */
async function stageFiles(context: string, files: readonly string[]): Promise<string> {
  const folder = await mkdtemp(join(cacheDir, 'context-'));
  for (const file of files) {
    await mkdir(dirname(join(folder, file)), { recursive: true });
    await cp(join(context, file), join(folder, file), { preserveTimestamps: true });
  }
  return folder;
}

/** The layer of this key upon those that are there; it is made when nobody has made it before. */
async function addLayer(built: Built, key: string, make: (upper: string) => Promise<void>): Promise<Built> {
  const path = join(cacheDir, key);
  if (existsSync(path)) await utimes(path, new Date(), new Date());
  else {
    const fresh = await mkdtemp(join(cacheDir, `${key}-`));
    try {
      // Its mode is that of the root.
      await chmod(fresh, 0o755);
      await make(fresh);
      // Of two that make it at once each finishes, and the second takes what the first has made.
      await rename(fresh, path).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
      });
    } finally {
      await rm(fresh, { recursive: true, force: true });
    }
  }
  return { ...built, key, layers: [...built.layers, path] };
}

/** Layers that no build has used for two weeks go. */
async function forgetOld(): Promise<void> {
  for (const name of await readdir(cacheDir)) {
    const path = join(cacheDir, name);
    const found = await stat(path).catch(() => undefined);
    // Not mtime, which is that of a file in an archive while a root is being unpacked.
    if (found && Date.now() - found.ctimeMs > 2 * WEEK_MS) await rm(path, { recursive: true, force: true });
  }
}

function hash(parts: readonly (string | Buffer)[]): string {
  const hash = createHash('sha256');
  // With lengths, so that no two lists look alike.
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return hash.digest('hex').slice(0, 16);
}
