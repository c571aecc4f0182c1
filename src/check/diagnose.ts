// SPDX-License-Identifier: Apache-2.0
/** What failed, put together, with the cause that is likely when one looks at all probes of a check. Pure. */
import { addressFamily } from '../net/ip.ts';
import type { Kind, Place } from './plan.ts';
import type { Failed, Result } from './run.ts';

/** The probes of one kind between two places of which some failed. */
export interface Finding {
  readonly kind: Kind;
  /** The protocols that failed: `tcp`, `udp`, `udp over IPv6`. */
  readonly protocols: readonly string[];
  readonly from: Place;
  readonly to?: Place;
  /** `back`: what was sent has arrived, and its answers are lost. */
  readonly way: 'there' | 'back';
  readonly cause: string;
  /** Another finding of the same nodes explains it. */
  readonly follows: boolean;
  /** For the command to run next. */
  readonly failed: Failed;
  /** What the system said of the failures, if it said anything. */
  readonly detail?: string;
}

const isFailed = ({ outcome }: Result): boolean => outcome.failure !== undefined;
const names = (values: readonly string[]): string[] => [...new Set(values)];

function protocolOf({ probe }: Result): string {
  const protocol = probe.protocol === 'mtu' || probe.protocol === 'train' ? 'udp' : probe.protocol;
  const isV6 = 'address' in probe && addressFamily(probe.address) === 6;
  return isV6 ? `${protocol} over IPv6` : protocol;
}

/** The probes of one kind from one node to another, or to the same. */
class Group {
  readonly all: readonly Result[];
  readonly failed: readonly Result[];
  /** One probe stands for all: they have kind, sender and receiver in common. */
  readonly one: Result;

  constructor(all: readonly Result[]) {
    this.all = all;
    this.failed = all.filter(isFailed);
    this.one = this.failed[0] ?? all[0]!;
  }

  get from(): string {
    return this.one.from.node;
  }

  get to(): string | undefined {
    return this.one.to?.node;
  }

  get protocols(): string[] {
    return names(this.failed.map(protocolOf));
  }

  get isTotal(): boolean {
    return this.failed.length === this.all.length;
  }

  has(failure: string): Result | undefined {
    return this.failed.find(({ outcome }) => outcome.failure === failure);
  }

  /** Only datagrams tell. What was lost beside them was lost on the same way. */
  get way(): 'there' | 'back' {
    const told = this.failed.filter(({ arrived }) => arrived !== undefined);
    return told.length > 0 && told.every(({ arrived }) => arrived) ? 'back' : 'there';
  }
}

type Groups = ReadonlyMap<string, Group>;
const keyOf = (kind: Kind, from: string, to: string | undefined): string => `${kind} ${from} ${to ?? ''}`;

/** The findings of a check, in the order of its plan. None: all has passed. */
export function diagnose(results: readonly Result[]): Finding[] {
  const grouped = Map.groupBy(results, ({ kind, from, to }) => keyOf(kind, from.node, to?.node));
  const groups: Groups = new Map([...grouped].map(([key, all]) => [key, new Group(all)]));
  return [...groups.values()].filter(({ failed }) => failed.length > 0).map((group) => find(group, groups));
}

function find(group: Group, groups: Groups): Finding {
  const { kind, from, to, probe } = group.one;
  const { way } = group;
  const follows = isExplained(group, groups);
  const details = names(group.failed.flatMap(({ outcome }) => outcome.detail ?? []));
  const answersFrom = way === 'back' && to ? to : from;
  const address = way === 'back' && to ? from.addresses[0] : 'address' in probe ? probe.address : undefined;
  const failed = { ...group.one, lookAt: answersFrom.node, sender: answersFrom };
  return {
    kind,
    protocols: group.protocols,
    from,
    ...(to && { to }),
    way,
    cause: follows ? 'as pod-to-pod' : causeOf(group, groups),
    follows,
    failed: address === undefined ? failed : { ...failed, address },
    ...(details.length > 0 && { detail: details.join('; ') }),
  };
}

/** Between nodes, these go the way of pods' packets. */
const EXPLAINED: readonly string[] = ['service', 'mtu', 'fast-path', 'node-to-pod'];

