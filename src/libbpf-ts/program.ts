// SPDX-License-Identifier: Apache-2.0
import { checkStatus } from './error.ts';
import { testRunOptions } from './calls.ts';
import { libbpf } from './ffi.ts';
import { BpfHandle, openPinnedFd } from './handle.ts';
import { Info } from './info.ts';
import { nameOf, PROGRAM_TYPES } from './names.ts';

export interface ProgramInfo {
  id: number;
  /** As the kernel keeps it: at most 15 bytes of the function's name. */
  name: string;
  /** Such as `sched_cls` or `xdp`. */
  type: string;
  /** A hash of the instructions, 16 hex digits: equal for equal programs. */
  tag: string;
  mapIds: number[];
  /** Nanoseconds from boot to load (CLOCK_BOOTTIME). */
  loadedAt: bigint;
  /** Only counted while kernel.bpf_stats_enabled is 1. */
  runTimeNs: bigint;
  /** Only counted while kernel.bpf_stats_enabled is 1. */
  runCount: bigint;
  /** Bytes of machine code; 0 where the JIT is off. */
  jitedLength: number;
  /** Bytes of BPF after the verifier's rewriting. */
  xlatedLength: number;
  /** How many instructions the verifier walked through. Since Linux 5.16. */
  verifiedInstructions: number;
}

export interface TestRun {
  /** The packet from its Ethernet header on. */
  data: Uint8Array;
  /** Room for the packet afterwards, in bytes. Default: 256 more than the input. */
  dataOut?: number;
  /**
   * `struct __sk_buff` for tc, `struct xdp_md` for XDP. Members that the kernel does not accept must be zero (EINVAL).
   */
  context?: Uint8Array;
  /** Room for the context afterwards, in bytes. By default it is not returned. */
  contextOut?: number;
  /** Number of runs on the same buffer: the second run gets the output of the first one. Default 1. */
  repeat?: number;
}

export interface TestRunResult {
  /** What the program returned, such as a TC_ACT or XDP action; unsigned. */
  returnValue: number;
  data: Uint8Array;
  context?: Uint8Array;
  /** Average of one run. */
  durationNs: number;
}

/** Whether the kernel lets this process load programs of this type: it tries a smallest one. */
export function supportsPrograms(type: (typeof PROGRAM_TYPES)[number]): boolean {
  return libbpf().libbpf_probe_bpf_prog_type(PROGRAM_TYPES.indexOf(type), null) === 1;
}

const EINTR = 4;
const OUTPUT_HEADROOM = 256;

/** A loaded program. */
export class BpfProgram extends BpfHandle {
  readonly #name: string;

  private constructor(fd: number) {
    super(fd);
    this.#name = '';
    try {
      this.#name = this.info.name;
    } catch (error) {
      this.close();
      throw error;
    }
  }

  protected get subject(): string {
    return `program ${this.#name}`;
  }

  /** Take over a descriptor, which {@link close} then closes. */
  static fromFd(fd: number): BpfProgram {
    return new BpfProgram(fd);
  }

  static openPinned(path: string): BpfProgram {
    return new BpfProgram(openPinnedFd(path));
  }

  static fromId(id: number): BpfProgram {
    const fd = libbpf().bpf_prog_get_fd_by_id(id);
    return new BpfProgram(checkStatus('bpf_prog_get_fd_by_id', fd, `program id ${id}`));
  }

  /** Read from the kernel each time, since the run counters change: `struct bpf_prog_info` of linux/bpf.h. */
  get info(): ProgramInfo {
    const { fd, subject } = this;
    const MAP_COUNT = 52;
    const MAP_IDS = 56;
    const mapIds = new Uint32Array(new Info().fill(fd, subject).u32(MAP_COUNT));
    const info = new Info();
    info.setU32(MAP_COUNT, mapIds.length);
    info.lend(MAP_IDS, mapIds);
    info.fill(fd, subject);
    return {
      id: info.u32(4),
      name: info.name(64),
      type: nameOf(PROGRAM_TYPES, info.u32(0)),
      tag: info.hex(8, 8),
      mapIds: [...mapIds],
      loadedAt: info.u64(40),
      runTimeNs: info.u64(192),
      runCount: info.u64(200),
      jitedLength: info.u32(16),
      xlatedLength: info.u32(20),
      verifiedInstructions: info.u32(216),
    };
  }

  /**
   * Run it on one packet without a network (BPF_PROG_TEST_RUN).
   * @throws BpfError with ENOSPC when `dataOut` is too small for the resulting packet
   */
  testRun({ data, dataOut, context, contextOut, repeat }: TestRun): TestRunResult {
    const output = new Uint8Array(dataOut ?? data.length + OUTPUT_HEADROOM);
    const contextOutput = new Uint8Array(contextOut ?? 0);
    for (;;) {
      // A new struct for each try: the sizes are both input and output, and a failed run changes them.
      const options = testRunOptions.of({
        data_in: data,
        data_size_in: data.length,
        data_out: output,
        data_size_out: output.length,
        ctx_in: context ?? null,
        ctx_size_in: context?.length ?? 0,
        ctx_out: contextOut === undefined ? null : contextOutput,
        ctx_size_out: contextOutput.length,
        repeat: repeat ?? 1,
      });
      const status = libbpf().bpf_prog_test_run_opts(this.fd, options);
      // EINTR: one of Node's own signals interrupted the kernel between two runs.
      if (status === -EINTR) continue;
      checkStatus('bpf_prog_test_run_opts', status, this.subject);
      return {
        returnValue: Number(options.retval),
        data: output.subarray(0, Number(options.data_size_out)),
        ...(contextOut === undefined
          ? {}
          : { context: contextOutput.subarray(0, Number(options.ctx_size_out)) }),
        durationNs: Number(options.duration),
      };
    }
  }
}
