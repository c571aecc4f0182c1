// SPDX-License-Identifier: Apache-2.0
import { CREATE, type Message, type NetlinkSocket, type Request } from './socket.ts';
import { Writer } from './wire.ts';

/* linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h */
export const RTM_NEWQDISC = 36;
export const RTM_DELQDISC = 37;
const RTM_GETQDISC = 38;
export const RTM_NEWTFILTER = 44;
export const RTM_DELTFILTER = 45;
const RTM_GETTFILTER = 46;
const TCMSG = 20;
const TCA = { kind: 1, options: 2, chain: 11 } as const;
const TCA_BPF = { name: 7, flags: 8, id: 11 } as const;
const TCA_BPF_FLAG_ACT_DIRECT = 1;

/** Parents that have a name. Those of filters with clsact: `ingress` and `egress`. */
export const TC_H = {
  root: 0xffffffff,
  clsact: 0xfffffff1,
  ingress: 0xfffffff2,
  egress: 0xfffffff3,
} as const;

/** A queueing discipline. */
export interface Qdisc {
  readonly ifindex: number;
  /** `noqueue`, `fq_codel`, `clsact`, `ingress`, `tbf`, … */
  readonly kind: string;
  /** Major number in the upper 16 bits. */
  readonly handle: number;
  /** See {@link TC_H}. */
  readonly parent: number;
}

/** A filter, of a class or a hook. */
export interface Filter {
  readonly ifindex: number;
  readonly parent: number;
  /** `bpf`, `u32`, `matchall`, … */
  readonly kind: string;
  readonly priority: number;
  /** ETH_P_ number; 3 is all. */
  readonly protocol: number;
  readonly handle: number;
  readonly chain: number;
  /** The program, of a BPF filter. */
  readonly bpf: { readonly name: string; readonly programId: number; readonly direct: boolean } | undefined;
}

/** The qdiscs of all links, or of one. */
export function listQdiscs(socket: NetlinkSocket, ifindex?: number): Qdisc[] {
  const payload = header(ifindex ?? 0, 0, 0, 0).done();
  return socket.dump({ type: RTM_GETQDISC, payload, what: () => 'list qdiscs' }, (message) => {
    const qdisc = readQdisc(message);
    return ifindex === undefined || qdisc.ifindex === ifindex ? qdisc : undefined;
  });
}

export function readQdisc({ body }: Message): Qdisc {
  return {
    ifindex: body.u32(4),
    handle: body.u32(8),
    parent: body.u32(12),
    kind: body.attributes(TCMSG).text(TCA.kind) ?? '',
  };
}

/** The clsact qdisc, which BPF filters hang off. EEXIST when there is one, or an ingress qdisc. */
export function addClsact(ifindex: number): Request {
  return {
    type: RTM_NEWQDISC,
    flags: CREATE.add,
    payload: header(ifindex, 0xffff0000, TC_H.clsact, 0).text(TCA.kind, 'clsact').done(),
    what: () => `add qdisc clsact to link ${ifindex}`,
  };
}

/** Delete a qdisc with all its filters. ENOENT or EINVAL when there is none. */
export function deleteQdisc({
  ifindex,
  parent,
  handle,
}: Pick<Qdisc, 'ifindex' | 'parent' | 'handle'>): Request {
  return {
    type: RTM_DELQDISC,
    payload: header(ifindex, handle, parent, 0).done(),
    what: () => `delete qdisc ${(handle >>> 16).toString(16)}: of link ${ifindex}`,
  };
}

/** The filters of one parent. A BPF filter with a handle only is listed beside its head, as the kernel does. */
export function listFilters(socket: NetlinkSocket, ifindex: number, parent: number): Filter[] {
  const payload = header(ifindex, 0, parent, 0).done();
  return socket.dump(
    { type: RTM_GETTFILTER, payload, what: () => `list filters of link ${ifindex}` },
    readFilter,
  );
}

export function readFilter({ body }: Message): Filter {
  const attributes = body.attributes(TCMSG);
  const kind = attributes.text(TCA.kind) ?? '';
  const options = kind === 'bpf' ? attributes.nested(TCA.options) : undefined;
  const programId = options?.u32(TCA_BPF.id);
  return {
    ifindex: body.u32(4),
    handle: body.u32(8),
    parent: body.u32(12),
    kind,
    priority: body.u16(18),
    protocol: body.be16(16),
    chain: attributes.u32(TCA.chain) ?? 0,
    bpf:
      programId === undefined
        ? undefined
        : {
            name: options?.text(TCA_BPF.name) ?? '',
            programId,
            direct: ((options?.u32(TCA_BPF.flags) ?? 0) & TCA_BPF_FLAG_ACT_DIRECT) !== 0,
          },
  };
}

/** Delete a filter. ENOENT when there is none. */
export function deleteFilter(filter: Omit<Filter, 'bpf' | 'chain'>): Request {
  const { ifindex, handle, parent, kind, priority, protocol } = filter;
  // The protocol is in network order.
  const info = (priority << 16) | ((protocol & 0xff) << 8) | (protocol >> 8);
  return {
    type: RTM_DELTFILTER,
    payload: header(ifindex, handle, parent, info).text(TCA.kind, kind).done(),
    what: () => `delete ${kind} filter ${priority} of link ${ifindex}`,
  };
}

/** `struct tcmsg`: family and padding, index, handle, parent, info. */
function header(ifindex: number, handle: number, parent: number, info: number): Writer {
  return new Writer().struct([4, 0], [4, ifindex], [4, handle], [4, parent], [4, info]);
}
