// SPDX-License-Identifier: Apache-2.0
/** What the page shows, made of the agent's status and the counters. Pure; small however large the cluster is. */
import { EXPLANATIONS } from '../../dataplane/explanations.ts';
import type { Counter } from '../../dataplane/counters.ts';
import { type PacketsByVerdict, packetsBetweenPods } from '../../dataplane/pod-traffic.ts';
import { agentProblems } from '../problems.ts';
import type { AgentStatus } from '../status.ts';
import { addRates, NO_RATE, type Rate, type Rates } from './rates.ts';

/** How many pods, and how many peers, the picture has room for. */
const SHOWN = 12;
/** Of those, how many may be there only because the kernel path alone serves them. */
const SHOWN_WITHOUT_FAST_PATH = 4;
const PROBLEMS_SHOWN = 20;
/** Some texts come from other nodes' annotations. */
const TEXT_MAX = 400;

export interface OverviewEnd {
  /** A pod as `namespace/name`, or a node. */
  readonly name: string;
  /** The addresses of a pod, the podCIDRs of a peer. */
  readonly addresses: readonly string[];
  /** Why the kernel path alone serves it; absent when the fast path does. */
  readonly kernelPath?: string;
  /** Absent when it is not known yet. */
  readonly rate?: Rate;
}

/** All pods, or all peers: the busiest and those with problems by name, the others in numbers. */
export interface OverviewEnds {
  readonly total: number;
  /** How many of them the kernel path alone serves. */
  readonly kernelPath: number;
  readonly shown: readonly OverviewEnd[];
  /** Of all that are not shown, together. */
  readonly restRate?: Rate;
}

export interface OverviewCounter extends Counter {
  /** What the reason means, where its name does not say it. */
  readonly why?: string;
}

/** The answer of /overview.json. */
export interface Overview {
  /** When the counters were read, in ms of the node's monotonic clock. */
  readonly atMs: number;
  readonly node: string;
  readonly mode: AgentStatus['mode'];
  readonly ready: boolean;
  readonly podCidrs: readonly string[];
  readonly uplink?: { readonly name: string; readonly mtu: number };
  readonly ingress?: 'tc' | 'xdp';
  /** What a person must look at, the gravest first. */
  readonly problems: readonly { readonly kind: string; readonly text: string }[];
  /** How many problems there are beside those. */
  readonly moreProblems: number;
  readonly pods: OverviewEnds;
  readonly peers: OverviewEnds;
  /** Packets between pods since the maps were made, each counted once; absent before programs were loaded. */
  readonly betweenPods?: PacketsByVerdict;
  /** Those that are not zero. */
  readonly counters: readonly OverviewCounter[];
}

/** A pod, as the overview is made of it. */
export interface PodFacts {
  /** The index of its host veth. */
  readonly ifindex: number;
  readonly name: string;
  readonly ips: readonly string[];
  readonly kernelPath?: string;
}

export interface OverviewFacts {
  readonly atMs: number;
  readonly summary: Omit<AgentStatus, 'peers' | 'recent' | 'passes'>;
  readonly ends: { readonly pods: OverviewEnds; readonly peers: OverviewEnds };
  /** Undefined before programs were loaded. */
  readonly counters: readonly Counter[] | undefined;
}

export function overviewOf({ atMs, summary, ends, counters }: OverviewFacts): Overview {
  const { node, mode, ready, families, uplink, ingress } = summary;
  const problems = agentProblems(summary);
  return {
    atMs: Math.round(atMs),
    node,
    mode,
    ready,
    podCidrs: families.map(({ podCidr }) => podCidr),
    ...(uplink && { uplink: { name: uplink.name, mtu: uplink.mtu } }),
    ...(ingress && { ingress: ingress.hook }),
    problems: problems.slice(0, PROBLEMS_SHOWN).map(([kind, text]) => ({ kind, text: clipped(text) })),
    moreProblems: Math.max(0, problems.length - PROBLEMS_SHOWN),
    ...ends,
    ...(counters && { betweenPods: packetsBetweenPods(counters) }),
    counters: (counters ?? []).filter(({ packets }) => packets > 0).map(explained),
  };
}

