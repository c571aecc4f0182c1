// SPDX-License-Identifier: Apache-2.0
/** `monitor`: packets and what became of them, live. */
import { createWriteStream } from 'node:fs';
import { once } from 'node:events';
import type { Writable } from 'node:stream';
import { reasonNames, type Verdict } from '../dataplane/counters.ts';
import { Listener, type PacketEvent } from '../dataplane/events.ts';
import { readAttachedConfig } from '../dataplane/rehearsal.ts';
import { RipstopError } from '../errors.ts';
import { linkNames } from '../host/netlink.ts';
import { addressFamily, type Cidr, cidrContains, hostCidr, parseCidr } from '../net/ip.ts';
import { describeFrame, type Dissected, dissect } from '../net/dissect.ts';
import { NetlinkSocket } from '#netlink';
import { Pcapng } from './pcapng.ts';
import { findPod } from './pods.ts';

export interface MonitorOptions {
  readonly verdicts: readonly Verdict[];
  /** Undefined: all. */
  readonly reasons?: readonly string[];
  readonly sample: number;
  readonly rate: number;
  /** End after so many packets. */
  readonly count?: number;
  /** Write a capture to this file; `-` is the standard output. */
  readonly write?: string;
  readonly output: string;
  readonly matches: (packet: Dissected) => boolean;
  /** How a packet is shown. */
  readonly line?: (seen: Seen) => string;
}

/** A packet at a hook. */
export interface Seen extends PacketEvent {
  readonly device: string;
  readonly packet: Dissected;
}

/** Show packets until a signal, `count` packets, or another listener. @throws RipstopError in the last case. */
export async function monitor(bpffs: string, options: MonitorOptions): Promise<void> {
  const { count = Infinity, write, reasons = [] } = options;
  const unknown = reasons.find((reason) => !reasonNames.some((one) => one.reason === reason));
  if (unknown !== undefined) {
    const known = [...new Set(reasonNames.map(({ reason }) => reason))].join(', ');
    throw new RipstopError(`there is no reason "${unknown}"; the reasons are ${known}`, { exitCode: 2 });
  }
  const out = write === undefined || write === '-' ? process.stdout : createWriteStream(write);
  if (out !== process.stdout) await once(out, 'open');
  const show = write === undefined ? lines(out, options) : capture(out);
  const { promise: ended, resolve, reject } = Promise.withResolvers<void>();
  let shown = 0;
  const onSeen = (seen: Seen): void => {
    if (shown >= count || !options.matches(seen.packet)) return;
    show(seen);
    if (++shown >= count) resolve();
  };
  const signals = ['SIGINT', 'SIGTERM'] as const;
  for (const signal of signals) process.once(signal, resolve);
  const listener = listen(bpffs, options, onSeen, reject);
  process.stderr.write('listening; end with Ctrl-C\n');
  try {
    await ended;
  } finally {
    // Before another signal may end this process: the programs would go on reporting.
    listener.close();
    for (const signal of signals) process.off(signal, resolve);
    const missed = listener.missed > 0 ? `; ${listener.missed} were over --rate ${options.rate}` : '';
    process.stderr.write(`${shown} packets shown${missed}\n`);
    if (out !== process.stdout) await new Promise<void>((done) => out.end(done));
  }
}

/** Listen, and name what is heard. */
function listen(
  bpffs: string,
  { verdicts, reasons, sample, rate }: Pick<MonitorOptions, 'verdicts' | 'reasons' | 'sample' | 'rate'>,
  onSeen: (seen: Seen) => void,
  onEnd: (why: RipstopError) => void,
): Listener {
  using socket = NetlinkSocket.open('route');
  let names = linkNames(socket);
  const nameOf = (ifindex: number): string => {
    if (!names.has(ifindex)) {
      using again = NetlinkSocket.open('route');
      names = linkNames(again);
    }
    return names.get(ifindex) ?? `ifindex ${ifindex}`;
  };
  const port = vxlanPort(bpffs);
  return new Listener(bpffs, {
    hears: ({ verdict, reason }) => verdicts.includes(verdict) && (reasons?.includes(reason) ?? true),
    sample,
    rate,
    onEvent: (event) =>
      onSeen({ ...event, device: nameOf(event.ifindex), packet: dissect(event.bytes, port, event.length) }),
    onEnd,
  });
}

function vxlanPort(bpffs: string): number {
  const config = readAttachedConfig(bpffs);
  if (config) return config.vxlan_port;
  throw new RipstopError(`no program of ripstop is attached on this node (looked below ${bpffs})`);
}

