// SPDX-License-Identifier: Apache-2.0
/** Which probes a check sends between which pods and nodes. Pure. */
import { addressFamily } from '../net/ip.ts';
import type { Probe } from './probe.ts';
import { PORT } from './prober.ts';

/** The kinds of probes, as `--only` names them. */
export const KINDS = [
  'pod-to-pod',
  'pod-to-node',
  'node-to-pod',
  'service',
  'dns',
  'mtu',
  'fast-path',
] as const;
export type Kind = (typeof KINDS)[number];

/** A pod, or a node itself. */
export interface Place {
  /** As the user finds it: `node1-pod1`, `node1`. */
  readonly name: string;
  readonly node: string;
  /** IPv4 first. */
  readonly addresses: readonly string[];
}

/** A node that takes part, with what there is to send to. */
export interface CheckNode extends Place {
  /**
   * The first one answers everybody, and sends to other nodes; the second one sends to the first. A node without pods is
   * only sent to.
   */
  readonly pods: readonly Place[];
  /** The ClusterIPs of the Service whose only backend is the first pod. */
  readonly clusterIps: readonly string[];
  /** Whether a kube-proxy translates what its pods send to ClusterIPs. */
  readonly hasServices: boolean;
  /** Whether ripstop carries its packets. */
  readonly ripstop: boolean;
}

/** A kind of probe that is not tried, everywhere or on one node, and why. */
export interface Skipped {
  readonly kind: Kind;
  readonly node?: string;
  readonly why: string;
}

/** One probe, and between whom. */
export interface Planned {
  readonly kind: Kind;
  readonly from: Place;
  /** Undefined: no place of its own (DNS). */
  readonly to?: Place;
  readonly probe: Probe;
}

/** What is being checked. */
export interface Scope {
  readonly nodes: readonly CheckNode[];
  /** Of those that can be tried here. */
  readonly kinds: readonly Kind[];
}

/** The name that every cluster's DNS knows (Kubernetes DNS-Based Service Discovery, 2.3). */
const DNS_NAME = 'kubernetes.default';

/** All probes, from every node to every node. */
export function planProbes({ nodes, kinds }: Scope): Planned[] {
  let next = 1;
  const toServer =
    (protocol: 'tcp' | 'udp' | 'mtu' | 'train') =>
    (address: string): Probe => ({
      protocol,
      address,
      port: PORT,
      token: `check-${next++}`,
    });
  const icmp = (address: string): Probe => ({ protocol: 'icmp', address });
  const all = [toServer('tcp'), toServer('udp'), icmp];
  const between = (
    kind: Kind,
    from: Place | undefined,
    to: Place | undefined,
    make: readonly Make[],
    addresses = to?.addresses ?? [],
  ): Planned[] =>
    from && to
      ? reachable(from, addresses).flatMap((ip) => make.map((one) => ({ kind, from, to, probe: one(ip) })))
      : [];
  const plans: Readonly<Record<Kind, (from: CheckNode, to: CheckNode) => Planned[]>> = {
    'pod-to-pod': (from, to) => between('pod-to-pod', client(from, to), to.pods[0], all),
    'pod-to-node': (from, to) => between('pod-to-node', from.pods[0], to, [icmp]),
    'node-to-pod': (from, to) => (from.pods.length > 0 ? between('node-to-pod', from, to.pods[0], all) : []),
    service: (from, to) =>
      from.hasServices
        ? between('service', client(from, to), to.pods[0], all.slice(0, 2), to.clusterIps)
        : [],
    dns: (from, to) => (from === to && from.pods[0] ? [dns(from.pods[0])] : []),
    mtu: (from, to) => between('mtu', client(from, to), to.pods[0], [toServer('mtu')]),
    'fast-path': (from, to) =>
      from.ripstop ? between('fast-path', client(from, to), to.pods[0], [toServer('train')]) : [],
  };
  return kinds.flatMap((kind) => nodes.flatMap((from) => nodes.flatMap((to) => plans[kind](from, to))));
}

type Make = (address: string) => Probe;

const dns = (from: Place): Planned => ({ kind: 'dns', from, probe: { protocol: 'dns', name: DNS_NAME } });

/** The pod that sends to another node's first pod; or, on one node, the second one to the first. */
function client(from: CheckNode, to: CheckNode): Place | undefined {
  return from === to ? from.pods[1] : from.pods[0];
}

/** The addresses in the families that the sender has. */
function reachable({ addresses: own }: Place, addresses: readonly string[]): string[] {
  const families = new Set(own.map(addressFamily));
  return addresses.filter((address) => families.has(addressFamily(address)));
}

/** What the nodes themselves leave out of a check. */
export function skippedNodes({ nodes, kinds }: Scope): Skipped[] {
  const chosen = (kind: Kind): boolean => kinds.includes(kind);
  return nodes.flatMap(({ name, pods, ripstop }): Skipped[] => [
    ...(pods.length === 0 && chosen('pod-to-pod')
      ? [{ kind: 'pod-to-pod' as const, node: name, why: 'it has no pods' }]
      : []),
    ...(pods.length === 1 && chosen('pod-to-pod')
      ? [
          {
            kind: 'pod-to-pod' as const,
            node: name,
            why: 'it has one pod only, which cannot send to another one there',
          },
        ]
      : []),
    ...(pods.length > 0 && !ripstop && chosen('fast-path')
      ? [{ kind: 'fast-path' as const, node: name, why: 'ripstop does not carry its packets' }]
      : []),
  ]);
}

/** Some of the items, at random, the same for the same seed, in their own order. All, if there are no more than asked. */
export function sample<T>(items: readonly T[], size: number, seed: number): T[] {
  if (items.length <= size) return [...items];
  const random = mulberry32(seed);
  const ranked = items.map((item, at) => ({ item, at, rank: random() }));
  const drawn = ranked.toSorted((a, b) => a.rank - b.rank).slice(0, size);
  return drawn.toSorted((a, b) => a.at - b.at).map(({ item }) => item);
}

/** Pseudo-random numbers from 0 to 1 (Tommy Ettinger's mulberry32). */
function mulberry32(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
