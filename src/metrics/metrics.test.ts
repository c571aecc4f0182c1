// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import { createMetrics, type MetricsSource } from './metrics.ts';

/** The lines of one metric. */
async function exported(name: string, source: Partial<MetricsSource>): Promise<string[]> {
  const { registry } = createMetrics({
    tables: () => undefined,
    api: () => ({ connected: true }),
    peers: () => 0,
    withoutFastPath: () => new Map(),
    endpoints: () => 0,
    lastKnownAgeMs: () => undefined,
    alarms: () => [],
    targets: () => [],
    ...source,
  });
  const text = await registry.metrics();
  return text.split('\n').filter((line) => line.startsWith(name) && !line.startsWith('#'));
}

it('alarms are counted by kind, as long as they are raised', async () => {
  const up = [{ kind: 'podcidr_conflict' }, { kind: 'vtep_shared' }, { kind: 'podcidr_conflict' }];
  const alarms = () => up;
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
  expect(await exported('ripstop_peers_without', { withoutFastPath: () => counts })).toEqual([
    'ripstop_peers_without_fast_path{reason="checksum"} 3',
    'ripstop_peers_without_fast_path{reason="ipsec"} 0',
  ]);
});

it('entries are counted by target and by how they stand', async () => {
  const failures = [{ key: 'from_pod@veth1', why: 'EPERM', sinceMs: 0 }];
  const targets = () => [{ name: 'pod-links', desired: 4, pending: 1, failures, sinceMs: 0 }];
  expect(await exported('ripstop_target_entries', { targets })).toEqual([
    'ripstop_target_entries{target="pod-links",state="ok"} 2',
    'ripstop_target_entries{target="pod-links",state="pending"} 1',
    'ripstop_target_entries{target="pod-links",state="failed"} 1',
  ]);
});

it('the age of the last-known state is exported only while the node runs on it', async () => {
  const name = 'ripstop_last_known_age_seconds';
  expect(await exported(name, { lastKnownAgeMs: () => 90_000 })).toEqual([`${name} 90`]);
  expect(await exported(name, {})).toEqual([]);
});
