// SPDX-License-Identifier: Apache-2.0
/** The rows of `peers`, `endpoints` and `flows`: the maps' entries, with the names that the agent knows. */
import { hrtime } from 'node:process';
import type { AgentStatus } from '../agent/status.ts';
import { type Attachment, AttachmentStore } from '../cni/attachments.ts';
import type { Struct } from '../dataplane/codec.ts';
import { FLOW_LIFETIME_MS, stateSlot6 } from '../dataplane/desired.ts';
import { layout } from '../dataplane/layout.gen.ts';
import { openTables, pinPaths } from '../dataplane/tables.ts';
import { findShaped } from '../host/shaping.ts';
import { addressFamily } from '../net/ip.ts';
import { flagNames } from './maps.ts';
import type { Column } from './table.ts';

export interface PeerRow {
  /** Undefined while no agent runs. */
  readonly node?: string;
  readonly podCidr?: string;
  readonly vtepIp: string;
  /** Whether the fast path serves it. */
  readonly fastPath: boolean;
  /** Why not: a word as in the metrics, and for people. Both come from the agent; without one there is `why` alone. */
  readonly reason?: string;
  readonly why?: string;
  /** The slot in the peers map, or the podCIDR's base address in peers6. Only of peers that the maps have, as the next ones. */
  readonly key?: string;
  readonly vtepMac?: string;
  readonly nextHop?: string;
  readonly flags: string[];
}

export const peerColumns: Column<PeerRow>[] = [
  { title: 'NODE', value: (row) => row.node },
  { title: 'PODCIDR', value: (row) => row.podCidr },
  { title: 'VTEP', value: (row) => row.vtepIp },
  { title: 'VTEP MAC', value: (row) => row.vtepMac },
  { title: 'NEXT HOP', value: (row) => row.nextHop },
  { title: 'FLAGS', value: (row) => row.flags.join(',') },
  { title: 'FAST PATH', value: fastPathColumn },
];

function fastPathColumn({ fastPath, why }: { fastPath: boolean; why?: string }): string {
  return fastPath ? 'yes' : `no: ${why}`;
}

/** The entries of the maps, and the peers of the agent that the maps lack. */
export function readPeers(bpffs: string, agent: AgentStatus | undefined): PeerRow[] {
  using tables = openTables(bpffs);
  const known = new Map(agent?.peers.map((peer) => [peer.vtepIp, peer]));
  const rows: PeerRow[] = [];
  const add = (key: string, { head, header }: Struct<'peer'> | Struct<'peer6'>): void => {
    const peer = known.get(head.vtep_ip);
    known.delete(head.vtep_ip);
    const isMarked = (head.flags & layout.enums.peer_flags.PEER_KERNEL_PATH) !== 0;
    rows.push({
      ...(peer && { node: peer.name, podCidr: peer.podCidr }),
      fastPath: !isMarked,
      ...(isMarked && { why: 'marked for the kernel path', ...peer?.kernelPathOnly }),
      key,
      vtepIp: head.vtep_ip,
      vtepMac: header.inner_ether.dst,
      nextHop: head.next_hop,
      flags: flagNames(layout.enums.peer_flags, head.flags),
    });
  };
  for (const [slot, peer] of tables.peers.entries()) if (peer.head.flags !== 0) add(String(slot), peer);
  for (const [base, peer] of tables.peers6.entries()) add(base, peer);
  for (const { name, podCidr, vtepIp, kernelPathOnly } of known.values()) {
    const why = { why: 'not in the maps yet', ...kernelPathOnly };
    rows.push({ node: name, podCidr, vtepIp, fastPath: false, ...why, flags: [] });
  }
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
  /** Whether the fast path serves it; if not, why. */
  readonly fastPath: boolean;
  readonly why?: string;
  readonly flags: string[];
}

export const endpointColumns: Column<EndpointRow>[] = [
  { title: 'IP', value: (row) => row.ip },
  { title: 'POD', value: (row) => row.pod },
  { title: 'DEVICE', value: (row) => row.device },
  { title: 'POD MAC', value: (row) => row.podMac },
  { title: 'MTU', align: 'right', value: (row) => row.mtu },
  { title: 'FLAGS', value: (row) => row.flags.join(',') },
  { title: 'FAST PATH', value: fastPathColumn },
];

/** A pod as kubectl names it; undefined when the runtime did not tell. */
export function podOf({ podName, podNamespace = 'default' }: Attachment): string | undefined {
  return podName === undefined ? undefined : `${podNamespace}/${podName}`;
}

