// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { PROCESS_PREFIX } from './table.ts';
import { createMetrics, type Facts, type Talker } from './metrics.ts';

const nothing: Facts = {
  ready: true,
  api: { connected: true },
  peers: 0,
  withoutFastPath: new Map(),
  endpoints: 0,
  lastKnownAgeMs: undefined,
  alarms: [],
  targets: [],
  conntrack: undefined,
  runs: [],
  maps: undefined,
  talkers: { peers: [], pods: [] },
  top: 2,
};

/** The lines of one metric. */
async function exported(name: string, facts: Partial<Facts>): Promise<string[]> {
  const text = await createMetrics(() => ({ ...nothing, ...facts })).scrape();
  return text.split('\n').filter((line) => line.startsWith(name) && !line.startsWith('#'));
}

it('alarms are counted by kind, as long as they are raised', async () => {
  const alarms = [{ kind: 'podcidr_conflict' }, { kind: 'vtep_shared' }, { kind: 'podcidr_conflict' }];
  expect(await exported('ripstop_node_alarms', { alarms })).toEqual([
    'ripstop_node_alarms{kind="podcidr_conflict"} 2',
    'ripstop_node_alarms{kind="vtep_shared"} 1',
  ]);
  expect(await exported('ripstop_node_alarms', {})).toEqual([]);
});

it('peers that the kernel path alone serves are counted by reason, also when there are none any more', async () => {
  const counts = new Map([
    ['checksum', 3],
    ['ipsec', 0],
  ]);
  expect(await exported('ripstop_peers_without', { withoutFastPath: counts })).toEqual([
    'ripstop_peers_without_fast_path{reason="checksum"} 3',
    'ripstop_peers_without_fast_path{reason="ipsec"} 0',
  ]);
});

it('entries are counted by target and by how they stand', async () => {
  const failures = [{ key: 'from_pod@veth1', why: 'EPERM', sinceMs: 0 }];
  const targets = [{ name: 'pod-links', desired: 4, pending: 1, failures, sinceMs: 0 }];
  expect(await exported('ripstop_target_entries', { targets })).toEqual([
    'ripstop_target_entries{target="pod-links",state="ok"} 2',
    'ripstop_target_entries{target="pod-links",state="pending"} 1',
    'ripstop_target_entries{target="pod-links",state="failed"} 1',
  ]);
});

it('the age of the last-known state is exported only while the node runs on it', async () => {
  const name = 'ripstop_last_known_age_seconds';
  expect(await exported(name, { lastKnownAgeMs: 90_000 })).toEqual([`${name} 90`]);
  expect(await exported(name, {})).toEqual([]);
});

it('what the agent does not know is not there, rather than zero', async () => {
  const lines = await exported('ripstop_', {});
  const names = lines.filter((line) => !line.startsWith(PROCESS_PREFIX)).map((line) => line.split(/[{ ]/)[0]);
  expect(names).not.toContain('ripstop_api_watches_total');
  expect(names).not.toContain('ripstop_conntrack_entries');
  expect(names).toContain('ripstop_peers');
});

it('the time that programs take is there only for programs that the kernel has measured', async () => {
  const runs = [{ program: 'from_pod', runs: 4, seconds: 0.000002 }];
  expect(await exported('ripstop_program_run', { runs })).toEqual([
    'ripstop_program_run_seconds_total{program="from_pod"} 0.000002',
    'ripstop_program_runs_total{program="from_pod"} 4',
  ]);
  expect(await exported('ripstop_program_run', {})).toEqual([]);
});

describe('peers and pods', () => {
  const talker = (bytes: number, ...name: string[]): Talker => ({
    name,
    flows: 1,
    packets: bytes / 10,
    bytes,
    kernelPackets: 1,
    kernelBytes: 0,
  });

  it('have samples of their own if they are the largest, by bytes; the rest is added up', async () => {
    const peers = [talker(10, 'a'), talker(50, 'b'), talker(20, 'c'), talker(30, 'd')];
    expect(await exported('ripstop_peer_live_flow_bytes', { talkers: { peers, pods: [] } })).toEqual([
      'ripstop_peer_live_flow_bytes{peer="b"} 50',
      'ripstop_peer_live_flow_bytes{peer="d"} 30',
      'ripstop_peer_live_flow_bytes{peer="other"} 30',
    ]);
    // Of a counter the rest would seem to fall when one of them becomes one of the largest.
    expect(
      await exported('ripstop_peer_kernel_path_packets_total', { talkers: { peers, pods: [] } }),
    ).toEqual([
      'ripstop_peer_kernel_path_packets_total{peer="b"} 1',
      'ripstop_peer_kernel_path_packets_total{peer="d"} 1',
    ]);
    expect(await exported('ripstop_peer_live_flows', { talkers: { peers, pods: [] }, top: 0 })).toEqual([
      'ripstop_peer_live_flows{peer="other"} 4',
    ]);
  });

  it('have no rest where all have samples of their own', async () => {
    const pods = [talker(10, 'default', 'web'), talker(20, 'kube-system', 'dns')];
    expect(await exported('ripstop_pod_live_flow_packets', { talkers: { peers: [], pods } })).toEqual([
      'ripstop_pod_live_flow_packets{pod_namespace="kube-system",pod_name="dns"} 2',
      'ripstop_pod_live_flow_packets{pod_namespace="default",pod_name="web"} 1',
    ]);
  });
});

it('a scrape with 15,000 peers, all of them talking and 1,000 named, stays under 5 MB', async () => {
  const peers = Array.from({ length: 15_000 }, (_, i) => ({
    name: [`node-${i}`],
    flows: 1,
    packets: i,
    bytes: i,
    kernelPackets: i,
    kernelBytes: i,
  }));
  const facts = { ...nothing, peers: 15_000, talkers: { peers, pods: peers }, top: 1000 };
  expect((await createMetrics(() => facts).scrape()).length).toBeLessThan(5e6);
});
