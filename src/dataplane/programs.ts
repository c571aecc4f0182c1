// SPDX-License-Identifier: Apache-2.0
/**
 * Loading: the compiled objects become kernel programs with this node's configuration in .rodata, over the pinned maps.
 * Maps that are pinned are adopted with what they hold; programs are always loaded anew and replace the pinned ones, so
 * start, restart and upgrade are one path. Attached links keep running their old program until the link target swaps it.
 */
import { existsSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { BpfObject, type BpfProgram } from '#libbpf-ts';
import { RipstopError } from '../errors.ts';
import { encode } from './codec.ts';
import { desiredConfig, endpointCapacity, type NodeSettings, peerCapacity } from './desired.ts';
import { layout } from './layout.gen.ts';
import { makePinDirs, type MapName, mapNames, type PinPaths, type Tables, typedTable } from './tables.ts';
import { removeLinks } from './targets.ts';

/** Which object holds which programs. */
const objects = {
  pod: ['from_pod'],
  wire: ['from_wire'],
  xdp: ['xdp_from_wire'],
  stack: ['to_pod', 'to_vtep', 'sweep_flows'],
} as const;

export type ProgramName = (typeof objects)[keyof typeof objects][number];

/** Where the build puts the objects. */
export const objectDir = join(import.meta.dirname, '../../build');

export interface LoadedPrograms extends Disposable {
  readonly programs: Readonly<Record<ProgramName, BpfProgram>>;
  readonly tables: Tables;
  /** Forget translated flows that conntrack has forgotten; returns how many. */
  sweepFlows(): number;
}

/** Sizes that depend on the node; the others stand in bpf/maps.h. */
export function mapCapacities(settings: NodeSettings): Partial<Record<MapName, number>> {
  const slots = endpointCapacity(settings);
  return { peers: peerCapacity(settings), endpoints: slots, endpoint_state: 2 * slots };
}

/**
 * Load all objects and pin maps and programs below `paths`.
 * @throws RipstopError when an object is not built; VerifierError when the kernel refuses a program (nothing is replaced
 * then); BpfError when a pinned map has another layout, with every difference.
 */
export function loadPrograms(settings: NodeSettings, paths: PinPaths, directory = objectDir): LoadedPrograms {
  makePinDirs(paths);
  const config = encode({ struct: 'config' }, desiredConfig(settings));
  const pins = Object.fromEntries(mapNames.map((name) => [name, join(paths.maps, name)]));
  const opened: BpfObject[] = [];
  const programs: Partial<Record<ProgramName, BpfProgram>> = {};
  try {
    for (const [name, programNames] of Object.entries(objects)) {
      const file = join(directory, `${name}.bpf.o`);
      if (!existsSync(file))
        throw new RipstopError(`${file} is missing; build it with \`npm run build:bpf\``);
      const object = BpfObject.open(file, { maxEntries: mapCapacities(settings), pinPaths: pins });
      opened.push(object);
      object.patchGlobal(layout.globals.config.section, layout.globals.config.offset, config);
      object.load();
      for (const program of programNames) programs[program] = object.program(program);
    }
  } catch (error) {
    for (const object of opened) object.close();
    throw error;
  }
  const loaded = programs as Record<ProgramName, BpfProgram>;
  for (const [name, program] of Object.entries(loaded)) repin(program, join(paths.programs, name));
  const tables = Object.fromEntries(mapNames.map((name) => [name, typedTable(name, opened[0]!.map(name))]));
  return {
    programs: loaded,
    tables: tables as unknown as Tables,
    sweepFlows: () => loaded.sweep_flows.testRun({ data: new Uint8Array(64) }).returnValue,
    [Symbol.dispose]: () => opened.forEach((object) => object.close()),
  };
}

/** Pin over what may be pinned there, without a moment in which nothing is. */
function repin(program: BpfProgram, path: string): void {
  const fresh = `${path}:new`; // bpffs has no dots in names
  rmSync(fresh, { force: true });
  program.pin(fresh);
  renameSync(fresh, path);
}

/**
 * Take all of ripstop's programs off this node: links, then programs, then maps. Pods stay connected by the kernel path.
 * What is not there is no error. Run it in the node's network namespace: clsact filters are found there.
 */
export function removePins(paths: PinPaths): void {
  removeLinks(paths.links);
  for (const directory of [paths.links, paths.programs, paths.maps]) {
    if (!existsSync(directory)) continue;
    for (const pin of readdirSync(directory)) rmSync(join(directory, pin), { force: true });
    rmSync(directory, { recursive: true, force: true });
  }
}
