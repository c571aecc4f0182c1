// SPDX-License-Identifier: Apache-2.0
import { readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { BpfMap } from '#libbpf-ts';
import { readCounters } from '../../src/dataplane/counters.ts';
import { layout } from '../../src/dataplane/layout.gen.ts';
import { mapNames, pinPaths, typedTable } from '../../src/dataplane/tables.ts';
import { run } from '../../src/host/run.ts';
import { type NodeState, startAgent, stopAgent } from '../../src/lab/index.ts';
import {
  agentLog,
  bpffsOf,
  cniStatus,
  inNetns,
  missingHere,
  podOf,
  PORT,
  ripstop,
  serveIn,
  talkTcp,
  useLab,
  type Talk,
  whileTalking,
} from './support.ts';
import { Version } from './versions.ts';

const SERVICE = '10.96.0.1';

describe.skipIf(missingHere('clang-19'))('a ripstop whose maps differ', () => {
  const cluster = useLab('upgrade', { nodes: 2, pods: 2 });
  const node = (): NodeState => cluster.nodes[0]!;
  const pod = (of: number, i = 0) => podOf(cluster.nodes[of - 1], i);
  let next: Version;
  let later: Version;

  beforeAll(async () => {
    // Some maps have another value, one another name; the flow table is unchanged.
    next = new Version();
    next.change('bpf/types.h', '__u32 mtu; /* of the pod', '__u32 colour;\n\t__u32 mtu; /* of the pod');
    next.change('src/dataplane/desired.ts', 'mtu: endpoint.mtu,', 'mtu: endpoint.mtu, colour: 7,');
    // The same size, but another order.
    next.change('bpf/types.h', /(enum peer_flags flags;)\n(\t__u32 checksum_base;[^\n]*)/g, '$2\n\t$1');
    next.change('{bpf,src}/**/*.{c,h,ts}', /\bvteps\b/g, 'underlay');
    await next.build();
    // Later these differ too.
    later = new Version(next);
    later.change('bpf/types.h', '__u64 learned_ns;', '__u64 colour;\n\t__u64 learned_ns;');
    await later.build();

    for (const one of [pod(1, 1), pod(2)]) await serveIn(one);
    const rules = [
      'table ip services {',
      'chain in { type nat hook prerouting priority dstnat',
      `ip daddr ${SERVICE} tcp dport ${PORT} dnat to ${pod(2).ip}`,
      '}',
      '}',
    ].join('\n');
    await run('nft', [rules], inNetns(node()));
  }, 120_000);

  afterAll(() => {
    next?.[Symbol.dispose]();
    later?.[Symbol.dispose]();
  });

  /** The ids of the maps in use, by name; and all directories of maps. */
  function maps(): { version: number; ids: Record<string, number>; directories: string[] } {
    const { maps: link } = pinPaths(bpffsOf(cluster.lab, node()));
    const ids = readdirSync(link).map((name) => {
      using map = BpfMap.openPinned(join(link, name));
      return [name, map.info.id] as const;
    });
    const directories = readdirSync(join(link, '..')).filter((name) => name.startsWith('maps:'));
    return { version: Number(readlinkSync(link).split(':')[1]), ids: Object.fromEntries(ids), directories };
  }

  /** Packets by verdict. The layout of the counters is the same in all versions here. */
  function verdicts(): { fast: number; kernel: number } {
    using map = BpfMap.openPinned(join(pinPaths(bpffsOf(cluster.lab, node())).maps, 'counters'));
    const sums = { fast: 0, kernel: 0, drop: 0 };
    const ofPod = readCounters({ counters: typedTable('counters', map) }).filter(
      ({ hook }) => hook === 'from_pod',
    );
    for (const { verdict, packets } of ofPod) sums[verdict] += packets;
    return sums;
  }

  /** Check pings and connections of node 1's first pod during `work`, both ways, also through a Service. */
  async function unharmed(work: () => Promise<unknown>): Promise<void> {
    const pings: Talk[] = [
      [pod(1), pod(1, 1).ip],
      [pod(1), pod(2).ip],
      [pod(2), pod(1, 1).ip],
    ];
    const connections: Talk[] = [...pings, [pod(1), SERVICE]];
    const { lost, reports } = await whileTalking({ pings, connections }, 300, work);
    expect(lost).toEqual([[], [], []]);
    for (const report of reports) {
      expect(report).not.toHaveProperty('error');
      expect(report.longestMs).toBeLessThan(1000);
    }
  }

  async function change(to?: Version): Promise<void> {
    await stopAgent(cluster.lab, node());
    if (to) process.env['RIPSTOP_LAB_COMMAND'] = to.main;
    try {
      await startAgent(cluster.lab, node());
    } finally {
      delete process.env['RIPSTOP_LAB_COMMAND'];
    }
  }

  it('fills its own beside the old ones, takes over without a loss, and keeps those that are the same', async () => {
    const before = maps();
    expect(before).toMatchObject({ version: layout.version, directories: [expect.any(String)] });
    await unharmed(async () => {
      await change(next);
      await expect.poll(() => maps().version, { timeout: 10_000 }).toBe(layout.version + 1);
      const fast = verdicts();
      await sleep(500);
      expect(verdicts().fast - fast.fast).toBeGreaterThan(100);
    });
    const { ids, directories } = maps();
    const kept = [
      'arrivals',
      'carried',
      'counters',
      'endpoint_state',
      'epoch',
      'events',
      'flow_changes',
      'flows4',
      'flows6',
      'invalidations',
      'ip_ids',
      'last_arrival',
      'listeners',
      'sightings',
      'tunnel_arrivals',
      'tunnels',
    ];
    expect(Object.keys(ids)).toEqual(expect.arrayContaining(['underlay', ...kept]));
    expect(Object.keys(ids)).toHaveLength(mapNames.length);
    const old = before.ids['endpoints'];
    const same = Object.keys(ids).filter((name) => ids[name] === before.ids[name]);
    expect(same.toSorted()).toEqual(kept);
    expect(directories).toHaveLength(1);
    expect(() => BpfMap.fromId(old!)).toThrow(/ENOENT/);

    const { code, stderr } = await ripstop(cluster.lab, node(), 'peers');
    expect(code).toBe(1);
    expect(stderr).toContain(
      `the pinned maps have layout ${layout.version + 1}, and this ripstop reads layout ${layout.version}`,
    );
  });

  it('and that cannot keep the flow table learns anew, and breaks no connection', async () => {
    await unharmed(async () => {
      await change(later);
      await expect.poll(() => maps().version, { timeout: 10_000 }).toBe(layout.version + 2);
    });
    const before = verdicts();
    await talkTcp(pod(2), pod(1, 1).ip, 1 << 20);
    expect(verdicts().fast).toBeGreaterThan(before.fast + 10);
  });

  it('and that is older than the maps in use leaves them as they are, with a message of all differences and what to do', async () => {
    const before = maps();
    const logged = agentLog(cluster.lab, node()).length;
    let started: Promise<unknown> | undefined;
    await unharmed(async () => {
      started = change().catch(() => {}); // It never becomes ready.
      await expect
        .poll(() => agentLog(cluster.lab, node()).slice(logged), { timeout: 10_000 })
        .toContain(`the maps in use have layout ${layout.version + 2}, and this ripstop, which is older`);
    });
    // The programs there would mistake a new pod for the previous one with its address.
    await expect.poll(() => cniStatus(cluster.lab, node())).toMatch(/code 50: .*no pod can be added/);
    const said = agentLog(cluster.lab, node()).slice(logged);
    for (const difference of [
      'endpoints: value size is 28, the object wants 24',
      'flows4: value size is 88, the object wants 80',
      'vteps: does not exist',
      'underlay: is unknown to this version',
      'ripstop uninstall',
    ])
      expect(said).toContain(difference);
    expect(maps()).toEqual(before);

    await unharmed(() => change(later));
    await started;
    expect(maps()).toEqual(before);
  });
});
