// SPDX-License-Identifier: Apache-2.0
/**
 * The dual-stack node that the fixtures of this folder run on: the programs as the agent loads them, with maps as the
 * agent fills them, and packets handed in by BPF_PROG_TEST_RUN. It has no network and needs none.
 */
import { isDeepStrictEqual } from 'node:util';
import { type BpfProgram, decodeSkBuff, encodeSkBuff, SK_BUFF_BYTES } from '#libbpf-ts';
import { decode, encode, type Struct } from '../../src/dataplane/codec.ts';
import { readCounters } from '../../src/dataplane/counters.ts';
import { layout } from '../../src/dataplane/layout.gen.ts';
import {
  desiredEndpoints,
  desiredPeers,
  desiredVteps,
  type Endpoint,
  type FamilySettings,
  type NodeSettings,
  type Peer,
  type PeerNextHop,
  podMtu,
  type Tunnel,
} from '../../src/dataplane/desired.ts';
import { type LoadedPrograms, loadPrograms, type ProgramName } from '../../src/dataplane/programs.ts';
import { pinPaths, type Tables } from '../../src/dataplane/tables.ts';
import { TemporaryBpffs } from '../../src/libbpf-ts/libbpf.support.ts';
import { addressFamily, bytesToAddress, cidrContains, type Family, parseCidr } from '../../src/net/ip.ts';
import { NO_MAC } from '../../src/net/mac.ts';
import { protocols } from '../../src/net/packets.ts';

/** Why the fixtures cannot run here; undefined when they can. */
export const missing = process.getuid?.() === 0 ? undefined : 'needs root to load BPF programs';

/** A test run's packet comes from the loopback device, so that is the host veth of every pod that sends. */
export const TEST_RUN_IFINDEX = 1;
/** For the same reason this node's MAC address is the loopback device's. */
export const TEST_RUN_MAC = '00:00:00:00:00:00';

/** What from_pod notes in skb->cb[0] of packets that it sends to the uplink: bpf/vxlan.h. */
export const FROM_FAST_PATH = 0x72697073;

/** One family of the node and of the cluster around it. */
export interface Side {
  readonly family: Family;
  readonly settings: FamilySettings;
  readonly icmp: number;
  /** Pod `n` of a node; this node is node 3. 0 is the address of the node's flannel.1. */
  readonly podOf: (node: number, n: number) => string;
  /** The underlay address of a node, or one that no node has. */
  readonly vtepOf: (node: number) => string;
  readonly peers: {
    readonly one: Peer;
    readonly two: Peer;
    /** Its podCIDR has another length than ours, so it has no slot in the peers map. */
    readonly unindexed: Peer;
    /** Behind a router, and behind NAT. */
    readonly behindNat: Peer;
    /** Behind a router. Over IPv6 it requires checksums. */
    readonly far: Peer;
  };
  readonly pods: {
    readonly sender: Endpoint;
    readonly markedSender: Endpoint;
    readonly near: Endpoint;
    readonly marked: Endpoint;
    /** Its interface has a smaller MTU than those of the others. */
    readonly narrow: Endpoint;
  };
  /** Addresses outside the cluster network. */
  readonly world: string;
  readonly service: string;
  /** A Service whose address ends like that of a pod on node one. */
  readonly serviceLikePod: string;
  readonly multicast: string;
  readonly martian: string;
}

function pod(ip: string, n: number, over: Partial<Endpoint> = {}): Endpoint {
  return {
    ip,
    hostIfname: `veth${n}`,
    hostIfindex: 100 + n,
    podMac: `0a:00:00:00:00:${n}`,
    hostMac: `0e:00:00:00:00:${n}`,
    mtu: 1450,
    kernelPath: false,
    ...over,
  };
}

function podsBy(podOf: Side['podOf']): Side['pods'] {
  const ours = (n: number, over?: Partial<Endpoint>): Endpoint => pod(podOf(3, n), n, over);
  return {
    sender: ours(10, { hostIfindex: TEST_RUN_IFINDEX }),
    markedSender: ours(11, { hostIfindex: TEST_RUN_IFINDEX, kernelPath: true }),
    near: ours(20),
    marked: ours(21, { kernelPath: true }),
    narrow: ours(22, { mtu: 1280 }),
  };
}

