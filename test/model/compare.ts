// SPDX-License-Identifier: Apache-2.0
/** The loaded programs beside the model: packets go to both, and all that they say must agree. */
import { readCounters, type Verdict } from '../../src/dataplane/counters.ts';
import { desiredEndpoints, desiredPeers, desiredVteps, endpointSlot } from '../../src/dataplane/desired.ts';
import { layout } from '../../src/dataplane/layout.gen.ts';
import { loadPrograms } from '../../src/dataplane/programs.ts';
import { pinPaths } from '../../src/dataplane/tables.ts';
import { TemporaryBpffs } from '../../src/libbpf-ts/test-support.ts';
import { type Arrival, type Decision, type Hook, Model, withoutChoices } from './model.ts';
import { SHORTEST } from './generate.ts';
import { world } from './world.ts';

/** How often each hook said what, by `from_pod: fast local`. */
export type Coverage = Map<string, number>;

export interface Disagreement {
  readonly arrival: Arrival;
  readonly model: Decision;
  /** What they did, in words, with what they should not have counted. */
  readonly programs: { readonly outcome: string; readonly out: Uint8Array };
}

export interface Comparison extends Disposable {
  readonly coverage: Coverage;
  /** @returns what differs, of the smallest packet that still shows it; undefined when nothing does. */
  check(arrival: Arrival): Disagreement | undefined;
  /** @returns counters that moved without a packet that should have moved them, such as `from_pod: fast local`. */
  strays(): string[];
}

/** linux/pkt_cls.h: TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT. */
const verdicts: Readonly<Record<number, Verdict>> = { 0xffff_ffff: 'stack', 2: 'drop', 7: 'fast' };

const { REASONS, ...reasons } = layout.enums.reason;
const { hook: hooks } = layout.enums;

/** `from_pod`, `fast local` → where the counters keep it. */
function counterSlot(hook: Hook, outcome: string): number {
  const reason = reasons[outcome.replaceAll(' ', '_').toUpperCase() as keyof typeof reasons];
  return hooks[`HOOK_${hook.toUpperCase()}` as keyof typeof hooks] * REASONS + reason;
}

const outcomesOf = ({ verdict, reasons }: Decision): string[] =>
  reasons.map((reason) => `${verdict} ${reason}`);
const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** `struct __sk_buff` of linux/bpf.h. */
const SK_BUFF_WORDS = 48;
const GSO_SIZE_WORD = 44;

function contextOf(arrival: Arrival): Uint8Array {
  const words = new Uint32Array(SK_BUFF_WORDS);
  words[GSO_SIZE_WORD] = arrival.gsoSize;
  return new Uint8Array(words.buffer);
}

