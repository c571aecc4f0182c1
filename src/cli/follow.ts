// SPDX-License-Identifier: Apache-2.0
/** `trace --live`: the real packets of a pod's conversations with an address, through both paths. */
import { findConnection, NetlinkSocket } from '#netlink';
import { type Dissected, flowOf } from '../net/dissect.ts';
import { protocols } from '../net/packets.ts';
import { lineOf, monitor, type MonitorOptions, type Seen } from './monitor.ts';
import { addressLike, findPod } from './pods.ts';
import { knownFlows, openNode, type TraceOptions } from './trace.ts';

type Flow = NonNullable<ReturnType<typeof flowOf>>;

/** Show them until a signal, or `count` of them. @throws RipstopError */
export async function follow(
  bpffs: string,
  runDir: string,
  { from, to, proto }: Pick<TraceOptions, 'from' | 'to'> & { readonly proto?: TraceOptions['proto'] },
  options: Pick<MonitorOptions, 'rate' | 'count' | 'output'>,
): Promise<void> {
  const pod = await findPod(runDir, from.host);
  const src = addressLike(pod, to.host);
  const wanted: number[] | undefined =
    proto && (proto === 'icmp' ? [protocols.icmp, protocols.icmpv6] : [protocols[proto]]);
  const isAsked = (flow: Flow): boolean =>
    flow.src === src &&
    flow.dst === to.host &&
    (wanted?.includes(flow.protocol) ?? true) &&
    (from.port === undefined || flow.srcPort === from.port) &&
    (to.port === undefined || flow.dstPort === to.port);
  using conntrack = NetlinkSocket.open('netfilter');
  const ours = new Set<string>();
  const translated = new Set<string>();
  /** Translated, a conversation's packets have other addresses and ports, which conntrack knows. */
  const add = (flow: Flow): void => {
    ours.add(conversationOf(flow));
    if (translated.has(conversationOf(flow))) return;
    const connection = findConnection(conntrack, flow);
    if (!connection) return;
    translated.add(conversationOf(flow));
    for (const way of [connection.original, connection.reply]) ours.add(conversationOf(way));
  };
  {
    using node = await openNode(bpffs, runDir);
    for (const [{ src_port, dst_port, ...ends }] of knownFlows(node, pod, src, { from, to }))
      if (wanted?.includes(ends.protocol) ?? true) add({ ...ends, srcPort: src_port, dstPort: dst_port });
  }
  const matches = (packet: Dissected): boolean => {
    const flow = flowOf(packet.inner ?? packet);
    if (flow && isAsked(flow)) add(flow);
    return flow !== undefined && ours.has(conversationOf(flow));
  };
  const everything = { verdicts: ['fast', 'kernel', 'drop'], sample: 1 } as const;
  await monitor(bpffs, { ...everything, ...options, matches, line: indented() });
}

/** The same for both directions. Of ICMP, the type differs between them. */
function conversationOf({ protocol, src, srcPort, dst, dstPort }: Flow): string {
  const isIcmp = protocol === protocols.icmp || protocol === protocols.icmpv6;
  const ends = isIcmp
    ? [`${src} ${srcPort}`, `${dst} ${srcPort}`]
    : [`${src} ${srcPort}`, `${dst} ${dstPort}`];
  return [protocol, ...ends.sort()].join(' ');
}

/** A packet's later hooks are indented below its first one, with the time since. */
function indented(): (seen: Seen) => string {
  let begunNs = 0n;
  return (seen) => {
    const isFirst = seen.hook === 'from_pod' || seen.hook === 'from_wire';
    if (isFirst) begunNs = seen.timeNs;
    const [, ...rest] = lineOf(seen).split(' ');
    return isFirst ? lineOf(seen) : `  +${(seen.timeNs - begunNs) / 1000n} µs ${rest.join(' ')}`;
  };
}
