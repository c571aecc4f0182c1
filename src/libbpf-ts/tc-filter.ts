// SPDX-License-Identifier: Apache-2.0
import { checkStatus } from './error.ts';
import { tcHook, tcOptions } from './calls.ts';
import { libbpf, withLog } from './ffi.ts';
import type { BpfProgram } from './program.ts';

export type TcDirection = 'ingress' | 'egress';

/** Identifies a filter on a hook. A lower priority runs first. */
export interface TcFilterPlace {
  handle: number;
  priority: number;
}

/** `enum bpf_tc_attach_point` of bpf/libbpf.h. */
const ATTACH_POINT: Record<TcDirection, number> = { ingress: 1, egress: 2 };
const BPF_TC_F_REPLACE = 1;
const DEFAULT_PLACE: TcFilterPlace = { handle: 1, priority: 1 };

/**
 * A program as a direct-action filter of a clsact qdisc, for kernels without tcx. The kernel keeps it until {@link
 * detach} or the end of the interface, without a pin; a later process finds it with {@link find}.
 */
export class TcFilter {
  readonly ifindex: number;
  readonly direction: TcDirection;
  readonly place: TcFilterPlace;

  private constructor(ifindex: number, direction: TcDirection, place: TcFilterPlace) {
    this.ifindex = ifindex;
    this.direction = direction;
    this.place = place;
  }

  /**
   * Attach the program, in place of another one at the same place. A missing clsact qdisc is added, and never removed.
   * @throws BpfError: ENODEV without such an interface, EEXIST when an ingress qdisc holds the interface.
   */
  static attach(
    program: BpfProgram,
    ifindex: number,
    direction: TcDirection,
    place: TcFilterPlace = DEFAULT_PLACE,
  ): TcFilter {
    const filter = new TcFilter(ifindex, direction, place);
    withLog(() => {
      const status = libbpf().bpf_tc_hook_create(filter.#hook());
      if (status !== -EEXIST) checkStatus('bpf_tc_hook_create', status, filter.#subject);
    });
    filter.update(program);
    return filter;
  }

  /** The filter at this place, also one of another process. */
  static find(
    ifindex: number,
    direction: TcDirection,
    place: TcFilterPlace = DEFAULT_PLACE,
  ): TcFilter | undefined {
    const filter = new TcFilter(ifindex, direction, place);
    return filter.programId() === undefined ? undefined : filter;
  }

  /** The id of the program that is attached now; undefined when there is none. */
  programId(): number | undefined {
    const options = tcOptions.of({ ...this.place });
    const there = this.#run('bpf_tc_query', () => libbpf().bpf_tc_query(this.#hook(), options));
    return there ? Number(options.prog_id) : undefined;
  }

  /** Swap the program atomically. */
  update(program: BpfProgram): void {
    const options = tcOptions.of({ ...this.place, prog_fd: program.fd, flags: BPF_TC_F_REPLACE });
    withLog(() => checkStatus('bpf_tc_attach', libbpf().bpf_tc_attach(this.#hook(), options), this.#subject));
  }

  /** Detach it, if it is there. */
  detach(): void {
    this.#run('bpf_tc_detach', () => libbpf().bpf_tc_detach(this.#hook(), tcOptions.of({ ...this.place })));
  }

  /** Does nothing, since the kernel keeps the filter. It lets callers treat links and filters alike. */
  close(): void {}

  [Symbol.dispose](): void {}

  get #subject(): string {
    return `clsact ${this.direction} of interface ${this.ifindex}`;
  }

  #hook() {
    return tcHook.of({ ifindex: this.ifindex, attach_point: ATTACH_POINT[this.direction], parent: 0 });
  }

  /** False when there is no such filter. Without a clsact qdisc the kernel returns EINVAL, as for a bad request. */
  #run(call: string, run: () => number): boolean {
    return withLog(() => {
      const status = run();
      if (status === -ENOENT || status === -EINVAL) return false;
      checkStatus(call, status, this.#subject);
      return true;
    });
  }
}

const ENOENT = 2;
const EEXIST = 17;
const EINVAL = 22;
