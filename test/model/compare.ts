// SPDX-License-Identifier: Apache-2.0
/** Compares the loaded programs with the model: both get the same packets, and must give the same results. */
import { readFileSync } from 'node:fs';
import { readCounters, splitReason } from '../../src/dataplane/counters.ts';
import { layout } from '../../src/dataplane/layout.gen.ts';
import { loadPrograms } from '../../src/dataplane/programs.ts';
import { pinPaths } from '../../src/dataplane/tables.ts';
import { TemporaryBpffs } from '../../src/libbpf-ts/libbpf.support.ts';
import {
  arrivalsOfFlow,
  fillTables,
  type Flow,
  forgetArrival,
  forgetTunnelling,
  FROM_FAST_PATH,
  learnFlows,
  noteArrival,
  type NotedArrival,
  noteTunnelling,
  type SeenTunnel,
  seeTunnel,
  tableOf,
  tellPacket,
  testRun,
  tunnelArrivalsOf,
  type TunnelKey,
} from '../bpf/node.ts';
import { SHORTEST } from './generate.ts';
import {
  type Arrival,
  type Decision,
  type Entry,
  EPOCH,
  type Hook,
  isSameTunnel,
  Model,
  withoutChoices,
} from './model.ts';
import { familyOf, headerLength, setU16, u16 } from './read.ts';
import { type World, type WorldName, worlds } from './world.ts';

/** How often each verdict was given, by `IPv4 from_pod: fast local`. */
export type Coverage = Map<string, number>;

export interface Disagreement {
  readonly arrival: Arrival;
  readonly model: Decision;
  /** What the programs did, in words, and counters that should not have moved. */
  readonly programs: { readonly outcome: string; readonly out: Uint8Array; readonly state: string[] };
}

export interface Comparison extends Disposable {
  readonly coverage: Coverage;
  /** @returns the difference, for the smallest packet that still shows it; undefined when there is none. */
  check(arrival: Arrival): Disagreement | undefined;
  /**
   * @returns what no packet should have left: counters that moved, such as `from_pod: fast local`, and tunnels that were
   * seen or noted.
   */
  strays(): string[];
}

const { REASONS, ...reasons } = layout.enums.reason;
const { hook: hooks } = layout.enums;

/** The index of a counter: `from_pod`, `fast local`. */
function counterSlot(hook: Hook, outcome: string): number {
  const reason = reasons[outcome.replaceAll(' ', '_').toUpperCase() as keyof typeof reasons];
  return hooks[`HOOK_${hook.toUpperCase()}` as keyof typeof hooks] * REASONS + reason;
}

const NOTHING = 'nothing';
/** Behind the outcome of a packet of the kernel path that a program has carried through the tunnel. */
const CARRIED = ', carried';
const outcomesOf = ({ verdict, reasons, carried }: Decision): string[] =>
  reasons.length > 0 ? reasons.map((reason) => `${verdict} ${reason}${carried ? CARRIED : ''}`) : [NOTHING];
const withoutCarried = (outcome: string): string => outcome.replace(CARRIED, '');
const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** What the program must return. XDP lets every packet pass; its verdict shows in the counters. */
const returned = (hook: Hook, verdict: string, isCarried: boolean): string =>
  hook === 'xdp_from_wire' ? 'pass' : isCarried ? 'fast' : verdict;

/** `IPv4`, `IPv6`, or `other`. */
function familyName({ packet }: Arrival): string {
  const family = familyOf(u16(packet, 12));
  return family ? `IPv${family}` : 'other';
}

const flowText = ({ src, src_port, dst, dst_port, protocol }: Flow): string =>
  `${src} ${src_port} → ${dst} ${dst_port} (${protocol})`;

