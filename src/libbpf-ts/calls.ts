// SPDX-License-Identifier: Apache-2.0
import koffi, { type LibraryHandle } from 'koffi';

/** An address in C memory. */
export type Pointer = bigint;
/** Memory lent to C for the length of one call. */
export type Bytes = Uint8Array | Uint32Array | BigUint64Array;

type Field = number | bigint | string | Bytes | null;
/** The members of an options struct that are set, and after the call those that C has written. */
export type Options<Name extends string = string> = { sz: number } & Partial<Record<Name, Field>>;

/**
 * One of libbpf's options structs. They begin with their own size, so members that are left out count as zero, also for
 * a newer libbpf, which knows more members.
 */
function options<Name extends string>(members: Record<Name, string>) {
  const type = koffi.struct({ sz: 'size_t', ...members });
  return {
    /** The type as a C parameter: C reads it, and its changes are copied back into the object that was passed. */
    parameter: koffi.inout(koffi.pointer(type)),
    of: (values: Partial<Record<Name, Field>>): Options<Name> => ({ sz: koffi.sizeof(type), ...values }),
  };
}

export const openOptions = options({ object_name: 'const char *' });
export const linkCreateOptions = options({ flags: 'uint32_t' });
export const linkUpdateOptions = options({ flags: 'uint32_t', old_prog_fd: 'uint32_t' });
export const mapCreateOptions = options({
  btf_fd: 'uint32_t',
  btf_key_type_id: 'uint32_t',
  btf_value_type_id: 'uint32_t',
  btf_vmlinux_value_type_id: 'uint32_t',
  inner_map_fd: 'uint32_t',
  map_flags: 'uint32_t',
});
export const testRunOptions = options({
  data_in: 'const void *',
  data_out: 'void *',
  data_size_in: 'uint32_t',
  data_size_out: 'uint32_t',
  ctx_in: 'const void *',
  ctx_out: 'void *',
  ctx_size_in: 'uint32_t',
  ctx_size_out: 'uint32_t',
  retval: 'uint32_t',
  repeat: 'int',
  duration: 'uint32_t',
});
export const progQueryOptions = options({
  query_flags: 'uint32_t',
  attach_flags: 'uint32_t',
  prog_ids: 'void *',
  prog_cnt: 'uint32_t',
});
export const tcHook = options({ ifindex: 'int', attach_point: 'int', parent: 'uint32_t' });
export const tcOptions = options({
  prog_fd: 'int',
  flags: 'uint32_t',
  prog_id: 'uint32_t',
  handle: 'uint32_t',
  priority: 'uint32_t',
});

interface LinkCreate {
  (program: number, target: number, type: number, o: Options): number;
  /** On another thread. */
  async(
    program: number,
    target: number,
    type: number,
    o: Options,
    done: (error: Error | null, status: number) => void,
  ): void;
}

/** The TypeScript signature of every C function in use. {@link bindCalls} has the C prototypes. */
export interface Calls {
  libbpf_set_print(callback: Pointer | null): Pointer | null;
  libbpf_num_possible_cpus(): number;
  libbpf_probe_bpf_prog_type(type: number, o: null): number;

  bpf_map_create(type: number, name: string, key: number, value: number, max: number, o: Options): number;
  bpf_map_lookup_elem(fd: number, key: Bytes, value: Bytes): number;
  bpf_map_update_elem(fd: number, key: Bytes, value: Bytes, flags: number): number;
  bpf_map_delete_elem(fd: number, key: Bytes): number;
  bpf_map_get_next_key(fd: number, key: Bytes | null, next: Bytes): number;
  bpf_map_lookup_batch(
    fd: number,
    from: Bytes | null,
    to: Bytes,
    keys: Bytes,
    values: Bytes,
    count: Bytes,
    o: null,
  ): number;
  bpf_map_update_batch(fd: number, keys: Bytes, values: Bytes, count: Bytes, o: null): number;
  bpf_map_delete_batch(fd: number, keys: Bytes, count: Bytes, o: null): number;

  bpf_obj_pin(fd: number, path: string): number;
  bpf_obj_get(path: string): number;
  bpf_obj_get_info_by_fd(fd: number, info: Bytes, length: Bytes): number;
  bpf_map_get_fd_by_id(id: number): number;
  bpf_prog_get_fd_by_id(id: number): number;
  bpf_btf_get_fd_by_id(id: number): number;
  bpf_prog_query_opts(target: number, type: number, o: Options): number;
  bpf_prog_test_run_opts(fd: number, o: Options): number;

