// SPDX-License-Identifier: Apache-2.0
/** The rows of `ripstop flows`: the flow table, with the names that the agent knows. */
import { hrtime } from 'node:process';
import type { AgentStatus } from '../agent/status.ts';
import { AttachmentStore } from '../cni/attachments.ts';
import type { Struct } from '../dataplane/codec.ts';
import { FLOW_LIFETIME_MS } from '../dataplane/desired.ts';
import { openTables, type Tables } from '../dataplane/tables.ts';
import { RipstopError } from '../errors.ts';
import { findClusterIps } from '../host/services.ts';
import { type Cidr, cidrContains, parseCidr, withPort } from '../net/ip.ts';
import { protocols } from './map-values.ts';
import type { MapEntry } from './maps.ts';
import { podOf } from './rows.ts';
import type { Column } from './table.ts';
import { durationText } from './text.ts';

/** `valid`; else why the next packet takes the kernel path. */
export type FlowState = 'valid' | 'unsettled' | 'expired' | 'old epoch' | 'not learned';

export interface FlowRow {
  /** `tcp`, `udp`; of an echo also what it is and its identifier: `icmp request 7955`. */
  readonly protocol: string;
  /** As its packets come in. */
  readonly source: string;
  readonly destination: string;
  /** Where they come in: a pod (namespace/name, or its host veth), or `wire`. */
  readonly from: string;
  /** Where they go: a pod of this node, the peer's node, or `wire`. */
  readonly to: string;
  /** As they leave, if they are translated. */
  readonly translatedSource?: string;
  readonly translatedDestination?: string;
  /** That took the fast path since the flow was first learned; a super-packet counts once. Absent: not learned. */
  readonly packets?: number;
  /** Of these packets: bytes of IP as they came in, without a tunnel's headers. */
  readonly bytes?: number;
  /** Since it was last learned, or was last seen if it was not. */
  readonly ageSeconds: number;
  readonly state: FlowState;
  readonly epoch: number;
  /** The largest IP packet that its way is known to carry. */
  readonly mtu?: number;
  readonly ttl: number;
  readonly dscp: number;
  /** The mark with which its packets leave. */
  readonly mark?: number;
  /** The source port of the outer UDP header, if there is one. */
  readonly outerSourcePort?: number;
}

export const flowColumns: Column<FlowRow>[] = [
  { title: 'PROTOCOL', value: (row) => row.protocol },
  { title: 'SOURCE', value: (row) => row.source },
  { title: 'DESTINATION', value: (row) => row.destination },
  { title: 'FROM', value: (row) => row.from },
  { title: 'TO', value: (row) => row.to },
  { title: 'LEAVES AS', value: leavesAs },
  { title: 'PACKETS', align: 'right', value: (row) => row.packets },
  { title: 'BYTES', align: 'right', value: (row) => row.bytes },
  { title: 'AGE', align: 'right', value: (row) => durationText(row.ageSeconds * 1000) },
  {
    title: 'STATE',
    value: (row) => row.state,
    color: (row) => (row.state === 'valid' ? 'green' : 'yellow'),
  },
  { title: 'EPOCH', align: 'right', wide: true, value: (row) => row.epoch },
  { title: 'MTU', align: 'right', wide: true, value: (row) => row.mtu },
  { title: 'TTL', align: 'right', wide: true, value: (row) => row.ttl },
  { title: 'DSCP', align: 'right', wide: true, value: (row) => row.dscp },
  { title: 'MARK', align: 'right', wide: true, value: (row) => row.mark && `0x${row.mark.toString(16)}` },
  { title: 'OUTER PORT', align: 'right', wide: true, value: (row) => row.outerSourcePort },
];

function leavesAs(row: FlowRow): string | undefined {
  const { source, destination, translatedSource, translatedDestination } = row;
  if (translatedSource === undefined && translatedDestination === undefined) return undefined;
  return `${translatedSource ?? source} → ${translatedDestination ?? destination}`;
}

