// SPDX-License-Identifier: Apache-2.0
/** Arms in other circumstances: the same lab, with something done around each of its measurements. */
import { join } from 'node:path';
import { hrtime } from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { BpfProgram } from '#libbpf-ts';
import { moveEpoch } from '../src/dataplane/changes.ts';
import { openTables, pinPaths, type Tables } from '../src/dataplane/tables.ts';
import { RipstopError } from '../src/errors.ts';
import type { Arm } from './arms.ts';
import { besideName, clusterIpName, flowsName, NEW_FLOWS } from './contrasts.ts';
import type { ClientOptions, Results } from './netbench.ts';
import type { Place } from './works.ts';

type Options = Omit<ClientOptions, 'host' | 'port'>;
type Around = <R extends Results[keyof Results]>(measure: () => Promise<R>, options: Options) => Promise<R>;

function around(arm: Arm, name: string, act: Around): Arm {
  const run = <Command extends keyof Results>(
    command: Command,
    options: Options = {},
    place?: Place,
  ): Promise<Results[Command]> => act(() => arm.run(command, options, place), options);
  return { ...arm, name, run };
}

/** The arm with its server behind a ClusterIP. */
export function throughClusterIp(arm: Arm): Arm {
  return {
    ...arm,
    name: clusterIpName(arm.name),
    run: (command, options) => arm.run(command, options, 'through a ClusterIP'),
  };
}

/** The arm with so many idle flows in its nodes' flow tables. */
export function amongFlows(arm: Arm, flows: number): Arm {
  return around(arm, flowsName(flows), async (measure) => {
    const wrong = (count: number): boolean => count < 0.95 * flows || count > 1.05 * flows + 100;
    for (const bpffs of arm.bpffs) fillFlowTable(bpffs, flows);
    const result = await measure();
    const counts = arm.bpffs.map(countFlows);
    if (counts.some(wrong))
      throw new RipstopError(`the flow tables held ${counts.join(' and ')} flows in the end, not ${flows}`);
    return result;
  });
}

/** Make a flow table hold `count` flows of pods that do not exist, valid and fresh, and nothing else. */
function fillFlowTable(bpffs: string, count: number): void {
  using tables = openTables(bpffs);
  const { flows4 } = tables;
  flows4.map.deleteBatch(flows4.map.lookupBatch().map(([key]) => key));
  flows4.setMany(idleFlows(tables, count));
}

function* idleFlows({ epoch }: Pick<Tables, 'epoch'>, count: number): Generator<IdleFlow> {
  const head = {
    learned_ns: Number(hrtime.bigint()),
    epoch: epoch.get(0) ?? 0,
    ifindex: 1,
    mtu: 1450,
    mark: 0,
    priority: 0,
    frame_dst: 0,
    is_translated: 0,
    noted_ns: 0,
    packets: 0,
    bytes: 0,
    is_settled: 1,
    is_ending: 0,
    hops: 1,
    ttl: 64,
    dscp: 0,
    source_port: 40_000,
  };
  for (let i = 0; i < count; i++) {
    const flow = {
      src: `10.42.200.${i & 255}`,
      dst: '10.42.201.1',
      src_port: 1024 + (i >> 8),
      dst_port: 80,
      protocol: 6,
    };
    yield [flow, { head, out: flow }];
  }
}

type IdleFlow = Parameters<Tables['flows4']['setMany']>[0] extends Iterable<infer Entry> ? Entry : never;

function countFlows(bpffs: string): number {
  using tables = openTables(bpffs);
  return tables.flows4.map.lookupBatch().length;
}

/** New flows begin this long before the measurement, and end as long after it. */
const MARGIN_S = 0.1;

/** The arm with new flows beside what it measures, whose client and server run on `cpu`. */
export function besideNewFlows(arm: Arm, cpu: number): Arm {
  // Goes on from one measurement to the next, so that a source port comes again as late as possible.
  let first = 0;
  return around(arm, besideName(arm.name), async (measure, { seconds = 1, warmup = 0 }) => {
    const load = { rate: NEW_FLOWS, cpu, first, warmup: 0, seconds: seconds + warmup + 2 * MARGIN_S };
    first += NEW_FLOWS * load.seconds;
    const flows = arm.run('udp-flows', load);
    const measured = sleep(MARGIN_S * 1000).then(measure);
    // Both have ended before either may fail, so that nothing runs beside the next measurement.
    await Promise.allSettled([measured, flows]);
    const { rate, flows: sent, answered } = await flows;
    if (rate < 0.9 * NEW_FLOWS || answered < 0.9 * sent)
      throw new RipstopError(
        `only ${rate.toFixed(0)} new flows a second were sent, and ${answered} of ${sent} answered; ` +
          'the CPU is too slow, or too busy, for this contrast',
      );
    return measured;
  });
}

/** The first move comes this long after the warm-up, and then one each second. */
const FIRST_MOVE_MS = 200;

/** The arm whose nodes' epochs move once a second, or, to be compared with it, stay. Both count what TCP sends again. */
export function withEpochs(arm: Arm, name: 'moving' | 'still'): Arm {
  return around(arm, name, async (measure, { seconds = 1, warmup = 0 }) => {
    const before = await arm.retransmitted();
    const end = new AbortController();
    const moving = moveEpochs(name === 'moving' ? arm.bpffs : [], warmup * 1000 + FIRST_MOVE_MS, end.signal);
    const result = await measure().finally(() => end.abort());
    const moved = await moving;
    if (name === 'moving' && moved === 0)
      throw new RipstopError('the epoch did not move: the measurement is too short; give more --seconds');
    const moves = Math.max(moved, Math.floor(seconds), 1);
    return { ...result, retransmittedPerMove: ((await arm.retransmitted()) - before) / moves };
  });
}

/** Move the epochs of all nodes at once, each second, until `end`. Resolves to the number of moves. */
async function moveEpochs(bpffs: readonly string[], firstMs: number, end: AbortSignal): Promise<number> {
  using stack = new DisposableStack();
  const programs = bpffs.map((path) =>
    stack.use(BpfProgram.openPinned(join(pinPaths(path).programs, 'move_epoch'))),
  );
  let moves = 0;
  for (let waitMs = firstMs; ; waitMs = 1000) {
    const elapsed = await sleep(waitMs, true, { signal: end }).catch(() => false);
    if (!elapsed || programs.length === 0) return moves;
    for (const program of programs) moveEpoch(program, 'network');
    moves += 1;
  }
}