const entryText = (
  {
    epoch,
    ifindex,
    mtu,
    mark,
    priority,
    is_settled,
    is_ending,
    hops,
    ttl,
    dscp,
    source_port,
  }: Omit<Entry, 'flow' | 'out' | 'ageMs'>,
  out: Flow,
): string =>
  `epoch ${epoch}, from ${ifindex}, MTU ${mtu}, mark ${mark}, priority ${priority}, settled ${is_settled}, ending ${is_ending}, hops ${hops}, TTL ${ttl}, DSCP ${dscp}, port ${source_port}, as ${flowText(out)}`;
const noteText = ({ epoch, ifindex, dscp, ttl }: Omit<NotedArrival, 'flow'>): string =>
  `noted: epoch ${epoch}, from ${ifindex}, DSCP ${dscp}, TTL ${ttl}`;

const tunnelText = ({ vtep_ip, src, dst, mark, priority, is_inward, sender, ttl, tos }: TunnelKey): string =>
  `tunnel ${is_inward ? 'from' : 'to'} ${vtep_ip}, ${src} → ${dst}, mark ${mark}, priority ${priority}, sender ${sender}, TTL ${ttl}, TOS ${tos}`;
const seenText = (
  { epoch, mtu, carried, ifindex }: Omit<Required<SeenTunnel>, 'key' | 'ageMs'>,
  isNew: boolean,
) => `seen ${isNew ? 'now' : 'before'}: epoch ${epoch}, MTU ${mtu}, carried ${carried}, to ${ifindex}`;
const noteOfTunnelText = (key: TunnelKey, epoch: number, isIt: boolean): string =>
  `noted in the ${tunnelText(key)}: ${isIt ? 'this' : 'another'} packet, epoch ${epoch}`;
/** A tunnel that was seen longer ago is not the one that the packet has shown. */
const NOW_MS = 1000;

/** The tunnels that are looked at. */
function knownTunnels({ tunnel }: Arrival, { notesTunnel, seesTunnel }: Decision): TunnelKey[] {
  const all = [tunnel?.seen?.key, tunnel?.noted?.key, notesTunnel, seesTunnel?.key];
  const keys = all.filter((key) => key !== undefined);
  return keys.filter((key, i) => keys.findIndex((other) => isSameTunnel(other, key)) === i);
}

/** What the model leaves in the tunnels, in the note of the one, and beside the packet. */
function predictedTunnels(arrival: Arrival, decision: Decision): string[] {
  const { seen, noted } = arrival.tunnel ?? {};
  const { notesTunnel, seesTunnel, carried } = decision;
  const lines = knownTunnels(arrival, decision).map((key) => {
    const isNew = seesTunnel !== undefined && isSameTunnel(seesTunnel.key, key);
    const is = isNew ? seesTunnel : seen && isSameTunnel(seen.key, key) ? seen : undefined;
    return `${tunnelText(key)}: ${is ? seenText(is, isNew) : 'not seen'}`;
  });
  if (notesTunnel) lines.push(noteOfTunnelText(notesTunnel, EPOCH, true));
  else if (noted) lines.push(noteOfTunnelText(noted.key, noted.epoch, noted.isIt));
  return carried ? [...lines, besideText(carried)] : lines;
}
const besideText = ({ mark, priority, note }: NonNullable<Decision['carried']>): string =>
  `beside it: mark ${mark}, priority ${priority}, note ${note}`;

/** What tells the packet in the tunnel from others, or that of a plain frame; rounded, as tables have it. */
function told({ hook, packet }: Arrival): bigint {
  const family = familyOf(u16(packet, 12)) ?? 4;
  const isTunnelled = hook === 'from_wire' || hook === 'to_wire';
  const inner = packet.subarray(14 + (isTunnelled ? headerLength[family] + 30 : 0));
  return inner.length >= headerLength[inner[0]! >>> 4 === 6 ? 6 : 4] ? tellPacket(inner) : 0n;
}
const toldAnother = (arrival: Arrival): bigint => told(arrival) ^ (1n << 63n);

