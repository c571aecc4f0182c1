// SPDX-License-Identifier: Apache-2.0
/**
 * The kernel moves the epoch itself, where it lets programs trace it: bpf/changes.bpf.c has a program for each function
 * through which rules, policies and routes change. Each is optional. The links are pinned, so they work while no agent
 * runs. They are not replaced in place, which the kernel does not offer: for a moment the old and the new one are there,
 * and the epoch moves twice.
 */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { BpfLink, type BpfObject, type BpfProgram, supportsPrograms, VerifierError } from '#libbpf-ts';
import { errorText } from '../errors.ts';
import { encode } from './codec.ts';
import { layout } from './layout.gen.ts';
import { repin, type Tables } from './tables.ts';

export interface ChangesReport {
  readonly watched: readonly string[];
  /** Why others are not: the kernel's refusals, by function; of all of them by `*`. */
  readonly refused: Readonly<Record<string, string>>;
  /** Functions that this kernel does not have, or whose module is not loaded. */
  readonly missing: readonly string[];
}

const { CAUSES: _count, ...causes } = layout.enums.cause;
type Enumerator = keyof typeof causes;

/** Of a move of the epoch that an event told of. */
export type Cause = Enumerator extends infer E
  ? E extends `CAUSE_EVENT_${infer Name}`
    ? Lowercase<Name>
    : never
  : never;

const PACKET_BYTES = 64;
const ETHERNET_BYTES = 14;

/** Invalidate all flows. @param program bpf/changes.bpf.c's `move_epoch` */
export function moveEpoch(program: BpfProgram, cause: Cause): void {
  const data = new Uint8Array(PACKET_BYTES);
  const enumerator = `CAUSE_EVENT_${cause.toUpperCase()}` as Enumerator;
  data.set(encode('u32', causes[enumerator]), ETHERNET_BYTES);
  program.testRun({ data });
}

/** How often all flows were invalidated for one cause. */
export interface Invalidations {
  /** Who saw the change: `event` (the agent was told) or `traced` (a program at a function of the kernel). */
  readonly by: string;
  readonly cause: string;
  readonly times: number;
}

/** Those of all causes, zero ones too. */
export function readInvalidations(tables: Pick<Tables, 'invalidations'>): Invalidations[] {
  return Object.entries(causes).map(([name, key]) => {
    const [, by, ...cause] = name.toLowerCase().split('_');
    return { by: by!, cause: cause.join('_'), times: tables.invalidations.get(key)?.times ?? 0 };
  });
}

/** What tells when the kernel may have got new functions: its modules that describe theirs. */
export function kernelFunctions(): string {
  const directory = '/sys/kernel/btf';
  return existsSync(directory) ? readdirSync(directory).sort().join() : '';
}

/** The functions of the kernel whose changes move the epoch. */
export function watchedFunctions(pinDir: string): string[] {
  return existsSync(pinDir) ? readdirSync(pinDir).sort() : [];
}

/**
 * Attach all programs that the kernel accepts, and pin them in the place of previous ones. Does not throw if it accepts
 * none, as without CAP_PERFMON.
 * @param open opens bpf/changes.bpf.c's object
 */
export async function watchChanges(open: () => BpfObject, pinDir: string): Promise<ChangesReport> {
  const refused: Record<string, string> = {};
  const watched: string[] = [];
  let missing: string[] = [];
  try {
    if (!supportsPrograms('tracing'))
      throw new Error('the kernel lets this process load no tracing programs');
    using loaded = load(open, refused);
    missing = loaded.missing;
    for (const name of loaded.functions) {
      try {
        using link = await BpfLink.attachExit(loaded.object.program(name));
        repin(link, join(pinDir, name));
        watched.push(name);
      } catch (error) {
        refused[name] = errorText(error);
      }
    }
  } catch (error) {
    refused['*'] = errorText(error);
  }
  for (const name of watchedFunctions(pinDir)) if (!watched.includes(name)) rmSync(join(pinDir, name));
  return { watched, refused, missing };
}

interface LoadedObject extends Disposable {
  readonly object: BpfObject;
  readonly functions: readonly string[];
  readonly missing: string[];
}

/** Load the programs for which there is a function. If the verifier refuses one, load the others without it. */
function load(open: () => BpfObject, refused: Record<string, string>): LoadedObject {
  for (;;) {
    const object = open();
    try {
      const names = object.programNames.filter((name) => name !== 'move_epoch' && !(name in refused));
      const functions = names.filter((name) => object.trace(name, name));
      object.load();
      const missing = names.filter((name) => !functions.includes(name));
      return { object, functions, missing, [Symbol.dispose]: () => object.close() };
    } catch (error) {
      object.close();
      if (!(error instanceof VerifierError) || error.program in refused) throw error;
      refused[error.program] = error.message;
    }
  }
}
