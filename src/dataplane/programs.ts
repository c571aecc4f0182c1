// SPDX-License-Identifier: Apache-2.0
/**
 * Loading: the compiled objects become kernel programs, with this node's configuration in .rodata and with the pinned
 * maps. Pinned maps are adopted with their content; maps that must differ are created beside the old ones. Programs are
 * always loaded again and replace the pinned ones, so start, restart and upgrade are one path. Attached links run their
 * previous program until the target of links.ts replaces it.
 */
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { BpfMap, BpfObject, type BpfProgram } from '#libbpf-ts';
import { filterDestroyed } from '#netlink';
import { RipstopError } from '../errors.ts';
import { type Cause, type ChangesReport, kernelFunctions, moveEpoch, watchChanges } from './changes.ts';
import { encode, type Struct } from './codec.ts';
import { desiredConfig, endpointCapacity, type NodeSettings, peerCapacity } from './desired.ts';
import {
  currentGeneration,
  removeGenerations,
  type Generation,
  makeGeneration,
  useGeneration,
} from './generation.ts';
import type { Networks } from './flow-sums.ts';
import { layout } from './layout.gen.ts';
import {
  makePinDirs,
  type MapName,
  mapNames,
  type PinPaths,
  repin,
  type Tables,
  typedTable,
} from './tables.ts';
import { listLinks, removeLinks } from './links.ts';
import { noFailures, type Target } from '../reconcile/target.ts';

/** Which object holds which programs. */
export const objects = {
  pod: ['from_pod', 'from_netkit', 'to_pod'],
  wire: ['from_wire', 'to_wire', 'from_vtep', 'to_vtep'],
  xdp: ['xdp_from_wire'],
  conntrack: ['connection_deleted'],
  changes: ['move_epoch'],
} as const;

export type ObjectName = keyof typeof objects;
export type ProgramName = (typeof objects)[keyof typeof objects][number];

/** Where the build puts the objects. */
export const objectDir = join(import.meta.dirname, '../../build');

/** The program for netkits takes as long to load as all else of its object, so it is loaded only where it is needed. */
type Loaded = Readonly<
  Record<Exclude<ProgramName, 'from_netkit'>, BpfProgram> & { from_netkit?: BpfProgram }
>;

export interface LoadedPrograms extends Disposable {
  readonly programs: Loaded;
  readonly tables: Tables;
  /** With which they were loaded. */
  readonly settings: NodeSettings;
  readonly networks: Networks;
  /**
   * Set when these programs have new maps, beside the maps in use, until {@link LoadedPrograms.takeOver}. Fill the new
   * maps before links lead to these programs.
   */
  readonly pending: PendingMaps | undefined;
  /**
   * Make the maps of these programs the ones in use, and remove the others. Call it once all links lead to these
   * programs.
   */
  takeOver(): void;
  /** Invalidate all flows: something has changed on which the kernel path's decisions may rest. */
  moveEpoch(cause: Cause): void;
  /** Have the kernel move it, too, where it can: see changes.ts. */
  watchChanges(): Promise<ChangesReport>;
}

export interface PendingMaps {
  /** The maps that stay, with their content. */
  readonly kept: readonly MapName[];
}

/** Of the flow table of a family that the cluster does not have. */
const UNUSED_TABLE_SIZE = 1024;

/** The capacities that depend on the node; the others are in bpf/maps.h. */
function mapCapacities(settings: NodeSettings): Partial<Record<MapName, number>> {
  const slots = endpointCapacity(settings);
  const flowsOf = (part: unknown): number => (part ? settings.flowTableSize : UNUSED_TABLE_SIZE);
  return {
    peers: peerCapacity(settings),
    endpoints: slots,
    endpoint_state: 2 * slots,
    flows4: flowsOf(settings.v4),
    flows6: flowsOf(settings.v6),
  };
}

/**
 * Load all objects, and pin maps and programs below `paths`. Pinned maps are adopted if all are as the objects declare
 * them. If not, a new generation of maps is created, which shares with the one in use all maps that are as declared.
 * @throws RipstopError when an object is not built; also when the maps in use have a later layout, with every
 * difference.
 * @throws VerifierError when the kernel refuses a program. In all these cases nothing was replaced.
 */
