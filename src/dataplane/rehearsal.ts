// SPDX-License-Identifier: Apache-2.0
/**
 * Rehearsals: an attached program is run on a packet, and nothing changes. The same object is loaded again with the
 * configuration of the attached program. Maps that programs only read are the real ones; of all others it gets copies,
 * with what they hold at that moment.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import {
  BpfError,
  BpfMap,
  BpfObject,
  BpfProgram,
  encodeSkBuff,
  type ProgramInfo,
  type SkBuff,
  type TestRun,
  type TestRunResult,
} from '#libbpf-ts';
import { RipstopError } from '../errors.ts';
import { decode, type Struct } from './codec.ts';
import { readCounters, type Verdict } from './counters.ts';
import { layout } from './layout.gen.ts';
import { type HookName, listLinks } from './links.ts';
import { objectDir, objectFile, objectOf, objects, type ProgramName } from './programs.ts';
import { type MapName, mapNames, pinPaths, typedTable } from './tables.ts';

/** Maps that programs only read. */
const READ_ONLY: readonly MapName[] = ['peers', 'peers6', 'vteps', 'endpoints', 'endpoints6', 'epoch'];
/** Maps of which it gets empty ones: its counters tell the packet's reason, and nobody listens to its events. */
const EMPTY: readonly MapName[] = ['counters', 'listeners', 'events'];

/** The metadata that XDP puts before a frame that it has decapsulated: `struct mark` of bpf/types.h. */
const MARK_BYTES = 8;
/** linux/pkt_cls.h: TC_ACT_UNSPEC (−1), TC_ACT_SHOT, TC_ACT_REDIRECT. */
const TC_VERDICTS: Readonly<Record<number, Verdict>> = { 0xffff_ffff: 'kernel', 2: 'drop', 7: 'fast' };

export interface Rehearsed {
  readonly hook: HookName;
  /** The attached program, and the hash of its instructions, which the copy's is equal to. */
  readonly programId: number;
  readonly tag: string;
  /** From its counters, as the reason; or what it returned when it has counted nothing. */
  readonly verdict: Verdict;
  readonly reason: string | undefined;
  /** Whether it hands a packet of the kernel path to the VTEP device, without its outer headers: see bpf/tunnels.h. */
  readonly isCarried: boolean;
  /** As the program leaves it. */
  readonly frame: Uint8Array;
}

/** A copy of an attached program. */
export class Rehearsal implements Disposable {
  /** The configuration that the attached program was loaded with. */
  readonly config: Struct<'config'>;
  readonly #hook: HookName;
  readonly #program: BpfProgram;
  readonly #attached: Pick<ProgramInfo, 'id' | 'tag'>;
  readonly #object: BpfObject;

  /**
   * @param programId of the program that is attached at this hook.
   * @throws RipstopError when the program is of another build than this ripstop's, or has other maps than the pinned ones.
   */
  constructor(bpffs: string, hook: HookName, programId: number, directory = objectDir) {
    using opened = new DisposableStack();
    const attached = opened.use(BpfProgram.fromId(programId)).info;
    const { maps } = pinPaths(bpffs);
    const pinned = mapNames.map((name) => [name, opened.use(BpfMap.openPinned(join(maps, name)))] as const);
    const globals = readGlobals(attached);
    const known = new Set(pinned.map(([, { info }]) => info.id));
    // One more is of its own: .rodata.
    if (attached.mapIds.filter((id) => !known.has(id)).length !== 1) {
      throw new RipstopError(
        `the attached program ${hook} has other maps than those pinned; an agent is replacing them: try again in a moment`,
      );
    }
    const [name, program] = [objectOf(hook), programOf(hook, attached)];
    const object = BpfObject.open(objectFile(directory, name), {
      maxEntries: Object.fromEntries(pinned.map(([map, { info }]) => [map, info.maxEntries])),
      pinPaths: Object.fromEntries(READ_ONLY.map((map) => [map, join(maps, map)])),
      skipPrograms: objects[name].filter((other) => other !== program),
    });
    try {
      object.patchGlobal(layout.globals.config.section, 0, globals);
      object.load();
      const copy = object.program(program).info;
      if (copy.tag !== attached.tag) {
        throw new RipstopError(
          `the attached program ${hook} (${attached.tag}) is of another build than this ripstop's (${copy.tag}); ` +
            'use the ripstop of the agent that runs on this node',
        );
      }
      for (const [map, from] of pinned) {
        const to = object.map(map);
        if (!READ_ONLY.includes(map) && !EMPTY.includes(map) && copy.mapIds.includes(to.info.id))
          copyEntries(from, to);
      }
    } catch (error) {
      object.close();
      throw error;
    }
    this.config = configIn(globals);
    this.#hook = hook;
    this.#program = object.program(program);
    this.#attached = attached;
    this.#object = object;
  }

