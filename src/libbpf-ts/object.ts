// SPDX-License-Identifier: Apache-2.0
import { readFileSync, unlinkSync } from 'node:fs';
import { basename } from 'node:path';
import { BpfError, checkStatus, MapMismatchError, VerifierError } from './error.ts';
import { openOptions, type Pointer } from './calls.ts';
import { allocate, checkPointer, libbpf, readString, release, withLog, writeBytes } from './ffi.ts';
import { duplicateFd } from './handle.ts';
import { possibleCpus } from './host.ts';
import { BpfMap } from './map.ts';
import { MAP_TYPES, nameOf } from './names.ts';
import { BpfProgram } from './program.ts';

export interface OpenOptions {
  /** The object's name in libbpf's messages. Default: the file's name. */
  name?: string;
  /** Sizes that replace the object's own, by map. */
  maxEntries?: Record<string, number>;
  /** Pins by map: a map is reused when its pin exists, else created and pinned at load. Directories must exist. */
  pinPaths?: Record<string, string>;
  /** Programs that are not loaded. */
  skipPrograms?: string[];
}

/** The verifier's own limit. The pages are touched only when a program is refused. */
const LOG_BYTES = (1 << 24) - 1;
const ENOENT = 2;

/**
 * A compiled BPF object: open it, set its globals, load it into the kernel, then take its maps and programs. They are
 * closed together with the object; to keep one longer, open it again by its id or pin.
 */
export class BpfObject {
  readonly mapNames: readonly string[];
  readonly programNames: readonly string[];
  readonly #memory: Pointer;
  readonly #pointer: Pointer;
  readonly #maps: ReadonlyMap<string, Pointer>;
  readonly #programs: ReadonlyMap<string, Pointer>;
  readonly #pinPaths: ReadonlyMap<string, string>;
  readonly #openMaps = new Map<string, BpfMap>();
  readonly #openPrograms = new Map<string, BpfProgram>();
  #state: 'open' | 'loaded' | 'closed' = 'open';

