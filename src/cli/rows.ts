// SPDX-License-Identifier: Apache-2.0
/** The rows of `peers`, `endpoints` and `flows`: the maps' entries, with the names that the agent knows. */
import { hrtime } from 'node:process';
import type { AgentStatus } from '../agent/status.ts';
import { AttachmentStore } from '../cni/attachments.ts';
import type { Struct } from '../dataplane/codec.ts';
import { stateSlot6 } from '../dataplane/desired.ts';
import { layout } from '../dataplane/layout.gen.ts';
import { openTables } from '../dataplane/tables.ts';
import { addressFamily } from '../net/ip.ts';
import { flagNames } from './maps.ts';
import type { Column } from './table.ts';

export interface PeerRow {
  /** Undefined while no agent runs. */
  readonly node?: string;
  readonly podCidr?: string;
  /** The slot in the peers map, or the podCIDR's base address in peers6. */
  readonly key: string;
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
  const add = (key: string, { head, header }: Struct<'peer'> | Struct<'peer6'>): void => {
    const known = agent?.peers.find(({ vtepIp }) => vtepIp === head.vtep_ip);
    rows.push({
      ...(known && { node: known.name, podCidr: known.podCidr }),
      key,
      vtepIp: head.vtep_ip,
      vtepMac: header.inner_ether.dst,
      nextHop: head.next_hop,
      flags: flagNames(layout.enums.peer_flags, head.flags),
    });
  };
  for (const [slot, peer] of tables.peers.entries()) if (peer.head.flags !== 0) add(String(slot), peer);
  for (const [base, peer] of tables.peers6.entries()) add(base, peer);
  return rows;
}

export interface EndpointRow {
  readonly ip?: string;
  /** namespace/name, where the runtime gave them. */
  readonly pod?: string;
  readonly device?: string;
  readonly ifindex: number;
  readonly podMac: string;
  readonly mtu: number;
  readonly translatedFlows: number;
  readonly flags: string[];
}

export const endpointColumns: Column<EndpointRow>[] = [
  { title: 'IP', value: (row) => row.ip },
  { title: 'POD', value: (row) => row.pod },
  { title: 'DEVICE', value: (row) => row.device },
  { title: 'POD MAC', value: (row) => row.podMac },
  { title: 'MTU', align: 'right', value: (row) => row.mtu },
  { title: 'TRANSLATED FLOWS', align: 'right', value: (row) => row.translatedFlows },
  { title: 'FLAGS', value: (row) => row.flags.join(',') },
];

export async function readEndpoints(bpffs: string, runDir: string): Promise<EndpointRow[]> {
  using tables = openTables(bpffs);
  const attachments = await new AttachmentStore(runDir).list();
  const rows: EndpointRow[] = [];
  const add = (
    endpoint: Struct<'endpoint'>,
    ofFamily: (ip: string) => boolean,
    stateSlot: (ip: string) => number,
  ): void => {
    const known = attachments.find(({ hostIfindex }) => hostIfindex === endpoint.ifindex);
    const ip = known?.ips.find(ofFamily);
    const state = ip === undefined ? undefined : tables.endpoint_state.get(stateSlot(ip));
    rows.push({
      ...(ip !== undefined && { ip }),
      ...(known && { device: known.hostIfname }),
      ...(known?.podName !== undefined && { pod: `${known.podNamespace ?? 'default'}/${known.podName}` }),
      ifindex: endpoint.ifindex,
      podMac: endpoint.pod_mac,
      mtu: endpoint.mtu,
      translatedFlows: state?.stack_flows ?? 0,
      flags: [
        ...flagNames(layout.enums.endpoint_flags, endpoint.flags),
        ...(state && state.overflow !== 0 ? ['overflow'] : []),
        ...(state && state.forwards !== 0 ? ['forwards'] : []),
      ],
    });
  };
  const { maxEntries: slots } = tables.endpoints.map.info;
  for (const [slot, endpoint] of tables.endpoints.entries())
    if (endpoint.ifindex !== 0)
      add(
        endpoint,
        (ip) => addressFamily(ip) === 4,
        () => slot,
      );
  for (const [address, endpoint] of tables.endpoints6.entries())
    add(
      endpoint,
      (ip) => ip === address,
      (ip) => stateSlot6(slots, ip),
    );
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
    source: withPort(flow.src, flow.src_port),
    destination: withPort(flow.dst, flow.dst_port),
    ageSeconds: Math.max(0, Math.round((now - created_ns) / 1e9)),
  }));
}

function withPort(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}
