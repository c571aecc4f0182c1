// SPDX-License-Identifier: Apache-2.0
/**
 * Packets and bytes by peer, pod and Service: of the fast path as the flow table counts them, and of the kernel path from
 * the map `carried`. The flows of a large table (100,000) are read without making an object of every member.
 */
import { addressToBytes, bytesToAddress, intToIpv4, ipv4ToInt, withPort } from '../net/ip.ts';
import { protocols } from '../net/packets.ts';
import { littleEndian, type Struct } from './codec.ts';
import { layout } from './layout.gen.ts';
import type { Tables } from './tables.ts';

/** Of flows that are in the flow table, whether their next packet takes the fast path or not. */
export interface FlowSum {
  flows: number;
  /** That took the fast path since their flows were first learned; a super-packet counts once. */
  packets: number;
  /** Of these packets: bytes of IP as they came in, without a tunnel's headers. */
  bytes: number;
}

/** Both directions count. A flow between two pods of this node counts for each of them. */
export interface FlowSums {
  /** By the key of the peer in its map: the slot in peers, or the base address of the podCIDR in peers6. */
  readonly peers: ReadonlyMap<string, FlowSum>;
  /** By the ifindex of the endpoint's host veth. */
  readonly endpoints: ReadonlyMap<number, FlowSum>;
  /** By protocol and address of the Service, such as `tcp 10.43.0.10:80`: flows that were translated, and their answers. */
  readonly services: ReadonlyMap<string, FlowSum>;
}

/** What the kernel path has carried between pods, since the maps were made. */
export interface Carried {
  readonly packets: number;
  readonly bytes: number;
}

/** By the same keys as {@link FlowSums}. A masquerading address may be among the Services. */
export interface CarriedSums {
  readonly peers: ReadonlyMap<string, Carried>;
  readonly endpoints: ReadonlyMap<number, Carried>;
  readonly services: ReadonlyMap<string, Carried>;
}

/** A flow's counters, and whose it is. */
export interface FlowCount {
  /** The flow as it comes in, as the bytes of its key. */
  readonly key: string;
  readonly packets: number;
  readonly bytes: number;
  readonly peer: string | undefined;
  /** The endpoints that send and receive it, where they are on this node. */
  readonly sender: number | undefined;
  readonly receiver: number | undefined;
  readonly service: string | undefined;
  /** Whether it goes from the Service to its client. */
  readonly isAnswer: boolean;
}

/** The part of the programs' configuration that tells whose an address is. */
export type Networks = Pick<
  Struct<'config'>,
  | 'network'
  | 'network_mask'
  | 'pod_cidr'
  | 'pod_cidr_mask'
  | 'subnet_shift'
  | 'network6'
  | 'network6_mask'
  | 'pod_cidr6'
  | 'pod_cidr6_mask'
>;

type FlowTables = Pick<Tables, 'flows4' | 'flows6' | 'endpoints' | 'endpoints6'>;

/** The sums of all flows in the table. @param networks of the programs: `desiredConfig()` or `readConfig()`. */
export function sumFlows(tables: FlowTables, networks: Networks): FlowSums {
  return addUp(scanFlowCounts(tables, networks));
}

/** See {@link sumFlows}. */
export function readCarried(tables: FlowTables & Pick<Tables, 'carried'>, networks: Networks): CarriedSums {
  const owners = new Owners(tables, networks);
  const sums = {
    peers: new Map<string, Carried>(),
    endpoints: new Map<number, Carried>(),
    services: new Map<string, Carried>(),
  };
  for (const [{ address, port, protocol }, sum] of tables.carried.entries()) {
    const { peer, endpoint } = owners.find(address);
    if (protocol !== 0) sums.services.set(serviceText(protocol, address, port), sum);
    else if (endpoint !== undefined) sums.endpoints.set(endpoint, added(sums.endpoints.get(endpoint), sum));
    else if (peer !== undefined) sums.peers.set(peer, sum);
  }
  return sums;
}

/** A pod has an address of each family. */
function added(a: Carried | undefined, b: Carried): Carried {
  return { packets: (a?.packets ?? 0) + b.packets, bytes: (a?.bytes ?? 0) + b.bytes };
}

/** The flows of all peers, pods and Services added up. */
export function addUp(flows: Iterable<FlowCount>): FlowSums {
  const peers = new Map<string, FlowSum>();
  const endpoints = new Map<number, FlowSum>();
  const services = new Map<string, FlowSum>();
  const answers: FlowCount[] = [];
  for (const flow of flows) {
    add(peers, flow.peer, flow);
    add(endpoints, flow.sender, flow);
    if (flow.receiver !== flow.sender) add(endpoints, flow.receiver, flow);
    if (flow.isAnswer) answers.push(flow);
    else add(services, flow.service, flow);
  }
  // What hides a sender's address (masquerading) looks like an answer, but nobody sends to its address.
  for (const flow of answers) if (services.has(flow.service!)) add(services, flow.service, flow);
  return { peers, endpoints, services };
}