export function loadPrograms(settings: NodeSettings, paths: PinPaths, directory = objectDir): LoadedPrograms {
  makePinDirs(paths);
  const desired = desiredConfig(settings);
  const config = encode({ struct: 'config' }, { ...desired, ...processConfig() });
  const maxEntries = mapCapacities(settings);
  const current = currentGeneration(paths);
  const kept = current ? keptMaps(current, objectFile(directory, 'pod'), maxEntries) : [];
  const adopts = current?.version === layout.version && kept.length === mapNames.length;
  const generation = adopts ? current : makeGeneration(paths, layout.version);
  const pins = Object.fromEntries(mapNames.map((name) => [name, join(generation.path, name)]));
  const skipPrograms = settings.netkit ? [] : ['from_netkit'];
  const open = (name: string): BpfObject => {
    const skips = name === 'pod' && { skipPrograms };
    const object = BpfObject.open(objectFile(directory, name), { maxEntries, pinPaths: pins, ...skips });
    object.patchGlobal(layout.globals.config.section, layout.globals.config.offset, config);
    return object;
  };
  const opened: BpfObject[] = [];
  const programs: Partial<Record<ProgramName, BpfProgram>> = {};
  try {
    if (current && !adopts) for (const name of kept) sharePin(name, current, generation);
    for (const [name, programNames] of Object.entries(objects)) {
      const object = open(name);
      opened.push(object);
      object.load();
      for (const program of programNames)
        if (!skipPrograms.includes(program)) programs[program] = object.program(program);
    }
  } catch (error) {
    for (const object of opened) object.close();
    if (!adopts) rmSync(generation.path, { recursive: true, force: true });
    throw error;
  }
  const loaded = programs as Loaded;
  for (const [name, program] of Object.entries(loaded)) repin(program, join(paths.programs, name));
  // A pin of a program that only another version has would keep that version's maps in memory.
  const stale = readdirSync(paths.programs).filter((name) => !(name in loaded));
  for (const name of stale) rmSync(join(paths.programs, name));
  const tables = Object.fromEntries(
    mapNames.map((name) => [name, typedTable(name, opened[0]!.map(name))]),
  ) as unknown as Tables;
  if (!current) useGeneration(paths, generation);
  let pending = current && !adopts ? { kept } : undefined;
  return {
    programs: loaded,
    tables,
    settings,
    networks: desired,
    get pending() {
      return pending;
    },
    takeOver() {
      useGeneration(paths, generation);
      pending = undefined;
    },
    moveEpoch: (cause) => moveEpoch(loaded.move_epoch, cause),
    watchChanges: () => watchChanges(() => open('changes'), paths.changes),
    [Symbol.dispose]: () => opened.forEach((object) => object.close()),
  };
}

/** What only a process in the node's network namespace knows. */
function processConfig(): Pick<Struct<'config'>, 'netns' | 'source_port' | 'source_ports'> {
  // A VXLAN device without ports of its own takes these, but for the last one: udp_flow_src_port() in net/udp.h.
  const [first, last] = readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8').trim().split(/\s+/);
  return {
    netns: statSync('/proc/self/ns/net').ino,
    source_port: Number(first),
    source_ports: Number(last) - Number(first),
  };
}

/** How long a program has run, and how often, since it was loaded. */
export interface ProgramRuns {
  readonly program: string;
  readonly runs: number;
  readonly seconds: number;
}

/** Of programs whose runs the kernel has measured: it does so only while kernel.bpf_stats_enabled is on. */
export function readRuns(programs: LoadedPrograms['programs']): ProgramRuns[] {
  return Object.entries(programs).flatMap(([program, { info }]) => {
    const { runCount, runTimeNs } = info;
    return runCount === 0n ? [] : [{ program, runs: Number(runCount), seconds: Number(runTimeNs) / 1e9 }];
  });
}

/** The object that holds a program. */
export function objectOf(program: ProgramName): ObjectName {
  const names = Object.keys(objects) as ObjectName[];
  return names.find((name) => (objects[name] as readonly ProgramName[]).includes(program))!;
}

export function objectFile(directory: string, name: string): string {
  const file = join(directory, `${name}.bpf.o`);
  if (!existsSync(file)) throw new RipstopError(`${file} is missing; build it with \`npm run build:bpf\``);
  return file;
}

