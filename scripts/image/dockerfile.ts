// SPDX-License-Identifier: Apache-2.0
/** The part of the Dockerfile language that deploy/Dockerfile uses. Everything else is an error. */
import { matchesGlob } from 'node:path';
import { RipstopError } from '../../src/errors.ts';

const KNOWN = ['FROM', 'RUN', 'WORKDIR', 'COPY', 'ENV', 'ENTRYPOINT', 'CMD'] as const;

export interface Instruction {
  readonly name: (typeof KNOWN)[number];
  /** Everything after the name, on one line. */
  readonly args: string;
}

export interface Stage {
  /** Its base: an image, an earlier stage or `scratch`. */
  readonly base: string;
  /** Its name for later stages. The last one needs none. */
  readonly name: string;
  readonly instructions: readonly Instruction[];
}

/** @throws RipstopError naming an instruction that is not supported */
export function parseDockerfile(text: string): Stage[] {
  const stages: (Stage & { instructions: Instruction[] })[] = [];
  const lines = text.replaceAll(/^\s*#.*\n/gm, '').replaceAll(/\s*\\\n\s*/g, ' ');
  for (const line of lines.split('\n').filter((line) => line.trim() !== '')) {
    const [, word = '', args = ''] = /^(\w+)\s+(.*)$/.exec(line) ?? [];
    const name = KNOWN.find((known) => known === word);
    if (name === undefined) throw unknown(line);
    if (name !== 'FROM') {
      const stage = stages.at(-1);
      if (stage === undefined) throw unknown(line);
      stage.instructions.push({ name, args });
      continue;
    }
    const [, base = '', stage = ''] = /^(\S+)(?: AS (\S+))?$/.exec(args) ?? [];
    if (base === '') throw unknown(line);
    stages.push({ base, name: stage, instructions: [] });
  }
  return stages;
}

function unknown(line: string): RipstopError {
  return new RipstopError(
    `scripts/image does not know the Dockerfile's line \`${line}\`; write it with ${KNOWN.join(', ')} or teach it`,
  );
}

/** `COPY [--from=STAGE] SOURCE... TARGET`. */
export interface Copy {
  /** The stage to copy from. The default is the build's context. */
  readonly from: string | undefined;
  readonly sources: readonly string[];
  readonly target: string;
}

export function parseCopy(args: string): Copy {
  const words = args.split(/\s+/);
  const from = /^--from=(.*)$/.exec(words[0]!)?.[1];
  const paths = from === undefined ? words : words.slice(1);
  if (paths.length < 2 || paths.some((path) => /^--|[*?[\]"]/.test(path))) throw unknown(`COPY ${args}`);
  return { from, sources: paths.slice(0, -1), target: paths.at(-1)! };
}

/** `ENV NAME=VALUE...`, with `$NAME` replaced by its value in `env`. */
export function parseEnv(args: string, env: Readonly<Record<string, string>>): Record<string, string> {
  const pairs = args.split(/\s+/).map((pair) => {
    const [, name, value] = /^(\w+)=([^"'\\]*)$/.exec(pair) ?? [];
    if (name === undefined || value === undefined) throw unknown(`ENV ${args}`);
    return [
      name,
      value.replaceAll(/\$(?:\{(\w+)\}|(\w+))/g, (_, a?: string, b?: string) => env[(a ?? b)!] ?? ''),
    ];
  });
  return Object.fromEntries(pairs) as Record<string, string>;
}

/** ENTRYPOINT and CMD: a list of words. */
export function parseWords(args: string): string[] {
  try {
    return JSON.parse(args) as string[];
  } catch {
    throw unknown(args);
  }
}

/** Whether `.dockerignore` leaves a file of the context out: its last matching line decides. */
export function isIgnored(path: string, ignore: string): boolean {
  // A pattern matches a folder and everything below it.
  const matches = (pattern: string) => matchesGlob(path, pattern) || matchesGlob(path, `${pattern}/**`);
  let ignored = false;
  for (const line of ignore.split('\n').filter((line) => line.trim() !== '' && !line.startsWith('#'))) {
    const pattern = line.trim().replace(/^!/, '');
    if (matches(pattern)) ignored = !line.startsWith('!');
  }
  return ignored;
}
