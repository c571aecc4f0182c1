// SPDX-License-Identifier: Apache-2.0
import { addressToBytes, type Family } from '../net/ip.ts';
import { NetlinkError } from './error.ts';
import type { NetlinkSocket, Request } from './socket.ts';
import { AF, type Attributes, Writer } from './wire.ts';

/* linux/netfilter/nfnetlink_conntrack.h */
const IPCTNL_MSG_CT_NEW = 1 << 8;
const IPCTNL_MSG_CT_GET = (1 << 8) | 1;
const NFGENMSG = 4;
const CTA = { original: 1, reply: 2, status: 3, protocolInfo: 4, timeout: 7, mark: 8 } as const;
const CTA_TUPLE = { ip: 1, protocol: 2 } as const;
const CTA_IP = { 4: { src: 1, dst: 2 }, 6: { src: 3, dst: 4 } } as const;
const CTA_PROTO = { number: 1, srcPort: 2, dstPort: 3 } as const;
/** Identifier, type and code: of ICMP, and of ICMPv6. */
const CTA_PROTO_ICMP = { 1: { id: 4, type: 5, code: 6 }, 58: { id: 7, type: 8, code: 9 } } as const;
const CTA_PROTOINFO_TCP = 1;
const CTA_PROTOINFO_TCP_STATE = 1;
const CTA_PROTOINFO_TCP_FLAGS = { original: 4, reply: 5 } as const;
/* linux/netfilter/nf_conntrack_tcp.h */
const IP_CT_TCP_FLAG_BE_LIBERAL = 0x08;
const IPPROTO_TCP = 6;

/** `enum ip_conntrack_status` of linux/netfilter/nf_conntrack_common.h, as conntrack(8) and people name the bits. */
const STATUS = {
  'seen reply': 1 << 1,
  assured: 1 << 2,
  confirmed: 1 << 3,
  'source NAT': 1 << 4,
  'destination NAT': 1 << 5,
  'adjusted sequence': 1 << 6,
  dying: 1 << 9,
  helper: 1 << 13,
  offloaded: 1 << 14,
} as const;
/** `enum tcp_conntrack` of linux/netfilter/nf_conntrack_tcp.h, by number. */
const TCP_STATES = [
  'none',
  'syn_sent',
  'syn_recv',
  'established',
  'fin_wait',
  'close_wait',
  'last_ack',
  'time_wait',
  'close',
  'syn_sent2',
] as const;

/** The packets of one direction of a connection. Of an ICMP echo, `srcPort` is the identifier and `dstPort` the type. */
export interface Tuple {
  readonly protocol: number;
  readonly src: string;
  readonly dst: string;
  readonly srcPort: number;
  readonly dstPort: number;
}

/** A connection that conntrack knows. */
export interface Connection {
  /** The packets of the side that began, as they come in; and those of the other side. */
  readonly original: Tuple;
  readonly reply: Tuple;
  readonly status: (keyof typeof STATUS)[];
  /** Of TCP. */
  readonly state: (typeof TCP_STATES)[number] | undefined;
  /** After which it is forgotten if no packet comes. */
  readonly timeoutSeconds: number | undefined;
  readonly mark: number;
}

/**
 * The connection that a packet with this tuple belongs to, in either direction, as it comes in; undefined when there is
 * none. The socket is one of protocol `netfilter`.
 */
export function findConnection(socket: NetlinkSocket, tuple: Tuple): Connection | undefined {
  const family = addressToBytes(tuple.src).length === 4 ? 4 : 6;
  const payload = new Writer()
    .struct([1, AF[family]], [1, 0], [2, 0])
    .nest(CTA.original, (writer) => writeTuple(writer, tuple, family))
    .done();
  const what = (): string => `find the connection from ${tuple.src} to ${tuple.dst}`;
  const [answer] = socket.ask([{ type: IPCTNL_MSG_CT_GET, payload, what }], ({ body }) =>
    readConnection(body.attributes(NFGENMSG), family),
  );
  if (!(answer instanceof NetlinkError)) return answer;
  // EPROTO and the like: the kernel has no conntrack.
  if (answer.code === 'ENOENT') return undefined;
  throw answer;
}

