// SPDX-License-Identifier: Apache-2.0
/** Compares the loaded programs with the model: both get the same packets, and must give the same results. */
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
  learnFlows,
  noteArrival,
  type NotedArrival,
  tableOf,
  testRun,
} from '../bpf/node.ts';
import { SHORTEST } from './generate.ts';
import { type Arrival, type Decision, type Entry, EPOCH, type Hook, Model, withoutChoices } from './model.ts';
import { familyOf, u16 } from './read.ts';
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
  /** @returns counters that moved although no packet should have moved them, such as `from_pod: fast local`. */
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
const outcomesOf = ({ verdict, reasons }: Decision): string[] =>
  reasons.length > 0 ? reasons.map((reason) => `${verdict} ${reason}`) : [NOTHING];
const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** What the program must return. XDP lets every packet pass; its verdict shows in the counters. */
const returned = (hook: Hook, verdict: string): string => (hook === 'xdp_from_wire' ? 'pass' : verdict);

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
    is_settled,
    is_ending,
    hops,
    ttl,
    dscp,
    source_port,
  }: Omit<Entry, 'flow' | 'out' | 'ageMs'>,
  out: Flow,
): string =>
  `epoch ${epoch}, from ${ifindex}, MTU ${mtu}, settled ${is_settled}, ending ${is_ending}, hops ${hops}, TTL ${ttl}, DSCP ${dscp}, port ${source_port}, as ${flowText(out)}`;
const noteText = ({ epoch, ifindex, dscp, ttl }: Omit<NotedArrival, 'flow'>): string =>
  `noted: epoch ${epoch}, from ${ifindex}, DSCP ${dscp}, TTL ${ttl}`;

/** The flows that are looked at: those in the table, and the packet's own. */
function knownFlows({ table, flow }: Arrival): Map<string, Flow> {
  const all = [...table.map((entry) => entry.flow), ...(flow ? [flow] : [])];
  return new Map(all.map((each) => [flowText(each), each]));
}

/** What the model leaves in the table, and in the notes of the packet's flow. */
function predictedState(
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

  /** What the programs have left in the table, and in the notes of the packet's flow. */
  const stateAfter = (arrival: Arrival): string[] => {
    const { flow, noted } = arrival;
    const lines = [...knownFlows(arrival)].map(([text, each]) => {
      const entry = tableOf(tables, each).get(each);
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
    onRepeat: () => void,
  ): ReturnType<typeof testRun> & { readonly state: string[] } => {
    const { hook, packet, gsoSize, table, noted, flow, isBehind, sender } = arrival;
    const priority = sender && new DataView(sender.buffer).getUint32(0, true);
    learnFlows(tables, table);
    if (flow) forgetArrival(tables, flow);
    if (noted) noteArrival(tables, noted);
    const now = Number(process.hrtime.bigint());
    if (flow && isBehind) noteArrival(tables, { ...BEHIND, flow, noted_ns: now, since_ns: now });
    const result = testRun(programs[hook], packet, {
      gsoSize,
      isXdp: hook === 'xdp_from_wire',
      ...(priority !== undefined && { priority }),
    });
    const isLate = isBehind && Number(process.hrtime.bigint()) - now >= GAP_NS;
    const state = stateAfter(arrival);
    for (const each of knownFlows(arrival).values()) tableOf(tables, each).delete(each);
    for (const each of [flow, noted?.flow]) if (each) forgetArrival(tables, each);
    if (!isLate) return { ...result, state };
    // Something else held this process up, so the packet did not come directly behind the other one.
    onRepeat();
    return run(arrival, onRepeat);
  };
  /** The bytes that are counted: for XDP those that came, for the others those that leave. */
  const bytesOf = ({ hook, packet }: Arrival, out: Uint8Array): number =>
    hook === 'xdp_from_wire' ? packet.length : out.length;
  const comparable = (outcome: string | undefined, out: Uint8Array): Uint8Array =>
    outcome === 'fast encap' ? withoutChoices(out) : out;

  /** Describe a run in words: run it once more, and read every counter before and after. */
  const explained = (arrival: Arrival): Disagreement['programs'] => {
    let before = readCounters(tables);
    const {
      verdict,
      packet: out,
      state,
    } = run(arrival, () => {
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
    const honest = counted === NOTHING || verdict === returned(arrival.hook, counted.split(' ')[0]!);
    const outcome = honest ? counted : `${verdict}, counted as ${counted}`;
    return { outcome, out: comparable(outcome, out), state };
  };

  const compare = (arrival: Arrival): Disagreement | undefined => {
    const predicted = model.decide(arrival);
    const actual = explained(arrival);
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
      const { verdict, packet: out, state } = run(arrival, readAll);
      // strays() checks that no other counter moved.
      const said = outcomesOf(predicted).find(
        (outcome) =>
          outcome === NOTHING || counted(counterSlot(arrival.hook, outcome), bytesOf(arrival, out)),
      );
      const agreed =
        returned(arrival.hook, predicted.verdict) === verdict &&
        sameBytes(predicted.out, comparable(said, out)) &&
        predictedState(arrival, predicted).join() === state.join();
      if (said !== undefined && agreed) return said;
      const disagreement = compare(arrival);
      const least = disagreement && shrunk(disagreement, compare);
      readAll();
      if (!least)
        throw new Error('the programs said otherwise only once: a second run agrees with the model');
      return least;
    },
    strays: () =>
      readCounters(tables).flatMap(({ hook, verdict, reason, packets }) => {
        const slot = counterSlot(hook as Hook, `${verdict} ${reason}`);
        return packets === seen.get(slot)?.packets ? [] : [`${hook}: ${verdict} ${reason}`];
      }),
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
  const { node, hook, packet, gsoSize, table } = arrival;
  const isTunnelled = model.reasons[0] === 'encap' || (hook === 'from_wire' && model.verdict !== 'fast');
  return [
    `${hook} of the node "${node}", ${packet.length} bytes${gsoSize > 0 ? `, in segments of ${gsoSize}` : ''}`,
    `model:    ${outcomesOf(model).join(' or ')}`,
    `programs: ${programs.outcome}`,
    ...differences(model.out, programs.out, isTunnelled).map((line) => `  ${line}`),
    ...predictedState(arrival, model).map((line) => `model leaves:    ${line}`),
    ...programs.state.map((line) => `programs leave:  ${line}`),
    ...table.map((entry) => `table:    ${JSON.stringify(entry)}`),
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

/** The verdicts of each family that were never given: `IPv4: kernel ttl`. */
export function unmet(coverage: Coverage): string[] {
  const met = new Set([...coverage.keys()].map((key) => key.replace(/ .*:/, ':')));
  return ['IPv4', 'IPv6'].flatMap((family) =>
    Object.keys(reasons)
      .map((name) => splitReason(name))
      .map(({ verdict, reason }) => `${family}: ${verdict} ${reason}`)
      .filter((outcome) => !met.has(outcome) && !impossible.has(outcome)),
  );
}