const peer = (n: number, podCidr: string, vtepIp: string, over: Partial<Peer> = {}): Peer => ({
  name: `node${n}`,
  podCidr: parseCidr(podCidr),
  vtepIp,
  vtepMac: `aa:00:00:00:00:0${n}`,
  behindNat: false,
  ...over,
});

const podOf4: Side['podOf'] = (node, n) => `10.42.${node}.${n}`;
const vtepOf4: Side['vtepOf'] = (node) => `192.168.0.${node}`;

export const v4: Side = {
  family: 4,
  settings: {
    network: parseCidr('10.42.0.0/16'),
    podCidr: parseCidr('10.42.3.0/24'),
    vtepMac: 'aa:00:00:00:00:03',
    vtepIp: vtepOf4(3),
  },
  icmp: protocols.icmp,
  podOf: podOf4,
  vtepOf: vtepOf4,
  peers: {
    one: peer(1, '10.42.1.0/24', vtepOf4(1)),
    two: peer(2, '10.42.2.0/24', vtepOf4(2)),
    unindexed: peer(8, '10.42.16.0/23', vtepOf4(8)),
    behindNat: peer(9, '10.42.9.0/24', '203.0.113.9', { behindNat: true }),
    far: peer(5, '10.42.5.0/24', '198.51.100.5'),
  },
  pods: podsBy(podOf4),
  world: '8.8.8.8',
  service: '10.43.0.10',
  serviceLikePod: '10.43.1.7',
  multicast: '224.0.0.251',
  martian: '127.0.0.1',
};

const podOf6: Side['podOf'] = (node, n) => `fd00:42:0:${node}::${n === 0 ? '' : n}`;
const vtepOf6: Side['vtepOf'] = (node) => `fd00:31::${node}`;
/** Its VXLAN device accepts outer checksums of zero. */
const ripstop = { zeroChecksum: true } as const;

export const v6: Side = {
  family: 6,
  settings: {
    network: parseCidr('fd00:42::/56'),
    podCidr: parseCidr('fd00:42:0:3::/64'),
    vtepMac: 'aa:00:00:00:06:03',
    vtepIp: vtepOf6(3),
  },
  icmp: protocols.icmpv6,
  podOf: podOf6,
  vtepOf: vtepOf6,
  peers: {
    one: peer(1, 'fd00:42:0:1::/64', vtepOf6(1), { ...ripstop, vtepMac: 'aa:00:00:00:06:01' }),
    two: peer(2, 'fd00:42:0:2::/64', vtepOf6(2), { ...ripstop, vtepMac: 'aa:00:00:00:06:02' }),
    unindexed: peer(8, 'fd00:42:0:16::/63', vtepOf6(8), ripstop),
    behindNat: peer(9, 'fd00:42:0:9::/64', '2001:db8:9::9', { ...ripstop, behindNat: true }),
    far: peer(5, 'fd00:42:0:5::/64', '2001:db8:5::5'),
  },
  pods: podsBy(podOf6),
  world: '2001:db8::8',
  service: 'fd00:43::a',
  serviceLikePod: 'fd00:43:0:1::7',
  multicast: 'ff02::fb',
  martian: '::1',
};

export const sides = [v4, v6] as const;

export const tunnel: Tunnel = { vni: 1, port: 8472 };

export const settings: NodeSettings = {
  v4: v4.settings,
  v6: v6.settings,
  tunnel,
  uplink: { ifindex: TEST_RUN_IFINDEX, mtu: 1500, mac: TEST_RUN_MAC, gsoMaxSegs: 65535 },
  flowTableSize: 4096,
};

/** The same node with DirectRouting. */
export const directSettings: NodeSettings = { ...settings, directRouting: true };

const l2 = [parseCidr('192.168.0.0/24'), parseCidr('fd00:31::/64')];

/** The next hop for an underlay address. */
export function nextHopTo(address: string, direct = false): PeerNextHop {
  const { mtu } = settings.uplink;
  if (l2.some((block) => cidrContains(block, address))) return { ip: address, direct, mtu };
  return { ip: address.includes(':') ? vtepOf6(254) : vtepOf4(254), direct: false, mtu };
}