/** For `--watch`: what a flow is, and what may change of it beside its age and its counters. */
export function entryOf(row: FlowRow, rate: FlowRate): MapEntry {
  const { protocol, source, destination, from, to, state, epoch } = row;
  const leaves = leavesAs(row);
  return {
    key: { protocol, source, destination },
    value: { from, to, state, epoch, ...(leaves !== undefined && { leavesAs: leaves }), ...rate },
  };
}

/** On the fast path. */
export interface FlowRate {
  readonly packetsPerSecond: number;
  readonly bitsPerSecond: number;
}

const idle: FlowRate = { packetsPerSecond: 0, bitsPerSecond: 0 };
/** Below this a flow counts as idle: one packet more or less is no news. Packets a second. */
const LEAST_RATE = 10;

/** For `--watch`: the rates of flows, each as it was when it last doubled or halved. So a steady flow is no news. */
export class FlowRates {
  #last = new Map<string, { readonly row: FlowRow; readonly rate: FlowRate }>();
  #lastMs = 0;

  /** Of the rows of the next reading, in their order. @param atMs monotonic. */
  of(rows: readonly FlowRow[], atMs: number): FlowRate[] {
    const seconds = (atMs - this.#lastMs) / 1000;
    const next = new Map<string, { row: FlowRow; rate: FlowRate }>();
    const rates = rows.map((row) => {
      const { protocol, source, destination } = row;
      const key = JSON.stringify([protocol, source, destination]);
      const last = this.#last.get(key);
      const rate = last ? newsOf(last.rate, rateBetween(last.row, row, seconds)) : idle;
      next.set(key, { row, rate });
      return rate;
    });
    this.#last = next;
    this.#lastMs = atMs;
    return rates;
  }
}

function rateBetween(before: FlowRow, after: FlowRow, seconds: number): FlowRate {
  const more = (name: 'packets' | 'bytes'): number => {
    const [then, now] = [before[name] ?? 0, after[name] ?? 0];
    return now - (then > now ? 0 : then); // learned anew: from zero
  };
  const packetsPerSecond = Math.round(more('packets') / seconds);
  if (packetsPerSecond < LEAST_RATE) return idle;
  return { packetsPerSecond, bitsPerSecond: Math.round((8 * more('bytes')) / seconds) };
}

function newsOf(told: FlowRate, now: FlowRate): FlowRate {
  const isSteady = (a: number, b: number): boolean => a === b || (a < 2 * b && b < 2 * a);
  const { packetsPerSecond, bitsPerSecond } = told;
  return isSteady(packetsPerSecond, now.packetsPerSecond) && isSteady(bitsPerSecond, now.bitsPerSecond)
    ? told
    : now;
}

export const SORTS = ['age', 'packets', 'bytes', 'source', 'destination', 'from', 'to', 'state'] as const;

/** Which flows to show, and in which order. */
export interface FlowChoice {
  /** Those of this pod, at either end: its name, namespace/name, or IP address. */
  readonly pod?: string;
  /** Those with pods of this node: its name, podCIDR or VTEP address. */
  readonly peer?: string;
  /** Those through this service: its name, namespace/name, address, or address:port. */
  readonly service?: string;
  /** Those, too, that are not in the flow table. */
  readonly all?: boolean;
  readonly sort?: (typeof SORTS)[number];
}

type Flow = Struct<'flow4'> | Struct<'flow6'>;
type Learned = Struct<'learned4'> | Struct<'learned6'>;

/** @throws RipstopError when nothing is pinned, or there is no such peer. */
export async function readFlows(
  bpffs: string,
  runDir: string,
  agent?: AgentStatus,
  choice: FlowChoice = {},
): Promise<FlowRow[]> {
  using tables = openTables(bpffs);
  const names = new Names(await new AttachmentStore(runDir).list(), agent);
  const isWanted = filterOf(choice, names, await addressesOf(choice.service));
  const context = { names, nowNs: Number(hrtime.bigint()), epoch: tables.epoch.get(0) ?? 0 };
  const learned = [...tables.flows4.entries(), ...tables.flows6.entries()];
  const found: Found[] = learned.map(([flow, one]) => ({
    flow,
    out: one.out,
    row: rowOf(flow, one, context),
  }));
  if (choice.all) found.push(...notLearned(tables, learned, context));
  const rows = found.filter(isWanted).map(({ row }) => row);
  return rows.sort(orderOf(choice.sort ?? 'age'));
}

interface Found {
  readonly flow: Flow;
  readonly out: Flow;
  readonly row: FlowRow;
}

interface Context {
  readonly names: Names;
  readonly nowNs: number;
  readonly epoch: number;
}

/** The names of pods and peers, by indexes and addresses. */
class Names {
  readonly #byIfindex = new Map<number, string>();
  readonly #byAddress = new Map<string, string>();
  readonly #peers: { readonly names: readonly string[]; readonly podCidr: Cidr }[];