/** The flows that are looked at: those in the table, and the packet's own. */
function knownFlows({ table, flow }: Arrival): Map<string, Flow> {
  const all = [...table.map((entry) => entry.flow), ...(flow ? [flow] : [])];
  return new Map(all.map((each) => [flowText(each), each]));
}

/** What the model leaves in the table, in the notes of the packet's flow, and in the tunnels. */
function predictedState(arrival: Arrival, decision: Decision): string[] {
  return [...predictedFlows(arrival, decision), ...predictedTunnels(arrival, decision)];
}

function predictedFlows(
  arrival: Arrival,
  { forgets, notes, learns, settles, ends, isBare, isLarger }: Decision,
): string[] {
  const { table, flow, isBehind } = arrival;
  const isOwn = (other: Flow | undefined): boolean =>
    flow !== undefined && other !== undefined && flowText(other) === flowText(flow);
  const lines = [...knownFlows(arrival)].map(([text, each]) => {
    const before = table.find((entry) => flowText(entry.flow) === text);
    const entry = isOwn(learns?.flow) && isOwn(each) ? learns : before;
    if (!entry || (forgets && text === flowText(forgets))) return `${text}: not there`;
    const own = notes && !isBare && !isLarger ? 0 : settles ? 1 : entry.is_settled;
    const is_settled = isOwn(each) ? own : entry.is_settled;
    const is_ending = isOwn(each) && ends ? 1 : entry.is_ending;
    return `${text}: ${entryText({ ...entry, is_settled, is_ending }, { ...entry.flow, ...entry.out })}`;
  });
  const noted = isOwn(notes?.flow) ? notes : isBehind ? BEHIND : undefined;
  return noted ? [...lines, noteText(noted)] : lines;
}

/** The note of a packet that another one comes directly behind. */
const BEHIND = { epoch: EPOCH, ifindex: 9, dscp: 1, ttl: 9 };
/** How long that is directly: see bpf/flows.h. */
const GAP_NS = 2_000_000;

/** Where the outer UDP source port of an encapsulated frame is. */
const sourcePortAt = (packet: Uint8Array): number => 14 + headerLength[familyOf(u16(packet, 12)) ?? 4];
const sourcePortOf = (packet: Uint8Array): number => u16(packet, sourcePortAt(packet));

/** The ports from which the kernel's VXLAN device sends: ip-sysctl.rst; the last one is not among them. */
const [firstPort, endPort] = readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8')
  .trim()
  .split(/\s+/)
  .map(Number) as [number, number];

/** The same frame with outer source port zero, if it is one that the kernel's VXLAN device could have chosen. */
function withoutPort(packet: Uint8Array): Uint8Array {
  const out = packet.slice();
  const port = sourcePortOf(out);
  if (port >= firstPort && port < endPort) setU16(out, sourcePortAt(out), 0);
  return out;
}

/** Whether the program has passed a packet on to the other end of the tunnel device, or to the wire. */
const isPassedOn = ({ verdict, beside }: ReturnType<typeof testRun>): boolean =>
  verdict === 'fast' && beside.note === FROM_FAST_PATH;

