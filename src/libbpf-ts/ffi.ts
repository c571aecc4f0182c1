// SPDX-License-Identifier: Apache-2.0
import koffi, { type LibraryHandle } from 'koffi';
import { bindCalls, type Bytes, type Calls, type Pointer } from './calls.ts';
import { BpfError } from './error.ts';
import { LOG_LEVELS, record, takeLines, wants } from './log.ts';

function openLibbpf(): LibraryHandle {
  try {
    return koffi.load('libbpf.so.1');
  } catch (cause) {
    throw new Error(
      'cannot load libbpf.so.1: install libbpf 1.1 or later ' +
        '(Debian, Ubuntu: apt install libbpf1; Fedora: dnf install libbpf)',
      { cause },
    );
  }
}

let bound: Calls | undefined;

/**
 * The C functions. They are bound at the first call, since reading BTF needs no libbpf.
 * @throws Error that names the package to install when libbpf.so.1 is missing
 */
export function libbpf(): Calls {
  if (bound === undefined) {
    bound = bindCalls(openLibbpf(), koffi.load(null));
    // Otherwise libbpf writes to stderr.
    bound.libbpf_set_print(null);
  }
  return bound;
}

/**
 * Check the result of a C call that returns NULL and sets errno on failure.
 * @throws BpfError naming the call.
 */
export function checkPointer(call: string, pointer: Pointer | null, subject?: string): Pointer {
  if (pointer === null) throw new BpfError(call, koffi.errno(), subject === undefined ? {} : { subject });
  return pointer;
}

/** C's errno on this thread, for calls with other conventions. */
export function lastErrno(): number {
  return koffi.errno();
}

/** Allocate zeroed memory that C may keep. Pages that are never touched cost nothing. Free it with {@link release}. */
export function allocate(size: number): Pointer {
  return koffi.alloc('uint8_t', size) as Pointer;
}

export function release(pointer: Pointer): void {
  koffi.free(pointer);
}

/** Copy C memory. */
export function readBytes(pointer: Pointer, size: number): Uint8Array {
  const bytes = new Uint8Array(size);
  libbpf().memcpy(bytes, pointer, size);
  return bytes;
}

export function writeBytes(pointer: Pointer, bytes: Uint8Array): void {
  libbpf().memcpy(pointer, bytes, bytes.length);
}

export function readString(pointer: Pointer): string {
  return koffi.decode.string(pointer);
}

/** The address of JavaScript's memory, to write into a struct. It is valid while `bytes` is referenced. */
export function addressOf(bytes: Bytes): Pointer {
  return koffi.address(bytes);
}

const samplePrototype = koffi.pointer(koffi.proto('int(void *context, void *data, size_t size)'));

/** A C callback for ring buffer records, which are valid only during the call. Free it with {@link unregister}. */
export function registerSampleCallback(callback: (data: Pointer, size: number) => void): Pointer {
  return koffi.register((_context: null, data: Pointer, size: number) => {
    callback(data, size);
    return 0;
  }, samplePrototype);
}

export function unregister(callback: Pointer): void {
  koffi.unregister(callback);
}

/** Call `onReadable` each time the fd has something to read, from the event loop. */
export function poll(fd: number, onReadable: () => void): { close(): void } {
  return koffi.node.poll(fd, { readable: true }, onReadable);
}

const printPrototype = koffi.pointer(koffi.proto('int(int level, void *format, void *list)'));
const LINE_BYTES = 8192;
let printCallback: Pointer | undefined;

/**
 * Run calls during which libbpf may print, with its print callback set to log.ts. The callback is process-wide in C but
 * belongs to one JavaScript thread, so it is set only while this thread is inside C.
 */
export function withLog<T>(run: () => T): T {
  const c = libbpf();
  printCallback ??= koffi.register((level: number, format: Pointer, list: Pointer) => {
    const name = LOG_LEVELS[level] ?? 'debug';
    if (!wants(name)) return 0;
    const line = Buffer.alloc(LINE_BYTES);
    const length = c.vsnprintf(line, LINE_BYTES, format, list);
    record(name, line.toString('utf8', 0, Math.min(length, LINE_BYTES - 1)).trimEnd());
    return length;
  }, printPrototype);
  c.libbpf_set_print(printCallback);
  try {
    return run();
  } finally {
    c.libbpf_set_print(null);
    // Lines of a call that succeeded must not explain a later error.
    takeLines();
  }
}
