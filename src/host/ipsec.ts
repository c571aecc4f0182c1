// SPDX-License-Identifier: Apache-2.0
/** IPsec: which packets of ours the kernel would transform on their way out, or drop. The kernel's own order decides. */
import { listPolicies, NetlinkError, NetlinkSocket, type Policy } from '#netlink';
import { type Cidr, cidrCovers, maskAddress, parseMaskedCidr } from '../net/ip.ts';
import type { Where } from './netlink.ts';

/** The IPsec policies for packets that leave this node; none where the kernel has no IPsec. */
export function listIpsecPolicies({ netns }: Where = {}): Policy[] {
  try {
    using socket = NetlinkSocket.open('xfrm', netns);
    return listPolicies(socket).filter(({ direction }) => direction === 'out');
  } catch (error) {
    if (error instanceof NetlinkError && error.code === 'EPROTONOSUPPORT') return [];
    throw error;
  }
}

/** Packets that leave by one interface without a mark. */
export interface LeavingPackets {
  readonly src: Cidr;
  readonly dst: Cidr;
  readonly ifindex: number;
  /** Undefined: of any protocol. */
  readonly udpPort?: number | undefined;
}

const UDP = 17;

/**
 * Whether a policy makes the kernel transform or drop all packets such as these. One that concerns only some of them
 * counts for none: what becomes of a flow is seen when it leaves. There may be a policy for each peer, so they are found by
 * their destination.
 */
export function ipsecOf(policies: readonly Policy[]): (packets: LeavingPackets) => boolean {
  const byDestination = new Map<string, { policy: Policy; src: Cidr }[]>();
  const lengths = new Set<number>();
  for (const policy of policies) {
    const { base, length } = parseMaskedCidr(policy.dst);
    lengths.add(length);
    const key = `${base}/${length}`;
    const entry = { policy, src: parseMaskedCidr(policy.src) };
    const known = byDestination.get(key);
    if (known) known.push(entry);
    else byDestination.set(key, [entry]);
  }
  return (packets) => {
    const { base, length: most } = packets.dst;
    let best: Policy | undefined;
    for (const length of lengths) {
      if (length > most) continue;
      const network = length === most ? base : maskAddress(base, length);
      for (const { policy, src } of byDestination.get(`${network}/${length}`) ?? []) {
        const isBetter = policy.priority < (best?.priority ?? Infinity);
        if (isBetter && concernsAll(policy, packets) && cidrCovers(src, packets.src)) best = policy;
      }
    }
    return best !== undefined && (best.templates > 0 || best.action === 'block');
  };
}

/** By all but the addresses. */
function concernsAll(policy: Policy, { ifindex, udpPort }: LeavingPackets): boolean {
  const { protocol, srcPort, dstPort, mark, interfaceId = 0 } = policy;
  if (policy.ifindex !== undefined && policy.ifindex !== ifindex) return false;
  if (interfaceId !== 0 || (mark?.value ?? 0) !== 0 || srcPort) return false;
  if (protocol !== 0 && !(protocol === UDP && udpPort !== undefined)) return false;
  return !dstPort || (udpPort !== undefined && ((udpPort ^ dstPort.value) & dstPort.mask) === 0);
}