  private constructor(bytes: Uint8Array, name: string, options: OpenOptions) {
    const c = libbpf();
    // libbpf may look into the ELF file until it is closed.
    this.#memory = allocate(bytes.length);
    writeBytes(this.#memory, bytes);
    try {
      this.#pointer = withLog(() =>
        checkPointer(
          'bpf_object__open_mem',
          c.bpf_object__open_mem(this.#memory, bytes.length, openOptions.of({ object_name: name })),
          name,
        ),
      );
    } catch (error) {
      release(this.#memory);
      throw error;
    }
    this.#maps = new Map(
      walk((previous) => c.bpf_object__next_map(this.#pointer, previous)).map(
        (map) => [mapName(map), map] as const,
      ),
    );
    this.#programs = new Map(
      walk((previous) => c.bpf_object__next_program(this.#pointer, previous)).map(
        (p) => [c.bpf_program__name(p), p] as const,
      ),
    );
    this.mapNames = [...this.#maps.keys()];
    this.programNames = [...this.#programs.keys()];
    this.#pinPaths = new Map(Object.entries(options.pinPaths ?? {}));
    try {
      for (const [map, count] of Object.entries(options.maxEntries ?? {})) {
        const status = c.bpf_map__set_max_entries(this.#mapPointer(map), count);
        checkStatus('bpf_map__set_max_entries', status, `map ${map}`);
      }
      for (const map of this.#pinPaths.keys()) this.#mapPointer(map);
      for (const program of options.skipPrograms ?? []) {
        const status = c.bpf_program__set_autoload(this.#programPointer(program), false);
        checkStatus('bpf_program__set_autoload', status, `program ${program}`);
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /**
   * Read an object file, or the bytes of one; nothing is in the kernel yet.
   * @throws BpfError when it is no BPF object; Error when an option names a map or program that is not in it.
   */
  static open(source: string | Uint8Array, options: OpenOptions = {}): BpfObject {
    const bytes = typeof source === 'string' ? readFileSync(source) : source;
    const name = options.name ?? (typeof source === 'string' ? basename(source).split('.')[0] : undefined);
    // A dot would get into the names of the maps of .data, .rodata and .bss.
    return new BpfObject(bytes, (name || 'object').replaceAll('.', '_'), options);
  }

  /**
   * Set initial bytes of global variables, such as `const volatile` settings, before {@link load}.
   * @param section `.rodata`, `.data` or `.bss`; a variable's offset in it is in the object's BTF.
   */
  patchGlobal(section: string, offset: number, bytes: Uint8Array): void {
    if (this.#state !== 'open') throw new Error('globals can be set only before load');
    const size = new BigUint64Array(1);
    const map = this.#mapPointer(section);
    const start = libbpf().bpf_map__initial_value(map, size);
    if (start === null) throw new Error(`map ${section} holds no global variables`);
    if (offset < 0 || offset + bytes.length > Number(size[0])) {
      throw new RangeError(
        `${section} has ${size[0]} bytes: cannot set ${offset} to ${offset + bytes.length}`,
      );
    }
    writeBytes(start + BigInt(offset), bytes);
  }

  /**
   * Have {@link load} load a tracing program, for this function of the kernel or of one of its modules. Such a program
   * is in a section of the form `?fexit`, so that it is not loaded otherwise.
   * @returns false when the function is not found.
   */
  trace(name: string, kernelFunction: string): boolean {
    if (this.#state !== 'open') throw new Error('what a program traces can be set only before load');
    const program = this.#programPointer(name);
    const c = libbpf();
    if (withLog(() => c.bpf_program__set_attach_target(program, 0, kernelFunction)) < 0) return false;
    checkStatus('bpf_program__set_autoload', c.bpf_program__set_autoload(program, true), `program ${name}`);
    return true;
  }

  /**
   * Create the maps, or reuse the pinned ones, and load the programs. A failure leaves nothing in the kernel and no new
   * pin; the object can then only be closed.
   * @throws MapMismatchError with every difference between pinned maps and the object's; VerifierError; BpfError.
   */
  load(): void {
    if (this.#state !== 'open') throw new Error(`the object is ${this.#state} already`);
    const reused = this.#reusePinned();
    const logs = new Map<string, Pointer>();
    const c = libbpf();
    try {
      for (const [name, program] of this.#programs) {
        if (!c.bpf_program__autoload(program)) continue;
        const log = allocate(LOG_BYTES);
        writeBytes(log, Uint8Array.of(0));
        logs.set(name, log);
        const status = c.bpf_program__set_log_buf(program, log, LOG_BYTES);
        checkStatus('bpf_program__set_log_buf', status, `program ${name}`);
      }
      withLog(() => {
        const status = c.bpf_object__load(this.#pointer);
        if (status >= 0) return;
        // Only the refused program has a log, since libbpf asks for one only then.
        for (const [name, log] of logs) {
          const text = readString(log);
          if (text !== '') throw new VerifierError(name, -status, text);
        }
        checkStatus('bpf_object__load', status);
      });
    } finally {
      for (const name of logs.keys()) c.bpf_program__set_log_buf(this.#programPointer(name), null, 0);
      for (const log of logs.values()) release(log);
    }
    this.#state = 'loaded';
    this.#pinNew(reused);
  }

  /**
   * How a map differs from what the object wants for one of {@link mapNames}: one line for each field that differs.
   */
  mapDifferences(name: string, other: BpfMap): string[] {
    return mapDifferences(this.#mapPointer(name), name, other);
  }

  /** One of {@link mapNames}, after {@link load}. */
  map(name: string): BpfMap {
    return this.#handle(this.#openMaps, name, () =>
      BpfMap.fromFd(duplicateFd(libbpf().bpf_map__fd(this.#mapPointer(name)))),
    );
  }

  /** One of {@link programNames} that was not skipped, after {@link load}. */
  program(name: string): BpfProgram {
    return this.#handle(this.#openPrograms, name, () => {
      const fd = checkStatus(
        'bpf_program__fd',
        libbpf().bpf_program__fd(this.#programPointer(name)),
        `program ${name} was skipped`,
      );
      return BpfProgram.fromFd(duplicateFd(fd));
    });
  }

  /**
   * Close it with all its maps and programs. What is pinned or attached stays in the kernel. Closing twice is no error.
   */
  close(): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    for (const handle of [...this.#openMaps.values(), ...this.#openPrograms.values()]) handle.close();
    libbpf().bpf_object__close(this.#pointer);
    release(this.#memory);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #handle<T extends BpfMap | BpfProgram>(handles: Map<string, T>, name: string, open: () => T): T {
    if (this.#state !== 'loaded') throw new Error(`load the object before taking ${name} from it`);
    let handle = handles.get(name);
    if (handle === undefined || handle.closed) {
      handle = open();
      handles.set(name, handle);
    }
    return handle;
  }

  #mapPointer(name: string): Pointer {
    return member(this.#maps, 'map', name);
  }

  #programPointer(name: string): Pointer {
    return member(this.#programs, 'program', name);
  }

  /** Give libbpf the pinned maps. Returns the names of those that exist. */
  #reusePinned(): Set<string> {
    const reused = new Map<string, BpfMap>();
    try {
      const differences: string[] = [];
      for (const [name, path] of this.#pinPaths) {
        const pinned = openIfPinned(path);
        if (pinned === undefined) continue;
        reused.set(name, pinned);
        differences.push(...mapDifferences(this.#mapPointer(name), name, pinned));
      }
      if (differences.length > 0) throw new MapMismatchError(differences);
      for (const [name, pinned] of reused) {
        // libbpf keeps a descriptor of its own.
        const status = libbpf().bpf_map__reuse_fd(this.#mapPointer(name), pinned.fd);
        checkStatus('bpf_map__reuse_fd', status, `map ${name}`);
      }
      return new Set(reused.keys());
    } finally {
      for (const pinned of reused.values()) pinned.close();
    }
  }

  /** Only after a successful load: a refused program must not leave pins of empty maps behind. */
  #pinNew(reused: ReadonlySet<string>): void {
    const made: string[] = [];
    try {
      for (const [name, path] of this.#pinPaths) {
        if (reused.has(name)) continue;
        this.map(name).pin(path);
        made.push(path);
      }
    } catch (error) {
      for (const path of made) unlinkSync(path);
      throw error;
    }
  }
}

function walk(next: (previous: Pointer | null) => Pointer | null): Pointer[] {
  const found: Pointer[] = [];
  for (let item = next(null); item !== null; item = next(item)) found.push(item);
  return found;
}

/** Maps of global variables are named for their section, `.rodata`. libbpf puts the object's name before it. */
function mapName(map: Pointer): string {
  const name = libbpf().bpf_map__name(map);
  return libbpf().bpf_map__is_internal(map) ? name.slice(name.indexOf('.')) : name;
}

function member(members: ReadonlyMap<string, Pointer>, kind: string, name: string): Pointer {
  const pointer = members.get(name);
  if (pointer === undefined) {
    throw new Error(`the object has no ${kind} ${name}; it has ${[...members.keys()].join(', ') || 'none'}`);
  }
  return pointer;
}

function openIfPinned(path: string): BpfMap | undefined {
  try {
    return BpfMap.openPinned(path);
  } catch (error) {
    if (error instanceof BpfError && error.errno === ENOENT) return undefined;
    throw error;
  }
}

const BPF_F_NO_COMMON_LRU = 1 << 1;

/** How a pinned map differs from what the object wants: one line for each field that differs. */
function mapDifferences(map: Pointer, name: string, pinned: BpfMap): string[] {
  const c = libbpf();
  const { info } = pinned;
  const flags = c.bpf_map__map_flags(map);
  let maxEntries = c.bpf_map__max_entries(map);
  // The kernel rounds to an equal share for each CPU, and libbpf sizes a perf_event_array that declares no size.
  if ((flags & BPF_F_NO_COMMON_LRU) !== 0)
    maxEntries = Math.ceil(maxEntries / possibleCpus()) * possibleCpus();
  if (maxEntries === 0) maxEntries = info.maxEntries;
  const fields: [field: string, pinned: string | number, declared: string | number][] = [
    ['type', info.type, nameOf(MAP_TYPES, c.bpf_map__type(map))],
    ['key size', info.keySize, c.bpf_map__key_size(map)],
    ['value size', info.valueSize, c.bpf_map__value_size(map)],
    ['max entries', info.maxEntries, maxEntries],
    ['flags', info.flags, flags],
  ];
  return fields
    .filter(([, there, declared]) => there !== declared)
    .map(([field, there, declared]) => `${name}: ${field} is ${there}, the object wants ${declared}`);
}
