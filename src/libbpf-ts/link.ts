// SPDX-License-Identifier: Apache-2.0
import { BpfError, checkStatus } from './error.ts';
import { linkCreateOptions, linkUpdateOptions, progQueryOptions } from './calls.ts';
import { libbpf } from './ffi.ts';
import { BpfHandle, openPinnedFd } from './handle.ts';
import { Info } from './info.ts';
import { ATTACH_TYPES, LINK_TYPES, nameOf } from './names.ts';
import type { BpfProgram } from './program.ts';
import { TcFilter, type TcDirection, type TcFilterPlace } from './tc-filter.ts';

export interface LinkInfo {
  id: number;
  /** Such as `tcx` or `xdp`. */
  type: string;
  programId: number;
  /**
   * 0 once the interface is gone or the link detached; undefined for links that have no interface. Of `netkit_peer` it is
   * the peer's, in the peer's network namespace.
   */
  ifindex: number | undefined;
  /** The hook of the interface; undefined for links other than tcx, netkit and XDP. */
  attachType: TcxHook | NetkitHook | 'xdp' | undefined;
}

type TcxHook = `tcx_${TcDirection}`;
/** A netkit's hooks, by which of the two devices sends: `netkit_primary` sees what the primary sends, and so on. */
export type NetkitHook = 'netkit_primary' | 'netkit_peer';

/** `native` runs in the driver, `generic` after it, on every device. */
export type XdpMode = 'native' | 'generic';
const XDP_FLAGS: Record<XdpMode, number> = { native: 1 << 2, generic: 1 << 1 };

/** linux/bpf.h: replace only the given program. */
const BPF_F_REPLACE = 1 << 2;
const ENOENT = 2;
const ENXIO = 6;
const EACCES = 13;
const ENODEV = 19;
const EINVAL = 22;

/**
 * An attached program. It stays attached until {@link detach}, or until the link is neither open nor pinned anywhere.
 */
export class BpfLink extends BpfHandle {
  protected readonly subject: string;

  private constructor(fd: number, subject: string) {
    super(fd);
    this.subject = subject;
  }

  /**
   * Attach a program after those that are already on this hook. The interface is in the network namespace of this
   * process. Since Linux 6.6. The kernel waits some milliseconds until no CPU uses the hook as it was (an RCU grace
   * period), so this happens on another thread.
   * @throws BpfError: ENODEV without such an interface, EINVAL on a kernel without tcx (see {@link attachTc}).
   */
  static async attachTcx(program: BpfProgram, ifindex: number, direction: TcDirection): Promise<BpfLink> {
    const subject = `tcx ${direction} of interface ${ifindex}`;
    return BpfLink.#create(program, ifindex, ATTACH_TYPES[`tcx_${direction}`], subject);
  }

  /**
   * Attach a tc program to a hook of a netkit, after those that are already there. Since Linux 6.7; otherwise like {@link
   * attachTcx}. At this hook the program sees a packet before the other device has received it.
   * @param ifindex of the primary, also for the peer's hook: the peer may be in any network namespace.
   * @throws BpfError: ENODEV without such an interface, ENXIO when it is no netkit, EACCES when it is the peer.
   */
  static async attachNetkit(program: BpfProgram, ifindex: number, hook: NetkitHook): Promise<BpfLink> {
    return BpfLink.#create(program, ifindex, ATTACH_TYPES[hook], `${hook} of interface ${ifindex}`);
  }

  /**
   * Attach a tracing program to the exit of the kernel's function that {@link BpfObject.trace} has named. The kernel
   * changes its own code and waits for all CPUs, so this happens on another thread.
   */
  static async attachExit(program: BpfProgram): Promise<BpfLink> {
    return BpfLink.#create(program, 0, ATTACH_TYPES.fexit, `exit of ${program.info.name}`);
  }

