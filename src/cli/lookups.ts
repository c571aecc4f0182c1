// SPDX-License-Identifier: Apache-2.0
/** What the maps say for the keys that programs look up of a packet. It is told beside a verdict, and decides none. */
import { hrtime } from 'node:process';
import type { AgentStatus } from '../agent/status.ts';
import type { Attachment } from '../cni/attachments.ts';
import type { Struct } from '../dataplane/codec.ts';
import { layout } from '../dataplane/layout.gen.ts';
import type { Tables } from '../dataplane/tables.ts';
import { addressFamily, addressToBytes, bytesToAddress, ipv4ToInt, withPort } from '../net/ip.ts';
import { flagNames, protocols } from './map-values.ts';
import { podOf } from './rows.ts';

export type Flow = Struct<'flow6'>;
export type Learned = Struct<'learned6'>;
type Config = Struct<'config'>;

/** A key of a map, and what the map has there. */
export interface Lookup {
  readonly map: string;
  readonly key: string;
  /** For people; undefined: there is no such entry. */
  readonly says?: string;
}

/** What is needed to look up, and to name what is found. */
export interface Book {
  readonly tables: Tables;
  readonly config: Config;
  readonly pods: readonly Attachment[];
  readonly peers: AgentStatus['peers'];
}

export function flowText({ src, src_port, dst, dst_port, protocol }: Flow): string {
  return `${protocols[protocol] ?? protocol} ${withPort(src, src_port)} → ${withPort(dst, dst_port)}`;
}

/** A flow's entry, in the table of its family. */
function findFlow(tables: Tables, flow: Flow): Learned | undefined {
  return (addressFamily(flow.src) === 6 ? tables.flows6 : tables.flows4).get(flow);
}

/** A packet's sender, its flow, and where it goes: translated, if its flow is known. */
export function lookUpPacket(book: Book, flow: Flow): Lookup[] {
  const dst = findFlow(book.tables, flow)?.out.dst ?? flow.dst;
  const all = [lookUpAddress(book, flow.src), lookUpFlow(book, flow), lookUpAddress(book, dst)];
  return all.filter((lookup) => lookup !== undefined);
}

/** A flow, and on what its validity rests. */
export function lookUpFlow({ tables, config }: Book, flow: Flow): Lookup {
  const map = addressFamily(flow.src) === 6 ? 'flows6' : 'flows4';
  const entry = findFlow(tables, flow);
  if (!entry) return { map, key: flowText(flow) };
  const { head, out } = entry;
  const ageMs = (Number(hrtime.bigint()) - head.learned_ns) / 1e6;
  const facts = [
    head.is_translated ? `leaves as ${flowText(out)}` : 'leaves as it came',
    `from ifindex ${head.ifindex}`,
    `TTL ${head.ttl}`,
    `DSCP ${head.dscp}`,
    `epoch ${head.epoch} (now ${tables.epoch.get(0)})`,
    `learned ${(ageMs / 1000).toFixed(1)} s ago (valid for ${config.lifetime_ns / 1e9} s)`,
    head.is_settled ? 'settled' : 'not settled yet',
    `up to ${head.mtu} bytes`,
    ...(head.is_ending ? ['ending'] : []),
  ];
  return { map, key: flowText(flow), says: facts.join(', ') };
}

/** What an address is: an endpoint of this node, a peer's, or neither. */
export function lookUpAddress(book: Book, address: string): Lookup | undefined {
  if (inPrefix(book.config, address, 'pod_cidr')) return lookUpEndpoint(book, address);
  if (inPrefix(book.config, address, 'network')) return lookUpPeer(book, address);
  return undefined;
}

function lookUpEndpoint({ tables, config, pods }: Book, address: string): Lookup {
  const isV6 = addressFamily(address) === 6;
  const slot = isV6 ? undefined : (ipv4ToInt(address) & ~ipv4ToInt(config.pod_cidr_mask)) >>> 0;
  const endpoint = slot === undefined ? tables.endpoints6.get(address) : tables.endpoints.get(slot);
  const where = { map: isV6 ? 'endpoints6' : 'endpoints', key: String(slot ?? address) };
  if (!endpoint?.ifindex) return where;
  const flags = flagNames(layout.enums.endpoint_flags, endpoint.flags);
  const says = [podName(pods, endpoint.ifindex), `MAC ${endpoint.pod_mac}`, `MTU ${endpoint.mtu}`, ...flags];
  return { ...where, says: says.join(', ') };
}

/** The peer in whose podCIDR an address of the cluster network lies; undefined when the maps have none. */
export function findPeer(
  { tables, config }: Book,
  address: string,
): { key: string; peer?: Struct<'peer_head'> } {
  if (addressFamily(address) === 6) {
    const mask = addressToBytes(config.pod_cidr6_mask);
    const key = bytesToAddress(addressToBytes(address).map((byte, i) => byte & mask[i]!));
    const peer = tables.peers6.get(key)?.head;
    return { key, ...(peer && { peer }) };
  }
  const slot = ((ipv4ToInt(address) & ~ipv4ToInt(config.network_mask)) >>> 0) >>> config.subnet_shift;
  const peer = tables.peers.get(slot)?.head;
  return { key: String(slot), ...(peer?.flags && { peer }) };
}

function lookUpPeer(book: Book, address: string): Lookup {
  const { key, peer } = findPeer(book, address);
  const where = { map: addressFamily(address) === 6 ? 'peers6' : 'peers', key };
  if (!peer) return where;
  const says = [
    peerName(book, peer.vtep_ip),
    `VTEP ${peer.vtep_ip}`,
    `next hop ${peer.next_hop}`,
    ...flagNames(layout.enums.peer_flags, peer.flags),
  ];
  return { ...where, says: says.filter(Boolean).join(', ') };
}

/** Only a running agent knows the names of peers. */
export function peerName({ peers }: Book, vtepIp: string): string | undefined {
  return peers.find((one) => one.vtepIp === vtepIp)?.name;
}

export function podName(pods: readonly Attachment[], ifindex: number): string {
  const pod = pods.find(({ hostIfindex }) => hostIfindex === ifindex);
  return pod ? `${podOf(pod) ?? pod.ips[0]} (${pod.hostIfname})` : `ifindex ${ifindex}`;
}

/** Whether an address lies in the cluster network or this node's podCIDR, as the programs' configuration has it. */
export function inPrefix(config: Config, address: string, prefix: 'network' | 'pod_cidr'): boolean {
  const suffix = addressFamily(address) === 6 ? '6' : '';
  const base = addressToBytes(config[`${prefix}${suffix}`]);
  const mask = addressToBytes(config[`${prefix}${suffix}_mask`]);
  return addressToBytes(address).every((byte, i) => (byte & mask[i]!) === base[i]);
}
