// SPDX-License-Identifier: Apache-2.0
/** Carries out a plan: starts a prober wherever one is needed, and sends all probes. */
import { addressFamily, withPort } from '../net/ip.ts';
import type { CheckNode, Kind, Place, Planned, Skipped } from './plan.ts';
import type { Outcome } from './probe.ts';
import type { ProberProcess, Session } from './session.ts';

/** Where a check takes place: a lab or a cluster, prepared. */
export interface Site {
  /** `lab demo`, `context prod`. */
  readonly name: string;
  readonly nodes: readonly CheckNode[];
  /** Kinds that cannot be tried here. */
  readonly skipped: readonly Skipped[];
  /** Start a prober there. @param serve whether others send to it. */
  readonly start: (place: Place, serve: boolean) => ProberProcess | Promise<ProberProcess>;
  /** Whether the node's fast path carries this flow of UDP. */
  readonly isLearned: (node: string, source: string, destination: string) => Promise<boolean>;
  /** How long a Service, or DNS, may take until it works: rules for a new one are written some time later. */
  readonly patienceMs: number;
  /** The command to run next for a failure. */
  readonly next: (failed: Failed) => string;
  /** Remove what was prepared. */
  readonly close: () => Promise<void>;
}

/** A failed probe, as far as {@link Site.next} needs to know it. */
export interface Failed extends Result {
  /** The node to look at first. */
  readonly lookAt: string;
  /** The pod there, and the address that it sends to. */
  readonly sender?: Place;
  readonly address?: string;
}

/** A probe, and what became of it. */
export interface Result extends Planned {
  readonly outcome: Outcome;
  /** It passed only when it was sent again: a packet was lost, or the machine was busy. */
  readonly again?: true;
  /** Of a datagram without an answer: whether it has arrived, so that its answer was lost. */
  readonly arrived?: boolean;
}

/** The probes that one prober has under way at once. */
const AT_ONCE = 16;
/** Between two tries of what may take some time until it works. */
const AGAIN_MS = 500;
/** A flow that is not learned gets another train of packets. */
const TRAINS = 4;

const hasServer = ({ probe }: Planned): boolean => 'token' in probe;

/** The places that need a prober, and whether it has to serve. */
export function probersOf(plan: readonly Planned[]): Map<Place, boolean> {
  const probers = new Map<string, { place: Place; serve: boolean }>();
  const add = (place: Place, serve: boolean): void => {
    const before = probers.get(place.name);
    probers.set(place.name, { place: before?.place ?? place, serve: serve || before?.serve === true });
  };
  for (const one of plan) {
    add(one.from, false);
    if (one.to && hasServer(one)) add(one.to, true);
  }
  return new Map([...probers.values()].map(({ place, serve }) => [place, serve]));
}

/**
 * Send all probes of a plan; what was lost is sent again when the others are done.
 * @param sessions of all that {@link probersOf} names, by the place's name
 * @param done is told of each kind when all its probes have an outcome, and whether all have passed
 * @throws RipstopError when a prober ends meanwhile
 */
export async function runPlan(
  plan: readonly Planned[],
  site: Pick<Site, 'isLearned' | 'patienceMs'>,
  sessions: ReadonlyMap<string, Session>,
  done: (kind: Kind, passed: boolean) => void,
): Promise<Result[]> {
  const runAll = async (probes: readonly Planned[]): Promise<Map<Planned, Outcome>> => {
    const outcomes = new Map<Planned, Outcome>();
    const runOne = async (planned: Planned): Promise<void> => {
      outcomes.set(planned, await send(planned, site, sessions.get(planned.from.name)!));
    };
    const bySender = Map.groupBy(probes, ({ from }) => from.name);
    await Promise.all([...bySender.values()].map((queue) => inTurn(queue, AT_ONCE, runOne)));
    return outcomes;
  };
  const first = await runAll(plan);
  const isLost = (planned: Planned): boolean => first.get(planned)?.failure === 'lost';
  for (const kind of kindsOf(plan)) {
    const all = plan.filter((planned) => planned.kind === kind);
    if (!all.some(isLost))
      done(
        kind,
        all.every((planned) => !first.get(planned)?.failure),
      );
  }
  const second = await runAll(plan.filter(isLost));
  const results = plan.map((planned): Result => {
    const outcome = second.get(planned) ?? first.get(planned)!;
    return { ...planned, outcome, ...(second.has(planned) && !outcome.failure && { again: true as const }) };
  });
  for (const kind of kindsOf(plan.filter(isLost)))
    done(
      kind,
      results.every((result) => result.kind !== kind || !result.outcome.failure),
    );
  return withArrivals(results, sessions);
}

const kindsOf = (plan: readonly Planned[]): Set<Kind> => new Set(plan.map(({ kind }) => kind));

/** Work at so many of these at once. */
async function inTurn<T>(
  items: readonly T[],
  width: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const queue = items.values();
  const worker = async (): Promise<void> => {
    for (const item of queue) await work(item);
  };
  await Promise.all(Array.from({ length: width }, worker));
}

async function send(
  { kind, from, probe }: Planned,
  { isLearned, patienceMs }: Pick<Site, 'isLearned' | 'patienceMs'>,
  session: Session,
): Promise<Outcome> {
  if (probe.protocol === 'train') {
    const source = from.addresses.find((one) => addressFamily(one) === addressFamily(probe.address))!;
    for (let sent = 1; ; sent++) {
      const outcome = await session.run(probe);
      if (outcome.failure) return outcome;
      const flow = [withPort(source, outcome.port!), withPort(probe.address, probe.port)] as const;
      if (await isLearned(from.node, ...flow)) return outcome;
      if (sent === TRAINS)
        return { ...outcome, failure: 'error', detail: 'the kernel path carries the flow' };
    }
  }
  const patience = kind === 'service' || kind === 'dns' ? patienceMs : 0;
  for (const deadline = performance.now() + patience; ;) {
    const outcome = await session.run(probe);
    if (!outcome.failure || performance.now() > deadline) return outcome;
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

/** Ask the receivers of lost datagrams whether these have arrived. */
async function withArrivals(
  results: readonly Result[],
  sessions: ReadonlyMap<string, Session>,
): Promise<Result[]> {
  const tokenOf = ({ probe, outcome }: Result): string | undefined =>
    outcome.failure === 'lost' && 'token' in probe && probe.protocol !== 'tcp' ? probe.token : undefined;
  const lost = results.filter((result) => tokenOf(result) !== undefined);
  const byReceiver = Map.groupBy(lost, ({ to }) => to!.name);
  const seen = await Promise.all(
    [...byReceiver].map(([name, ones]) => sessions.get(name)!.seen(ones.map((one) => tokenOf(one)!))),
  );
  const arrived = new Set(seen.flat());
  return results.map((result) => {
    const token = tokenOf(result);
    return token === undefined ? result : { ...result, arrived: arrived.has(token) };
  });
}