  static async #create(program: BpfProgram, target: number, type: number, subject: string): Promise<BpfLink> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    // setImmediate: promises that are settled inside koffi's callbacks would wait for the next event (Node 26).
    libbpf().bpf_link_create.async(program.fd, target, type, linkCreateOptions.of({}), (error, status) =>
      setImmediate(() => (error ? reject(error) : resolve(status))),
    );
    return new BpfLink(checkStatus('bpf_link_create', await promise, subject), subject);
  }

  /**
   * Attach the interface's only XDP program.
   * @throws BpfError: EBUSY when it has one, EOPNOTSUPP when the driver has no native XDP.
   */
  static attachXdp(program: BpfProgram, ifindex: number, mode: XdpMode): BpfLink {
    const subject = `${mode} XDP of interface ${ifindex}`;
    const options = linkCreateOptions.of({ flags: XDP_FLAGS[mode] });
    const fd = libbpf().bpf_link_create(program.fd, ifindex, ATTACH_TYPES.xdp, options);
    return new BpfLink(checkStatus('bpf_link_create', fd, subject), subject);
  }

  static openPinned(path: string): BpfLink {
    return new BpfLink(openPinnedFd(path), `link ${path}`);
  }

  /** Read from the kernel each time: `struct bpf_link_info` of linux/bpf.h. */
  info(): LinkInfo {
    const info = new Info().fill(this.fd, this.subject);
    const type = nameOf(LINK_TYPES, info.u32(0));
    const ofInterface = type === 'tcx' || type === 'xdp' || type === 'netkit';
    const attachType =
      type === 'xdp'
        ? 'xdp'
        : OTHER_HOOKS.find((name) => name.startsWith(`${type}_`) && ATTACH_TYPES[name] === info.u32(20));
    return {
      id: info.u32(4),
      type,
      programId: info.u32(8),
      ifindex: ofInterface ? info.u32(16) : undefined,
      attachType,
    };
  }

  /**
   * Swap the program atomically: each packet meets the old one or the new one.
   * @throws BpfError with EPERM when `expectedOld` is given and another program is attached
   */
  update(program: BpfProgram, expectedOld?: BpfProgram): void {
    const options = linkUpdateOptions.of(
      expectedOld === undefined ? {} : { flags: BPF_F_REPLACE, old_prog_fd: expectedOld.fd },
    );
    checkStatus('bpf_link_update', libbpf().bpf_link_update(this.fd, program.fd, options), this.subject);
  }

  /** Detach the program now, even if the link is open or pinned elsewhere. */
  detach(): void {
    checkStatus('bpf_link_detach', libbpf().bpf_link_detach(this.fd), this.subject);
  }
}

const OTHER_HOOKS = ['tcx_ingress', 'tcx_egress', 'netkit_primary', 'netkit_peer'] as const;

/** The kernel's own limit of programs on one hook (BPF_MPROG_MAX). */
const PROGRAMS_MAX = 64;

/**
 * The ids of the programs on a hook, whoever attached them, in order. None on a kernel without such hooks, and none on the
 * hooks of a netkit where the interface is no primary of one.
 */
export function programsAt(ifindex: number, hook: TcxHook | NetkitHook): number[] {
  const ids = new Uint32Array(PROGRAMS_MAX);
  const options = progQueryOptions.of({ prog_ids: ids, prog_cnt: ids.length });
  const status = libbpf().bpf_prog_query_opts(ifindex, ATTACH_TYPES[hook], options);
  // The interface is gone, or nothing was ever attached to it; EINVAL: the kernel has no such hooks.
  if ([ENODEV, ENOENT, EINVAL, ENXIO, EACCES].includes(-status)) return [];
  checkStatus('bpf_prog_query_opts', status, `${hook} of interface ${ifindex}`);
  return [...ids.subarray(0, Number(options.prog_cnt))];
}

/**
 * Attach a tc program to an interface: as a tcx link, or before Linux 6.6 as a clsact filter. Both have `update`,
 * `detach` and `close`, but a link ends with this process unless it is pinned, and a filter stays until `detach`.
 * @param place the place of a filter, where it replaces another one; not used for a link
 */
export async function attachTc(
  program: BpfProgram,
  ifindex: number,
  direction: TcDirection,
  place?: TcFilterPlace,
): Promise<BpfLink | TcFilter> {
  try {
    return await BpfLink.attachTcx(program, ifindex, direction);
  } catch (error) {
    const perhapsOld =
      error instanceof BpfError && error.errno === EINVAL && program.info.type === 'sched_cls';
    if (perhapsOld && !kernelHasTcx(program)) return TcFilter.attach(program, ifindex, direction, place);
    throw error;
  }
}

/** A kernel with tcx looks for the interface first, and finds none with this index. Others refuse the type. */
function kernelHasTcx(program: BpfProgram): boolean {
  const noInterface = 0x7fff_ffff;
  const options = linkCreateOptions.of({});
  return libbpf().bpf_link_create(program.fd, noInterface, ATTACH_TYPES.tcx_ingress, options) === -ENODEV;
}