function add<K>(sums: Map<K, FlowSum>, key: K | undefined, { packets, bytes }: FlowCount): void {
  if (key === undefined) return;
  const sum = sums.get(key);
  if (!sum) return void sums.set(key, { flows: 1, packets, bytes });
  sum.flows++;
  sum.packets += packets;
  sum.bytes += bytes;
}

/**
 * What flows have counted since an earlier reading. A flow that is new, or was removed and learned again in between,
 * has counted from zero. What a flow counted before it was removed is not known.
 */
export function countedSince(before: readonly FlowCount[], after: readonly FlowCount[]): FlowCount[] {
  const known = new Map(before.map((flow) => [flow.key, flow]));
  return after.map((flow) => {
    const then = known.get(flow.key);
    if (!then || then.packets > flow.packets) return flow;
    return { ...flow, packets: flow.packets - then.packets, bytes: flow.bytes - then.bytes };
  });
}

/** What the kernel path has carried since an earlier reading. A sum that has become smaller was evicted, and began again. */
function carriedSince<K>(before: ReadonlyMap<K, Carried>, after: ReadonlyMap<K, Carried>): Map<K, Carried> {
  const differences = Array.from(after, ([key, now]): [K, Carried] => {
    const then = before.get(key);
    if (!then || then.packets > now.packets) return [key, now];
    return [key, { packets: now.packets - then.packets, bytes: now.bytes - then.bytes }];
  });
  return new Map(differences);
}

/** What was counted on both paths at one moment. */
export interface Counted {
  readonly flows: readonly FlowCount[];
  readonly carried: CarriedSums;
}

export function readCounted(tables: FlowTables & Pick<Tables, 'carried'>, networks: Networks): Counted {
  return { flows: readFlowCounts(tables, networks), carried: readCarried(tables, networks) };
}

/** What was counted between two readings, on each path: see {@link countedSince}. */
export function countedBetween(before: Counted, after: Counted): { fast: FlowSums; kernel: CarriedSums } {
  const [was, is] = [before.carried, after.carried];
  return {
    fast: addUp(countedSince(before.flows, after.flows)),
    kernel: {
      peers: carriedSince(was.peers, is.peers),
      endpoints: carriedSince(was.endpoints, is.endpoints),
      services: carriedSince(was.services, is.services),
    },
  };
}

/** Every flow in the table. */
export function readFlowCounts(tables: FlowTables, networks: Networks): FlowCount[] {
  return [...scanFlowCounts(tables, networks)];
}

/** The same, one after the other: of a full table all of them together are large. */
export function* scanFlowCounts(tables: FlowTables, networks: Networks): Generator<FlowCount> {
  const owners = new Owners(tables, networks);
  yield* readTable(tables.flows4, family4, owners);
  yield* readTable(tables.flows6, family6, owners);
}

/** An address as it is cheap to read, to compare and to keep: a number of IPv4, and of IPv6 its bytes. */
type Address = number | string;

interface Family {
  readonly flow: (typeof layout.structs)['flow4' | 'flow6']['fields'];
  readonly value: (typeof layout.structs)['learned4' | 'learned6']['fields'];
  readonly addressAt: (view: DataView, at: number) => Address;
  readonly textOf: (address: Address) => string;
}

const family4: Family = {
  flow: layout.structs.flow4.fields,
  value: layout.structs.learned4.fields,
  addressAt: (view, at) => view.getUint32(at),
  textOf: (address) => intToIpv4(address as number),
};
const family6: Family = {
  flow: layout.structs.flow6.fields,
  value: layout.structs.learned6.fields,
  addressAt: (view, at) => Buffer.from(view.buffer, view.byteOffset + at, 16).toString('latin1'),
  textOf: (address) => bytesToAddress(Buffer.from(address as string, 'latin1')),
};

const { fields: head } = layout.structs.learned;

function u64(view: DataView, at: number): number {
  const [low, high] = littleEndian ? [at, at + 4] : [at + 4, at];
  return view.getUint32(high, littleEndian) * 2 ** 32 + view.getUint32(low, littleEndian);
}