/** Fill the maps as the agent would: peers and local pods. */
export function fillTables(
  tables: Tables,
  settings: NodeSettings,
  peers: readonly Peer[],
  pods: readonly Endpoint[],
): void {
  const indexed = desiredPeers(settings, peers, ({ vtepIp }) => nextHopTo(vtepIp, settings.directRouting));
  for (const [slot, value] of indexed.peers) tables.peers.set(Number(slot), value);
  tables.peers6.setMany(indexed.peers6);
  const { endpoints, endpoints6 } = desiredEndpoints(settings, pods);
  for (const [slot, value] of endpoints) tables.endpoints.set(Number(slot), value);
  tables.endpoints6.setMany(endpoints6);
  tables.vteps.setMany(desiredVteps(settings, peers, indexed));
}

/** A flow of either family. */
export type Flow = Struct<'flow6'>;

/** The outer source port of flows that the fixtures have learned. */
export const SOURCE_PORT = 45678;

/** An entry of the flow table. By default it is valid for the packets of test runs, which leave as they came. */
export interface LearnedFlow extends Partial<Omit<Struct<'learned'>, 'learned_ns' | 'is_translated'>> {
  readonly flow: Flow;
  /** What is translated. */
  readonly out?: Partial<Flow>;
  /** How long ago it was learned. Not zero, since the programs' clock ticks only every few milliseconds. */
  readonly ageMs?: number;
}

/** Monotonic, as the programs' clock. */
const nowNs = (): number => Number(process.hrtime.bigint());

function learnedValue({ flow, out, ageMs = 1000, ...head }: LearnedFlow): Struct<'learned6'> {
  return {
    head: {
      learned_ns: nowNs() - ageMs * 1e6,
      noted_ns: 0,
      packets: 0,
      bytes: 0,
      epoch: 0,
      ifindex: TEST_RUN_IFINDEX,
      mtu: podMtu(settings, addressFamily(flow.src) ?? 4),
      mark: 0,
      priority: 0,
      frame_dst: 0,
      is_translated: out ? 1 : 0,
      is_settled: 1,
      hops: 0,
      ttl: 64,
      dscp: 0,
      is_ending: 0,
      source_port: SOURCE_PORT,
      ...head,
    },
    out: { ...flow, ...out },
  };
}

/** The flow table of a flow's family. Flows of both families have the same members. */
export const tableOf = (tables: Tables, { src }: Flow): Tables['flows6'] =>
  addressFamily(src) === 6 ? tables.flows6 : tables.flows4;

/** Put flows into the flow table, as if the programs had learned them. */
export function learnFlows(tables: Tables, learned: readonly LearnedFlow[]): void {
  for (const entry of learned) tableOf(tables, entry.flow).set(entry.flow, learnedValue(entry));
}

const ETHER_BYTES = 14;
/** UDP's and VXLAN's header. */
const VXLAN_BYTES = 8 + 8;

/** TTL and DSCP of a packet whose flow is looked up: of the inner one if it is VXLAN. */
export function headOf(packet: Uint8Array): Pick<Struct<'learned'>, 'ttl' | 'dscp'> {
  const view = new DataView(packet.buffer, packet.byteOffset, packet.byteLength);
  const isV6At = (at: number): boolean => (packet[at] ?? 0) >> 4 === 6;
  const end = ETHER_BYTES + (isV6At(ETHER_BYTES) ? 40 : 20);
  const inner = end + VXLAN_BYTES + ETHER_BYTES;
  const isTunnelled = packet.length > inner + 20 && view.getUint16(end + 2) === settings.tunnel?.port;
  const at = isTunnelled ? inner : ETHER_BYTES;
  return isV6At(at)
    ? { ttl: packet[at + 7]!, dscp: (view.getUint16(at) >> 6) & 0x3f }
    : { ttl: packet[at + 8]!, dscp: packet[at + 1]! >> 2 };
}

/** A packet that was left to the kernel path. By default it came in as a valid packet of the fixtures does. */
export type NotedArrival = Partial<Struct<'arrival'>> & { readonly flow: Flow };

/** The arrivals slot of a flow, as bpf/flows.h chooses it. */
function arrivalSlot(tables: Tables, flow: Flow): number {
  const slots = tables.arrivals.map.info.maxEntries;
  const multiplier = 0x9e3779b97f4a7c15n;
  const bytes = encode({ struct: 'flow6' }, flow);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const half = (at: number): bigint => view.getBigUint64(at, true);
  const ends = BigInt.asUintN(64, half(8) * multiplier) ^ half(24) ^ BigInt(view.getUint32(32, true));
  return Number((BigInt.asUintN(64, ends * multiplier) >> 32n) & BigInt(slots - 1));
}

