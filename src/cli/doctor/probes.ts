// SPDX-License-Identifier: Apache-2.0
/** Asks peers with ICMP echo, all at once: whether they are there, whether the tunnel works, and for which sizes. */
import { RipstopError } from '../../errors.ts';
import { type Echo, echo, type EchoResult, NetlinkError } from '#netlink';
import type { PeerFacts, ProbedPeer, Probes } from './facts.ts';

/** How many peers are probed at most; of more, another sample each time. */
export const PROBED_MAX = 50;
const SMALL = 100;
/** The smallest MTU that every IPv4 path has, and every IPv6 one. */
const FLOOR = { 4: 576, 6: 1280 } as const;
const ROUND = { tries: 3, timeoutMs: 900 };
const SIZE_ROUND = { tries: 2, timeoutMs: 400 };
/** Sizes tried at once: two rounds find the largest of some thousand to the byte. */
const SIZES = 40;

export interface ProbeTarget {
  readonly peer: PeerFacts;
  /** Whether its VTEP device has an address, so that the tunnel itself can be asked. */
  readonly hasVtep: boolean;
  readonly podMtu: number;
}

/** Probe these peers. It takes at most 1.7 s, in most cases some milliseconds. */
export async function probe(targets: readonly ProbeTarget[]): Promise<Probes> {
  const sample = targets.length <= PROBED_MAX ? targets : sampleOf(targets);
  const asked = sample.map(({ peer, hasVtep, podMtu }) => {
    const header = peer.podCidr.family === 4 ? 0 : 20;
    const underlay = { to: peer.vtepIp, bytes: SMALL + header };
    const base = peer.podCidr.base;
    const tunnel = hasVtep
      ? [
          { to: base, bytes: SMALL + header },
          { to: base, bytes: podMtu },
        ]
      : [];
    return [underlay, ...tunnel];
  });
  const answers = inGroups(asked, await ask(asked.flat()));
  const probed = sample.map(({ peer, podMtu }, i): ProbedPeer => {
    const [underlay = 'silent', tunnel, full] = answers[i]!;
    return {
      name: peer.node ?? peer.vtepIp,
      vtepIp: peer.vtepIp,
      underlay,
      podMtu,
      ...(tunnel && { base: peer.podCidr.base, tunnel }),
      ...(tunnel === 'answered' && { largest: full === 'answered' ? podMtu : SMALL }),
    };
  });
  return { peers: targets.length, probed: await withLargest(probed, sample) };
}

/** @throws RipstopError where this process may not ask. */
async function ask(requests: readonly Echo[]): Promise<EchoResult[]> {
  try {
    return await echo(requests, ROUND);
  } catch (cause) {
    if (!(cause instanceof NetlinkError) || !['EPERM', 'EACCES'].includes(cause.code)) throw cause;
    throw new RipstopError(
      'this process may send no ICMP echo: give it CAP_NET_RAW, or set net.ipv4.ping_group_range to "0 2147483647"',
      { cause },
    );
  }
}

function sampleOf<T>(all: readonly T[]): T[] {
  const shuffled = all.map((one) => [Math.random(), one] as const).sort(([a], [b]) => a - b);
  return shuffled.slice(0, PROBED_MAX).map(([, one]) => one);
}

/** Find the largest size that passes, where the full one did not. */
async function withLargest(
  probed: readonly ProbedPeer[],
  sample: readonly ProbeTarget[],
): Promise<ProbedPeer[]> {
  let result = [...probed];
  const steps = new Map<number, number>();
  for (const [i, { largest, podMtu }] of probed.entries()) {
    if (largest === undefined || largest === podMtu) continue;
    const floor = FLOOR[sample[i]!.peer.podCidr.family];
    result[i] = { ...result[i]!, largest: 0 };
    steps.set(i, Math.max(1, Math.ceil((podMtu - floor) / SIZES)));
  }
  while (steps.size > 0) {
    const open = [...steps].map(([i, step]) => ({ i, step, sizes: sizesFor(result[i]!, step, sample[i]!) }));
    const asked = open.map(({ i, sizes }): Echo[] =>
      sizes.map((bytes) => ({ to: sample[i]!.peer.podCidr.base, bytes })),
    );
    const answers = inGroups(asked, await echo(asked.flat(), SIZE_ROUND));
    for (const [n, { i, step, sizes }] of open.entries()) {
      const passed = sizes.filter((_, k) => answers[n]![k] === 'answered');
      const largest = Math.max(result[i]!.largest ?? 0, ...passed);
      result = result.with(i, { ...result[i]!, largest });
      if (step === 1 || largest === 0) steps.delete(i);
      else steps.set(i, Math.ceil(step / SIZES));
    }
  }
  return result;
}

function sizesFor({ largest = 0, podMtu }: ProbedPeer, step: number, { peer }: ProbeTarget): number[] {
  const from = largest === 0 ? FLOOR[peer.podCidr.family] : largest + step;
  const sizes: number[] = [];
  for (let size = from; size < podMtu && sizes.length < SIZES; size += step) sizes.push(size);
  return sizes;
}

function inGroups(groups: readonly (readonly Echo[])[], results: readonly EchoResult[]): EchoResult[][] {
  let at = 0;
  return groups.map(({ length }) => results.slice(at, (at += length)));
}
