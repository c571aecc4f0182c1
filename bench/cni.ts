// SPDX-License-Identifier: Apache-2.0
/**
 * Measures how long a pod waits for its network: CNI ADD and DEL of ripstop and of flannel's chain of plugins, in one run,
 * on two nodes of one lab, and what the steps of an ADD take. See README.md.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { renderTable } from '../src/cli/table.ts';
import { addPod, labDown, labUp, openLab, parseLabOptions, removePod } from '../src/lab/index.ts';
import { type Arm, type ArmName, armsOf, stepsOf } from './cni-arms.ts';
import { growEndpoints, growPeers } from './grow.ts';
import { interleave, median, pairedRatio, quantile } from './stats.ts';
import { timedCni } from './cni-calls.ts';

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string', default: '60' },
    /** The number of idle pods on the ripstop node. */
    pods: { type: 'string', default: '1,250' },
    peers: { type: 'string' },
    batch: { type: 'string', default: '20' },
    seed: { type: 'string', default: '1' },
  },
});
const rounds = Number(flags.rounds);
const batch = Number(flags.batch);
const seed = Number(flags.seed);
const SETTLE_MS = 10_000;
const NAME = `cni-bench-${process.pid}`;

/** The time for one pod, and for one pod of many at once, ms. */
interface Costs {
  readonly add: number[];
  readonly del: number[];
  /** The time of a batch, divided by the number of its pods. */
  readonly batchAdd: number[];
  readonly batchDel: number[];
  /** The container of each ADD in `add`. */
  readonly ids: string[];
}

type Arms = Readonly<Record<ArmName, Arm>>;
type AllCosts = Readonly<Record<ArmName, Costs>>;

const say = (text: string): void => void process.stderr.write(`cni  ${text}\n`);

async function measure(arms: Arms): Promise<AllCosts> {
  const fresh = (): Costs => ({ add: [], del: [], batchAdd: [], batchDel: [], ids: [] });
  const costs = { ripstop: fresh(), flannel: fresh(), bridge: fresh(), 'host-local': fresh() };
  const names = Object.keys(costs) as ArmName[];
  for (const order of interleave(names, rounds, seed)) {
    for (const name of order) {
      const { addMs, delMs, ids } = await timedCni(arms[name].plugin, arms[name].node, 1);
      costs[name].add.push(addMs);
      costs[name].del.push(delMs);
      costs[name].ids.push(...ids);
    }
  }
  for (const order of interleave(
    ['ripstop', 'flannel'] as const,
    Math.max(3, Math.round(rounds / 10)),
    seed + 1,
  )) {
    for (const name of order) {
      const { addMs, delMs } = await timedCni(arms[name].plugin, arms[name].node, batch);
      costs[name].batchAdd.push(addMs / batch);
      costs[name].batchDel.push(delMs / batch);
    }
  }
  return costs;
}

interface Row {
  readonly pods: number;
  readonly what: string;
  readonly ripstop: readonly number[];
  readonly flannel: readonly number[];
}

function rowsOf(pods: number, { ripstop, flannel }: AllCosts): Row[] {
  return [
    { pods, what: 'ADD', ripstop: ripstop.add, flannel: flannel.add },
    { pods, what: 'DEL', ripstop: ripstop.del, flannel: flannel.del },
    { pods, what: `ADD, ${batch} at a time, per pod`, ripstop: ripstop.batchAdd, flannel: flannel.batchAdd },
    { pods, what: `DEL, ${batch} at a time, per pod`, ripstop: ripstop.batchDel, flannel: flannel.batchDel },
  ];
}

/** A step of an ADD, or of a part of it. */
interface StepRow {
  readonly pods: number;
  readonly chain: string;
  readonly step: string;
  readonly ms: readonly number[];
}

/** What the agent does in each step; `Steps` names them. */
const STEP_TEXTS: Readonly<Record<string, string>> = {
  checks: 'agent: look at the namespace and for what is there',
  addresses: 'agent: lease an address',
  veth: 'agent: make the veth pair',
  file: 'agent: store the attachment',
  sysctls: 'agent: settings of the host veth',
  up: 'agent: addresses, routes in the pod, both ends up',
  running: 'agent: wait until the kernel uses them',
  endpoint: "agent: the node's route to the pod, its map entries",
};