function lines(
  out: Writable,
  { output, line = lineOf }: Pick<MonitorOptions, 'output' | 'line'>,
): (seen: Seen) => void {
  if (output === 'table' || output === 'wide') return (seen) => void out.write(`${line(seen)}\n`);
  if (output !== 'json')
    throw new RipstopError('what is told live comes as lines; use -o table or -o json', { exitCode: 2 });
  return ({ timeNs, hook, device, verdict, reason, length, packet, bytes }) => {
    const time = new Date(Number(timeNs / 1_000_000n)).toISOString();
    const row = { time, timeNs: String(timeNs), hook, device, verdict, reason, length };
    const frame = { packet: describeFrame(packet), bytes: Buffer.from(bytes).toString('hex') };
    out.write(`${JSON.stringify({ ...row, ...frame })}\n`);
  };
}

/** As tcpdump has it: local time to the microsecond, interface, packet; between them what ripstop has done. */
export function lineOf({ timeNs, hook, device, verdict, reason, packet }: Seen): string {
  return `${timeText(timeNs)} ${hook} ${device} ${verdict} ${reason}: ${describeFrame(packet)}`;
}

function timeText(timeNs: bigint): string {
  const time = new Date(Number(timeNs / 1_000_000n));
  const seconds = [time.getHours(), time.getMinutes(), time.getSeconds()];
  const micros = String((timeNs / 1000n) % 1_000_000n).padStart(6, '0');
  return `${seconds.map((part) => String(part).padStart(2, '0')).join(':')}.${micros}`;
}

function capture(out: Writable): (seen: Seen) => void {
  const pcapng = new Pcapng();
  out.write(pcapng.start('ripstop monitor'));
  return ({ hook, verdict, reason, ...packet }) => {
    const direction = hook.startsWith('to_') ? 'out' : 'in';
    out.write(pcapng.packet({ ...packet, direction, comment: `${hook} ${verdict} ${reason}` }));
  };
}

/** What a packet must have to do with. */
export interface Filters {
  readonly pod?: string;
  readonly peer?: string;
  readonly relatedTo?: string;
}

/**
 * Whether one of a packet's addresses, outer or inner, belongs to each of what is given.
 * @throws RipstopError when something is neither known here nor an address.
 */
export async function matcher(runDir: string, filters: Filters): Promise<(packet: Dissected) => boolean> {
  const { pod, peer, relatedTo } = filters;
  const groups = await Promise.all([
    ...(pod === undefined ? [] : [podBlocks(runDir, pod)]),
    ...(peer === undefined ? [] : [peerBlocks(runDir, peer)]),
    ...(relatedTo === undefined ? [] : [anyBlocks(runDir, relatedTo)]),
  ]);
  return (packet) => {
    const addresses = addressesIn(packet);
    return groups.every((blocks) =>
      blocks.some((block) => addresses.some((address) => cidrContains(block, address))),
    );
  };
}

function addressesIn({ ip, arp, inner }: Dissected): string[] {
  const own = ip ? [ip.src, ip.dst] : arp ? [arp.sender, arp.target] : [];
  return inner ? [...own, ...addressesIn(inner)] : own;
}

async function podBlocks(runDir: string, name: string): Promise<Cidr[]> {
  return (await findPod(runDir, name)).ips.map((ip) => parseCidr(hostCidr(ip)));
}

async function peerBlocks(runDir: string, name: string): Promise<Cidr[]> {
  const { askAgent } = await import('./ask-agent.ts');
  const agent = await askAgent(runDir);
  const found = agent?.peers.filter((peer) => peer.name === name || peer.vtepIp === name) ?? [];
  if (found.length > 0)
    return found.flatMap(({ podCidr, vtepIp }) => [parseCidr(podCidr), parseCidr(hostCidr(vtepIp))]);
  const why = agent ? `there is no peer "${name}"` : `no agent runs, which would know the peer "${name}"`;
  throw new RipstopError(`${why}; see "ripstop peers", or give its podCIDR with --related-to`, {
    exitCode: 2,
  });
}

/** A pod, a peer, an address or a CIDR block. */
async function anyBlocks(runDir: string, text: string): Promise<Cidr[]> {
  if (addressFamily(text) !== undefined) return [parseCidr(hostCidr(text))];
  if (/^[0-9a-f.:]+\/\d+$/i.test(text)) return [parseCidr(text)];
  return podBlocks(runDir, text).catch(() => peerBlocks(runDir, text));
}
