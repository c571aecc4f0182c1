// SPDX-License-Identifier: Apache-2.0
/**
 * Loading: the compiled objects become kernel programs with this node's configuration in .rodata, over the pinned maps.
 * Maps that are pinned are adopted with what they hold, or made anew beside the old ones when they must differ; programs are
 * always loaded anew and replace the pinned ones, so start, restart and upgrade are one path. Attached links keep running their old program until the link target swaps it.
 */
import { existsSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { BpfMap, BpfObject, type BpfProgram } from '#libbpf-ts';
import { RipstopError } from '../errors.ts';
import { encode } from './codec.ts';
import { desiredConfig, endpointCapacity, type NodeSettings, peerCapacity } from './desired.ts';
import {
  currentGeneration,
  dropGenerations,
  type Generation,
  makeGeneration,
  useGeneration,
} from './generation.ts';
import { layout } from './layout.gen.ts';
import { makePinDirs, type MapName, mapNames, type PinPaths, type Tables, typedTable } from './tables.ts';
import { listLinks, removeLinks } from './links.ts';
import { noFailures, type Target } from '../reconcile/target.ts';

/** Which object holds which programs. */
const objects = {
  pod: ['from_pod'],
  wire: ['from_wire'],
  xdp: ['xdp_from_wire'],
  kernel: ['to_pod', 'to_vtep', 'sweep_flows'],
} as const;

export type ProgramName = (typeof objects)[keyof typeof objects][number];

/** Where the build puts the objects. */
export const objectDir = join(import.meta.dirname, '../../build');

export interface LoadedPrograms extends Disposable {
  readonly programs: Readonly<Record<ProgramName, BpfProgram>>;
  readonly tables: Tables;
  /**
   * What had to be made anew beside maps in use, until {@link LoadedPrograms.takeOver}; undefined when the maps are those in
   * use. Fill them before links lead to these programs.
   */
  readonly pending: PendingMaps | undefined;
  /** The maps of these programs are the ones in use now; the others are dropped. To be called once links lead to them. */
  takeOver(): void;
  /** Forget translated flows that conntrack has forgotten; returns how many. */
  sweepFlows(): number;
}

export interface PendingMaps {
  /** Those that stay, with all that they hold. */
  readonly kept: readonly MapName[];
  /** Which pods keep to the kernel path for as long as they live, since their translated flows could not be carried over. */
  readonly slow: 'none' | 'those with translated flows' | 'all';
}

/** Sizes that depend on the node; the others stand in bpf/maps.h. */
export function mapCapacities(settings: NodeSettings): Partial<Record<MapName, number>> {
  const slots = endpointCapacity(settings);
  return { peers: peerCapacity(settings), endpoints: slots, endpoint_state: 2 * slots };
}

/**
 * Load all objects and pin maps and programs below `paths`. Maps that are pinned are adopted if they are what the objects
 * declare; where any is not, a new generation of maps is made, which shares with the one in use all that are the same.
 * @throws RipstopError when an object is not built, or when the maps in use are of a later layout, with every difference;
 * VerifierError when the kernel refuses a program. Nothing is replaced then.
 */
export function loadPrograms(settings: NodeSettings, paths: PinPaths, directory = objectDir): LoadedPrograms {
  makePinDirs(paths);
  const config = encode({ struct: 'config' }, desiredConfig(settings));
  const maxEntries = mapCapacities(settings);
  const current = currentGeneration(paths);
  const kept = current ? keptMaps(current, objectFile(directory, 'kernel'), maxEntries) : [];
  const adopts = current?.version === layout.version && kept.length === mapNames.length;
  const generation = adopts ? current : makeGeneration(paths, layout.version);
  const opened: BpfObject[] = [];
  const programs: Partial<Record<ProgramName, BpfProgram>> = {};
  try {
    if (current && !adopts) for (const name of kept) sharePin(name, current, generation);
    const pins = Object.fromEntries(mapNames.map((name) => [name, join(generation.path, name)]));
    for (const [name, programNames] of Object.entries(objects)) {
      const object = BpfObject.open(objectFile(directory, name), { maxEntries, pinPaths: pins });
      opened.push(object);
      object.patchGlobal(layout.globals.config.section, layout.globals.config.offset, config);
      object.load();
      for (const program of programNames) programs[program] = object.program(program);
    }
  } catch (error) {
    for (const object of opened) object.close();
    if (!adopts) rmSync(generation.path, { recursive: true, force: true });
    throw error;
  }
  const loaded = programs as Record<ProgramName, BpfProgram>;
  for (const [name, program] of Object.entries(loaded)) repin(program, join(paths.programs, name));
  const tables = Object.fromEntries(
    mapNames.map((name) => [name, typedTable(name, opened[0]!.map(name))]),
  ) as unknown as Tables;
  const sweepFlows = (): number => loaded.sweep_flows.testRun({ data: new Uint8Array(64) }).returnValue;
  if (!current) useGeneration(paths, generation);
  let pending = current && !adopts ? { kept, slow: markFlows(tables, kept) } : undefined;
  return {
    programs: loaded,
    tables,
    get pending() {
      return pending;
    },
    takeOver() {
      useGeneration(paths, generation);
      pending = undefined;
      // Slots that no pod has need not stay slow.
      sweepFlows();
    },
    sweepFlows,
    [Symbol.dispose]: () => opened.forEach((object) => object.close()),
  };
}

function objectFile(directory: string, name: string): string {
  const file = join(directory, `${name}.bpf.o`);
  if (!existsSync(file)) throw new RipstopError(`${file} is missing; build it with \`npm run build:bpf\``);
  return file;
}

/**
 * The maps in use that these objects can go on with: they look the same, and what is in them still means the same.
 * @throws RipstopError when the maps in use are of a later layout, which nobody here can know.
 */
function keptMaps(
  current: Generation,
  file: string,
  maxEntries: Partial<Record<MapName, number>>,
): readonly MapName[] {
  using object = BpfObject.open(file, { maxEntries });
  const pins = readdirSync(current.path);
  const differences = new Map<MapName, readonly string[]>();
  for (const name of mapNames) {
    if (!pins.includes(name)) {
      differences.set(name, [`${name}: is not there`]);
      continue;
    }
    using pinned = BpfMap.openPinned(join(current.path, name));
    differences.set(name, object.mapDifferences(name, pinned));
  }
  if (current.version > layout.version) {
    const unknown = pins
      .filter((pin) => !mapNames.includes(pin as MapName))
      .map((pin) => `${pin}: is not known here`);
    const all = [...differences.values()].flat().concat(unknown);
    throw new RipstopError(
      `the maps in use have layout ${current.version}, and this ripstop, which is older, knows layout ${layout.version}` +
        `${all.length > 0 ? ` (${all.join('; ')})` : ''}; what is attached goes on forwarding as it is: run the newer ripstop again, or take it off this node with \`ripstop uninstall\` first`,
    );
  }
  return mapNames.filter(
    (name) => layout.maps[name].since <= current.version && differences.get(name)!.length === 0,
  );
}

function sharePin(name: MapName, from: Generation, to: Generation): void {
  using map = BpfMap.openPinned(join(from.path, name));
  map.pin(join(to.path, name));
}

/**
 * No reply of a translated flow may overtake conntrack, also when the flows, or the counts of them, could not be kept:
 * whoever may have such flows keeps to the kernel path for good.
 */
function markFlows({ endpoint_state }: Tables, kept: readonly MapName[]): PendingMaps['slow'] {
  const knowsWho = kept.includes('endpoint_state');
  if (knowsWho && kept.includes('stack_flows')) return 'none';
  const marked = [...endpoint_state]
    .filter(([, state]) => !knowsWho || state.stack_flows > 0)
    .map(([slot, state]) => [slot, { ...state, overflow: 1 }] as const);
  endpoint_state.setMany(marked);
  return knowsWho ? 'those with translated flows' : 'all';
}

/** The node's programs as they are loaded now, for whoever plans with them or attaches them. */
export class ProgramSet implements Disposable {
  readonly #paths: PinPaths;
  #loaded: { readonly settings: NodeSettings; readonly programs: LoadedPrograms } | undefined;
  #revision = 0;

  constructor(paths: PinPaths) {
    this.#paths = paths;
  }

  /** Undefined before they were loaded for the first time. */
  get loaded(): LoadedPrograms | undefined {
    return this.#loaded?.programs;
  }

  /** Grows whenever other programs, or other maps, take their place. */
  get revision(): number {
    return this.#revision;
  }

  /** The loaded programs, for targets that are only planned when there are some. */
  get current(): LoadedPrograms {
    if (!this.#loaded) throw new RipstopError('no programs are loaded');
    return this.#loaded.programs;
  }

  /** The one key of both targets below. */
  static readonly KEY = 'loaded';

  /**
   * Programs loaded for these settings; those that are loaded stay until the new ones are.
   * @param onPending called when maps had to be made anew beside those in use.
   */
  programsTarget(onPending: (pending: PendingMaps) => void = () => {}): Target<NodeSettings> {
    return {
      name: 'programs',
      list: async () => new Map(this.#loaded ? [[ProgramSet.KEY, this.#loaded.settings]] : []),
      upsert: async (entries) => {
        for (const settings of entries.values()) {
          const programs = loadPrograms(settings, this.#paths);
          this[Symbol.dispose]();
          this.#loaded = { settings, programs };
          this.#revision++;
          if (programs.pending) onPending(programs.pending);
        }
        return noFailures;
      },
      remove: async () => noFailures,
    };
  }

  /** The maps of the loaded programs as the ones in use, which they are once all links lead to these programs. */
  mapsTarget(): Target<true> {
    return {
      name: 'maps',
      list: async () => new Map(this.#loaded?.programs.pending ? [] : [[ProgramSet.KEY, true]]),
      upsert: async () => {
        const ours = new Set(Object.values(this.current.programs).map(({ info }) => info.id));
        for (const [key, { ifindex, programId }] of listLinks(this.#paths.links)) {
          if (ifindex !== 0 && !ours.has(programId))
            throw new RipstopError(`${key} still runs a previous program, so the maps in use stay`);
        }
        this.current.takeOver();
        this.#revision++;
        return noFailures;
      },
      remove: async () => noFailures,
    };
  }

  [Symbol.dispose](): void {
    this.#loaded?.programs[Symbol.dispose]();
  }
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
  for (const directory of [paths.links, paths.programs]) rmSync(directory, { recursive: true, force: true });
  if (existsSync(dirname(paths.maps))) dropGenerations(paths);
}