/** The pods and the peers that the picture shows. @param rates undefined when they are not known yet. */
export function endsOf(
  pods: readonly PodFacts[],
  peers: AgentStatus['peers'],
  rates: Rates | undefined,
): OverviewFacts['ends'] {
  return {
    pods: choose(pods.map((pod) => podEnd(pod, rates))),
    peers: choose(peerEnds(peers, rates)),
  };
}

function explained(counter: Counter): OverviewCounter {
  const why = EXPLANATIONS[counter.reason];
  return why === undefined ? counter : { ...counter, why };
}

function podEnd({ name, ips, ifindex, kernelPath }: PodFacts, rates: Rates | undefined): OverviewEnd {
  return {
    name,
    addresses: ips,
    ...(kernelPath !== undefined && { kernelPath }),
    ...(rates && { rate: rates.pods.get(ifindex) ?? NO_RATE }),
  };
}

/** A dual-stack node is two peers, and one end. */
function peerEnds(peers: AgentStatus['peers'], rates: Rates | undefined): OverviewEnd[] {
  const ends = new Map<string, OverviewEnd>();
  for (const { name, podCidr, kernelPathOnly } of peers) {
    const before = ends.get(name);
    const why = before?.kernelPath ?? kernelPathOnly?.why;
    ends.set(name, {
      name,
      addresses: [...(before?.addresses ?? []), podCidr],
      ...(why !== undefined && { kernelPath: why }),
      ...(rates && { rate: addRates(before?.rate, rates.peers.get(podCidr.split('/')[0]!)) }),
    });
  }
  return [...ends.values()];
}

/** Those that the picture shows, by name, so that they keep their places while their rates change. */
function choose(all: readonly OverviewEnd[]): OverviewEnds {
  const packetsOf = ({ rate }: OverviewEnd): number =>
    (rate?.fastPerSecond ?? 0) + (rate?.kernelPerSecond ?? 0);
  const byRate = (a: OverviewEnd, b: OverviewEnd): number => packetsOf(b) - packetsOf(a) || byName(a, b);
  const withoutFastPath = all.filter(({ kernelPath }) => kernelPath !== undefined);
  const chosen = new Set(smallest(withoutFastPath, SHOWN_WITHOUT_FAST_PATH, byRate));
  for (const end of smallest(all, SHOWN, byRate)) if (chosen.size < SHOWN) chosen.add(end);
  const rest = all.filter((end) => !chosen.has(end));
  return {
    total: all.length,
    kernelPath: withoutFastPath.length,
    shown: [...chosen].sort(byName).map((end) => ({
      ...end,
      name: clipped(end.name),
      ...(end.kernelPath !== undefined && { kernelPath: clipped(end.kernelPath) }),
    })),
    ...(rest.some(({ rate }) => rate) && {
      restRate: rest.reduce((sum, { rate }) => addRates(sum, rate), NO_RATE),
    }),
  };
}

const collator = new Intl.Collator('en', { numeric: true });

function byName(a: OverviewEnd, b: OverviewEnd): number {
  return collator.compare(a.name, b.name);
}

/** The first so many of an order, without sorting all of them. */
function smallest<T>(all: readonly T[], count: number, order: (a: T, b: T) => number): T[] {
  const found: T[] = [];
  for (const one of all) {
    if (found.length === count && order(found.at(-1)!, one) <= 0) continue;
    const at = found.findIndex((other) => order(one, other) < 0);
    found.splice(at === -1 ? found.length : at, 0, one);
    if (found.length > count) found.pop();
  }
  return found;
}

function clipped(text: string): string {
  return text.length <= TEXT_MAX ? text : `${text.slice(0, TEXT_MAX - 1)}…`;
}