  bpf_object__open_mem(memory: Pointer, size: number, o: Options): Pointer | null;
  bpf_object__load(object: Pointer): number;
  bpf_object__close(object: Pointer): void;
  bpf_object__next_map(object: Pointer, previous: Pointer | null): Pointer | null;
  bpf_object__next_program(object: Pointer, previous: Pointer | null): Pointer | null;
  bpf_map__name(map: Pointer): string;
  bpf_map__type(map: Pointer): number;
  bpf_map__key_size(map: Pointer): number;
  bpf_map__value_size(map: Pointer): number;
  bpf_map__max_entries(map: Pointer): number;
  bpf_map__map_flags(map: Pointer): number;
  bpf_map__is_internal(map: Pointer): boolean;
  bpf_map__set_max_entries(map: Pointer, count: number): number;
  bpf_map__reuse_fd(map: Pointer, fd: number): number;
  bpf_map__fd(map: Pointer): number;
  bpf_map__initial_value(map: Pointer, size: Bytes): Pointer | null;
  bpf_program__name(program: Pointer): string;
  bpf_program__fd(program: Pointer): number;
  bpf_program__autoload(program: Pointer): boolean;
  bpf_program__set_autoload(program: Pointer, on: boolean): number;
  bpf_program__set_attach_target(program: Pointer, targetProgram: number, name: string): number;
  bpf_program__set_log_buf(program: Pointer, buffer: Pointer | null, size: number): number;

  bpf_link_create: LinkCreate;
  bpf_link_update(link: number, program: number, o: Options): number;
  bpf_link_detach(link: number): number;

  bpf_tc_hook_create(hook: Options): number;
  bpf_tc_attach(hook: Options, o: Options): number;
  bpf_tc_detach(hook: Options, o: Options): number;
  bpf_tc_query(hook: Options, o: Options): number;

  ring_buffer__new(map: number, callback: Pointer, context: null, o: null): Pointer | null;
  ring_buffer__free(ring: Pointer): void;
  ring_buffer__consume(ring: Pointer): number;
  ring_buffer__epoll_fd(ring: Pointer): number;

  close(fd: number): number;
  fcntl(fd: number, command: number, argument: number): number;
  if_nametoindex(name: string): number;
  memcpy(to: Bytes | Pointer, from: Bytes | Pointer, size: number): Pointer;
  vsnprintf(to: Bytes, size: number, format: Pointer, list: Pointer): number;
}

