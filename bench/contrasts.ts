// SPDX-License-Identifier: Apache-2.0
/** Contrasts, as data: comparisons in which the circumstances of one data plane differ, or a host without rules. */
import { labelOf, type QuestionId, typical, type Work } from './works.ts';

export type ContrastId = 'services' | 'flows' | 'new-flows' | 'epoch' | 'bare-host' | 'boost';

/** Two arms whose numbers are divided. */
export interface Pair {
  readonly candidate: string;
  readonly baseline: string;
}

export interface Contrast {
  readonly id: ContrastId;
  /** The question: the title of its chart. */
  readonly title: string;
  /** For people who do not know the code. */
  readonly text: string;
  readonly works: readonly Work[];
  /** In the order of columns and legend. */
  readonly pairs: readonly Pair[];
  /** Numbers that are expected to differ, and have no ratio: of these only the values are shown. */
  readonly valuesOnly?: readonly QuestionId[];
}

/** The CPU-bound kinds of work for which a path matters: one request, many, datagrams, a stream. */
const established = ['TCP RR ×1', 'UDP RR ×32', 'UDP 64 B', 'TCP stream ×1'].map(typical);
const roundTrip = typical('TCP RR ×1');
const stream = typical('TCP stream ×1');

/** New flows a second, beside a stream. */
export const NEW_FLOWS = 10_000;
/** The numbers of flows in the table, the fewest first. */
export const TABLE_SIZES = [10, 1000, 100_000] as const;
const sizeNames = TABLE_SIZES.map(flowsName);

export function flowsName(flows: number): string {
  return `${flows.toLocaleString('en')} flows`;
}

export function besideName(arm: string): string {
  return `${arm}, beside new flows`;
}

export function clusterIpName(arm: string): string {
  return `${arm}, ClusterIP`;
}

/** A move takes a while to show: a measurement has one a second, and the first of them early. */
const MOVE_STRETCH = 4;

const pair = (candidate: string, baseline: string): Pair => ({ candidate, baseline });
const ofQuick = (works: readonly Work[], ...names: readonly string[]): Work[] =>
  works.map((work) => ({ ...work, quick: names.includes(work.name) }));

export const contrasts: readonly Contrast[] = [
  {
    id: 'services',
    title: 'What does a ClusterIP cost?',
    text: 'Pod to pod through a ClusterIP, whose only backend is on the other node, against pod to pod directly, and against the same through flannel. kube-proxy’s own rules translate.',
    works: ofQuick(
      [...established, typical('TCP connect-request-response')],
      'TCP RR ×1',
      'TCP connect-request-response',
      'TCP stream ×1',
    ),
    pairs: [
      pair(clusterIpName('ripstop'), 'ripstop'),
      pair(clusterIpName('ripstop'), clusterIpName('flannel')),
      pair(clusterIpName('flannel'), 'flannel'),
    ],
  },
  {
    id: 'flows',
    title: 'Does the path grow slower with the number of flows?',
    text: 'One flow, while the flow tables of both nodes hold others: valid ones, which carry nothing meanwhile. So this is the cost of looking up one flow among many, not of many flows’ memory in the caches.',
    works: ofQuick([roundTrip, typical('UDP 64 B'), stream], 'TCP RR ×1'),
    pairs: [
      pair(sizeNames[1]!, sizeNames[0]!),
      pair(sizeNames[2]!, sizeNames[0]!),
      pair(sizeNames[2]!, sizeNames[1]!),
    ],
  },
  {
    id: 'new-flows',
    title: `What do ${NEW_FLOWS.toLocaleString('en')} new flows a second cost a stream beside them?`,
    text: 'A stream, alone and beside a client that sends each request from another source port, so that both nodes learn each flow in both directions. The new flows have a CPU of their own, since on the stream’s they would take their CPU time away from it, whatever the data plane. The two share conntrack, the flow table, the memory and the machine; how much of a loss is the machine’s, the other arms show.',
    works: [{ ...stream, stretch: 2, quick: true }],
    pairs: ['ripstop', 'flannel', 'host'].map((arm) => pair(besideName(arm), arm)),
  },
  {
    id: 'epoch',
    title: 'What does it cost when the epoch moves once a second?',
    text: 'All flows of both nodes become invalid at each move, and are learned again. Segments that TCP sends again are counted in both pods’ namespaces (`RetransSegs`); without moves they are divided by as many. Where client and server wait for one CPU, TCP probes for a lost tail without a loss, with any data plane: so the difference is judged.',
    works: [roundTrip, stream].map((work) => ({ ...work, stretch: MOVE_STRETCH, quick: true })),
    pairs: [pair('moving', 'still')],
    valuesOnly: ['retransmissions'],
  },
  {
    id: 'bare-host',
    title: 'How close is a pod to a host without any rules?',
    text: 'Nodes without kube-proxy: no rules, and no conntrack for the host’s packets, which is as fast as the host can be.',
    works: established.map((work) => ({ ...work, quick: true })),
    pairs: [pair('bare-ripstop', 'bare-host')],
  },
  {
    id: 'boost',
    title: 'Are pods on flannel’s bridge as fast as pods of ripstop’s own?',
    text: 'Mode boost, with flannel’s plugin and its bridge, against mode cni, with a routed veth for each pod.',
    works: ofQuick([...established, typical('TCP connect-request-response')], 'TCP RR ×1', 'TCP stream ×1'),
    pairs: [pair('boosted', 'cni')],
  },
];

export function contrastOf(id: ContrastId): Contrast {
  return contrasts.find((contrast) => contrast.id === id)!;
}

/** What `--only` matches of a contrast's work: its label, and the contrast. */
export function contrastLabel({ id }: Contrast, work: Work): string {
  return `${labelOf(work)}, ${id}`;
}