/** One node: its programs, its maps, and the model of it. */
function openNode(world: World) {
  using started = new DisposableStack();
  const bpffs = started.use(new TemporaryBpffs());
  const { programs, tables } = started.use(loadPrograms(world.settings, pinPaths(bpffs.path)));
  fillTables(tables, world.settings, world.peers, world.endpoints);
  tables.epoch.set(0, EPOCH);

  const model = new Model(world);
  /** The last known value of each counter, so that a packet costs one lookup, of the counter that it should move. */
  const seen = new Map<number, { packets: number; bytes: number }>();

  const totals = (slot: number) => {
    const perCpu = tables.counters.getPerCpu(slot)!;
    return {
      packets: perCpu.reduce((sum, counter) => sum + counter.packets, 0),
      bytes: perCpu.reduce((sum, counter) => sum + counter.bytes, 0),
    };
  };
  const readAll = (): void => {
    for (let slot = 0; slot < hooks.HOOKS * REASONS; slot++) seen.set(slot, totals(slot));
  };
  readAll();

  /** Whether the counter has moved, by one packet of `bytes`. */
  const counted = (slot: number, bytes: number): boolean => {
    const before = seen.get(slot)!;
    const now = totals(slot);
    seen.set(slot, now);
    return now.packets === before.packets + 1 && now.bytes === before.bytes + bytes;
  };

  /** What the programs have left in the tunnels, in the note of the one, and beside a packet that they carried. */
  const tunnelsAfter = (arrival: Arrival, predicted: Decision, beside: Decision['carried']): string[] => {
    const { noted } = arrival.tunnel ?? {};
    const now = Number(process.hrtime.bigint());
    const lines = knownTunnels(arrival, predicted).map((key) => {
      const is = tables.tunnels.get(key);
      return `${tunnelText(key)}: ${is ? seenText(is, now - is.seen_ns < NOW_MS * 1e6) : 'not seen'}`;
    });
    const key = predicted.notesTunnel ?? noted?.key;
    const another = Number(toldAnother(arrival));
    const notes = key ? tunnelArrivalsOf(tables, key) : [];
    // As above: the program has noted it on one CPU only.
    const isBefore = ({ epoch, packet }: (typeof notes)[number]): boolean =>
      epoch === noted?.epoch && (packet === another) !== noted.isIt;
    const note = notes.find((each) => !isBefore(each)) ?? notes[0];
    if (note) lines.push(noteOfTunnelText(note.key, note.epoch, note.packet === Number(told(arrival))));
    return beside ? [...lines, besideText(beside)] : lines;
  };

  /** What the programs have left in the table, and in the notes of the packet's flow. */
  const flowsAfter = (arrival: Arrival, out: Uint8Array): string[] => {
    const { flow, noted, hook } = arrival;
    const lines = [...knownFlows(arrival)].map(([text, each]) => {
      const entry = tableOf(tables, each).get(each);
      // The port is free to choose, but all packets of the flow must have it.
      if (entry && hook === 'to_vtep' && entry.head.source_port === sourcePortOf(out))
        entry.head.source_port = 0;
      return `${text}: ${entry ? entryText(entry.head, entry.out) : 'not there'}`;
    });
    const notes = flow && !noted ? arrivalsOfFlow(tables, flow) : [];
    // The program has noted it on one CPU. The others still have the note from before.
    const note = notes.find(({ ifindex }) => ifindex !== BEHIND.ifindex) ?? notes[0];
    return note ? [...lines, noteText(note)] : lines;
  };

  /** Run a program on a packet, with the flow table and the notes that it meets. Returns what became of them, too. */
  const run = (
    arrival: Arrival,
    predicted: Decision,
    onRepeat: () => void,
  ): ReturnType<typeof testRun> & { readonly isCarried: boolean; readonly state: string[] } => {
    const { hook, packet, gsoSize, table, noted, flow, isBehind, sender, mark, tunnel } = arrival;
    const priority = sender ? new DataView(sender.buffer).getUint32(0, true) : arrival.priority;
    if (tunnel?.seen) seeTunnel(tables, tunnel.seen);
    if (tunnel?.noted)
      noteTunnelling(tables, {
        ...tunnel.noted,
        packet: tunnel.noted.isIt ? told(arrival) : toldAnother(arrival),
      });
    learnFlows(tables, table);
    if (flow) forgetArrival(tables, flow);
    if (noted) noteArrival(tables, noted);
    const now = Number(process.hrtime.bigint());
    if (flow && isBehind) noteArrival(tables, { ...BEHIND, flow, noted_ns: now, since_ns: now });
    const result = testRun(programs[hook], packet, {
      gsoSize,
      isXdp: hook === 'xdp_from_wire',
      ...(priority !== undefined && { priority }),
      ...(mark !== undefined && { mark }),
      ...(arrival.isHandedOver && { note: FROM_FAST_PATH }),
    });
    const isCarried = hook === 'to_vtep' || hook === 'from_wire' ? isPassedOn(result) : false;
    const isLate = isBehind && Number(process.hrtime.bigint()) - now >= GAP_NS;
    const state = [
      ...flowsAfter(arrival, result.packet),
      ...tunnelsAfter(arrival, predicted, isCarried ? result.beside : undefined),
    ];
    for (const key of knownTunnels(arrival, predicted)) {
      tables.tunnels.delete(key);
      forgetTunnelling(tables, key);
    }
    for (const each of knownFlows(arrival).values()) tableOf(tables, each).delete(each);
    for (const each of [flow, noted?.flow]) if (each) forgetArrival(tables, each);
    if (!isLate) return { ...result, isCarried, state };
    // Something else held this process up, so the packet did not come directly behind the other one.
    onRepeat();
    return run(arrival, predicted, onRepeat);
  };
  /** The bytes that are counted: for XDP those that came, for the others those that leave. */
  const bytesOf = ({ hook, packet }: Arrival, out: Uint8Array): number =>
    hook === 'xdp_from_wire' ? packet.length : out.length;
  const comparable = (hook: Hook, outcome: string | undefined, out: Uint8Array): Uint8Array => {
    if (outcome === 'fast encap') return withoutChoices(out);
    return hook === 'to_vtep' && outcome?.endsWith(CARRIED) ? withoutPort(withoutChoices(out)) : out;
  };

  /** Describe a run in words: run it once more, and read every counter before and after. */
  const explained = (arrival: Arrival, predicted: Decision): Disagreement['programs'] => {
    let before = readCounters(tables);
    const {
      verdict,
      packet: out,
      isCarried,
      state,
    } = run(arrival, predicted, () => {
      before = readCounters(tables);
    });
    const moved = readCounters(tables).flatMap(({ hook, verdict, reason, packets, bytes }, i) => {
      const times = packets - before[i]!.packets;
      const grown = bytes - before[i]!.bytes;
      if (times === 0) return [];
      const wrong = [
        ...(hook === arrival.hook ? [] : [`at ${hook}`]),
        ...(times === 1 ? [] : [`${times} times`]),
        ...(grown === bytesOf(arrival, out) ? [] : [`as ${grown} bytes`]),
      ];
      return [[`${verdict} ${reason}`, ...wrong].join(' ')];
    });
    const counted = moved.join(' and ') || NOTHING;
    const should = counted === NOTHING ? 'kernel' : counted.split(' ')[0]!;
    const honest = verdict === returned(arrival.hook, should, isCarried);
    const outcome = honest ? `${counted}${isCarried ? CARRIED : ''}` : `${verdict}, counted as ${counted}`;
    return { outcome, out: comparable(arrival.hook, outcome, out), state };
  };

  const compare = (arrival: Arrival): Disagreement | undefined => {
    const predicted = model.decide(arrival);
    const actual = explained(arrival, predicted);
    const same =
      outcomesOf(predicted).includes(actual.outcome) &&
      sameBytes(predicted.out, actual.out) &&
      predictedState(arrival, predicted).join() === actual.state.join();
    return same ? undefined : { arrival, model: predicted, programs: actual };
  };

  const resources = started.move();
  return {
    /** @returns the verdict of the programs if the model agrees, else the disagreement. */
    check(arrival: Arrival): string | Disagreement {
      const predicted = model.decide(arrival);
      const { verdict, packet: out, isCarried, state } = run(arrival, predicted, readAll);
      // strays() checks that no other counter moved.
      const said = outcomesOf(predicted).find(
        (outcome) =>
          outcome === NOTHING ||
          counted(counterSlot(arrival.hook, withoutCarried(outcome)), bytesOf(arrival, out)),
      );
      const agreed =
        returned(arrival.hook, predicted.verdict, isCarried) === verdict &&
        isCarried === (predicted.carried !== undefined) &&
        sameBytes(predicted.out, comparable(arrival.hook, said, out)) &&
        predictedState(arrival, predicted).join() === state.join();
      if (said !== undefined && agreed) return said;
      const disagreement = compare(arrival);
      const least = disagreement && shrunk(disagreement, compare);
      readAll();
      if (!least)
        throw new Error('the programs said otherwise only once: a second run agrees with the model');
      return least;
    },
    strays: () => [
      ...readCounters(tables).flatMap(({ hook, verdict, reason, packets }) => {
        const slot = counterSlot(hook as Hook, `${verdict} ${reason}`);
        return packets === seen.get(slot)?.packets ? [] : [`${hook}: ${verdict} ${reason}`];
      }),
      ...[...tables.tunnels.keys()].map((key) => `seen: ${tunnelText(key)}`),
      ...Array.from({ length: tables.tunnel_arrivals.map.info.maxEntries }, (_, slot) => slot)
        .flatMap((slot) => tables.tunnel_arrivals.getPerCpu(slot) ?? [])
        .filter(({ key }) => key.vtep_ip !== '::')
        .map(({ key }) => `noted: ${tunnelText(key)}`),
    ],
    [Symbol.dispose]: () => resources[Symbol.dispose](),
  };
}

