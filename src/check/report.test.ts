// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { renderReport } from '../cli/check-text.ts';
import { type CheckNode, KINDS, planProbes } from './plan.ts';
import type { Failure as Why } from './probe.ts';
import { type Report, reportOf } from './report.ts';
import type { Result } from './run.ts';

const nodes = [1, 2, 3].map((n): CheckNode => {
  const name = `node${n}`;
  return {
    name,
    node: name,
    addresses: [`172.31.0.${n}`],
    pods: [2, 3].map((host) => ({
      name: `${name}-pod${host - 1}`,
      node: name,
      addresses: [`10.42.${n}.${host}`],
    })),
    clusterIps: [`10.43.127.${n}`],
    hasServices: true,
    ripstop: true,
  };
});

/** What fails: `KIND/PROTOCOL FROM TO`, with `*` for any, and how. */
type Broken = Readonly<Record<string, { failure: Why; arrived?: boolean; pathMtu?: number }>>;

/** The report of a check in which these fail. */
function report(broken: Broken): Report {
  const results = planProbes({ nodes, kinds: KINDS }).map((planned): Result => {
    const { kind, from, to, probe } = planned;
    const found = Object.entries(broken).find(([pattern]) => {
      const [what, sender, receiver] = pattern.split(' ');
      const matches = (wanted: string | undefined, is: string) => wanted === '*' || wanted === is;
      return (
        (what === kind || what === `${kind}/${probe.protocol}`) &&
        matches(sender, from.node) &&
        matches(receiver, to?.node ?? 'dns')
      );
    });
    const { failure, arrived, pathMtu } = found?.[1] ?? {};
    const isDatagram = 'token' in probe && probe.protocol !== 'tcp';
    return {
      ...planned,
      outcome: {
        milliseconds: 1,
        ...(failure && { failure }),
        ...(probe.protocol === 'mtu' && { mtu: 1450 }),
        ...(pathMtu && { pathMtu }),
      },
      ...(arrived !== undefined && isDatagram && { arrived }),
    };
  });
  return reportOf(results, {
    where: 'lab demo',
    nodes: nodes.map(({ name }) => name),
    notReady: [],
    skipped: [],
    next: ({ lookAt, address }) => `look ${lookAt} ${address ?? ''}`,
  });
}

const failuresOf = (broken: Broken) =>
  report(broken).failures.map(({ kind, from, to, cause, next }) => ({ kind, from, to, cause, next }));
const lost = { failure: 'lost', arrived: false } as const;
const answerLost = { failure: 'lost', arrived: true } as const;
const ok = { node1: 'ok', node2: 'ok', node3: 'ok', dns: 'ok' };

