// SPDX-License-Identifier: Apache-2.0
/** `trace`: a packet is run through the attached programs, and what they did is told. Nothing on the node changes. */
import type { AgentStatus } from '../agent/status.ts';
import { type Attachment, AttachmentStore } from '../cni/attachments.ts';
import type { Verdict } from '../dataplane/counters.ts';
import { type HookName, linkKey, listLinks, parseLinkKey } from '../dataplane/links.ts';
import { Rehearsal, type Rehearsed } from '../dataplane/rehearsal.ts';
import { openTables, pinPaths } from '../dataplane/tables.ts';
import { RipstopError } from '../errors.ts';
import { askKernel, type KernelAnswer } from '../host/kernel-answer.ts';
import { linkNames } from '../host/netlink.ts';
import { addressFamily } from '../net/ip.ts';
import { type Dissected, describeFrame, dissect, flowOf } from '../net/dissect.ts';
import { ethernet, icmp, ip, protocols, sealed, tcp, udp } from '../net/packets.ts';
import { listNeighbours, NetlinkSocket } from '#netlink';
import {
  type Book,
  findPeer,
  type Flow,
  inPrefix,
  type Learned,
  type Lookup,
  lookUpFlow,
  lookUpPacket,
  peerName,
  podName,
} from './lookups.ts';
import { addressLike, type End, findPod } from './pods.ts';

/** The packet to send. */
export interface TraceOptions {
  readonly from: End;
  readonly to: End;
  readonly proto: 'tcp' | 'udp' | 'icmp';
  /** Bytes of the IP packet; undefined: some payload. */
  readonly size?: number;
  readonly df: boolean;
  /** Default: as packets of the flow have it, or 64. */
  readonly ttl?: number;
  readonly ecn: number;
  /** Of TCP, as bits. */
  readonly tcpFlags: number;
}

/** A program, and what it did with the packet. */
export interface Hop {
  readonly hook: HookName;
  readonly device: string;
  /** Undefined: none is attached, so the packet takes the kernel path. */
  readonly program?: { readonly id: number; readonly tag: string };
  readonly lookups: readonly Lookup[];
  readonly verdict: Verdict;
  readonly reason?: string;
  /** Where the program redirects it. */
  readonly goes?: string;
  /** The frame that leaves, on one line and in hex. */
  readonly leaves: string;
  readonly frame: string;
}

export interface Trace {
  readonly packet: string;
  readonly bytes: number;
  /** Flows of this pair that the flow table has, the youngest first. */
  readonly knownFlows: readonly Lookup[];
  readonly hops: readonly Hop[];
  readonly kernel?: KernelAnswer;
  /** The peer that the last hop sends to. */
  readonly peer?: { readonly node?: string; readonly vtepIp: string };
}

/** What this node's readers know, and the attached programs. */
export interface Node extends Disposable {
  readonly bpffs: string;
  readonly pods: readonly Attachment[];
  readonly peers: AgentStatus['peers'];
  readonly tables: Book['tables'];
  readonly names: ReadonlyMap<number, string>;
}

export async function openNode(bpffs: string, runDir: string): Promise<Node> {
  const { askAgent } = await import('./ask-agent.ts');
  const [agent, pods] = await Promise.all([askAgent(runDir), new AttachmentStore(runDir).list()]);
  using socket = NetlinkSocket.open('route');
  const tables = openTables(bpffs);
  return {
    bpffs,
    pods,
    peers: agent?.peers ?? [],
    tables,
    names: linkNames(socket),
    [Symbol.dispose]: () => tables[Symbol.dispose](),
  };
}

/** Trace a packet that a pod of this node sends. @throws RipstopError */
export async function traceFromPod(bpffs: string, runDir: string, options: TraceOptions): Promise<Trace> {
  const pod = await findPod(runDir, options.from.host);
  using node = await openNode(bpffs, runDir);
  const src = addressLike(pod, options.to.host);
  const { from, to, proto } = options;
  const asked = proto === 'icmp' ? { ...to, port: to.port ?? ECHO_REQUEST[addressFamily(src) ?? 4] } : to;
  const known = knownFlows(node, pod, src, { from, to: asked, protocol: protocolOf(options) });
  const { frame, flow, tos } = buildFrame(pod, src, { ...options, to: asked }, known[0]);
  const packet = describeFrame(dissect(frame, 0));
  using rehearsal = openRehearsal(node, 'from_pod', pod.hostIfname);
  const book = rehearsal && { ...node, config: rehearsal.config };
  const iif = pod.hostIfindex;
  const kernel = await askKernel({ ...flow, ports: { src: flow.src_port, dst: flow.dst_port }, iif, tos });
  const common = { packet, bytes: frame.length - ETHER, kernel };
  if (!rehearsal || !book) {
    const hop = unattached('from_pod', pod.hostIfname, frame, packet);
    return { ...common, knownFlows: [], hops: [hop] };
  }
  const done = rehearsal.run(frame, { ifindex: iif });
  const hop = hopOf(book, node.names, pod.hostIfname, done, lookUpPacket(book, flow));
  const vtepIp = hop.verdict === 'fast' ? peerOf(book, done) : undefined;
  const name = vtepIp === undefined ? undefined : peerName(book, vtepIp);
  return {
    ...common,
    knownFlows: known.map(([one]) => lookUpFlow(book, one)),
    hops: [hop],
    ...(vtepIp !== undefined && { peer: { vtepIp, ...(name !== undefined && { node: name }) } }),
  };
}

