// SPDX-License-Identifier: Apache-2.0
/** The commands that ask why: `trace`, `route get` and `monitor`. */
import { type Command, InvalidArgumentError, type Option } from 'commander';
import type { Verdict } from '../dataplane/counters.ts';
import { errorText, RipstopError } from '../errors.ts';
import type { Filters, MonitorOptions } from './monitor.ts';
import { flag } from './options.ts';
import { print } from './output.ts';
import { addReaderFlags, type ReaderOptions } from './reader.ts';
import type { Trace, TraceOptions } from './trace.ts';

interface TraceFlags extends ReaderOptions, Pick<TraceOptions, 'size' | 'ttl' | 'ecn' | 'tcpFlags'> {
  readonly proto?: TraceOptions['proto'];
  readonly from?: string;
  readonly to?: string;
  readonly df?: boolean;
  readonly frame?: string;
  readonly live?: boolean;
  readonly count?: number;
}

const ECN = { 'not-ect': 0, ect1: 1, ect0: 2, ce: 3 } as const;
const TCP_FLAGS = { fin: 1, syn: 2, rst: 4, psh: 8, ack: 16 } as const;

/** Packets a second that are shown at most. */
const DEFAULT_RATE = 10_000;

export function addInspectCommands(program: Command): void {
  addTrace(program);
  addRoute(program);
  addMonitor(program);
}

function addTrace(program: Command): void {
  addReaderFlags(program.command('trace'))
    .description('run a packet through the attached programs and the filled maps, and tell what they do')
    .addOption(flag('--from <pod>', 'a pod of this node: POD, IP, POD:PORT, IP:PORT or [IPv6]:PORT'))
    .addOption(flag('--to <address>', 'where the packet goes: IP, IP:PORT or [IPv6]:PORT'))
    .addOption(
      flag('--proto <protocol>', 'tcp (default; with --live all), udp or icmp').choices([
        'tcp',
        'udp',
        'icmp',
      ]),
    )
    .addOption(flag('--size <bytes>', 'bytes of the IP packet').argParser(count))
    .addOption(flag('--df', "set IPv4's don't-fragment bit"))
    .addOption(flag('--ttl <n>', 'TTL or hop limit (default: that of the flow, or 64)').argParser(count))
    .addOption(
      oneOf('--ecn <codepoint>', "ECN's codepoint: not-ect, ect0, ect1 or ce", ECN).default(0, 'not-ect'),
    )
    .addOption(
      flag('--tcp-flags <flags>', 'flags of TCP: syn, ack, psh, fin, rst, joined by commas')
        .argParser(tcpFlags)
        .default(TCP_FLAGS.ack, 'ack'),
    )
    .addOption(
      flag('--live', 'follow the real packets of such flows through both paths, in place of building one'),
    )
    .addOption(flag('-c, --count <n>', 'with --live: end after n lines').argParser(count))
    .addOption(flag('--frame <hex>', 'in place of --from and --to: a frame that comes from the wire, in hex'))
    .action(trace);
}

function addRoute(program: Command): void {
  const route = program.command('route').description('the way of packets to an address');
  addReaderFlags(route.command('get'))
    .description("which way a pod's packets to an address go: by the fast path, and by the kernel path")
    .argument('<address>', 'IP, IP:PORT or [IPv6]:PORT')
    .addOption(
      flag(
        '--from <pod>',
        'a pod of this node: POD, IP, POD:PORT, IP:PORT or [IPv6]:PORT',
      ).makeOptionMandatory(),
    )
    .action(async (address: string, flags: ReaderOptions & { readonly from: string }) => {
      const { parseAddress, parseEnd } = await import('./pods.ts');
      const { getRoute, renderRoute } = await import('./route.ts');
      const answer = await getRoute(flags.bpffs, flags.runDir, parseEnd(flags.from), parseAddress(address));
      await print(flags.output, answer, () => renderRoute(answer));
    });
}

interface MonitorFlags
  extends ReaderOptions, Filters, Pick<MonitorOptions, 'sample' | 'rate' | 'count' | 'write'> {
  readonly fast?: boolean;
  readonly kernel?: boolean;
  readonly drops?: boolean;
  readonly reason?: readonly string[];
}