export function openComparison(): Comparison {
  using started = new DisposableStack();
  const nodes: Readonly<Record<WorldName, ReturnType<typeof openNode>>> = {
    tunnelled: started.use(openNode(worlds.tunnelled)),
    direct: started.use(openNode(worlds.direct)),
  };
  const coverage: Coverage = new Map();
  const resources = started.move();
  return {
    coverage,
    check(arrival) {
      const result = nodes[arrival.node].check(arrival);
      if (typeof result !== 'string') return result;
      const key = `${familyName(arrival)} ${arrival.hook}: ${result}`;
      coverage.set(key, (coverage.get(key) ?? 0) + 1);
      return undefined;
    },
    strays: () => Object.values(nodes).flatMap((node) => node.strays()),
    [Symbol.dispose]: () => resources[Symbol.dispose](),
  };
}

/** The same disagreement with as few bytes as possible, and as many of them zero. */
function shrunk(found: Disagreement, compare: (arrival: Arrival) => Disagreement | undefined): Disagreement {
  let least = found;
  const attempt = (packet: Uint8Array): void => {
    const now = compare({ ...least.arrival, packet });
    const sameKind =
      now?.programs.outcome === found.programs.outcome &&
      now.programs.state.length === found.programs.state.length &&
      outcomesOf(now.model).join() === outcomesOf(found.model).join();
    if (sameKind) least = now;
  };
  for (let cut = found.arrival.packet.length >> 1; cut > 0; cut >>= 1) {
    const { packet } = least.arrival;
    if (packet.length - cut >= SHORTEST[familyOf(u16(packet, 12)) ?? 4])
      attempt(packet.subarray(0, packet.length - cut));
  }
  for (let at = ETHERTYPE_END; at < Math.min(least.arrival.packet.length, 168); at++) {
    if (least.arrival.packet[at] !== 0) attempt(least.arrival.packet.with(at, 0));
  }
  return least;
}
const ETHERTYPE_END = 14;

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