/** Bind each call to its C prototype. libbpf's structs are opaque here: each is a `void *`. */
// oxlint-disable-next-line max-lines-per-function -- One table, in the order of the interface above.
export function bindCalls(bpf: LibraryHandle, libc: LibraryHandle): Calls {
  return {
    libbpf_set_print: bpf.func('void *libbpf_set_print(void *)'),
    libbpf_num_possible_cpus: bpf.func('int libbpf_num_possible_cpus()'),
    libbpf_probe_bpf_prog_type: bpf.func('int libbpf_probe_bpf_prog_type(int, const void *)'),

    bpf_map_create: bpf.func('bpf_map_create', 'int', [
      'int',
      'const char *',
      'uint32_t',
      'uint32_t',
      'uint32_t',
      mapCreateOptions.parameter,
    ]),
    bpf_map_lookup_elem: bpf.func('int bpf_map_lookup_elem(int, const void *, void *)'),
    bpf_map_update_elem: bpf.func('int bpf_map_update_elem(int, const void *, const void *, uint64_t)'),
    bpf_map_delete_elem: bpf.func('int bpf_map_delete_elem(int, const void *)'),
    bpf_map_get_next_key: bpf.func('int bpf_map_get_next_key(int, const void *, void *)'),
    bpf_map_lookup_batch: bpf.func(
      'int bpf_map_lookup_batch(int, void *, void *, void *, void *, void *, const void *)',
    ),
    bpf_map_update_batch: bpf.func(
      'int bpf_map_update_batch(int, const void *, const void *, void *, const void *)',
    ),
    bpf_map_delete_batch: bpf.func('int bpf_map_delete_batch(int, const void *, void *, const void *)'),

    bpf_obj_pin: bpf.func('int bpf_obj_pin(int, const char *)'),
    bpf_obj_get: bpf.func('int bpf_obj_get(const char *)'),
    bpf_obj_get_info_by_fd: bpf.func('int bpf_obj_get_info_by_fd(int, void *, void *)'),
    bpf_map_get_fd_by_id: bpf.func('int bpf_map_get_fd_by_id(uint32_t)'),
    bpf_prog_get_fd_by_id: bpf.func('int bpf_prog_get_fd_by_id(uint32_t)'),
    bpf_btf_get_fd_by_id: bpf.func('int bpf_btf_get_fd_by_id(uint32_t)'),
    bpf_prog_query_opts: bpf.func('bpf_prog_query_opts', 'int', ['int', 'int', progQueryOptions.parameter]),
    bpf_prog_test_run_opts: bpf.func('bpf_prog_test_run_opts', 'int', ['int', testRunOptions.parameter]),

    bpf_object__open_mem: bpf.func('bpf_object__open_mem', 'void *', [
      'const void *',
      'size_t',
      openOptions.parameter,
    ]),
    bpf_object__load: bpf.func('int bpf_object__load(void *)'),
    bpf_object__close: bpf.func('void bpf_object__close(void *)'),
    bpf_object__next_map: bpf.func('void *bpf_object__next_map(void *, void *)'),
    bpf_object__next_program: bpf.func('void *bpf_object__next_program(void *, void *)'),
    bpf_map__name: bpf.func('const char *bpf_map__name(void *)'),
    bpf_map__type: bpf.func('int bpf_map__type(void *)'),
    bpf_map__key_size: bpf.func('uint32_t bpf_map__key_size(void *)'),
    bpf_map__value_size: bpf.func('uint32_t bpf_map__value_size(void *)'),
    bpf_map__max_entries: bpf.func('uint32_t bpf_map__max_entries(void *)'),
    bpf_map__map_flags: bpf.func('uint32_t bpf_map__map_flags(void *)'),
    bpf_map__is_internal: bpf.func('bool bpf_map__is_internal(void *)'),
    bpf_map__set_max_entries: bpf.func('int bpf_map__set_max_entries(void *, uint32_t)'),
    bpf_map__reuse_fd: bpf.func('int bpf_map__reuse_fd(void *, int)'),
    bpf_map__fd: bpf.func('int bpf_map__fd(void *)'),
    bpf_map__initial_value: bpf.func('void *bpf_map__initial_value(void *, void *)'),
    bpf_program__name: bpf.func('const char *bpf_program__name(void *)'),
    bpf_program__fd: bpf.func('int bpf_program__fd(void *)'),
    bpf_program__autoload: bpf.func('bool bpf_program__autoload(void *)'),
    bpf_program__set_autoload: bpf.func('int bpf_program__set_autoload(void *, bool)'),
    bpf_program__set_attach_target: bpf.func('int bpf_program__set_attach_target(void *, int, const char *)'),
    bpf_program__set_log_buf: bpf.func('int bpf_program__set_log_buf(void *, void *, size_t)'),

    bpf_link_create: bpf.func('bpf_link_create', 'int', ['int', 'int', 'int', linkCreateOptions.parameter]),
    bpf_link_update: bpf.func('bpf_link_update', 'int', ['int', 'int', linkUpdateOptions.parameter]),
    bpf_link_detach: bpf.func('int bpf_link_detach(int)'),

    bpf_tc_hook_create: bpf.func('bpf_tc_hook_create', 'int', [tcHook.parameter]),
    bpf_tc_attach: bpf.func('bpf_tc_attach', 'int', [tcHook.parameter, tcOptions.parameter]),
    bpf_tc_detach: bpf.func('bpf_tc_detach', 'int', [tcHook.parameter, tcOptions.parameter]),
    bpf_tc_query: bpf.func('bpf_tc_query', 'int', [tcHook.parameter, tcOptions.parameter]),

    ring_buffer__new: bpf.func('void *ring_buffer__new(int, void *, void *, void *)'),
    ring_buffer__free: bpf.func('void ring_buffer__free(void *)'),
    ring_buffer__consume: bpf.func('int ring_buffer__consume(void *)'),
    ring_buffer__epoll_fd: bpf.func('int ring_buffer__epoll_fd(void *)'),

    close: libc.func('int close(int)'),
    fcntl: libc.func('int fcntl(int, int, int)'),
    if_nametoindex: libc.func('unsigned int if_nametoindex(const char *)'),
    memcpy: libc.func('void *memcpy(void *, const void *, size_t)'),
    vsnprintf: libc.func('int vsnprintf(void *, size_t, const void *, void *)'),
  };
}
