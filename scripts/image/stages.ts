// SPDX-License-Identifier: Apache-2.0
/**
 * Executes a Dockerfile like a container engine. Each instruction that writes files makes a layer, which is kept under
 * a hash of all its inputs: an instruction whose inputs have not changed is not executed again.
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

/** A stage, as far as it has been built. */
export interface Built {
  /** Folders of files, the lowest first. */
  readonly layers: readonly string[];
  /** A hash of all instructions so far, and their inputs. */
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
  /** Its ignore file has the same name with `.dockerignore` added. */
  readonly dockerfile: string;
  /** Gets a line for every instruction that is executed. */
  readonly note: (line: string) => void;
}

/** Layers are kept outside the repository, so that all checkouts share them. */
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
  // The base is built again each week, to get Debian's security updates.
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

/** The error of an instruction, with the last line of its program's output. */
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

/** Copy the contents of a folder, or a file. A target that ends in `/` is a folder. */
function copyLines(source: string, target: string): string {
  const [from, to] = [`"$source"${quote(join('/', source))}`, `"$target"${quote(target)}`];
  return `if [ -d ${from} ]; then mkdir -p ${to}; cp -a ${from}/. ${to}; else
  mkdir -p ${target.endsWith('/') ? to : `"$target"${quote(dirname(target))}`}; cp -a ${from} ${to}; fi`;
}

/** The files at and below these paths that the ignore file does not exclude, relative to the context. */
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

/** A folder with these files of the context, owned by root. */
async function stageFiles(context: string, files: readonly string[]): Promise<string> {
  const folder = await mkdtemp(join(cacheDir, 'context-'));
  for (const file of files) {
    await mkdir(dirname(join(folder, file)), { recursive: true });
    await cp(join(context, file), join(folder, file), { preserveTimestamps: true });
  }
  return folder;
}

/** Add the layer with this key. It is made only if it does not exist yet. */
async function addLayer(built: Built, key: string, make: (upper: string) => Promise<void>): Promise<Built> {
  const path = join(cacheDir, key);
  if (existsSync(path)) await utimes(path, new Date(), new Date());
  else {
    const fresh = await mkdtemp(join(cacheDir, `${key}-`));
    try {
      // Its mode becomes that of the root.
      await chmod(fresh, 0o755);
      await make(fresh);
      // If two processes make it at once, both finish, and the second uses the layer of the first.
      await rename(fresh, path).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
      });
    } finally {
      await rm(fresh, { recursive: true, force: true });
    }
  }
  return { ...built, key, layers: [...built.layers, path] };
}

/** Remove layers that no build has used for two weeks. */
async function forgetOld(): Promise<void> {
  for (const name of await readdir(cacheDir)) {
    const path = join(cacheDir, name);
    const found = await stat(path).catch(() => undefined);
    // mtime may be that of a file in an archive, while a root is being unpacked.
    if (found && Date.now() - found.ctimeMs > 2 * WEEK_MS) await rm(path, { recursive: true, force: true });
  }
}

function hash(parts: readonly (string | Buffer)[]): string {
  const hash = createHash('sha256');
  // The lengths keep different lists from looking the same.
  for (const part of parts) hash.update(`${part.length}:`).update(part);
  return hash.digest('hex').slice(0, 16);
}
