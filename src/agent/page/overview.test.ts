// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { Counter } from '../../dataplane/counters.ts';
import type { AgentStatus } from '../status.ts';
import { endsOf, type OverviewFacts, overviewOf, type PodFacts } from './overview.ts';

type PeerFacts = AgentStatus['peers'][number];

const summary: OverviewFacts['summary'] = {
  node: 'node1',
  mode: 'cni',
  ready: true,
  ingress: { hook: 'tc', why: 'the driver has no XDP' },
  families: [{ network: '10.42.0.0/16', podCidr: '10.42.0.0/24', vtep: { ip: '172.31.0.1' } }],
  uplink: { name: 'eth0', mtu: 1500, explanation: 'eth0, of the default route' },
  api: { connected: true, synced: true },
  alarms: [],
  targets: [],
};

const counter = (hook: string, verdict: Counter['verdict'], reason: string, packets: number): Counter => ({
  hook,
  verdict,
  reason,
  packets,
  bytes: packets * 100,
});
const peer = (i: number): PeerFacts => ({
  name: `node${i}`,
  podCidr: `10.${42 + (i >> 8)}.${i & 255}.0/24`,
  vtepIp: `172.31.${i >> 8}.${i & 255}`,
});
const pod = (i: number): PodFacts => ({ ifindex: i, name: `default/pod${i}`, ips: [`10.42.0.${i}`] });
const checksum = { reason: 'checksum', why: 'its VXLAN device requires UDP checksums over IPv6' } as const;

const overview = (facts: Partial<OverviewFacts> = {}) =>
  overviewOf({ atMs: 7.4, summary, ends: endsOf([], [], undefined), counters: [], ...facts });

