// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { type CheckNode, KINDS, type Kind, type Planned, planProbes, sample, skippedNodes } from './plan.ts';
import { probersOf } from './run.ts';

/** A node with two pods, in one family or in both. */
function nodeOf(n: number, { pods = 2, ipv6 = false, ...rest }: Partial<Shape> = {}): CheckNode {
  const name = `node${n}`;
  const both = (v4: string, v6: string): string[] => [v4, ...(ipv6 ? [v6] : [])];
  return {
    name,
    node: name,
    addresses: both(`172.31.0.${n}`, `fd00:31::${n}`),
    pods: Array.from({ length: pods }, (_, i) => ({
      name: `${name}-pod${i + 1}`,
      node: name,
      addresses: both(`10.42.${n}.${i + 2}`, `fd00:42:0:${n}::${i + 2}`),
    })),
    clusterIps: both(`10.43.127.${n}`, `fd00:43::${n}`),
    hasServices: true,
    ripstop: true,
    ...rest,
  };
}

interface Shape {
  pods: number;
  ipv6: boolean;
  hasServices: boolean;
  ripstop: boolean;
}

const told = ({ from, to, probe }: Planned): string =>
  `${probe.protocol} ${from.name} → ${to?.name ?? ''} ${'address' in probe ? probe.address : probe.name}`;
const plan = (kind: Kind, ...nodes: CheckNode[]): string[] => planProbes({ nodes, kinds: [kind] }).map(told);

describe('the plan of two nodes', () => {
  const [one, two] = [nodeOf(1), nodeOf(2)];

  it('has TCP, UDP and ICMP from the second pod to the first, and from first to first between nodes', () => {
    expect(plan('pod-to-pod', one, two)).toEqual([
      'tcp node1-pod2 → node1-pod1 10.42.1.2',
      'udp node1-pod2 → node1-pod1 10.42.1.2',
      'icmp node1-pod2 → node1-pod1 10.42.1.2',
      'tcp node1-pod1 → node2-pod1 10.42.2.2',
      'udp node1-pod1 → node2-pod1 10.42.2.2',
      'icmp node1-pod1 → node2-pod1 10.42.2.2',
      'tcp node2-pod1 → node1-pod1 10.42.1.2',
      'udp node2-pod1 → node1-pod1 10.42.1.2',
      'icmp node2-pod1 → node1-pod1 10.42.1.2',
      'tcp node2-pod2 → node2-pod1 10.42.2.2',
      'udp node2-pod2 → node2-pod1 10.42.2.2',
      'icmp node2-pod2 → node2-pod1 10.42.2.2',
    ]);
  });

  it.each<[Kind, string[]]>([
    ['pod-to-node', ['icmp node1-pod1 → node1 172.31.0.1', 'icmp node1-pod1 → node2 172.31.0.2']],
    [
      'service',
      [
        'tcp node1-pod2 → node1-pod1 10.43.127.1',
        'udp node1-pod2 → node1-pod1 10.43.127.1',
        'tcp node1-pod1 → node2-pod1 10.43.127.2',
        'udp node1-pod1 → node2-pod1 10.43.127.2',
      ],
    ],
    ['dns', ['dns node1-pod1 →  kubernetes.default']],
    ['mtu', ['mtu node1-pod2 → node1-pod1 10.42.1.2', 'mtu node1-pod1 → node2-pod1 10.42.2.2']],
    ['fast-path', ['train node1-pod2 → node1-pod1 10.42.1.2', 'train node1-pod1 → node2-pod1 10.42.2.2']],
  ])('has of %s, from the first node', (kind, expected) => {
    expect(
      plan(kind, one, two).filter((text) => text.includes(' node1-pod') && !/ node2-pod\d →/.test(text)),
    ).toEqual(expected);
  });

  it('gives each datagram a token of its own', () => {
    const probes = planProbes({ nodes: [one, two], kinds: KINDS }).map(({ probe }) => probe);
    const tokens = probes.flatMap((probe) => ('token' in probe ? [probe.token] : []));
    expect(new Set(tokens).size).toBe(tokens.length);
  });

  it('needs a prober in each pod and on each node, of which only the first pods serve', () => {
    const probers = [...probersOf(planProbes({ nodes: [one, two], kinds: KINDS }))];
    expect(Object.fromEntries(probers.map(([{ name }, serve]) => [name, serve]))).toEqual({
      'node1-pod1': true,
      'node1-pod2': false,
      node1: false,
      'node2-pod1': true,
      'node2-pod2': false,
      node2: false,
    });
  });
});

describe('a plan', () => {
  it('has both families where sender and receiver have both', () => {
    expect(plan('mtu', nodeOf(1, { ipv6: true }), nodeOf(2, { ipv6: true }))).toContain(
      'mtu node1-pod1 → node2-pod1 fd00:42:0:2::2',
    );
    const fromV4 = plan('mtu', nodeOf(1), nodeOf(2, { ipv6: true })).filter((text) =>
      text.includes('node1-pod1 →'),
    );
    expect(fromV4).toEqual(['mtu node1-pod1 → node2-pod1 10.42.2.2']);
  });

  it('leaves out what a node cannot do, and says why', () => {
    const nodes = [nodeOf(1, { pods: 0 }), nodeOf(2, { pods: 1, hasServices: false, ripstop: false })];
    expect(planProbes({ nodes, kinds: KINDS }).map(told)).toEqual([
      'icmp node2-pod1 → node1 172.31.0.1',
      'icmp node2-pod1 → node2 172.31.0.2',
      'tcp node2 → node2-pod1 10.42.2.2',
      'udp node2 → node2-pod1 10.42.2.2',
      'icmp node2 → node2-pod1 10.42.2.2',
      'dns node2-pod1 →  kubernetes.default',
    ]);
    expect(skippedNodes({ nodes, kinds: KINDS }).map(({ kind, node }) => `${kind} ${node}`)).toEqual([
      'pod-to-pod node1',
      'pod-to-pod node2',
      'fast-path node2',
    ]);
  });
});

describe('a sample', () => {
  const hundred = Array.from({ length: 100 }, (_, i) => i);

  it('is all, if there are no more', () => {
    expect(sample(hundred, 100, 1)).toEqual(hundred);
  });

  it('is the same for the same seed, another one for another, in order, without repetition', () => {
    const drawn = sample(hundred, 20, 7);
    expect(sample(hundred, 20, 7)).toEqual(drawn);
    expect(sample(hundred, 20, 8)).not.toEqual(drawn);
    expect(drawn).toEqual([...new Set(drawn)].toSorted((a, b) => a - b));
    expect(drawn).toHaveLength(20);
  });

  it('draws each item about as often', () => {
    const times = hundred.map(() => 0);
    for (let seed = 0; seed < 1000; seed++) for (const item of sample(hundred, 20, seed)) times[item]!++;
    // 200 each, with a standard deviation of 13.
    expect(Math.min(...times)).toBeGreaterThan(130);
    expect(Math.max(...times)).toBeLessThan(270);
  });
});
