// SPDX-License-Identifier: Apache-2.0
/** The rows of `peers` and `endpoints`: the maps' entries, with the names that the agent knows. */
import type { AgentStatus } from '../agent/status.ts';
import { type Attachment, AttachmentStore } from '../cni/attachments.ts';
import type { Struct } from '../dataplane/codec.ts';
import { stateSlot6 } from '../dataplane/desired.ts';
import { type FlowSum, type FlowSums, sumFlows } from '../dataplane/flow-sums.ts';
import { layout } from '../dataplane/layout.gen.ts';
import { readPinnedConfig } from '../dataplane/rehearsal.ts';
import { openTables, pinPaths, type Tables } from '../dataplane/tables.ts';
import { listLinks } from '../host/links.ts';
import { findShaped } from '../host/shaping.ts';
import { intToIpv4, ipv4ToInt } from '../net/ip.ts';
import { readConfig } from './maps.ts';
import { flagNames } from './map-values.ts';
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
  /** Of the flow table; absent where nobody asked for it, and while no programs are loaded. */
  readonly live?: FlowSum;
}

/** Of live flows: see `flow-sums.ts`. */
const liveColumns: Column<{ readonly live?: FlowSum }>[] = [
  { title: 'FLOWS', align: 'right', wide: true, value: ({ live }) => live?.flows },
  { title: 'PACKETS', align: 'right', wide: true, value: ({ live }) => live?.packets },
  { title: 'BYTES', align: 'right', wide: true, value: ({ live }) => live?.bytes },
];

const noFlows: FlowSum = { flows: 0, packets: 0, bytes: 0 };

export const peerColumns: Column<PeerRow>[] = [
  { title: 'NODE', value: (row) => row.node },
  { title: 'PODCIDR', value: (row) => row.podCidr },
  { title: 'VTEP', value: (row) => row.vtepIp },
  { title: 'VTEP MAC', value: (row) => row.vtepMac },
  { title: 'NEXT HOP', value: (row) => row.nextHop },
  { title: 'FLAGS', value: (row) => row.flags.join(',') },
  ...liveColumns,
  { title: 'FAST PATH', value: fastPathColumn },
];

function fastPathColumn({ fastPath, why }: { fastPath: boolean; why?: string }): string {
  return fastPath ? 'yes' : `no: ${why}`;
}

/** The sums of the flow table, which may be large: read only if somebody asks. */
function liveSums(bpffs: string, tables: Tables, isAsked: boolean): FlowSums | undefined {
  const config = isAsked ? readPinnedConfig(bpffs) : undefined;
  return config && sumFlows(tables, config);
}

/**
 * The entries of the maps, and the peers of the agent that the maps lack.
 * @param withLive read the sums of their flows, too.
 */
export function readPeers(bpffs: string, agent: AgentStatus | undefined, withLive = false): PeerRow[] {
  using tables = openTables(bpffs);
  const live = liveSums(bpffs, tables, withLive);
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
      ...(live && { live: live.peers.get(key) ?? noFlows }),
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
  /** `veth` or `netkit`. */
  readonly deviceKind?: string;
  readonly ifindex: number;
  readonly podMac: string;
  readonly mtu: number;
  /** Whether the fast path serves it; if not, why. */
  readonly fastPath: boolean;
  readonly why?: string;
  readonly flags: string[];
  /** Of all its addresses: see {@link PeerRow}. */
  readonly live?: FlowSum;
}

export const endpointColumns: Column<EndpointRow>[] = [
  { title: 'IP', value: (row) => row.ip },
  { title: 'POD', value: (row) => row.pod },
  { title: 'DEVICE', value: (row) => row.device },
  { title: 'DEVICE KIND', wide: true, value: (row) => row.deviceKind },
  { title: 'POD MAC', value: (row) => row.podMac },
  { title: 'MTU', align: 'right', value: (row) => row.mtu },
  { title: 'FLAGS', value: (row) => row.flags.join(',') },
  ...liveColumns,
  { title: 'FAST PATH', value: fastPathColumn },
];

/** A pod as kubectl names it; undefined when the runtime did not tell. */
export function podOf({ podName, podNamespace = 'default' }: Attachment): string | undefined {
  return podName === undefined ? undefined : `${podNamespace}/${podName}`;
}

/** The host veths of all endpoints. */
function ifindexesOf({ endpoints, endpoints6 }: Tables): number[] {
  const all = [...endpoints.entries(), ...endpoints6.entries()].map(([, { ifindex }]) => ifindex);
  return [...new Set(all)].filter((ifindex) => ifindex !== 0);
}

/** @param withLive read the sums of their flows, too. */
export async function readEndpoints(bpffs: string, runDir: string, withLive = false): Promise<EndpointRow[]> {
  using tables = openTables(bpffs);
  const live = liveSums(bpffs, tables, withLive);
  const attachments = await new AttachmentStore(runDir).list();
  const shaped = new Set(findShaped(ifindexesOf(tables), pinPaths(bpffs).links));
  const links = new Map((await listLinks()).values().map((link) => [link.ifindex, link]));
  const rows: EndpointRow[] = [];
  const add = (endpoint: Struct<'endpoint'>, ip: string | undefined, stateSlot: number): void => {
    const known = attachments.find(({ hostIfindex }) => hostIfindex === endpoint.ifindex);
    const pod = known && podOf(known);
    const { name: device, kind: deviceKind } = links.get(endpoint.ifindex) ?? {};
    const state = tables.endpoint_state.get(stateSlot);
    const isMarked = (endpoint.flags & layout.enums.endpoint_flags.ENDPOINT_KERNEL_PATH) !== 0;
    const isShaped = shaped.has(endpoint.ifindex);
    rows.push({
      ...(ip !== undefined && { ip }),
      ...(device !== undefined && { device }),
      ...(deviceKind !== undefined && { deviceKind }),
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
      ...(live && { live: live.endpoints.get(endpoint.ifindex) ?? noFlows }),
    });
  };
  const { maxEntries: slots } = tables.endpoints.map.info;
  const podCidr = (await readConfig(bpffs)).get('pod_cidr');
  const addressAt = (slot: number): string | undefined =>
    typeof podCidr === 'string' ? intToIpv4(ipv4ToInt(podCidr) + slot) : undefined;
  for (const [slot, endpoint] of tables.endpoints.entries())
    if (endpoint.ifindex !== 0) add(endpoint, addressAt(slot), slot);
  for (const [address, endpoint] of tables.endpoints6.entries())
    add(endpoint, address, stateSlot6(slots, address));
  return rows;
}