const ethernetFields = { dst: 6, src: 6, type: 2 };
const ipFields = {
  4: {
    version_ihl: 1,
    tos: 1,
    total_length: 2,
    id: 2,
    fragment: 2,
    ttl: 1,
    protocol: 1,
    checksum: 2,
    src: 4,
    dst: 4,
  },
  6: { version_class_flow: 4, payload_length: 2, next_header: 1, hop_limit: 1, src: 16, dst: 16 },
};
const udpFields = { src_port: 2, dst_port: 2, length: 2, checksum: 2 };
const vxlanFields = { flags: 4, vni: 4 };

/** All fields that differ, header by header, and the payload as a whole. */
function differences(expected: Uint8Array, actual: Uint8Array, isTunnelled: boolean): string[] {
  const lines = expected.length === actual.length ? [] : [`length: ${expected.length}, but ${actual.length}`];
  const family = familyOf(u16(expected, 12)) ?? 4;
  const plain = { ethernet: ethernetFields, ip: ipFields[family] };
  const tunnel = {
    udp: udpFields,
    vxlan: vxlanFields,
    inner_ethernet: ethernetFields,
    inner: ipFields[family],
  };
  let at = 0;
  const note = (name: string, end?: number): void => {
    const [a, b] = [hex(expected.subarray(at, end)), hex(actual.subarray(at, end))];
    if (a !== b) lines.push(`${name}: ${a}, but ${b}`);
  };
  for (const [layer, fields] of Object.entries(isTunnelled ? { ...plain, ...tunnel } : plain)) {
    for (const [field, size] of Object.entries(fields)) {
      note(`${layer}.${field}`, at + size);
      at += size;
    }
  }
  note('payload');
  return lines;
}