/** Note on every CPU that a packet was left to the kernel path. */
export function noteArrival(tables: Tables, noted: NotedArrival): void {
  const slot = arrivalSlot(tables, noted.flow);
  const at = { noted_ns: nowNs(), since_ns: nowNs() };
  tables.arrivals.set(slot, {
    epoch: 0,
    ifindex: TEST_RUN_IFINDEX,
    frame_dst: 0,
    dscp: 0,
    ttl: 64,
    ...at,
    ...noted,
  });
  tables.last_arrival.set(0, slot);
}

/** Take such a note away from every CPU. */
export function forgetArrival(tables: Tables, flow: Flow): void {
  const nobody = { src: '::', dst: '::', src_port: 0, dst_port: 0, protocol: 0 };
  const nothing = {
    flow: nobody,
    noted_ns: 0,
    since_ns: 0,
    epoch: 0,
    ifindex: 0,
    frame_dst: 0,
    dscp: 0,
    ttl: 0,
  };
  tables.arrivals.set(arrivalSlot(tables, flow), nothing);
}

/** What each CPU has noted of a flow. */
export function arrivalsOfFlow(tables: Tables, flow: Flow): Struct<'arrival'>[] {
  const notes = tables.arrivals.getPerCpu(arrivalSlot(tables, flow)) ?? [];
  return notes.filter((noted) => isDeepStrictEqual(noted.flow, flow));
}

/** All packets that the programs have noted as left to the kernel path. */
export function arrivalsOf(tables: Tables): Struct<'arrival'>[] {
  const slots = Array.from({ length: tables.arrivals.map.info.maxEntries }, (_, slot) => slot);
  return slots
    .flatMap((slot) => tables.arrivals.getPerCpu(slot) ?? [])
    .filter(({ flow }) => flow.protocol !== 0);
}

/** The addresses of an IP packet, as a tunnel's key has them. A packet that is cut off has none. */
export function endsOf(packet: Uint8Array): Pick<TunnelKey, 'src' | 'dst'> {
  const [at, bytes] = packet[0]! >> 4 === 6 ? [8, 16] : [12, 4];
  if (packet.length < at + 2 * bytes) return { src: '::', dst: '::' };
  const addressAt = (from: number): string => bytesToAddress(packet.subarray(from, from + bytes));
  return { src: addressAt(at), dst: addressAt(at + bytes) };
}

/** A direction of the tunnel between this node and a peer; by default outward, without mark and priority. */
export type TunnelKey = Struct<'tunnel_key'>;

/** The key of the tunnel to a peer or, if `is_inward` is 1, from it. */
export const tunnelKey = ({ vtepIp }: Pick<Peer, 'vtepIp'>, over: Partial<TunnelKey> = {}): TunnelKey => ({
  vtep_ip: vtepIp,
  src: '::',
  dst: '::',
  mark: 0,
  priority: 0,
  is_inward: 0,
  sender: NO_MAC,
  ttl: 0,
  tos: 0,
  ...over,
});

const NO_TUNNEL = tunnelKey({ vtepIp: '::' });

/** A tunnel that the kernel path was seen to use. By default it is valid, and carries all that fits the uplink. */
export interface SeenTunnel extends Partial<Omit<Struct<'tunnel'>, 'seen_ns'>> {
  readonly key: TunnelKey;
  /** How long ago it was seen. Not zero, since the programs' clock ticks only every few milliseconds. */
  readonly ageMs?: number;
}

/** Put a tunnel into the map, as if the programs had seen the kernel path use it. */
export function seeTunnel(tables: Tables, { key, ageMs = 1000, ...over }: SeenTunnel): void {
  const mtu = podMtu(settings, addressFamily(key.vtep_ip) ?? 4);
  const outward = key.is_inward ? { mtu: 0, carried: 0 } : { mtu, carried: mtu };
  tables.tunnels.set(key, {
    ...outward,
    seen_ns: nowNs() - ageMs * 1e6,
    epoch: 0,
    ifindex: key.is_inward ? TEST_RUN_IFINDEX : 0,
    ...over,
  });
}