function addMonitor(program: Command): void {
  addReaderFlags(program.command('monitor'))
    .description('packets and what became of them, live: one line for each packet and hook')
    .addOption(
      flag('--fast', 'packets that took the fast path; without --fast, --kernel and --drops all packets'),
    )
    .addOption(flag('--kernel', 'packets that were left to the kernel path'))
    .addOption(flag('--drops', 'packets that were dropped'))
    .addOption(
      flag(
        '--reason <reasons>',
        'only packets with these reasons, as `ripstop stats` names them, joined by commas',
      ).argParser((text: string) => text.split(',')),
    )
    .addOption(flag('--pod <pod>', 'only packets of a pod of this node: its name or address'))
    .addOption(flag('--peer <peer>', 'only packets of a peer: its name or VTEP address'))
    .addOption(flag('--related-to <what>', 'only packets of a pod, a peer, an address or a CIDR block'))
    .addOption(flag('--sample <n>', 'one packet of n').argParser(count).default(1))
    .addOption(flag('--rate <n>', 'at most n packets a second').argParser(count).default(DEFAULT_RATE))
    .addOption(flag('-c, --count <n>', 'end after n packets').argParser(count))
    .addOption(flag('-w, --write <file>', 'write a capture for Wireshark (pcapng); - is the standard output'))
    .action(async ({ fast, kernel, drops, reason, ...flags }: MonitorFlags) => {
      const { matcher, monitor } = await import('./monitor.ts');
      const asked: Verdict[] = [
        ...(fast ? (['fast'] as const) : []),
        ...(kernel ? (['kernel'] as const) : []),
        ...(drops ? (['drop'] as const) : []),
      ];
      await monitor(flags.bpffs, {
        ...flags,
        verdicts: asked.length > 0 ? asked : ['fast', 'kernel', 'drop'],
        ...(reason && { reasons: reason }),
        matches: await matcher(flags.runDir, flags),
      });
    });
}

async function trace(flags: TraceFlags): Promise<void> {
  const { bpffs, runDir, from, to, frame, df = false } = flags;
  const { traceFromPod, traceFromWire } = await import('./trace.ts');
  const { parseAddress, parseEnd } = await import('./pods.ts');
  const { renderTrace } = await import('./trace-text.ts');
  if (frame !== undefined) {
    const traced = await traceFromWire(bpffs, runDir, frame);
    return print(flags.output, traced, () => renderTrace(traced));
  }
  if (from === undefined || to === undefined)
    throw new RipstopError('give --from POD and --to IP, or --frame HEX', { exitCode: 2 });
  const ends = { from: parseEnd(from), to: parseAddress(to) };
  if (flags.live) {
    const { follow } = await import('./follow.ts');
    return follow(bpffs, runDir, { ...flags, ...ends }, { ...flags, rate: DEFAULT_RATE });
  }
  const { proto = 'tcp' } = flags;
  const traced = await traceFromPod(bpffs, runDir, { ...flags, ...ends, proto, df });
  const there = traced.peer && (await onPeer(traced.peer, traced.hops.at(-1)!.frame));
  await print(flags.output, { ...traced, ...(there && { there }) }, () => {
    if (!there) return renderTrace(traced);
    const title = `\non ${traced.peer.node ?? traced.peer.vtepIp}`;
    if ('why' in there) return `${renderTrace(traced)}${title}: ${there.why}\n`;
    return `${renderTrace(traced)}${title}, from the wire\n${renderTrace(there)}`;
  });
}

/** What the peer does with the frame, or why that is not known here. */
async function onPeer({ vtepIp }: { vtepIp: string }, frame: string): Promise<Trace | { why: string }> {
  const { askNode } = await import('./peer-node.ts');
  const command = ['trace', '--frame', frame];
  return askNode<Trace>(vtepIp, command).catch((error: unknown) => ({
    why: `${errorText(error)}; see there with: ripstop ${command.join(' ')}`,
  }));
}

function count(text: string): number {
  if (/^\d{1,6}$/.test(text)) return Number(text);
  throw new InvalidArgumentError('Give a number.');
}

function oneOf(flags: string, description: string, values: Readonly<Record<string, number>>): Option {
  return flag(flags, description).argParser((text: string) => {
    if (text in values) return values[text]!;
    throw new InvalidArgumentError(`Give one of ${Object.keys(values).join(', ')}.`);
  });
}

function tcpFlags(text: string): number {
  return text.split(',').reduce((bits, name) => {
    const bit = TCP_FLAGS[name as keyof typeof TCP_FLAGS];
    if (bit === undefined)
      throw new InvalidArgumentError(`Give some of ${Object.keys(TCP_FLAGS).join(', ')}.`);
    return bits | bit;
  }, 0);
}