  constructor(attachments: Awaited<ReturnType<AttachmentStore['list']>>, agent: AgentStatus | undefined) {
    for (const attachment of attachments) {
      const name = podOf(attachment) ?? attachment.hostIfname;
      this.#byIfindex.set(attachment.hostIfindex, name);
      for (const ip of attachment.ips) this.#byAddress.set(ip, name);
    }
    this.#peers = (agent?.peers ?? []).map(({ name, podCidr, vtepIp }) => ({
      names: [name, podCidr, vtepIp],
      podCidr: parseCidr(podCidr),
    }));
  }

  from(ifindex: number): string {
    return this.#byIfindex.get(ifindex) ?? 'wire';
  }

  to(address: string): string {
    const peer = this.#peers.find(({ podCidr }) => cidrContains(podCidr, address));
    return this.#byAddress.get(address) ?? peer?.names[0] ?? 'wire';
  }

  /** The podCIDRs of a peer. */
  podCidrsOf(peer: string): Cidr[] {
    return this.#peers.filter(({ names }) => names.includes(peer)).map(({ podCidr }) => podCidr);
  }

  /** Whether an address belongs to a pod that is named so: by its name alone, with its namespace, or by its address. */
  isPod(address: string, wanted: string): boolean {
    const name = this.#byAddress.get(address);
    return address === wanted || name === wanted || name?.split('/')[1] === wanted;
  }
}

function rowOf(flow: Flow, { head, out }: Learned, { names, nowNs, epoch }: Context): FlowRow {
  const incoming = endsOf(flow);
  const leaving = endsOf(out);
  const ageMs = Math.max(0, nowNs - head.learned_ns) / 1e6;
  return {
    ...incoming,
    from: names.from(head.ifindex),
    to: names.to(out.dst),
    ...(leaving.source !== incoming.source && { translatedSource: leaving.source }),
    ...(leaving.destination !== incoming.destination && { translatedDestination: leaving.destination }),
    packets: head.packets,
    bytes: head.bytes,
    ageSeconds: Math.round(ageMs / 100) / 10,
    state: stateOf(head, ageMs, epoch),
    epoch: head.epoch,
    mtu: head.mtu,
    ttl: head.ttl,
    dscp: head.dscp,
    ...(head.mark !== 0 && { mark: head.mark }),
    ...(head.source_port !== 0 && { outerSourcePort: head.source_port }),
  };
}

/** In the order in which the programs ask. */
function stateOf(head: Struct<'learned'>, ageMs: number, epoch: number): FlowState {
  if (head.epoch !== epoch) return 'old epoch';
  if (ageMs > FLOW_LIFETIME_MS) return 'expired';
  return head.is_settled === 0 ? 'unsettled' : 'valid';
}

/** Echo requests and answers of both families, by the ICMP type. */
const echoes: Readonly<Record<number, string>> = { 8: 'request', 0: 'reply', 128: 'request', 129: 'reply' };