function* readTable(
  { map }: Tables['flows4'] | Tables['flows6'],
  family: Family,
  owners: Owners,
): Generator<FlowCount> {
  const {
    flow,
    value: { out },
    addressAt,
  } = family;
  for (const [keyBytes, valueBytes] of map.scan()) {
    const key = new DataView(keyBytes.buffer, keyBytes.byteOffset, keyBytes.length);
    const value = new DataView(valueBytes.buffer, valueBytes.byteOffset, valueBytes.length);
    const from = owners.of(addressAt(key, flow.src.offset), family);
    const to = owners.of(addressAt(value, out.offset + flow.dst.offset), family);
    const isTranslated = value.getUint8(head.is_translated.offset) !== 0;
    yield {
      key: Buffer.from(keyBytes.buffer, keyBytes.byteOffset, keyBytes.length).toString('latin1'),
      packets: u64(value, head.packets.offset),
      bytes: u64(value, head.bytes.offset),
      peer: to.peer ?? from.peer,
      sender: owners.atDevice(value.getUint32(head.ifindex.offset, littleEndian)),
      receiver: to.endpoint,
      ...(isTranslated ? serviceOf(key, value, family) : notTranslated),
    };
  }
}

const notTranslated = { service: undefined, isAnswer: false };

/** A service's address is where a flow went before it was translated, or what its answers come from afterwards. */
function serviceOf(
  key: DataView,
  value: DataView,
  { flow, value: { out }, addressAt, textOf }: Family,
): Pick<FlowCount, 'service' | 'isAnswer'> {
  const end = (view: DataView, at: number, side: 'src' | 'dst') => ({
    address: addressAt(view, at + flow[side].offset),
    port: view.getUint16(at + flow[`${side}_port`].offset),
  });
  const [before, after] = [end(key, 0, 'dst'), end(value, out.offset, 'dst')];
  const isAnswer = before.address === after.address && before.port === after.port;
  const { address, port } = isAnswer ? end(value, out.offset, 'src') : before;
  const protocol = key.getUint8(flow.protocol.offset);
  return { service: serviceText(protocol, textOf(address), port), isAnswer };
}

/** A key of {@link FlowSums.services}. */
export function serviceKey(protocol: string, address: string, port: number): string {
  return `${protocol} ${withPort(address, port)}`;
}

function serviceText(protocol: number, address: string, port: number): string {
  return serviceKey(protocolNames[protocol] ?? String(protocol), address, port);
}

const protocolNames: Readonly<Record<number, string>> = { [protocols.tcp]: 'tcp', [protocols.udp]: 'udp' };

/** To whom an address belongs: to a peer, to an endpoint of this node, or to neither. */
interface Owner {
  readonly peer?: string;
  readonly endpoint?: number;
}

/** Finds owners of addresses. Many flows have the same addresses, so each is looked up once. */
class Owners {
  readonly #networks: Networks;
  readonly #endpoints = new Map<string, number>();
  readonly #devices: ReadonlySet<number>;
  readonly #known = new Map<Address, Owner>();

  constructor({ endpoints, endpoints6 }: FlowTables, networks: Networks) {
    this.#networks = networks;
    const base = ipv4ToInt(networks.pod_cidr);
    for (const [slot, { ifindex }] of endpoints.entries({ skipZero: true }))
      if (ifindex !== 0) this.#endpoints.set(intToIpv4(base + slot), ifindex);
    for (const [address, { ifindex }] of endpoints6.entries()) this.#endpoints.set(address, ifindex);
    this.#devices = new Set(this.#endpoints.values());
  }

  /** The endpoint at a host veth. */
  atDevice(ifindex: number): number | undefined {
    return this.#devices.has(ifindex) ? ifindex : undefined;
  }

  of(address: Address, { textOf }: Family): Owner {
    const known = this.#known.get(address);
    if (known) return known;
    const owner = this.find(textOf(address));
    this.#known.set(address, owner);
    return owner;
  }

  find(address: string): Owner {
    const networks = this.#networks;
    const endpoint = this.#endpoints.get(address);
    if (endpoint !== undefined) return { endpoint };
    const is6 = address.includes(':');
    const [network, mask] = is6
      ? [networks.network6, networks.network6_mask]
      : [networks.network, networks.network_mask];
    const [podCidr, podMask] = is6
      ? [networks.pod_cidr6, networks.pod_cidr6_mask]
      : [networks.pod_cidr, networks.pod_cidr_mask];
    const base = masked(address, podMask);
    if (masked(address, mask) !== network || base === podCidr) return {};
    if (is6) return { peer: base };
    return { peer: String((ipv4ToInt(base) - ipv4ToInt(network)) >>> networks.subnet_shift) };
  }
}

function masked(address: string, mask: string): string {
  const bits = addressToBytes(mask);
  return bytesToAddress(addressToBytes(address).map((byte, i) => byte & bits[i]!));
}