export async function readEndpoints(bpffs: string, runDir: string): Promise<EndpointRow[]> {
  using tables = openTables(bpffs);
  const attachments = await new AttachmentStore(runDir).list();
  const hostVeths = attachments.map(({ hostIfindex }) => hostIfindex);
  const shaped = new Set(findShaped(hostVeths, pinPaths(bpffs).links));
  const rows: EndpointRow[] = [];
  const add = (
    endpoint: Struct<'endpoint'>,
    ofFamily: (ip: string) => boolean,
    stateSlot: (ip: string) => number,
  ): void => {
    const known = attachments.find(({ hostIfindex }) => hostIfindex === endpoint.ifindex);
    const pod = known && podOf(known);
    const ip = known?.ips.find(ofFamily);
    const state = ip === undefined ? undefined : tables.endpoint_state.get(stateSlot(ip));
    const isMarked = (endpoint.flags & layout.enums.endpoint_flags.ENDPOINT_KERNEL_PATH) !== 0;
    const isShaped = shaped.has(endpoint.ifindex);
    rows.push({
      ...(ip !== undefined && { ip }),
      ...(known && { device: known.hostIfname }),
      ...(pod !== undefined && { pod }),
      ifindex: endpoint.ifindex,
      podMac: endpoint.pod_mac,
      mtu: endpoint.mtu,
      fastPath: !isMarked,
      ...(isMarked && {
        why: isShaped ? 'somebody shapes or filters its packets in tc' : 'marked for the kernel path',
      }),
      flags: [
        ...flagNames(layout.enums.endpoint_flags, endpoint.flags),
        ...(isShaped ? ['shaped'] : []),
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
  /** As its packets come in. */
  readonly source: string;
  readonly destination: string;
  /** Where they come in: a pod (namespace/name, or its host veth), or `wire`. */
  readonly from: string;
  /** As they leave, if they are translated. */
  readonly translatedSource?: string;
  readonly translatedDestination?: string;
  /** Since it was last learned. */
  readonly ageSeconds: number;
  /** `valid`; else why the next packet takes the kernel path. */
  readonly state: 'valid' | 'old epoch' | 'expired';
}

export const flowColumns: Column<FlowRow>[] = [
  { title: 'PROTOCOL', value: (row) => row.protocol },
  { title: 'SOURCE', value: (row) => row.source },
  { title: 'DESTINATION', value: (row) => row.destination },
  { title: 'FROM', value: (row) => row.from },
  { title: 'LEAVES AS', value: leavesAs },
  { title: 'AGE', align: 'right', value: (row) => `${row.ageSeconds}s` },
  { title: 'STATE', value: (row) => row.state },
];

function leavesAs({
  source,
  destination,
  translatedSource,
  translatedDestination,
}: FlowRow): string | undefined {
  if (translatedSource === undefined && translatedDestination === undefined) return undefined;
  return `${translatedSource ?? source} → ${translatedDestination ?? destination}`;
}

export const protocols: Readonly<Record<number, string>> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'icmpv6' };

export async function readFlows(bpffs: string, runDir: string): Promise<FlowRow[]> {
  const attachments = await new AttachmentStore(runDir).list();
  const pods = new Map(attachments.map((one) => [one.hostIfindex, podOf(one) ?? one.hostIfname]));
  using tables = openTables(bpffs);
  const nowNs = Number(hrtime.bigint());
  const epoch = tables.epoch.get(0);
  return [...tables.flows4.entries(), ...tables.flows6.entries()].map(([flow, { head, out }]) => {
    const source = withPort(flow.src, flow.src_port);
    const destination = withPort(flow.dst, flow.dst_port);
    const to = { source: withPort(out.src, out.src_port), destination: withPort(out.dst, out.dst_port) };
    const ageMs = Math.max(0, nowNs - head.learned_ns) / 1e6;
    const lifetime = ageMs > FLOW_LIFETIME_MS ? 'expired' : 'valid';
    return {
      protocol: protocols[flow.protocol] ?? String(flow.protocol),
      source,
      destination,
      from: pods.get(head.ifindex) ?? 'wire',
      ...(to.source !== source && { translatedSource: to.source }),
      ...(to.destination !== destination && { translatedDestination: to.destination }),
      ageSeconds: Math.round(ageMs / 1000),
      state: head.epoch === epoch ? lifetime : 'old epoch',
    };
  });
}

export function withPort(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;
}