export function openComparison(): Comparison {
  using started = new DisposableStack();
  const bpffs = started.use(new TemporaryBpffs());
  const { programs, tables } = started.use(loadPrograms(world.settings, pinPaths(bpffs.path)));
  const { settings, peers, endpoints, flows, overflowed } = world;
  const indexed = desiredPeers(settings, peers, (address) => address);
  for (const [slot, value] of indexed) tables.peers.set(Number(slot), value);
  for (const [slot, value] of desiredEndpoints(settings, endpoints))
    tables.endpoints.set(Number(slot), value);
  tables.vteps.setMany(desiredVteps(settings, peers, indexed));
  tables.stack_flows.setMany(flows.map(({ flow }) => [flow, { created_ns: 1 }]));
  for (const { ip } of endpoints) {
    tables.endpoint_state.set(endpointSlot(settings, ip)!, {
      stack_flows: flows.filter(({ pod }) => pod === ip).length,
      overflow: overflowed.includes(ip) ? 1 : 0,
    });
  }

  const model = new Model(world);
  const coverage: Coverage = new Map();
  /** Where each counter stood when last read, so that a packet costs one lookup: of the counter that it should move. */
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

  /** Whether the counter that should has moved, by one packet of `bytes`. */
  const counted = (slot: number, bytes: number): boolean => {
    const before = seen.get(slot)!;
    const now = totals(slot);
    seen.set(slot, now);
    return now.packets === before.packets + 1 && now.bytes === before.bytes + bytes;
  };

  const run = (arrival: Arrival) => {
    const { returnValue, data } = programs[arrival.hook].testRun({
      data: arrival.packet,
      context: contextOf(arrival),
    });
    return { verdict: verdicts[returnValue] ?? `return value ${returnValue}`, data };
  };

  /** Slow and in words: run it once more, and read every counter before and after. */
  const explained = (arrival: Arrival): Disagreement['programs'] => {
    const before = readCounters(tables);
    const { verdict, data } = run(arrival);
    const moved = readCounters(tables).flatMap(({ hook, verdict, reason, packets, bytes }, i) => {
      const times = packets - before[i]!.packets;
      if (times === 0) return [];
      const wrong = [
        ...(hook === arrival.hook ? [] : [`at ${hook}`]),
        ...(times === 1 ? [] : [`${times} times`]),
        ...(bytes - before[i]!.bytes === data.length ? [] : [`as ${bytes - before[i]!.bytes} bytes`]),
      ];
      return [[`${verdict} ${reason}`, ...wrong].join(' ')];
    });
    const counted = moved.join(' and ') || 'nothing';
    const outcome = counted.startsWith(`${verdict} `) ? counted : `${verdict}, counted as ${counted}`;
    return { outcome, out: outcome === 'fast encap' ? withoutChoices(data, world) : data };
  };

  const compare = (arrival: Arrival): Disagreement | undefined => {
    const predicted = model.decide(arrival);
    const actual = explained(arrival);
    const same = outcomesOf(predicted).includes(actual.outcome) && sameBytes(predicted.out, actual.out);
    return same ? undefined : { arrival, model: predicted, programs: actual };
  };

  const resources = started.move();
  return {
    coverage,
    check(arrival) {
      const predicted = model.decide(arrival);
      const { verdict, data } = run(arrival);
      const outcomes = outcomesOf(predicted);
      const said = outcomes.find((outcome) => counted(counterSlot(arrival.hook, outcome), data.length));
      const out = said === 'fast encap' ? withoutChoices(data, world) : data;
      const agreed = said !== undefined && predicted.verdict === verdict && sameBytes(predicted.out, out);
      if (said !== undefined)
        coverage.set(`${arrival.hook}: ${said}`, (coverage.get(`${arrival.hook}: ${said}`) ?? 0) + 1);
      if (agreed) return undefined;
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

/** The same disagreement with as few bytes as can be, and as many of them zero. */
function shrunk(found: Disagreement, compare: (arrival: Arrival) => Disagreement | undefined): Disagreement {
  let least = found;
  const attempt = (packet: Uint8Array): void => {
    const now = compare({ ...least.arrival, packet });
    const sameKind =
      now?.programs.outcome === found.programs.outcome &&
      outcomesOf(now.model).join() === outcomesOf(found.model).join();
    if (sameKind) least = now;
  };
  for (let cut = found.arrival.packet.length >> 1; cut > 0; cut >>= 1) {
    const { packet } = least.arrival;
    if (packet.length - cut >= SHORTEST) attempt(packet.subarray(0, packet.length - cut));
  }
  for (let at = ETHERTYPE_END; at < Math.min(least.arrival.packet.length, 128); at++) {
    if (least.arrival.packet[at] !== 0) attempt(least.arrival.packet.with(at, 0));
  }
  return least;
}
const ETHERTYPE_END = 14;

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

const ethernetFields = { dst: 6, src: 6, type: 2 };
const ipv4Fields = {
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
};
const tunnelFields = {
  ethernet: ethernetFields,
  outer: ipv4Fields,
  udp: { src_port: 2, dst_port: 2, length: 2, checksum: 2 },
  vxlan: { flags: 4, vni: 4 },
  inner_ethernet: ethernetFields,
  inner: ipv4Fields,
};
const plainFields = { ethernet: ethernetFields, ip: ipv4Fields };

/** Header by header: every field that is not the same in both, and the payload as a whole. */
function differences(expected: Uint8Array, actual: Uint8Array, tunnelled: boolean): string[] {
  const lines = expected.length === actual.length ? [] : [`length: ${expected.length}, but ${actual.length}`];
  let at = 0;
  const note = (name: string, end?: number): void => {
    const [a, b] = [hex(expected.subarray(at, end)), hex(actual.subarray(at, end))];
    if (a !== b) lines.push(`${name}: ${a}, but ${b}`);
  };
  for (const [layer, fields] of Object.entries(tunnelled ? tunnelFields : plainFields)) {
    for (const [field, size] of Object.entries(fields)) {
      note(`${layer}.${field}`, at + size);
      at += size;
    }
  }
  note('payload');
  return lines;
}

/** For people: what each says, where the packets that leave differ, and the packet. */
export function describeDisagreement({ arrival, model, programs }: Disagreement): string {
  const { hook, packet, gsoSize } = arrival;
  const tunnelled = model.reasons[0] === 'encap' || (hook === 'from_wire' && model.reasons[0] !== 'decap');
  return [
    `${hook}, ${packet.length} bytes${gsoSize > 0 ? `, in segments of ${gsoSize}` : ''}`,
    `model:    ${outcomesOf(model).join(' or ')}`,
    `programs: ${programs.outcome}`,
    ...differences(model.out, programs.out, tunnelled).map((line) => `  ${line}`),
    `packet (as small as it gets): ${hex(packet)}`,
  ].join('\n');
}

/** What can be counted at each hook and was not: `from_pod: stack ttl`. */
export function unmet(coverage: Coverage): string[] {
  const outcomes = new Set([...coverage.keys()].map((key) => key.split(': ')[1]));
  return Object.keys(reasons)
    .map((name) => name.toLowerCase().replace('_', ' '))
    .filter((outcome) => !outcomes.has(outcome));
}