/** Trace a frame that comes from the wire; its destination MAC becomes the uplink's. @throws RipstopError */
export async function traceFromWire(bpffs: string, runDir: string, hex: string): Promise<Trace> {
  if (!/^([0-9a-f]{2}){14,}$/i.test(hex))
    throw new RipstopError('--frame takes a frame in hex digits, as a trace prints it with -o json', {
      exitCode: 2,
    });
  const frame = new Uint8Array(Buffer.from(hex, 'hex'));
  using node = await openNode(bpffs, runDir);
  const links = [...listLinks(pinPaths(bpffs).links).keys()].map(parseLinkKey);
  const uplink = links.find(({ hook }) => hook === 'from_wire')?.ifname;
  using rehearsal = uplink === undefined ? undefined : openRehearsal(node, 'from_wire', uplink);
  if (uplink === undefined || !rehearsal) {
    throw new RipstopError(
      'no program is attached to the uplink, so all that it brings takes the kernel path',
    );
  }
  const book = { ...node, config: rehearsal.config };
  const { uplink_mac, uplink_ifindex, vxlan_port } = book.config;
  frame.set(Buffer.from(uplink_mac.replaceAll(':', ''), 'hex'));
  const packet = dissect(frame, vxlan_port);
  const flow = flowFrom(packet.inner ?? packet);
  const lookups = flow ? lookUpPacket(book, flow) : [];
  const hops: Hop[] = [];
  using xdp = openRehearsal(node, 'xdp_from_wire', uplink);
  // What XDP hands on to from_wire is marked in the packet's metadata, which a test-run does not take.
  if (xdp) hops.push(hopOf(book, node.names, uplink, xdp.run(frame, {}), lookups));
  const done = rehearsal.run(frame, { ifindex: uplink_ifindex });
  if (hops[0]?.verdict !== 'fast') hops.push(hopOf(book, node.names, uplink, done, lookups));
  return { packet: describeFrame(packet), bytes: frame.length - ETHER, knownFlows: [], hops };
}

const ETHER = 14;
const ECHO_REQUEST = { 4: 8, 6: 128 } as const;

function openRehearsal({ bpffs }: Node, hook: HookName, ifname: string): Rehearsal | undefined {
  const link = listLinks(pinPaths(bpffs).links).get(linkKey(hook, ifname));
  return link?.programId ? new Rehearsal(bpffs, hook, link.programId) : undefined;
}

function protocolOf({ proto, to }: TraceOptions): number {
  if (proto !== 'icmp') return protocols[proto];
  return addressFamily(to.host) === 6 ? protocols.icmpv6 : protocols.icmp;
}

/** Flows of the pair, as far as it is given, the youngest first. */
export function knownFlows(
  { tables }: Node,
  pod: Attachment,
  src: string,
  { from, to, protocol }: Pick<TraceOptions, 'from' | 'to'> & { readonly protocol?: number },
): [Flow, Learned][] {
  const table = addressFamily(src) === 6 ? tables.flows6 : tables.flows4;
  return [...table.entries()]
    .filter(
      ([flow, { head }]) =>
        head.ifindex === pod.hostIfindex &&
        flow.src === src &&
        flow.dst === to.host &&
        (protocol === undefined || flow.protocol === protocol) &&
        (from.port === undefined || flow.src_port === from.port) &&
        (to.port === undefined || flow.dst_port === to.port),
    )
    .sort(([, a], [, b]) => b.head.learned_ns - a.head.learned_ns);
}

