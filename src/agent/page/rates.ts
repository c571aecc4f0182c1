// SPDX-License-Identifier: Apache-2.0
/** How fast pods and peers exchange packets, by two readings of what the programs have counted. */
import { type Carried, type Counted, countedBetween, type Networks } from '../../dataplane/flow-sums.ts';
import { intToIpv4, ipv4ToInt } from '../../net/ip.ts';

/** What a pod or a peer sends and receives, by the path that carries it; a super-packet counts once. */
export interface Rate {
  readonly fastPerSecond: number;
  readonly kernelPerSecond: number;
  /** On both paths. */
  readonly bytesPerSecond: number;
}

export const NO_RATE: Rate = { fastPerSecond: 0, kernelPerSecond: 0, bytesPerSecond: 0 };

export function addRates(a: Rate | undefined, b: Rate | undefined): Rate {
  if (!a || !b) return a ?? b ?? NO_RATE;
  return {
    fastPerSecond: a.fastPerSecond + b.fastPerSecond,
    kernelPerSecond: a.kernelPerSecond + b.kernelPerSecond,
    bytesPerSecond: a.bytesPerSecond + b.bytesPerSecond,
  };
}

export interface Rates {
  /** By the index of the pod's host veth. */
  readonly pods: ReadonlyMap<number, Rate>;
  /** By the base address of the peer's podCIDR. */
  readonly peers: ReadonlyMap<string, Rate>;
}

/** What was counted, and when, in ms. */
export interface TrafficReading extends Counted {
  readonly atMs: number;
}

/** Pure. Who has exchanged nothing is not in the result. */
export function ratesBetween(before: TrafficReading, after: TrafficReading, networks: Networks): Rates {
  const seconds = (after.atMs - before.atMs) / 1000;
  const { fast, kernel } = countedBetween(before, after);
  const base = ipv4ToInt(networks.network);
  const baseOf = (key: string): string =>
    key.includes(':') ? key : intToIpv4(base + Number(key) * 2 ** networks.subnet_shift);
  return {
    pods: rates(fast.endpoints, kernel.endpoints, seconds),
    peers: new Map(
      rates(fast.peers, kernel.peers, seconds)
        .entries()
        .map(([key, rate]) => [baseOf(key), rate]),
    ),
  };
}

/** Of all who have exchanged anything. */
function rates<K>(
  fast: ReadonlyMap<K, Carried>,
  kernel: ReadonlyMap<K, Carried>,
  seconds: number,
): Map<K, Rate> {
  const found = new Map<K, Rate>();
  for (const key of new Set([...fast.keys(), ...kernel.keys()])) {
    const [onFast, onKernel] = [fast.get(key), kernel.get(key)];
    const [fastPackets, kernelPackets] = [onFast?.packets ?? 0, onKernel?.packets ?? 0];
    if (fastPackets + kernelPackets === 0) continue;
    found.set(key, {
      fastPerSecond: fastPackets / seconds,
      kernelPerSecond: kernelPackets / seconds,
      bytesPerSecond: ((onFast?.bytes ?? 0) + (onKernel?.bytes ?? 0)) / seconds,
    });
  }
  return found;
}
