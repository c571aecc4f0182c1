// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import type { AgentStatus } from '../agent/status.ts';
import { renderStatus, type Status } from './status.ts';

const agent: AgentStatus = {
  node: 'node1',
  mode: 'cni',
  ingress: { hook: 'tc', why: 'eth0 is a veth, not a NIC' },
  ready: true,
  families: [
    {
      network: '10.42.0.0/16',
      podCidr: '10.42.0.0/24',
      vtep: { device: 'flannel.1', ip: '172.31.0.1', mac: '02:81:6f:6b:74:c4' },
    },
    {
      network: 'fd00:42::/56',
      podCidr: 'fd00:42::/64',
      vtep: { device: 'flannel-v6.1', ip: 'fd00:31::1', mac: '02:81:6f:6b:74:c6' },
    },
  ],
  podDevice: { kind: 'netkit', why: '--pod-device netkit says so' },
  uplink: { name: 'eth0', mtu: 1500, explanation: 'eth0 (172.31.0.1): it is --iface eth0' },
  api: { connected: true, synced: true, lastEventAgeMs: 1400 },
  peers: [{ name: 'node2', podCidr: '10.42.1.0/24', vtepIp: '172.31.0.2' }],
  alarms: [],
  passes: { count: 6, errors: 0, lastDurationMs: 31, lastErrors: [] },
  targets: [],
  recent: { seconds: 60, fast: 590, kernel: 10, drop: 0 },
};

const status: Status = {
  agent,
  attached: [
    { hook: 'from_pod', device: 'veth0fa0b9f8', programId: 1645, live: true },
    { hook: 'from_pod', device: 'veth11111111', netkit: true, programId: 1646, live: true },
    { hook: 'from_wire', device: 'eth0', programId: 7, live: true },
  ],
  peers: 1,
  peersWithoutFastPath: 0,
  endpoints: 2,
  flows: 3,
  watched: ['nf_tables_commit', 'xt_replace_table'],
  packets: { fast: 999, kernel: 1, drop: 0 },
  fastPercent: 99.9,
};

const lines = (text: string): string[] => text.split('\n');

describe('status', () => {
  it('tells how many peers the kernel path alone serves', () => {
    expect(renderStatus({ ...status, peers: 3, peersWithoutFastPath: 2 })).toContain(
      'peers       3, 2 of them on the kernel path alone\n',
    );
  });

  it('is one screen', () => {
    expect(renderStatus(status)).toMatchInlineSnapshot(`
      "node        node1, mode cni, ready
      uplink      eth0 (172.31.0.1): it is --iface eth0, MTU 1500
      podCIDR     10.42.0.0/24 of 10.42.0.0/16
      VTEP        flannel.1 02:81:6f:6b:74:c4 at 172.31.0.1
      podCIDR     fd00:42::/64 of fd00:42::/56
      VTEP        flannel-v6.1 02:81:6f:6b:74:c6 at fd00:31::1
      ingress     tc: eth0 is a veth, not a NIC
      pod device  netkit: --pod-device netkit says so
      API watch   connected, last event 1 s ago
      passes      6, the last took 31 ms, 0 errors
      peers       1
      endpoints   2
      flows       3
      changes     at once, also without an agent (2 functions of the kernel watched)
      packets     999 fast, 1 kernel path, 0 dropped (99.9 % fast), between pods
                  590 fast, 10 kernel path, 0 dropped (98.3 % fast) in the last 60 s: 10 per second

      HOOK               DEVICE        PROGRAM  STATE
      from_pod           veth0fa0b9f8     1645  attached
      from_pod (netkit)  veth11111111     1646  attached
      from_wire          eth0                7  attached
      "
    `);
  });

  it('says first that no agent runs, and then shows the maps', () => {
    const { agent: _, fastPercent: __, ...rest } = status;
    expect(lines(renderStatus({ ...rest, packets: { fast: 0, kernel: 0, drop: 0 } })).slice(0, 6)).toEqual([
      'agent      NOT RUNNING (the pinned programs forward without it)',
      'peers      1',
      'endpoints  2',
      'flows      3',
      'changes    at once, also without an agent (2 functions of the kernel watched)',
      'packets    0 fast, 0 kernel path, 0 dropped, between pods',
    ]);
  });

  it('shows first what an operator must see', () => {
    const text = renderStatus({
      ...status,
      attached: [{ hook: 'from_pod', device: 'veth9', programId: 8, live: false }],
      agent: {
        ...agent,
        ready: false,
        notReady: 'the uplink has no address',
        api: {
          connected: false,
          synced: false,
          lastEventAgeMs: 61_000,
          lastError: 'connection refused',
          lastKnownAgeMs: 90_400,
        },
        alarms: [{ node: 'node7', kind: 'podcidr_conflict', reason: 'its podCIDR is taken by node3' }],
        passes: {
          ...agent.passes,
          errors: 1,
        },
        targets: [
          {
            name: 'pod-links',
            desired: 2,
            pending: 0,
            failures: [{ key: 'from_pod@veth1', why: 'EPERM', sinceMs: 0 }],
            sinceMs: 0,
          },
        ],
      },
    });
    expect(lines(text).slice(0, 7)).toEqual([
      'ALARM       node7: its podCIDR is taken by node3',
      'ERROR       pod-links from_pod@veth1: EPERM',
      'NOT READY   the uplink has no address',
      'API watch   NOT CONNECTED, last event 61 s ago: connection refused',
      'LAST KNOWN  runs on the last-known state, 90 s old, until the API server answers',
      'DETACHED    from_pod of veth9: the device is gone',
      'node        node1, mode cni',
    ]);
    expect(text.match(/API watch/g)).toHaveLength(1);
  });

  it('of an agent that has just started leaves out what is not known yet', () => {
    const text = renderStatus({
      ...status,
      agent: {
        node: 'node1',
        mode: 'cni',
        ready: false,
        families: [],
        notReady: 'starting',
        api: { connected: true, synced: false },
        peers: [],
        alarms: [],
        passes: { count: 0, errors: 0, lastDurationMs: 0, lastErrors: [] },
        targets: [],
      },
    });
    expect(text).toContain('API watch  connected, waiting for the first list\n');
    expect(text).not.toMatch(/podCIDR|uplink|VTEP|undefined/);
  });
});
