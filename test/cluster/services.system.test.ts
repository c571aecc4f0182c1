// SPDX-License-Identifier: Apache-2.0
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { openTables } from '../../src/dataplane/tables.ts';
import { run, tryRun } from '../../src/host/run.ts';
import type { NodeState } from '../../src/lab/index.ts';
import {
  bpffsOf,
  carriedDuring,
  holdFrom,
  inNetns,
  missingHere,
  podOf,
  PORT,
  released,
  ripstopJson,
  serveIn,
  talkTcp,
  talkUdp,
  useLab,
} from './support.ts';

const CLUSTER = '10.42.0.0/16';
/** One Service for each backend, so that nothing is left to chance. */
const TO_NEAR = '10.43.0.10';
const TO_FAR = '10.43.0.20';
const TO_SELF = '10.43.0.30';
const NODE_PORT_NEAR = 30_010;
const NODE_PORT_FAR = 30_020;

interface Service {
  clusterIp: string;
  nodePort?: number;
  backend: string;
}

/** The rules of kube-proxy's iptables mode for TCP and UDP Services of one backend each, in iptables-restore's language. */
function kubeProxyRules(services: readonly Service[]): string {
  const nat: string[] = [];
  const chains = ['KUBE-SERVICES', 'KUBE-NODEPORTS', 'KUBE-POSTROUTING', 'KUBE-MARK-MASQ'];
  for (const [i, { clusterIp, nodePort, backend }] of services.entries()) {
    for (const protocol of ['tcp', 'udp']) {
      const id = `${protocol.toUpperCase()}${i}`;
      const match = `-p ${protocol} -m ${protocol}`;
      chains.push(`KUBE-SVC-${id}`, `KUBE-EXT-${id}`, `KUBE-SEP-${id}`);
      nat.push(
        `-A KUBE-SERVICES -d ${clusterIp}/32 ${match} --dport ${PORT} -j KUBE-SVC-${id}`,
        `-A KUBE-SVC-${id} ! -s ${CLUSTER} -d ${clusterIp}/32 ${match} --dport ${PORT} -j KUBE-MARK-MASQ`,
        `-A KUBE-SVC-${id} -j KUBE-SEP-${id}`,
        `-A KUBE-SEP-${id} -s ${backend}/32 -j KUBE-MARK-MASQ`,
        `-A KUBE-SEP-${id} ${match} -j DNAT --to-destination ${backend}:${PORT}`,
      );
      if (nodePort === undefined) continue;
      nat.push(
        `-A KUBE-NODEPORTS ${match} --dport ${nodePort} -j KUBE-EXT-${id}`,
        `-A KUBE-EXT-${id} -j KUBE-MARK-MASQ`,
        `-A KUBE-EXT-${id} -j KUBE-SVC-${id}`,
      );
    }
  }
  return [
    '*nat',
    ...chains.map((chain) => `:${chain} - [0:0]`),
    '-A PREROUTING -j KUBE-SERVICES',
    '-A OUTPUT -j KUBE-SERVICES',
    '-A POSTROUTING -j KUBE-POSTROUTING',
    '-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000',
    '-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN',
    '-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000',
    '-A KUBE-POSTROUTING -j MASQUERADE --random-fully',
    ...nat,
    '-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
    'COMMIT',
    '*filter',
    ':KUBE-FORWARD - [0:0]',
    '-A FORWARD -j KUBE-FORWARD',
    '-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP',
    '-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT',
    '-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
    'COMMIT',
    '',
  ].join('\n');
}

