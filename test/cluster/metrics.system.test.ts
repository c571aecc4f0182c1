// SPDX-License-Identifier: Apache-2.0
/** What an agent counts, as a scrape sees it: flows that come, end and are evicted, invalidations, calls of the runtime. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openTables } from '../../src/dataplane/tables.ts';
import { run } from '../../src/host/run.ts';
import { callCni, type NodeState } from '../../src/lab/index.ts';
import { ripstopPlugin } from '../../src/lab/ripstop.ts';
import { askOverHttp, bpffsOf, cniStatus, inNetns, missingHere, podOf, ripstop, useLab } from './support.ts';

const ROOM = 1024;
const FLOWS = 3000;
/** A datagram to each of so many ports, always from the same one: each is a flow of its own, the same in each run. */
const SPRAY = `
  const socket = require('node:dgram').createSocket('udp4');
  const [address, ports] = process.argv.slice(1);
  socket.bind(20000, async () => {
    for (let port = 10000; port < 10000 + Number(ports); port++)
      await new Promise((resolve) => socket.send('x', port, address, resolve));
    socket.close();
  });`;

describe.skipIf(missingHere())(`A node whose flow table has room for ${ROOM} flows`, () => {
  const before = process.env['RIPSTOP_FLOW_TABLE_SIZE'];
  beforeAll(() => void (process.env['RIPSTOP_FLOW_TABLE_SIZE'] = String(ROOM)));
  const cluster = useLab('metrics', { nodes: 1, pods: 2 });
  afterAll(() => {
    if (before === undefined) delete process.env['RIPSTOP_FLOW_TABLE_SIZE'];
    else process.env['RIPSTOP_FLOW_TABLE_SIZE'] = before;
  });
  const node = (): NodeState => cluster.nodes[0]!;

  /** All samples, by their names with labels. */
  async function scrape(): Promise<ReadonlyMap<string, number>> {
    const { body } = await askOverHttp(node(), '/metrics');
    const lines = body.matchAll(/^(?!#)(.+) (\S+)$/gm);
    return new Map(Array.from(lines, ([, series, value]) => [series!, Number(value)]));
  }

  const spray = (flows: number) =>
    run(process.execPath, ['-e', SPRAY, podOf(node(), 1).ip, String(flows)], inNetns(podOf(node(), 0)));

  it('counts flows that are learned, end, and are evicted: the rest is in the table', async () => {
    const flows = async () => {
      const samples = await scrape();
      const of = (name: string, labels = '') =>
        samples.get(`ripstop_flows_${name}_total{family="ipv4"${labels}}`) ?? NaN;
      return {
        learned: of('learned', ',was="new"'),
        ended: of('ended'),
        evicted: of('evicted'),
        there: samples.get('ripstop_map_entries{map="flows4"}') ?? NaN,
      };
    };
    const counted = await flows();
    await spray(FLOWS);
    // What conntrack ends comes in bulk, and in between the numbers stand still.
    await expect
      .poll(async () => {
        const { learned, ended, evicted, there } = await flows();
        using tables = openTables(bpffsOf(cluster.lab, node()));
        const isWhole = learned - ended - evicted === there && there === [...tables.flows4.keys()].length;
        return (
          isWhole && {
            hasLearned: learned - counted.learned >= FLOWS,
            hasEvicted: evicted > FLOWS - ROOM - ended,
          }
        );
      })
      .toEqual({ hasLearned: true, hasEvicted: true });
  });

  it('names the pods that flows are between', async () => {
    const samples = await scrape();
    const pods = cluster.nodes[0]!.pods.map(({ name }) => `pod_namespace="default",pod_name="${name}"`);
    const [from, to] = pods.map((labels) => samples.get(`ripstop_pod_live_flows{${labels}}`) ?? 0);
    expect(from).toBeGreaterThan(0);
    expect(to).toBe(from);
  });

  it('counts why all flows were invalidated, and those that are learned again', async () => {
    const [network, known] = [
      'ripstop_flow_invalidations_total{by="event",cause="network"}',
      'ripstop_flows_learned_total{family="ipv4",was="known"}',
    ];
    await spray(5);
    const counted = await scrape();
    await run('ip', ['route', 'add', 'blackhole', '198.51.100.0/24'], inNetns(node()));
    await expect.poll(async () => (await scrape()).get(network)).toBe(counted.get(network)! + 1);
    const { stdout } = await ripstop(cluster.lab, node(), 'maps', 'invalidations');
    expect(stdout).toMatch(
      new RegExp(`^0 \\(cause_event_network\\) +times=${counted.get(network)! + 1}$`, 'm'),
    );
    await spray(5);
    await expect.poll(async () => (await scrape()).get(known)).toBe(counted.get(known)! + 5);
  });

  it("counts the runtime's calls by command and code", async () => {
    const count = async (...labels: string[]) => {
      const samples = await scrape();
      return labels.map((label) => samples.get(`ripstop_cni_call_duration_seconds_count{${label}}`) ?? 0);
    };
    const [added, statuses] = await count('command="ADD",code="0"', 'command="STATUS",code="0"');
    expect(added).toBe(2);
    await cniStatus(cluster.lab, node());
    const container = { id: 'nothing', netns: podOf(node()).netns, pod: 'nothing' };
    const call = { ...ripstopPlugin(cluster.lab, node()), hostNetns: node().netns, container };
    await expect(callCni({ ...call, command: 'ADD' })).rejects.toThrow(/code 101: /);
    expect(await count('command="STATUS",code="0"', 'command="ADD",code="101"')).toEqual([statuses! + 1, 1]);
  });

  it('counts lists and watches: of all Nodes, and of its own', async () => {
    const samples = await scrape();
    expect(samples.get('ripstop_api_lists_total')).toBe(2);
    expect(samples.get('ripstop_api_watches_total')).toBeGreaterThanOrEqual(2);
  });
});