/** All connections of a family. The socket is one of protocol `netfilter`. */
export function listConnections(socket: NetlinkSocket, family: Family): Connection[] {
  const payload = new Writer().struct([1, AF[family]], [1, 0], [2, 0]).done();
  return socket.dump({ type: IPCTNL_MSG_CT_GET, payload, what: () => 'list connections' }, ({ body }) =>
    // A kernel may also tell of those of the other family.
    body.u8(0) === AF[family] ? readConnection(body.attributes(NFGENMSG), family) : undefined,
  );
}

/**
 * Let conntrack take packets of this TCP connection for valid that are outside the window that it has seen, as the
 * setting nf_conntrack_tcp_be_liberal does for all. ENOENT when it has ended.
 */
export function makeLiberal({ original }: Pick<Connection, 'original'>): Request {
  const family = addressToBytes(original.src).length === 4 ? 4 : 6;
  // struct nf_ct_tcp_flags: the flags, and which of them to set.
  const flags = Uint8Array.of(IP_CT_TCP_FLAG_BE_LIBERAL, IP_CT_TCP_FLAG_BE_LIBERAL);
  return {
    type: IPCTNL_MSG_CT_NEW,
    payload: new Writer()
      .struct([1, AF[family]], [1, 0], [2, 0])
      .nest(CTA.original, (writer) => writeTuple(writer, original, family))
      .nest(CTA.protocolInfo, (info) =>
        info.nest(CTA_PROTOINFO_TCP, (tcp) =>
          tcp.bytes(CTA_PROTOINFO_TCP_FLAGS.original, flags).bytes(CTA_PROTOINFO_TCP_FLAGS.reply, flags),
        ),
      )
      .done(),
    what: () => `change the connection from ${original.src} to ${original.dst}`,
  };
}

/** Whether it is TCP, and has begun and not ended. */
export function isOpenTcp({ original: { protocol }, state }: Connection): boolean {
  return (
    protocol === IPPROTO_TCP && (state === 'established' || state === 'fin_wait' || state === 'close_wait')
  );
}

function writeTuple(writer: Writer, { protocol, src, dst, srcPort, dstPort }: Tuple, family: Family): void {
  const icmp = protocol === 1 || protocol === 58 ? CTA_PROTO_ICMP[protocol] : undefined;
  writer
    .nest(CTA_TUPLE.ip, (ip) => ip.address(CTA_IP[family].src, src).address(CTA_IP[family].dst, dst))
    .nest(CTA_TUPLE.protocol, (proto) => {
      proto.u8(CTA_PROTO.number, protocol);
      if (icmp) proto.be16(icmp.id, srcPort).u8(icmp.type, dstPort).u8(icmp.code, 0);
      else proto.be16(CTA_PROTO.srcPort, srcPort).be16(CTA_PROTO.dstPort, dstPort);
    });
}

function readTuple(attributes: Attributes | undefined, family: Family): Tuple {
  const ip = attributes?.nested(CTA_TUPLE.ip);
  const proto = attributes?.nested(CTA_TUPLE.protocol);
  const protocol = proto?.u8(CTA_PROTO.number) ?? 0;
  const icmp = protocol === 1 || protocol === 58 ? CTA_PROTO_ICMP[protocol] : undefined;
  return {
    protocol,
    src: ip?.address(CTA_IP[family].src) ?? '',
    dst: ip?.address(CTA_IP[family].dst) ?? '',
    srcPort: proto?.get(icmp?.id ?? CTA_PROTO.srcPort)?.be16(0) ?? 0,
    dstPort: (icmp ? proto?.u8(icmp.type) : proto?.get(CTA_PROTO.dstPort)?.be16(0)) ?? 0,
  };
}

function readConnection(attributes: Attributes, family: Family): Connection {
  const status = attributes.get(CTA.status)?.be32(0) ?? 0;
  const tcp = attributes.nested(CTA.protocolInfo)?.nested(CTA_PROTOINFO_TCP);
  const state = tcp?.u8(CTA_PROTOINFO_TCP_STATE);
  return {
    original: readTuple(attributes.nested(CTA.original), family),
    reply: readTuple(attributes.nested(CTA.reply), family),
    status: (Object.keys(STATUS) as (keyof typeof STATUS)[]).filter((name) => (status & STATUS[name]) !== 0),
    state: state === undefined ? undefined : TCP_STATES[state],
    timeoutSeconds: attributes.get(CTA.timeout)?.be32(0),
    mark: attributes.get(CTA.mark)?.be32(0) ?? 0,
  };
}