describe('the overview', () => {
  it('says what the node is, and before there are programs no more than that', () => {
    expect(overview({ counters: undefined })).toEqual({
      atMs: 7,
      node: 'node1',
      mode: 'cni',
      ready: true,
      podCidrs: ['10.42.0.0/24'],
      uplink: { name: 'eth0', mtu: 1500 },
      ingress: 'tc',
      problems: [],
      moreProblems: 0,
      pods: { total: 0, kernelPath: 0, shown: [] },
      peers: { total: 0, kernelPath: 0, shown: [] },
      counters: [],
    });
  });

  it('has the counters that are not zero, with what their reasons mean, and packets between pods once', () => {
    const counters = [
      counter('from_pod', 'fast', 'encap', 90),
      counter('from_pod', 'kernel', 'handshake', 4),
      counter('to_wire', 'kernel', 'learned', 6),
      counter('to_wire', 'kernel', 'outside', 5),
      counter('from_wire', 'drop', 'unknown_peer', 2),
      counter('to_pod', 'kernel', 'learned', 0),
    ];
    const { betweenPods, counters: shown } = overview({ counters });
    expect(betweenPods).toEqual({ fast: 90, kernel: 6, drop: 2 });
    expect(shown).toMatchObject(counters.slice(0, 5));
    expect(shown.slice(0, 2).map(({ why }) => why)).toEqual([
      undefined,
      'conntrack must see the beginnings and ends of TCP connections',
    ]);
  });

  it('counts a dual-stack node once, adds up its rates, and says why a part of it has no fast path', () => {
    const v6 = { name: 'node2', podCidr: 'fd00:42:2::/64', vtepIp: 'fd00::2', kernelPathOnly: checksum };
    const all = [peer(2), v6, peer(3)];
    const [node2, node3] = [
      { name: 'node2', addresses: ['10.42.2.0/24', 'fd00:42:2::/64'], kernelPath: checksum.why },
      { name: 'node3', addresses: ['10.42.3.0/24'] },
    ];
    expect(endsOf([], all, undefined).peers).toEqual({ total: 2, kernelPath: 1, shown: [node2, node3] });
    const rate = (packets: number) => ({
      fastPerSecond: packets,
      kernelPerSecond: 1,
      bytesPerSecond: packets * 100,
    });
    const peers = new Map([
      ['10.42.2.0', rate(3)],
      ['fd00:42:2::', rate(4)],
    ]);
    expect(endsOf([], all, { pods: new Map(), peers }).peers.shown).toEqual([
      { ...node2, rate: { ...rate(7), kernelPerSecond: 2 } },
      { ...node3, rate: { fastPerSecond: 0, kernelPerSecond: 0, bytesPerSecond: 0 } },
    ]);
  });

  it('shows the busiest and some without fast path, by name, and sums up the others', () => {
    const pods = Array.from({ length: 20 }, (_, i) => ({
      ...pod(i + 1),
      ...(i < 6 && { kernelPath: 'marked for the kernel path' }),
    }));
    // Later ones are busier, but of those without fast path the second.
    const rateOf = (i: number) => ({
      fastPerSecond: i === 2 ? 0 : i,
      kernelPerSecond: i === 2 ? 50 : 0,
      bytesPerSecond: 100 * i,
    });
    const rates = { pods: new Map(pods.map(({ ifindex }) => [ifindex, rateOf(ifindex)])), peers: new Map() };
    const { shown, ...rest } = endsOf(pods, [], rates).pods;
    expect(shown.map(({ name }) => Number(name.replace('default/pod', '')))).toEqual([
      2, 4, 5, 6, 13, 14, 15, 16, 17, 18, 19, 20,
    ]);
    expect(shown[0]!.rate).toEqual(rateOf(2));
    const left = [1, 3, 7, 8, 9, 10, 11, 12].reduce((sum, i) => sum + i);
    const restRate = { fastPerSecond: left, kernelPerSecond: 0, bytesPerSecond: 100 * left };
    expect(rest).toEqual({ total: 20, kernelPath: 6, restRate });
  });

  it('shows all that is wrong, the gravest first, but no endless texts and lists', () => {
    const alarm = (i: number) => ({ node: `node${i}`, kind: 'malformed_lease', reason: 'x'.repeat(10_000) });
    const alarms = Array.from({ length: 500 }, (_, i) => alarm(i));
    const { problems, moreProblems } = overview({
      summary: { ...summary, ready: false, notReady: 'no uplink', alarms },
    });
    expect(problems[0]).toEqual({ kind: 'ALARM', text: `node0: ${'x'.repeat(392)}…` });
    expect(problems.length + moreProblems).toBe(501);
    expect(JSON.stringify(problems).length).toBeLessThan(10_000);

    const { problems: few } = overview({
      summary: { ...summary, ready: false, notReady: 'no uplink', alarms: [] },
    });
    expect(few).toEqual([{ kind: 'NOT READY', text: 'no uplink' }]);
  });

  it('stays small in the largest cluster', () => {
    const peers = Array.from({ length: 15_000 }, (_, i) => ({
      ...peer(i),
      ...(i % 10 === 0 && { kernelPathOnly: { ...checksum, why: 'y'.repeat(5000) } }),
    }));
    const pods = Array.from({ length: 250 }, (_, i) => pod(i));
    const alarms = peers.map(({ name }) => ({
      node: name,
      kind: 'malformed_lease',
      reason: 'z'.repeat(5000),
    }));
    const hooks = ['from_pod', 'from_wire', 'to_pod', 'to_wire', 'xdp_from_wire', 'from_vtep'];
    const counters = hooks.flatMap((hook) =>
      Array.from({ length: 40 }, (_, i) => counter(hook, 'kernel', `a_reason_with_a_name_${i}`, 2 ** 50)),
    );
    const all = overview({
      summary: { ...summary, alarms },
      ends: endsOf(pods, peers, undefined),
      counters,
    });
    expect(all.peers).toMatchObject({ total: 15_000, kernelPath: 1500 });
    expect(all.pods).toMatchObject({ total: 250, kernelPath: 0 });
    expect([all.peers.shown.length, all.pods.shown.length]).toEqual([12, 12]);
    expect(JSON.stringify(all).length).toBeLessThan(60_000);
  });
});