/** The disagreement as text: both verdicts, how the packets that leave differ, and the packet. */
export function describeDisagreement({ arrival, model, programs }: Disagreement): string {
  const { node, hook, packet, gsoSize, table, noted, mark, priority, tunnel, isHandedOver } = arrival;
  const isTunnelled =
    model.reasons[0] === 'encap' ||
    hook === 'to_vtep' ||
    (hook === 'from_wire' && model.verdict !== 'fast' && !model.carried);
  return [
    `${hook} of the node "${node}", ${packet.length} bytes${gsoSize > 0 ? `, in segments of ${gsoSize}` : ''}`,
    `model:    ${outcomesOf(model).join(' or ')}`,
    `programs: ${programs.outcome}`,
    ...differences(model.out, programs.out, isTunnelled).map((line) => `  ${line}`),
    ...predictedState(arrival, model).map((line) => `model leaves:    ${line}`),
    ...programs.state.map((line) => `programs leave:  ${line}`),
    ...table.map((entry) => `table:    ${JSON.stringify(entry)}`),
    `beside:   ${JSON.stringify({ noted, mark, priority, tunnel, isHandedOver })}`,
    `packet (as small as it gets): ${hex(packet)}`,
  ].join('\n');
}

const impossible = new Set([
  // Needs a connection that conntrack knows: conntrack.child.ts of test/bpf makes some.
  'IPv4: kernel not_established',
  'IPv6: kernel not_established',
  // Needs a route through the device of test runs.
  'IPv4: kernel routed_source',
  'IPv6: kernel routed_source',
  // Needs XDP's mark on an skb, which test runs cannot have.
  'IPv4: drop other_vlan',
  'IPv6: drop other_vlan',
]);

/** The verdicts of each family that were never given, such as `IPv4: kernel ttl`; and where no packet was carried. */
export function unmet(coverage: Coverage): string[] {
  const outcomes = [...coverage.keys()];
  const met = new Set(outcomes.map((key) => withoutCarried(key).replace(/ .*:/, ':')));
  const isCarriedAt = (place: string): boolean =>
    outcomes.some((key) => key.startsWith(place) && key.endsWith(CARRIED));
  return ['IPv4', 'IPv6'].flatMap((family) => [
    ...Object.keys(reasons)
      .map((name) => splitReason(name))
      .map(({ verdict, reason }) => `${family}: ${verdict} ${reason}`)
      .filter((outcome) => !met.has(outcome) && !impossible.has(outcome)),
    ...['from_wire', 'to_vtep']
      .map((hook) => `${family} ${hook}:`)
      .filter((place) => !isCarriedAt(place))
      .map((place) => `${place} any${CARRIED}`),
  ]);
}