  /** Run it on a frame. Each run finds what the one before it has left in the copied maps. */
  run(frame: Uint8Array, beside: Partial<SkBuff>): Rehearsed {
    const counters = typedTable('counters', this.#object.map('counters'));
    const before = readCounters({ counters });
    const isXdp = this.#hook === 'xdp_from_wire';
    const ofTc = { context: encodeSkBuff(beside) };
    const { returnValue, data } = testRun(this.#program, { data: frame, ...(!isXdp && ofTc) });
    const counted = readCounters({ counters }).find(({ packets }, i) => packets !== before[i]!.packets);
    const returned = isXdp ? 'kernel' : TC_VERDICTS[returnValue];
    const verdict = counted?.verdict ?? returned;
    return {
      hook: this.#hook,
      programId: this.#attached.id,
      tag: this.#attached.tag,
      verdict: verdict ?? 'kernel',
      reason: counted?.reason,
      isCarried: verdict === 'kernel' && returned === 'fast',
      frame: isXdp && verdict === 'fast' ? data.subarray(MARK_BYTES) : data,
    };
  }

  [Symbol.dispose](): void {
    this.#object.close();
  }
}

/** The program's name. At from_pod's place a netkit has another one. */
function programOf(hook: HookName, { name }: ProgramInfo): ProgramName {
  return name === 'from_netkit' ? name : hook;
}

/** A test-run's packet and its headroom must fit a page of memory. */
const PAGE = 4096;

function testRun(program: BpfProgram, run: TestRun): TestRunResult {
  try {
    return program.testRun(run);
  } catch (error) {
    if (run.data.length < PAGE / 2 || !(error instanceof BpfError) || error.code !== 'EINVAL') throw error;
    throw new RipstopError(
      `the kernel's test-run takes no frame of ${run.data.length} bytes, which must fit a page of memory; try 3,500`,
      { cause: error },
    );
  }
}

/** The configuration that a loaded program has. */
export function readConfig(programId: number): Struct<'config'> {
  using program = BpfProgram.fromId(programId);
  return configIn(readGlobals(program.info));
}

/** The configuration of the programs that are attached; undefined while none is. */
export function readAttachedConfig(bpffs: string): Struct<'config'> | undefined {
  const link = listLinks(pinPaths(bpffs).links)
    .values()
    .find(({ programId }) => programId !== 0);
  return link && readConfig(link.programId);
}

/** The configuration of the programs that are pinned below a bpffs mount; undefined while there are none. */
export function readPinnedConfig(bpffs: string): Struct<'config'> | undefined {
  const path = join(pinPaths(bpffs).programs, 'from_pod');
  if (!existsSync(path)) return undefined;
  using program = BpfProgram.openPinned(path);
  return configIn(readGlobals(program.info));
}

function configIn(globals: Uint8Array): Struct<'config'> {
  const { struct, offset } = layout.globals.config;
  return decode({ struct }, globals.subarray(offset));
}

/** The bytes of a program's .rodata. */
function readGlobals({ name, mapIds }: ProgramInfo): Uint8Array {
  for (const id of mapIds) {
    using map = BpfMap.fromId(id);
    const value =
      map.info.name.endsWith(layout.globals.config.section) && map.lookup(new Uint8Array(map.info.keySize));
    if (value) return value;
  }
  throw new RipstopError(`the program ${name} has no configuration, so it is none of ripstop`);
}

function copyEntries(from: BpfMap, to: BpfMap): void {
  if (!from.info.type.startsWith('percpu_')) return to.updateBatch(from.lookupBatch({ skipZero: true }));
  for (const key of from.keys()) to.updatePerCpu(key, from.lookupPerCpu(key) ?? []);
}