describe.skipIf(missingHere('iptables-restore', 'conntrack'))(
  'Services by kube-proxy’s rules on a ripstop node',
  () => {
    const cluster = useLab('svc', { nodes: 2, pods: 2 });
    const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);
    const client = () => pod(1);
    const near = () => pod(1, 1);
    const far = () => pod(2);
    let node: NodeState;

    beforeAll(async () => {
      node = cluster.nodes[0]!;
      const services: Service[] = [
        { clusterIp: TO_NEAR, nodePort: NODE_PORT_NEAR, backend: near().ip },
        { clusterIp: TO_FAR, nodePort: NODE_PORT_FAR, backend: far().ip },
        { clusterIp: TO_SELF, backend: client().ip },
      ];
      await run('iptables-restore', ['--noflush'], { ...inNetns(node), stdin: kubeProxyRules(services) });
      await Promise.all([client(), near(), far()].map((one) => serveIn(one)));
    });

    const flows = () =>
      ripstopJson<{ protocol: string; source: string; destination: string }[]>(cluster.lab, node, 'flows');

    /** Per pod of the node, by address: how many flows the endpoint_state says it has. */
    const flowCounts = async () => {
      const rows = await ripstopJson<{ ip: string; stackFlows: number; flags: string[] }[]>(
        cluster.lab,
        node,
        'endpoints',
      );
      return Object.fromEntries(rows.map(({ ip, stackFlows }) => [ip, stackFlows]));
    };

    /** Let conntrack forget everything, and then ripstop. */
    async function forgetAll(): Promise<void> {
      await run('conntrack', ['-F'], inNetns(node));
      await sweep();
      expect(await flows()).toEqual([]);
      expect(await flowCounts()).toEqual({ [client().ip]: 0, [near().ip]: 0 });
    }

    async function sweep(): Promise<number> {
      const pin = join(bpffsOf(cluster.lab, node), 'ripstop/programs/sweep_flows');
      const program = join(import.meta.dirname, 'sweep.ts');
      return Number(await run(process.execPath, [program, pin], inNetns(node)));
    }

    it.each([
      { which: 'the client’s own node', clusterIp: TO_NEAR, backend: near },
      { which: 'another node', clusterIp: TO_FAR, backend: far },
    ])('lead a pod to a backend on $which, and answer from the ClusterIP', async ({ clusterIp, backend }) => {
      const [carried] = await carriedDuring(cluster.lab, [node], async () => {
        expect((await talkTcp(client(), clusterIp, 1 << 20)).seenAs).toBe(client().ip);
        expect((await talkUdp(client(), clusterIp)).seenAs).toBe(client().ip);
      });
      expect(carried!.fast).toBe(0);
      const shown = await flows();
      expect(shown.map(({ protocol }) => protocol).toSorted()).toEqual(['tcp', 'udp']);
      for (const { source, destination } of shown) {
        expect(source).toBe(`${backend().ip}:${PORT}`);
        expect(destination).toMatch(new RegExp(`^${client().ip}:\\d+$`));
      }
      await forgetAll();
    });

    it('lead a pod to itself', async () => {
      // It must not see its own address as the peer's, or it would answer itself directly.
      expect((await talkTcp(client(), TO_SELF, 1 << 20)).seenAs).not.toBe(client().ip);
      await talkUdp(client(), TO_SELF);
      await forgetAll();
    });

    it('lead the node itself to backends near and far', async () => {
      for (const clusterIp of [TO_NEAR, TO_FAR, TO_SELF]) {
        await talkTcp(node, clusterIp, 1 << 20);
        await talkUdp(node, clusterIp);
      }
      await forgetAll();
    });

    it('lead other nodes and their pods through a NodePort to backends near and far', async () => {
      const other = cluster.nodes[1]!;
      for (const port of [NODE_PORT_NEAR, NODE_PORT_FAR]) {
        for (const from of [other, pod(2, 1), client()]) {
          await talkTcp(from, node.ip, 1 << 20, port);
          await talkUdp(from, node.ip, 20, 1000, port);
        }
      }
      await forgetAll();
    });

    it('leave plain flows between the same pods on the fast path, while service flows use the stack', async () => {
      for (const [clusterIp, backend] of [
        [TO_NEAR, near()],
        [TO_FAR, far()],
      ] as const) {
        const held = await holdFrom(client(), clusterIp);
        const [carried] = await carriedDuring(cluster.lab, [node], () =>
          talkTcp(client(), backend.ip, 10 << 20),
        );
        expect(carried!.fast).toBeGreaterThan(200);
        // What the held connection sends meanwhile, and nothing else.
        expect(carried!.by['from_pod stack_outside']).toBeGreaterThan(5);
        const report = await released(held);
        expect(report).not.toHaveProperty('error');
        expect(carried!.forwarded).toBeLessThan(4 * report.rounds + 20);
        // The plain flow left no trace.
        expect((await flows()).length).toBe(1);
        await forgetAll();
      }
    });

    it('are forgotten when conntrack forgets them, and not before', async () => {
      const near = await holdFrom(client(), TO_NEAR);
      const far = await holdFrom(client(), TO_FAR);
      expect((await flows()).length).toBe(2);
      expect(await sweep()).toBe(0);
      expect((await flows()).length).toBe(2);
      expect(await flowCounts()).toEqual({ [client().ip]: 1, [podOf(node, 1).ip]: 1 });

      expect(await released(near)).not.toHaveProperty('error');
      await tryRun('conntrack', ['-D', '-d', TO_NEAR], inNetns(node));
      expect(await sweep()).toBe(1);
      expect((await flows()).map(({ source }) => source)).toEqual([`${pod(2).ip}:${PORT}`]);
      expect(await flowCounts()).toEqual({ [client().ip]: 1, [podOf(node, 1).ip]: 0 });

      expect(await released(far)).not.toHaveProperty('error');
      await forgetAll();
      using tables = openTables(bpffsOf(cluster.lab, node));
      for (const [, state] of tables.endpoint_state.entries()) {
        expect(state).toEqual({ stack_flows: 0, overflow: 0 });
      }
    });
  },
);
