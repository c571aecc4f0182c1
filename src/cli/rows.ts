// SPDX-License-Identifier: Apache-2.0
/** What `peers`, `endpoints` and `flows` show: the maps' entries with the names that the agent knows them by. */
import { hrtime } from 'node:process';
import type { AgentStatus } from '../agent/status.ts';
import { AttachmentStore } from '../cni/attachments.ts';
import { layout } from '../dataplane/layout.gen.ts';
import { openTables } from '../dataplane/tables.ts';
import { flagNames } from './maps.ts';
import type { Column } from './table.ts';

export interface PeerRow {
  /** Undefined while no agent runs to ask. */
  readonly node?: string;
  readonly podCidr?: string;
  readonly slot: number;
  readonly vtepIp: string;
  readonly vtepMac: string;
  readonly nextHop: string;
  readonly flags: string[];
}

export const peerColumns: Column<PeerRow>[] = [
  { title: 'NODE', value: (row) => row.node },
  { title: 'PODCIDR', value: (row) => row.podCidr },
  { title: 'VTEP', value: (row) => row.vtepIp },
  { title: 'VTEP MAC', value: (row) => row.vtepMac },
  { title: 'NEXT HOP', value: (row) => row.nextHop },
  { title: 'FLAGS', value: (row) => row.flags.join(',') },
];

export function readPeers(bpffs: string, agent: AgentStatus | undefined): PeerRow[] {
  using tables = openTables(bpffs);
  const rows: PeerRow[] = [];
  for (const [slot, peer] of tables.peers.entries()) {
    if (peer.flags === 0) continue;
    const known = agent?.peers.find(({ vtepIp }) => vtepIp === peer.vtep_ip);
    rows.push({
      ...(known && { node: known.name, podCidr: known.podCidr }),
      slot,
      vtepIp: peer.vtep_ip,
      vtepMac: peer.header.inner_ether.dst,
      nextHop: peer.next_hop,
      flags: flagNames(layout.enums.peer_flags, peer.flags),
    });
  }
  return rows;
}

export interface EndpointRow {
  readonly ip?: string;
  /** namespace/name, where the runtime said. */
  readonly pod?: string;
  readonly device?: string;
  readonly slot: number;
  readonly ifindex: number;
  readonly podMac: string;
  readonly mtu: number;
  readonly stackFlows: number;
  readonly flags: string[];
}

export const endpointColumns: Column<EndpointRow>[] = [
  { title: 'IP', value: (row) => row.ip },
  { title: 'POD', value: (row) => row.pod },
  { title: 'DEVICE', value: (row) => row.device },
  { title: 'POD MAC', value: (row) => row.podMac },
  { title: 'MTU', align: 'right', value: (row) => row.mtu },
  { title: 'STACK FLOWS', align: 'right', value: (row) => row.stackFlows },
  { title: 'FLAGS', value: (row) => row.flags.join(',') },
];

export async function readEndpoints(bpffs: string, runDir: string): Promise<EndpointRow[]> {
  using tables = openTables(bpffs);
  const attachments = await new AttachmentStore(runDir).list();
  const rows: EndpointRow[] = [];
  for (const [slot, endpoint] of tables.endpoints.entries()) {
    if (endpoint.ifindex === 0) continue;
    const state = tables.endpoint_state.get(slot);
    const known = attachments.find(({ hostIfindex }) => hostIfindex === endpoint.ifindex);
    rows.push({
      ...(known && { ip: known.ip, device: known.hostIfname }),
      ...(known?.podName !== undefined && { pod: `${known.podNamespace ?? 'default'}/${known.podName}` }),
      slot,
      ifindex: endpoint.ifindex,
      podMac: endpoint.pod_mac,
      mtu: endpoint.mtu,
      stackFlows: state?.stack_flows ?? 0,
      flags: [
        ...flagNames(layout.enums.endpoint_flags, endpoint.flags),
        ...(state && state.overflow !== 0 ? ['overflow'] : []),
      ],
    });
  }
  return rows;
}

export interface FlowRow {
  readonly protocol: string;
  readonly source: string;
  readonly destination: string;
  readonly ageSeconds: number;
}

export const flowColumns: Column<FlowRow>[] = [
  { title: 'PROTOCOL', value: (row) => row.protocol },
  { title: 'SOURCE', value: (row) => row.source },
  { title: 'DESTINATION', value: (row) => row.destination },
  { title: 'AGE', align: 'right', value: (row) => `${row.ageSeconds}s` },
];

const protocols: Readonly<Record<number, string>> = { 6: 'tcp', 17: 'udp' };

export function readFlows(bpffs: string): FlowRow[] {
  using tables = openTables(bpffs);
  const now = Number(hrtime.bigint());
  return [...tables.stack_flows.entries()].map(([flow, { created_ns }]) => ({
    protocol: protocols[flow.protocol] ?? String(flow.protocol),
    source: `${flow.src}:${flow.src_port}`,
    destination: `${flow.dst}:${flow.dst_port}`,
    ageSeconds: Math.max(0, Math.round((now - created_ns) / 1e9)),
  }));
}
