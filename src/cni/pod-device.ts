// SPDX-License-Identifier: Apache-2.0
/** What connects a pod to its node: a veth pair, or a netkit pair, whose program runs when the pod sends. */
import { NetlinkError, type NetlinkSocket, probeNetkit } from '#netlink';
import { errorText, RipstopError } from '../errors.ts';

export type PodDevice = 'veth' | 'netkit';
/** `--pod-device`. */
export type PodDeviceFlag = 'auto' | PodDevice;

/** What new pods get. */
export interface PodDeviceChoice {
  readonly kind: PodDevice;
  /** The reason, for people. */
  readonly why: string;
}

/**
 * The oldest kernel whose netkits pods get, the one that they are tested on. Netkit is there since 6.7, but those before
 * 6.10 refuse the MAC addresses of its ends, and 6.11 was released with one that crashes when a program redirects.
 */
const OLDEST_KERNEL = [6, 12] as const;

/**
 * Choose by the flag and the kernel. `auto` takes no netkit, even where there is one. It is better between nodes, and
 * worse between pods of one node; the bandwidth plugin refuses to limit a pod that has no veth; and `tcpdump` on the node
 * does not see what the fast path takes at a netkit. Pure.
 * @param whyNot why there can be no netkits; undefined when there can. See {@link whyNoNetkit}.
 * @throws RipstopError when the flag asks for what there cannot be.
 */
export function choosePodDevice(flag: PodDeviceFlag, whyNot: string | undefined): PodDeviceChoice {
  if (flag === 'netkit' && whyNot !== undefined) {
    throw new RipstopError(
      `--pod-device netkit is not possible here: ${whyNot}; give --pod-device auto or veth`,
    );
  }
  if (flag !== 'auto') return { kind: flag, why: `--pod-device ${flag} says so` };
  return { kind: 'veth', why: whyNot ?? 'netkit works here, but must be asked for: --pod-device netkit' };
}

/**
 * Why pods cannot have netkits on this node; undefined when they can. Makes nothing.
 * @param kernelRelease as `uname -r` prints it.
 */
export function whyNoNetkit(kernelRelease: string, socket: NetlinkSocket): string | undefined {
  const [major = 0, minor = 0] = kernelRelease.split('.').map((part) => Number.parseInt(part, 10));
  const [oldestMajor, oldestMinor] = OLDEST_KERNEL;
  if (major < oldestMajor || (major === oldestMajor && minor < oldestMinor))
    return `netkit needs Linux ${OLDEST_KERNEL.join('.')} or later, and this is ${kernelRelease}`;
  try {
    socket.write(probeNetkit());
  } catch (error) {
    if (!(error instanceof NetlinkError)) throw error;
    if (error.code === 'EINVAL') return undefined;
    if (error.code === 'EOPNOTSUPP')
      return 'this kernel has no netkit (CONFIG_NETKIT is not set, or its module is not there)';
    return `the kernel does not say whether it has netkit: ${errorText(error)}`;
  }
  throw new RipstopError('the kernel has made a netkit of a mode that does not exist');
}

/** Whether ripstop's plugin makes devices of this kind. */
export function isPodDevice(kind: string | undefined): kind is PodDevice {
  return kind === 'veth' || kind === 'netkit';
}