/** Whether the pods of these nodes do not reach each other by these protocols anyway. */
function isExplained(group: Group, groups: Groups): boolean {
  const sharesWay = group.from === group.to ? ['service', 'mtu', 'fast-path'] : EXPLAINED;
  if (!sharesWay.includes(group.one.kind)) return false;
  const plain = groups.get(keyOf('pod-to-pod', group.from, group.to));
  return plain !== undefined && group.protocols.every((protocol) => plain.protocols.includes(protocol));
}

function causeOf(group: Group, groups: Groups): string {
  const { from, to } = group;
  if (group.has('no-rights')) return 'the prober may not open a raw socket; allow its pods CAP_NET_RAW';
  if (group.way === 'back') return `packets arrive on ${to}, their answers are lost: see ${to} to ${from}`;
  return CAUSES[group.one.kind](group, groups);
}

const CAUSES: Readonly<Record<Kind, (group: Group, groups: Groups) => string>> = {
  'pod-to-pod': betweenPods,
  'pod-to-node': ({ from, to }) =>
    `the network between the nodes, a firewall of ${to}, or the masquerading of ${from}`,
  'node-to-pod': (group, groups) =>
    worksBetweenPods(group, groups)
      ? `pods reach it, nodes do not: a rule on ${group.from} or ${group.to} for addresses of nodes`
      : betweenPods(group, groups),
  service: ofService,
  dns: ofDns,
  mtu: ofMtu,
  'fast-path': ({ from }) => `${from} leaves the flow to the kernel path`,
};

function worksBetweenPods({ from, to }: Group, groups: Groups): boolean {
  return groups.get(keyOf('pod-to-pod', from, to))?.failed.length === 0;
}

function betweenPods(group: Group, groups: Groups): string {
  const { from, to = '' } = group;
  const where = from === to ? `on ${from}` : `on ${from} or ${to}`;
  if (group.has('refused') || group.has('prohibited')) return `a rule or a NetworkPolicy ${where} rejects it`;
  if (!group.isTotal) return `a rule or a NetworkPolicy ${where} that drops ${group.protocols.join(' and ')}`;
  if (group.has('unreachable')) return `${from} has no route or no neighbour for it`;
  const alone = ownFault(from, groups);
  if (alone !== undefined) return alone;
  if (from === to) return `a rule in the FORWARD chain of ${from}, or a NetworkPolicy, drops it`;
  const nodes = groups.get(keyOf('pod-to-node', from, to));
  if (nodes?.failed.length === 0)
    return `${from} reaches ${to}, but its tunnel does not: a firewall (UDP 8472), or the VTEP that ${from} has for ${to}`;
  if (nodes) return `${from} does not reach ${to} at all: the network between the nodes`;
  return `nothing arrives on ${to}: the network between the nodes, or a rule ${where}`;
}

/** A pod that reaches nobody, not even on its own node, has its fault there. */
function ownFault(from: string, groups: Groups): string | undefined {
  const all = [...groups.values()].filter(({ one }) => one.kind === 'pod-to-pod' && one.from.node === from);
  if (all.length < 2 || !all.every(({ isTotal }) => isTotal)) return undefined;
  return `pods of ${from} reach nobody: a rule in its FORWARD chain, or its routes`;
}

function ofService(group: Group): string {
  const { from } = group;
  if (group.has('refused')) return `the kube-proxy of ${from} knows no endpoint of the Service`;
  return `the kube-proxy of ${from} has no rules for the Service, or they lead elsewhere`;
}

function ofDns(group: Group): string {
  if (group.has('unknown-name'))
    return 'DNS answers, but does not know the cluster: resolv.conf of pods, or the cluster domain';
  return `the pods of the cluster's DNS do not answer to ${group.from}: do they run, and does their Service lead there?`;
}

function ofMtu(group: Group): string {
  const { from } = group;
  const { outcome } = group.one;
  const pods = outcome.mtu === undefined ? 'the MTU of pods' : `${outcome.mtu} bytes, the MTU of pods`;
  if (group.has('too-big'))
    return `the path carries ${outcome.pathMtu} bytes, not ${pods}: the uplinks' MTU differs`;
  if (group.has('not-refused')) return `${from} sends more than ${pods}, though fragments are forbidden`;
  if (group.has('lost'))
    return `packets of ${pods}, are lost without an error, smaller ones arrive: the MTU of the network between the nodes`;
  return `packets of ${pods} fail`;
}
