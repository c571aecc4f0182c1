// SPDX-License-Identifier: Apache-2.0
/** How much of the traffic between pods takes the fast path, from the counters. */
import type { Counter, Verdict } from './counters.ts';

export type PacketsByVerdict = Readonly<Record<Verdict, number>>;

/** Reasons of packets that are not from a pod to a pod. */
const OTHERS = new Set(['not_ip', 'not_vxlan', 'other_vni', 'outside', 'no_endpoint']);

/**
 * Packets between pods that this node has carried, each counted once: by the fast path as they came in, by the kernel
 * path as they went out, to a pod or to the wire. On their way in nothing tells yet whether the other end is a pod: it may
 * be a service of nodes. Of a pod whose packets somebody shapes, those that the kernel path delivers are not seen.
 */
export function packetsBetweenPods(counters: readonly Counter[]): PacketsByVerdict {
  const sums: Record<Verdict, number> = { fast: 0, kernel: 0, drop: 0 };
  for (const { hook, verdict, reason, packets } of counters) {
    // What to_vtep counts is on its way to the wire, past to_wire.
    const isLeaving = hook === 'to_pod' || hook === 'to_wire' || hook === 'to_vtep';
    // What XDP decapsulates is counted by from_wire, which delivers it.
    const isDelivered = hook === 'from_pod' || hook === 'from_wire';
    if (verdict === 'drop' || (verdict === 'fast' && isDelivered)) sums[verdict] += packets;
    if (verdict === 'kernel' && isLeaving && !OTHERS.has(reason)) sums.kernel += packets;
  }
  return sums;
}

/** Of what was carried; undefined when nothing was. */
export function fastPercentOf({ fast, kernel }: PacketsByVerdict): number | undefined {
  return fast + kernel === 0 ? undefined : Math.round((fast / (fast + kernel)) * 1000) / 10;
}

/** The packets of the last minute, and how many seconds of it are known. */
export interface RecentTraffic extends PacketsByVerdict {
  readonly seconds: number;
}

/** Remembers readings of the counters for about a minute. */
export class TrafficHistory {
  readonly #readings: { readonly atMs: number; readonly packets: PacketsByVerdict }[] = [];

  /** @param atMs monotonic. */
  note(packets: PacketsByVerdict, atMs: number): void {
    this.#readings.push({ atMs, packets });
    // The oldest one that is kept is a minute old, or a little more.
    while (this.#readings.length > 2 && atMs - this.#readings[1]!.atMs >= 60_000) this.#readings.shift();
  }

  /** Undefined before there was a reading. Counters of new maps begin at zero: then so does the minute. */
  recent(packets: PacketsByVerdict, atMs: number): RecentTraffic | undefined {
    const [first] = this.#readings;
    if (!first) return undefined;
    const since = (verdict: Verdict): number => packets[verdict] - first.packets[verdict];
    const [fast, kernel, drop] = [since('fast'), since('kernel'), since('drop')];
    if (fast < 0 || kernel < 0 || drop < 0) {
      this.#readings.length = 0;
      return undefined;
    }
    return { seconds: Math.round((atMs - first.atMs) / 1000), fast, kernel, drop };
  }
}