/** The slot in which packets of a tunnel are noted, as bpf/tunnels.h chooses it. */
function tunnelArrivalSlot(tables: Tables, { src, dst, is_inward }: TunnelKey): number {
  const end = (address: string): number => {
    const bytes = encode('address', address);
    return new DataView(bytes.buffer, bytes.byteOffset).getUint32(12);
  };
  const ends = (Math.imul(end(src), 31) + end(dst)) >>> 0;
  return (((ends * 2) % 2 ** 32) + is_inward) % tables.tunnel_arrivals.map.info.maxEntries;
}

/** What tells an IP packet from others with its addresses, as bpf/tunnels.h computes it. */
export function tellPacket(packet: Uint8Array): bigint {
  const view = new DataView(packet.buffer, packet.byteOffset, packet.byteLength);
  const isV6 = packet[0]! >> 4 === 6;
  const number = isV6 ? view.getUint32(0, true) & 0xffff0f00 : view.getUint16(4, true);
  const payload = isV6 ? (packet[6] === protocols.fragment ? 48 : 40) : 20;
  const ports = packet.length >= payload + 4 ? view.getUint32(payload, true) : 0;
  return (BigInt(number >>> 0) << 32n) | BigInt(ports);
}

/** A packet that the kernel path has got at one end of its tunnel device. */
export interface TunnelArrival {
  readonly key: TunnelKey;
  readonly epoch: number;
  /** From {@link tellPacket}. */
  readonly packet: bigint;
}

/** Note such a packet on every CPU. */
export function noteTunnelling(tables: Tables, { packet, ...noted }: TunnelArrival): void {
  const { map } = tables.tunnel_arrivals;
  const value = encode({ struct: 'tunnel_arrival' }, { ...noted, packet: 0 });
  // The codec's numbers have fewer bits.
  const at = layout.structs.tunnel_arrival.fields.packet.offset;
  new DataView(value.buffer, value.byteOffset).setBigUint64(at, packet, true);
  map.update(encode('u32', tunnelArrivalSlot(tables, noted.key)), value);
}

/** What each CPU has noted of a tunnel. `packet` is rounded to a number. */
export function tunnelArrivalsOf(tables: Tables, key: TunnelKey): Struct<'tunnel_arrival'>[] {
  const notes = tables.tunnel_arrivals.getPerCpu(tunnelArrivalSlot(tables, key)) ?? [];
  return notes.filter((noted) => isDeepStrictEqual(noted.key, key));
}

/** Give every CPU the note of a tunnel that one has, since the next test run may be on another CPU. */
export function spreadTunnelArrival(tables: Tables, key: TunnelKey): void {
  const [noted] = tunnelArrivalsOf(tables, key);
  if (!noted) return;
  const { map } = tables.tunnel_arrivals;
  const slot = encode('u32', tunnelArrivalSlot(tables, key));
  const isIt = (bytes: Uint8Array): boolean =>
    isDeepStrictEqual(decode({ struct: 'tunnel_arrival' }, bytes), noted);
  map.update(slot, map.lookupPerCpu(slot)!.find(isIt)!);
}

/** Take the notes of a tunnel away from every CPU. */
export function forgetTunnelling(tables: Tables, key: TunnelKey): void {
  const slot = tunnelArrivalSlot(tables, key);
  tables.tunnel_arrivals.set(slot, { key: NO_TUNNEL, packet: 0, epoch: 0 });
}

export interface RunOptions {
  /** Payload bytes of each segment of a GSO super-packet; 0 for other packets. */
  readonly gsoSize?: number;
  /** skb->mark. */
  readonly mark?: number;
  /** skb->cb[0]. */
  readonly note?: number;
  /** skb->priority. */
  readonly priority?: number;
}

export interface Outcome {
  /** From the program's return value; for XDP it is always `pass`. */
  readonly verdict: string;
  /** The counters that moved, such as `from_pod: fast local`, with the count if it is not 1. */
  readonly counted: string;
  /** The sum of bytes counted. */
  readonly bytes: number;
  /** The packet, without metadata. */
  readonly packet: Uint8Array;
  /** What the skb says beside the packet, after tc programs: skb->mark, priority and cb[0]. */
  readonly beside: { readonly mark: number; readonly priority: number; readonly note: number };
}

/**
 * linux/pkt_cls.h: TC_ACT_UNSPEC (-1) leaves a packet to the kernel path, TC_ACT_SHOT drops it, TC_ACT_REDIRECT is the
 * fast path.
 */