function endsOf(flow: Flow): Pick<FlowRow, 'protocol' | 'source' | 'destination'> {
  const protocol = protocols[flow.protocol] ?? String(flow.protocol);
  if (protocol.startsWith('icmp')) {
    const echo = `${protocol} ${echoes[flow.dst_port] ?? flow.dst_port} ${flow.src_port}`;
    return { protocol: echo, source: flow.src, destination: flow.dst };
  }
  return {
    protocol,
    source: withPort(flow.src, flow.src_port),
    destination: withPort(flow.dst, flow.dst_port),
  };
}

/** Flows whose packets this node has left to the kernel path lately, and that are not in the flow table. */
function notLearned(tables: Tables, learned: [Flow, Learned][], { names, nowNs }: Context): Found[] {
  const textOf = (flow: Flow): string => JSON.stringify(endsOf(flow));
  const known = new Set(learned.map(([flow]) => textOf(flow)));
  const latest = new Map<string, Struct<'arrival'>>();
  for (const slot of tables.arrivals.keys())
    for (const arrival of tables.arrivals.getPerCpu(slot) ?? []) {
      const text = textOf(arrival.flow);
      if (arrival.flow.protocol === 0 || known.has(text)) continue;
      if (arrival.noted_ns >= (latest.get(text)?.noted_ns ?? 0)) latest.set(text, arrival);
    }
  return [...latest.values()].map(({ flow, noted_ns, epoch, ifindex, ttl, dscp }) => ({
    flow,
    out: flow,
    row: {
      ...endsOf(flow),
      from: names.from(ifindex),
      to: names.to(flow.dst),
      ageSeconds: Math.round(Math.max(0, nowNs - noted_ns) / 1e8) / 10,
      state: 'not learned',
      epoch,
      ttl,
      dscp,
    },
  }));
}

function filterOf(
  { pod, peer }: FlowChoice,
  names: Names,
  services: readonly string[] | undefined,
): (found: Found) => boolean {
  const podCidrs = peer === undefined ? [] : names.podCidrsOf(peer);
  if (peer !== undefined && podCidrs.length === 0)
    throw new RipstopError(`the agent knows no peer "${peer}"; \`ripstop peers\` lists them`);
  const isOfPeer = (address: string): boolean => podCidrs.some((podCidr) => cidrContains(podCidr, address));
  return ({ flow, out }) => {
    const addresses = [flow.src, flow.dst, out.src, out.dst];
    if (pod !== undefined && !addresses.some((address) => names.isPod(address, pod))) return false;
    if (peer !== undefined && !addresses.some(isOfPeer)) return false;
    return services === undefined || isThrough(services, flow, out);
  };
}

/** @throws RipstopError when kube-proxy knows no service of that name. */
async function addressesOf(service: string | undefined): Promise<string[] | undefined> {
  if (service === undefined) return undefined;
  if (/^[\d[]|:/.test(service)) return [service];
  const name = service.includes('/') ? service : `default/${service}`;
  const found = await findClusterIps(name);
  if (found.length > 0) return found;
  throw new RipstopError(`kube-proxy's rules on this node have no service ${name}; give its address`);
}

/** A service's address is where a flow went before it was translated, or what its answers come from afterwards. */
function isThrough(services: readonly string[], flow: Flow, out: Flow): boolean {
  const isService = (address: string, port: number): boolean =>
    services.includes(address) || services.includes(withPort(address, port));
  const isForward = flow.dst !== out.dst || flow.dst_port !== out.dst_port;
  const isAnswer = flow.src !== out.src || flow.src_port !== out.src_port;
  return (isForward && isService(flow.dst, flow.dst_port)) || (isAnswer && isService(out.src, out.src_port));
}

function orderOf(sort: (typeof SORTS)[number]): (a: FlowRow, b: FlowRow) => number {
  if (sort === 'age') return (a, b) => a.ageSeconds - b.ageSeconds;
  // The largest first.
  if (sort === 'packets' || sort === 'bytes') return (a, b) => (b[sort] ?? 0) - (a[sort] ?? 0);
  return (a, b) => a[sort].localeCompare(b[sort], undefined, { numeric: true });
}