describe('a check', () => {
  it('of which all has passed has a matrix of ok, and no failures', () => {
    const { matrix, failures, failed } = report({});
    expect({ matrix, failures, failed }).toEqual({
      matrix: { node1: ok, node2: ok, node3: ok },
      failures: [],
      failed: 0,
    });
  });

  it('tells a tunnel that works one way only: the other direction has lost nothing but answers', () => {
    const broken: Broken = Object.fromEntries(
      ['pod-to-pod', 'node-to-pod', 'service', 'mtu', 'fast-path'].flatMap((kind) => [
        [`${kind} node1 node2`, lost],
        [`${kind} node2 node1`, answerLost],
      ]),
    );
    expect(report(broken).matrix).toEqual({
      node1: { ...ok, node2: 'pod-to-pod' },
      node2: { ...ok, node1: 'answers lost' },
      node3: ok,
    });
    expect(failuresOf(broken).filter(({ kind }) => kind === 'pod-to-pod')).toEqual([
      {
        kind: 'pod-to-pod',
        from: 'node1-pod1',
        to: 'node2-pod1',
        cause: expect.stringMatching(/^node1 reaches node2, but its tunnel does not/) as unknown,
        next: 'look node1 10.42.2.2',
      },
      {
        kind: 'pod-to-pod',
        from: 'node2-pod1',
        to: 'node1-pod1',
        cause: 'packets arrive on node1, their answers are lost: see node1 to node2',
        next: 'look node1 10.42.2.2',
      },
    ]);
    const others = report(broken).failures.filter(({ kind }) => kind !== 'pod-to-pod');
    expect(others.map(({ follows }) => follows)).toEqual(others.map(() => true));
  });

  it.each<[string, Broken, string]>([
    [
      'the network between the nodes',
      { 'pod-to-pod node1 node2': lost, 'pod-to-node node1 node2': lost },
      'at all',
    ],
    ['a pod that reaches nobody', { 'pod-to-pod node1 *': lost }, 'pods of node1 reach nobody'],
    ['a drop between the pods of a node', { 'pod-to-pod node1 node1': lost }, 'FORWARD chain of node1'],
    ['one protocol', { 'pod-to-pod/udp node1 node2': lost }, 'that drops udp'],
    ['a rejection', { 'pod-to-pod node1 node2': { failure: 'refused' } }, 'rejects it'],
    ['no route', { 'pod-to-pod node1 node2': { failure: 'unreachable' } }, 'no route'],
    ['nodes alone', { 'node-to-pod node1 node2': lost }, 'pods reach it, nodes do not'],
    [
      'no endpoint',
      { 'service node1 node2': { failure: 'refused' } },
      'kube-proxy of node1 knows no endpoint',
    ],
    ['no kube-proxy', { 'service node1 *': lost }, 'kube-proxy of node1 has no rules'],
    [
      'a smaller MTU that is told',
      { 'mtu node1 node2': { failure: 'too-big', pathMtu: 1350 } },
      'carries 1350 bytes, not 1450',
    ],
    ['a smaller MTU that is not told', { 'mtu node1 node2': lost }, '1450 bytes, the MTU of pods, are lost'],
    [
      'DNS that is not reached',
      { 'dns node1 dns': { failure: 'lost' } },
      "cluster's DNS do not answer to node1",
    ],
    ['DNS of another cluster', { 'dns node1 dns': { failure: 'unknown-name' } }, 'does not know the cluster'],
    [
      'the kernel path',
      { 'fast-path node1 node2': { failure: 'error' } },
      'leaves the flow to the kernel path',
    ],
  ])('names %s', (_, broken, cause) => {
    expect(failuresOf(broken)[0]?.cause).toContain(cause);
  });

  it('names in a cell what failed, with the protocols where others passed', () => {
    const { matrix } = report({
      'pod-to-pod/tcp node1 node2': lost,
      'pod-to-pod/icmp node1 node2': { failure: 'lost' },
      'mtu node1 node2': lost,
      'dns node3 dns': { failure: 'lost' },
    });
    expect(matrix).toEqual({
      node1: { ...ok, node2: 'pod-to-pod/tcp+icmp,mtu' },
      node2: ok,
      node3: { ...ok, dns: 'dns' },
    });
  });
});

describe('its text', () => {
  it('has the matrix, the sum, and a line for each failure that no other one explains', () => {
    const text = renderReport(report({ 'pod-to-pod node1 node2': lost, 'mtu node1 node2': lost }), false);
    expect(text.split('\n').map((line) => line.replaceAll(/ {2,}/g, '  '))).toEqual([
      'FROM \\ TO  node1  node2  node3  DNS',
      'node1  ok  pod-to-pod  ok  ok',
      'node2  ok  ok  ok  ok',
      'node3  ok  ok  ok  ok',
      '',
      '102 probes between 3 nodes of lab demo: 4 failed',
      '',
      'FAILED  FROM  TO  LIKELY CAUSE  RUN NEXT',
      expect.stringMatching(
        /^pod-to-pod \(tcp, udp, icmp\) {2}node1-pod1 {2}node2-pod1 {2}.* {2}look node1 10.42.2.2$/,
      ),
      'and 1 more: -o wide',
      '',
      '',
    ]);
  });

  it('numbers the columns on a terminal that is too narrow for names', () => {
    const lines = renderReport(report({}), false, 30).split('\n');
    expect(lines.slice(0, 2).map((line) => line.replaceAll(/ {2,}/g, '  '))).toEqual([
      'FROM \\ TO  1  2  3  DNS',
      '1 node1  ok  ok  ok  ok',
    ]);
  });

  it('has no matrix where nothing was tried, but tells why', () => {
    const notReady = [{ node: 'node1', why: 'the node is not ready' }];
    expect(renderReport({ ...report({}), probes: 0, notReady }, false)).toBe(
      'not tried: node1: the node is not ready\n',
    );
  });

  it('says how to draw the same nodes again', () => {
    const drawn = { ...report({}), sample: { of: 50, seed: 42 } };
    expect(renderReport(drawn, false)).toContain(
      '3 of 50 nodes, drawn at random; the same ones again: --sample 3 --seed 42\n',
    );
  });
});