/**
 * The maps in use that these objects can adopt: their declaration is the same, and so is the meaning of their content.
 * @throws RipstopError when the maps in use have a later layout, which this version cannot know.
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
      differences.set(name, [`${name}: does not exist`]);
      continue;
    }
    using pinned = BpfMap.openPinned(join(current.path, name));
    differences.set(name, object.mapDifferences(name, pinned));
  }
  if (current.version > layout.version) {
    const unknown = pins
      .filter((pin) => !mapNames.includes(pin as MapName))
      .map((pin) => `${pin}: is unknown to this version`);
    const all = [...differences.values()].flat().concat(unknown);
    throw new RipstopError(
      `the maps in use have layout ${current.version}, and this ripstop, which is older, ` +
        `knows layout ${layout.version}` +
        `${all.length > 0 ? ` (${all.join('; ')})` : ''}; the attached programs keep forwarding: ` +
        'run the newer ripstop again, or remove it from this node with `ripstop uninstall` first',
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

/** The loaded programs of this node, which change when they are loaded again. */
export class ProgramSet implements Disposable {
  readonly #paths: PinPaths;
  #loaded:
    | { readonly settings: NodeSettings; readonly programs: LoadedPrograms; readonly filter: Disposable }
    | undefined;
  #revision = 0;

  constructor(paths: PinPaths) {
    this.#paths = paths;
  }

  /** Undefined before the first load. */
  get loaded(): LoadedPrograms | undefined {
    return this.#loaded?.programs;
  }

  /** Grows whenever programs or maps are replaced. */
  get revision(): number {
    return this.#revision;
  }

  /** The loaded programs, for targets that are planned only when there are some. */
  get current(): LoadedPrograms {
    if (!this.#loaded) throw new RipstopError('no programs are loaded');
    return this.#loaded.programs;
  }

  /** The one key of the targets below. */
  static readonly KEY = 'loaded';

  /**
   * The programs, loaded for these settings. Loaded programs stay until the new ones are loaded.
   * @param onPending called when new maps had to be created beside those in use.
   */
  programsTarget(onPending: (pending: PendingMaps) => void = () => {}): Target<NodeSettings> {
    return {
      name: 'programs',
      list: async () => new Map(this.#loaded ? [[ProgramSet.KEY, this.#loaded.settings]] : []),
      upsert: async (entries) => {
        for (const settings of entries.values()) {
          const programs = loadPrograms(settings, this.#paths);
          const filter = filterDestroyed(programs.programs.connection_deleted.fd);
          this[Symbol.dispose]();
          this.#loaded = { settings, programs, filter };
          this.#revision++;
          if (programs.pending) onPending(programs.pending);
        }
        return noFailures;
      },
      remove: async () => noFailures,
    };
  }

  /** Makes the maps of the loaded programs the ones in use, once all links lead to these programs. */
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

  /**
   * The programs that move the epoch when the kernel changes its rules. They are optional, so nothing fails. Tried again
   * when a module has brought new functions.
   */
  changesTarget(onReport: (report: ChangesReport) => void): Target<true> {
    let tried: { readonly programs: LoadedPrograms; readonly functions: string } | undefined;
    const isDone = (): boolean =>
      tried !== undefined && tried.programs === this.current && tried.functions === kernelFunctions();
    return {
      name: 'changes',
      list: async () => new Map(isDone() ? [[ProgramSet.KEY, true]] : []),
      upsert: async () => {
        tried = { programs: this.current, functions: kernelFunctions() };
        onReport(await this.current.watchChanges());
        return noFailures;
      },
      remove: async () => noFailures,
    };
  }

  [Symbol.dispose](): void {
    this.#loaded?.filter[Symbol.dispose]();
    this.#loaded?.programs[Symbol.dispose]();
  }
}

/**
 * Remove everything of ripstop that is pinned on this node: links, then programs, then maps. Pods stay connected
 * through the kernel path. It is no error if nothing is pinned. Run it in the node's network namespace, where clsact
 * filters are found.
 */
export function removePins(paths: PinPaths): void {
  removeLinks(paths.links);
  for (const directory of [paths.changes, paths.links, paths.programs])
    rmSync(directory, { recursive: true, force: true });
  if (existsSync(dirname(paths.maps))) removeGenerations(paths);
}