function stepRowsOf(pods: number, costs: AllCosts, byContainer: ReturnType<typeof stepsOf>): StepRow[] {
  const { ripstop, flannel, bridge } = costs;
  const ours = ripstop.ids.map((id) => byContainer.get(id) ?? {});
  const outside = ripstop.add.map((addMs, i) => addMs - Object.values(ours[i]!).reduce((a, b) => a + b, 0));
  const beyond = (whole: Costs, part: Costs): number[] => whole.add.map((addMs, i) => addMs - part.add[i]!);
  const steps = Object.entries(STEP_TEXTS).map(([key, step]) => ({
    step,
    ms: ours.flatMap((one) => one[key] ?? []),
  }));
  return [
    { pods, chain: 'ripstop', step: 'start of the plugin, its talk with the agent, end', ms: outside },
    ...steps.map((one) => ({ pods, chain: 'ripstop', ...one })),
    { pods, chain: 'flannel', step: 'flannel, which starts bridge', ms: beyond(flannel, bridge) },
    {
      pods,
      chain: 'flannel',
      step: 'bridge, which starts host-local',
      ms: beyond(bridge, costs['host-local']),
    },
    { pods, chain: 'flannel', step: 'host-local', ms: costs['host-local'].add },
  ];
}

const ms = (value: number): string => value.toFixed(1);

say('lab up: a ripstop node and a flannel node');
await labUp(
  parseLabOptions({ name: NAME, nodes: '2', pods: '0', datapath: 'ripstop,flannel', kubeProxy: 'none' }),
);
try {
  const lab = openLab(NAME);
  const [one, two] = [lab.state.nodes[0]!, lab.state.nodes[1]!];
  const arms = await armsOf(lab, one, two, say);
  if (flags.peers !== undefined) {
    say(`growing to ${flags.peers} peers`);
    await growPeers(lab, Number(flags.peers));
  }
  const rows: Row[] = [];
  const stepRows: StepRow[] = [];
  const model = await addPod(lab, one);
  for (const pods of flags.pods.split(',').map(Number)) {
    if (pods > 1) {
      await growEndpoints(lab, one, pods);
      // The kernel configures the IPv6 side of so many new interfaces for a while, and holds the RTNL lock.
      await sleep(SETTLE_MS);
    }
    say(`${pods} pods on the ripstop node: ${rounds} rounds`);
    const costs = await measure(arms);
    rows.push(...rowsOf(pods, costs));
    stepRows.push(...stepRowsOf(pods, costs, stepsOf(lab, one)));
  }
  await removePod(lab, one, model);
  process.stdout.write(
    renderTable<Row>(
      [
        { title: 'PODS', align: 'right', value: (row) => row.pods },
        { title: 'CALL', value: (row) => row.what },
        { title: 'RIPSTOP p50, ms', align: 'right', value: (row) => ms(median(row.ripstop)) },
        { title: 'p90', align: 'right', value: (row) => ms(quantile(row.ripstop, 0.9)) },
        { title: 'FLANNEL p50, ms', align: 'right', value: (row) => ms(median(row.flannel)) },
        { title: 'p90', align: 'right', value: (row) => ms(quantile(row.flannel, 0.9)) },
        {
          title: 'RATIO (95 %)',
          align: 'right',
          value: (row) => {
            const { median: middle, low, high } = pairedRatio(row.flannel, row.ripstop, { seed });
            return `${middle.toFixed(2)} (${low.toFixed(2)}–${high.toFixed(2)})`;
          },
        },
      ],
      rows,
    ),
  );
  process.stdout.write(
    `\n${renderTable<StepRow>(
      [
        { title: 'PODS', align: 'right', value: (row) => row.pods },
        { title: 'ADD BY', value: (row) => row.chain },
        { title: 'STEP', value: (row) => row.step },
        { title: 'p50, ms', align: 'right', value: (row) => median(row.ms).toFixed(2) },
        { title: 'p90', align: 'right', value: (row) => quantile(row.ms, 0.9).toFixed(2) },
      ],
      stepRows,
    )}`,
  );
} finally {
  await labDown(NAME);
}