const tcVerdicts: Readonly<Record<number, string>> = { 0xffff_ffff: 'kernel', 2: 'drop', 7: 'fast' };
/** linux/bpf.h: XDP_PASS. */
const xdpVerdicts: Readonly<Record<number, string>> = { 2: 'pass' };

/** Run a program on one packet. */
export function testRun(
  program: BpfProgram,
  packet: Uint8Array,
  {
    gsoSize = 0,
    mark = 0,
    note = 0,
    priority = 0,
    isXdp = false,
  }: RunOptions & { readonly isXdp?: boolean } = {},
): Pick<Outcome, 'verdict' | 'packet' | 'beside'> {
  const context = encodeSkBuff({ gsoSize, mark, cb0: note, priority });
  const ofTc = { context, contextOut: SK_BUFF_BYTES };
  const { returnValue, data, context: after } = program.testRun({ data: packet, ...(!isXdp && ofTc) });
  const verdict = (isXdp ? xdpVerdicts : tcVerdicts)[returnValue];
  const beside = after && decodeSkBuff(after);
  return {
    verdict: verdict ?? `return value ${returnValue}`,
    packet: data,
    beside: { mark: beside?.mark ?? 0, priority: beside?.priority ?? 0, note: beside?.cb0 ?? 0 },
  };
}

export interface TestNode extends Disposable {
  /** Where its maps and programs are pinned. */
  readonly bpffs: string;
  readonly tables: Tables;
  readonly programs: LoadedPrograms['programs'];
  /** Run one of the programs by its name, or a test's own that calls them. */
  run(program: ProgramName | BpfProgram, packet: Uint8Array, options?: RunOptions): Outcome;
  /** Put flows into the flow table. Disposing of the result empties it. */
  learn(learned: readonly LearnedFlow[]): Disposable;
  /** The flow table of both families: each flow as it comes in. */
  flows(): Flow[];
  /** The packets that were noted as left to the kernel path. */
  arrivals(): Struct<'arrival'>[];
  /** Invalidate all flows. */
  moveEpoch(): void;
}

export function openNode(nodeSettings: NodeSettings = settings): TestNode {
  using started = new DisposableStack();
  const bpffs = started.use(new TemporaryBpffs());
  const loaded = started.use(loadPrograms(nodeSettings, pinPaths(bpffs.path)));
  const { programs, tables } = loaded;
  fillTables(
    tables,
    nodeSettings,
    sides.flatMap(({ peers }) => Object.values(peers)),
    sides.flatMap(({ pods }) => Object.values(pods)),
  );

  const resources = started.move();
  /** Flows that were learned of a packet with the same TTL and DSCP as the next one. */
  let alike: LearnedFlow[] = [];
  return {
    bpffs: bpffs.path,
    tables,
    programs,
    run(program, packet, options) {
      for (const { flow } of alike) {
        const entry = tableOf(tables, flow).get(flow);
        if (entry) tableOf(tables, flow).set(flow, { ...entry, head: { ...entry.head, ...headOf(packet) } });
      }
      const before = readCounters(tables);
      const called = typeof program === 'string' ? programs[program] : program;
      if (!called) throw new Error(`${program as string} is not loaded`);
      const result = testRun(called, packet, { ...options, isXdp: program === 'xdp_from_wire' });
      const moved = readCounters(tables)
        .map((counter, i) => ({
          ...counter,
          packets: counter.packets - before[i]!.packets,
          bytes: counter.bytes - before[i]!.bytes,
        }))
        .filter((counter) => counter.packets !== 0);
      return {
        ...result,
        counted: moved
          .map(
            ({ hook, verdict, reason, packets }) =>
              `${hook}: ${verdict} ${reason}${packets === 1 ? '' : ` ${packets} times`}`,
          )
          .join(', '),
        bytes: moved.reduce((sum, counter) => sum + counter.bytes, 0),
      };
    },
    learn(learned) {
      learnFlows(tables, learned);
      alike = learned.filter(({ ttl, dscp }) => ttl === undefined && dscp === undefined);
      return {
        [Symbol.dispose]() {
          alike = [];
          for (const table of [tables.flows4, tables.flows6]) table.deleteMany([...table.keys()]);
        },
      };
    },
    flows: () => [...tables.flows4.keys(), ...tables.flows6.keys()],
    arrivals: () => arrivalsOf(tables),
    moveEpoch: () => loaded.moveEpoch('network'),
    [Symbol.dispose]: () => resources[Symbol.dispose](),
  };
}
