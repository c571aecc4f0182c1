// SPDX-License-Identifier: Apache-2.0
/**
 * Measures how long a pod waits for its network: CNI ADD and DEL of ripstop and of bridge with host-local, which
 * flannel's plugin calls, in one run, on two nodes of one lab. See README.md.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { renderTable } from '../src/cli/table.ts';
import {
  addPod,
  type Datapath,
  type Lab,
  labDown,
  labUp,
  type NodeState,
  openLab,
  parseLabOptions,
  removePod,
} from '../src/lab/index.ts';
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
}

const say = (text: string): void => void process.stderr.write(`cni  ${text}\n`);

async function measure(lab: Lab, nodes: ReadonlyMap<Datapath, NodeState>): Promise<Map<Datapath, Costs>> {
  const costs = new Map<Datapath, Costs>();
  for (const datapath of nodes.keys()) costs.set(datapath, { add: [], del: [], batchAdd: [], batchDel: [] });
  for (const order of interleave([...nodes], rounds, seed)) {
    for (const [datapath, node] of order) {
      const { addMs, delMs } = await timedCni(lab, node, 1);
      costs.get(datapath)!.add.push(addMs);
      costs.get(datapath)!.del.push(delMs);
    }
  }
  for (const order of interleave([...nodes], Math.max(3, Math.round(rounds / 10)), seed + 1)) {
    for (const [datapath, node] of order) {
      const { addMs, delMs } = await timedCni(lab, node, batch);
      costs.get(datapath)!.batchAdd.push(addMs / batch);
      costs.get(datapath)!.batchDel.push(delMs / batch);
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

function rowsOf(pods: number, { ripstop, flannel }: Record<'ripstop' | 'flannel', Costs>): Row[] {
  return [
    { pods, what: 'ADD', ripstop: ripstop.add, flannel: flannel.add },
    { pods, what: 'DEL', ripstop: ripstop.del, flannel: flannel.del },
    { pods, what: `ADD, ${batch} at a time, per pod`, ripstop: ripstop.batchAdd, flannel: flannel.batchAdd },
    { pods, what: `DEL, ${batch} at a time, per pod`, ripstop: ripstop.batchDel, flannel: flannel.batchDel },
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
  if (flags.peers !== undefined) {
    say(`growing to ${flags.peers} peers`);
    await growPeers(lab, Number(flags.peers));
  }
  const rows: Row[] = [];
  const model = await addPod(lab, one);
  for (const pods of flags.pods.split(',').map(Number)) {
    if (pods > 1) {
      await growEndpoints(lab, one, pods);
      // The kernel configures the IPv6 side of so many new interfaces for a while, and holds the RTNL lock.
      await sleep(SETTLE_MS);
    }
    say(`${pods} pods on the ripstop node: ${rounds} rounds`);
    const costs = await measure(
      lab,
      new Map([
        ['ripstop', one],
        ['flannel', two],
      ]),
    );
    rows.push(...rowsOf(pods, { ripstop: costs.get('ripstop')!, flannel: costs.get('flannel')! }));
  }
  await removePod(lab, one, model);
  process.stdout.write(
    renderTable<Row>(
      [
        { title: 'PODS', align: 'right', value: (row) => row.pods },
        { title: 'CALL', value: (row) => row.what },
        { title: 'RIPSTOP p50, ms', align: 'right', value: (row) => ms(median(row.ripstop)) },
        { title: 'p90', align: 'right', value: (row) => ms(quantile(row.ripstop, 0.9)) },
        { title: 'BRIDGE p50, ms', align: 'right', value: (row) => ms(median(row.flannel)) },
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
} finally {
  await labDown(NAME);
}