/** The packet as the pod sends it: one of the known flow, or one of a new flow. */
function buildFrame(
  pod: Attachment,
  src: string,
  options: TraceOptions,
  known: [Flow, Learned] | undefined,
): { frame: Uint8Array; flow: Flow; tos: number } {
  const { from, to, proto, df, ecn } = options;
  const protocol = protocolOf(options);
  const family = addressFamily(src) ?? 4;
  const flow = known?.[0] ?? {
    src,
    dst: to.host,
    protocol,
    src_port: from.port ?? 40_000,
    dst_port: to.port ?? 80,
  };
  const header = (family === 6 ? 40 : 20) + (proto === 'tcp' ? 20 : 8);
  const { size = header + 56 } = options;
  if (size < header || size > 65_535)
    throw new RipstopError(`a ${proto} packet has ${header} to 65535 bytes, not ${size}`, { exitCode: 2 });
  const payload = new Uint8Array(size - header);
  const transport =
    proto === 'tcp'
      ? tcp({ src: flow.src_port, dst: flow.dst_port, flags: options.tcpFlags }, payload)
      : proto === 'udp'
        ? udp({ src: flow.src_port, dst: flow.dst_port }, payload)
        : icmp(flow.dst_port, Uint8Array.of(flow.src_port >> 8, flow.src_port & 255, 0, 1, ...payload));
  const tos = ((known?.[1].head.dscp ?? 0) << 2) | ecn;
  const ttl = options.ttl ?? known?.[1].head.ttl ?? 64;
  const packet = sealed(
    ip(
      {
        src,
        dst: flow.dst,
        protocol,
        ttl,
        tos,
        ...(df && family === 4 && { fragment: 0x4000 }),
      },
      transport,
    ),
  );
  return { frame: ethernet({ dst: pod.hostMac, src: pod.podMac }, packet), flow, tos };
}

function flowFrom(packet: Dissected): Flow | undefined {
  const flow = flowOf(packet);
  return flow && { ...flow, src_port: flow.srcPort, dst_port: flow.dstPort };
}

function unattached(hook: HookName, device: string, frame: Uint8Array, leaves: string): Hop {
  return { hook, device, lookups: [], verdict: 'kernel', leaves, frame: Buffer.from(frame).toString('hex') };
}

function hopOf(
  book: Book,
  names: Node['names'],
  device: string,
  { hook, programId, tag, verdict, reason, isCarried, frame }: Rehearsed,
  lookups: readonly Lookup[],
): Hop {
  const leaves = dissect(frame, book.config.vxlan_port);
  return {
    hook,
    device,
    program: { id: programId, tag },
    lookups,
    verdict,
    ...(reason !== undefined && { reason }),
    ...(verdict === 'fast' && hook !== 'xdp_from_wire' && { goes: whereTo(book, names, leaves) }),
    ...(isCarried && { goes: 'redirect to the VTEP device, and from there the kernel path' }),
    leaves: describeFrame(leaves),
    frame: Buffer.from(frame).toString('hex'),
  };
}

/**
 * Where the program redirects the frame. A test-run does not tell. But the program has written it into the frame: the
 * MAC of an endpoint, or the address of a peer, whose next hop is in its map; and it redirects to no other device than
 * the endpoint's, or the uplink of its configuration.
 */
function whereTo(book: Book, names: Node['names'], { ether, ip, inner }: Dissected): string {
  const { tables, config, pods } = book;
  const all = [...tables.endpoints.entries({ skipZero: true }), ...tables.endpoints6.entries()];
  const endpoint = all.find(([, { pod_mac }]) => !inner && pod_mac === ether?.dst)?.[1];
  if (endpoint) return `redirect into the pod of ${podName(pods, endpoint.ifindex)}`;
  const uplink = names.get(config.uplink_ifindex) ?? `ifindex ${config.uplink_ifindex}`;
  const { peer } = findPeer(book, (inner ?? { ip }).ip?.dst ?? '');
  if (!peer) return `redirect to ${uplink}`;
  using socket = NetlinkSocket.open('route');
  const entries = listNeighbours(socket, { ifindex: config.uplink_ifindex });
  const neighbour = entries.find(({ address }) => address === peer.next_hop);
  const mac = neighbour?.mac === undefined ? 'whose MAC the kernel must ask for' : `MAC ${neighbour.mac}`;
  return `redirect to ${uplink}, next hop ${peer.next_hop} (${mac}; the kernel fills in both MACs)`;
}

/** The VTEP of the peer that a frame was sent to; undefined when it stays on this node. */
function peerOf(book: Book, { frame }: Rehearsed): string | undefined {
  const { ip, inner } = dissect(frame, book.config.vxlan_port);
  if (inner) return ip?.dst;
  if (ip === undefined || inPrefix(book.config, ip.dst, 'pod_cidr')) return undefined;
  return findPeer(book, ip.dst).peer?.vtep_ip;
}
