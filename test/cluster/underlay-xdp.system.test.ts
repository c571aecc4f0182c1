// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readCounters } from '../../src/dataplane/counters.ts';
import { readFlowCounts } from '../../src/dataplane/flow-sums.ts';
import { readPinnedConfig } from '../../src/dataplane/rehearsal.ts';
import { openTables } from '../../src/dataplane/tables.ts';
import { ipBatch, ipJson } from '../../src/lab/ip.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { type NodeState, restartAgent, removePrograms } from '../../src/lab/index.ts';
import {
  bpffsOf,
  carriedDuring,
  inNetns,
  missingHere,
  ping,
  podOf,
  serveIn,
  markForKernelPath,
  talkTcp,
  talkUdp,
  useLab,
} from './support.ts';
import {
  configure,
  countedDuringPings,
  ingressOf,
  inUnderlay,
  lostDuring,
  plugIn,
  untilReached,
  waysBetween,
} from './underlay.ts';

/** The lab's agents inherit this environment. */
const INGRESS = 'RIPSTOP_INGRESS';

describe.skipIf(missingHere())(
  'two ripstop nodes whose uplinks decapsulate in XDP, beside a flannel node',
  () => {
    beforeAll(() => void (process.env[INGRESS] = 'xdp'));
    afterAll(() => void delete process.env[INGRESS]);
    const cluster = useLab('xdp', { datapath: 'ripstop,ripstop,flannel', pods: 1, ipv6: true, wire: 'mtu' });
    const node = (i: number) => cluster.nodes[i - 1]!;
    const pod = (i: number) => podOf(node(i));
    const ripstopNodes = () => cluster.nodes.slice(0, 2);
    const ways = () => waysBetween(pod(1), pod(2));

    beforeAll(async () => {
      await Promise.all([pod(2), pod(3)].map((one) => serveIn(one)));
    });

    async function xdpOf(one: NodeState): Promise<number | undefined> {
      const [link] = await ipJson<{ xdp?: { prog: { id: number } } }>(['link', 'show', 'eth0'], inNetns(one));
      return link?.xdp?.prog.id;
    }

    /**
     * Send large and small packets between all pods and compare their bytes. Returns the counters of the ripstop nodes.
     */
    async function countedDuringTalk(over: typeof ways = ways) {
      const carried = await carriedDuring(cluster.lab, ripstopNodes(), async () => {
        for (const { from, to } of over()) {
          await talkTcp(from, to, 3 << 20);
          await talkUdp(from, to, 50, 1300); // so small that the answer with its heading is not fragmented
          await ping(from, to);
        }
      });
      return carried;
    }

    it('carry TCP and UDP of both families unchanged: decapsulated by XDP, delivered by tc', async () => {
      for (const one of ripstopNodes()) {
        expect(await ingressOf(cluster.lab, one)).toEqual({ hook: 'xdp', why: '--ingress xdp says so' });
        expect(await xdpOf(one)).toBeDefined();
      }
      for (const { by, vtep, forwarded } of await countedDuringTalk()) {
        // XDP sees frames, tc what GRO has merged.
        expect(by['xdp_from_wire fast_decap']).toBeGreaterThan(2000);
        expect(by['from_wire fast_decap']).toBeGreaterThan(200);
        expect(by['from_wire fast_decap']).toBeLessThan(by['xdp_from_wire fast_decap']! / 2);
        expect(Object.keys(by).filter((name) => name.includes(' drop_'))).toEqual([]);
        expect(vtep + forwarded).toBeLessThan(120);
      }
      // A flow counts what tc delivers, and not what XDP has seen of it.
      for (const one of ripstopNodes()) {
        const bpffs = bpffsOf(cluster.lab, one);
        using tables = openTables(bpffs);
        const arriving = readFlowCounts(tables, readPinnedConfig(bpffs)!).filter(
          ({ sender }) => sender === undefined,
        );
        const counted = arriving.reduce((sum, { packets }) => sum + packets, 0);
        const delivered = readCounters(tables).find(
          ({ hook, verdict, reason }) => `${hook} ${verdict} ${reason}` === 'from_wire fast decap',
        )!;
        expect(counted).toBeGreaterThan(100);
        expect(counted).toBeLessThanOrEqual(delivered.packets);
      }
    });

    it('carry packets of a flannel node, whose outer packets have checksums', async () => {
      const [one] = await countedDuringTalk(() => waysBetween(pod(1), pod(3)));
      expect(one!.by['xdp_from_wire fast_decap']).toBeGreaterThan(1000);
      // Its IPv6 tunnel requires checksums, so both directions take the kernel path.
      expect(one!.by['to_wire kernel_marked']).toBeGreaterThan(50);
      expect(one!.by['xdp_from_wire kernel_marked']).toBeGreaterThan(1000);
      expect(one!.by['from_wire kernel_marked']).toBeGreaterThan(50);
    });

    it('leave a marked pod to the kernel path', async () => {
      await markForKernelPath(cluster.lab, node(1), pod(1), true);
      const [one] = await countedDuringPings(cluster.lab, [node(1)], ways());
      expect(one!['to_pod kernel_marked']).toBeGreaterThanOrEqual(30);
      expect(one!).not.toHaveProperty(['from_wire fast_decap']);
      await markForKernelPath(cluster.lab, node(1), pod(1), false);
    });

    it('do not mistake a plain packet from the wire for one that XDP has decapsulated', async () => {
      const where = inUnderlay(cluster.lab);
      const forged = [pod(2).ip, pod(2).ip6!];
      await ipBatch(
        [
          ...forged.map((address) => `address add ${address} dev lo`),
          `route add ${pod(1).ip} via ${node(1).ip}`,
          `route add ${pod(1).ip6!} via ${node(1).ip6!}`,
        ],
        where,
      );
      const [carried] = await carriedDuring(cluster.lab, [node(1)], async () => {
        for (const [i, address] of [pod(1).ip, pod(1).ip6!].entries()) {
          await tryRun(
            'ping',
            ['-n', '-c', '5', '-i', '0.01', '-W', '0.1', '-I', forged[i]!, address],
            where,
          );
        }
      });
      for (const hook of ['xdp_from_wire', 'from_wire']) {
        expect(carried!.by[`${hook} kernel_not_vxlan`]).toBeGreaterThanOrEqual(10);
        expect(carried!.by).not.toHaveProperty([`${hook} fast_decap`]);
      }
      await ipBatch(
        [
          ...forged.map((address) => `address del ${address} dev lo`),
          `route del ${pod(1).ip}`,
          `route del ${pod(1).ip6!}`,
        ],
        where,
      );
    });

    it('attach XDP to an uplink that replaces another', async () => {
      await lostDuring(ways(), async () => {
        await run('ip', ['link', 'del', 'eth0'], inNetns(node(1)));
        await plugIn(cluster.lab, node(1));
        await configure(cluster.lab, node(1));
        await untilReached(ways());
      });
      await expect.poll(() => xdpOf(node(1))).toBeDefined();
      const [one] = await countedDuringPings(cluster.lab, [node(1)], ways());
      expect(one!['xdp_from_wire fast_decap']).toBeGreaterThanOrEqual(30);
      expect(one!['from_wire fast_decap']).toBeGreaterThanOrEqual(30);
    });

    it('lose nothing when an agent is restarted or changes to tc, or when everything is detached', async () => {
      const lost = await lostDuring(ways(), async () => {
        const before = await xdpOf(node(1));
        await restartAgent(cluster.lab, node(1));
        await expect.poll(() => xdpOf(node(1))).not.toBe(before);
        expect(await xdpOf(node(1))).toBeDefined();

        process.env[INGRESS] = 'tc';
        await restartAgent(cluster.lab, node(1));
        await expect.poll(() => xdpOf(node(1))).toBeUndefined();
        expect(await ingressOf(cluster.lab, node(1))).toEqual({ hook: 'tc', why: '--ingress tc says so' });
        const [one] = await countedDuringPings(cluster.lab, [node(1)], ways());
        expect(one!['from_wire fast_decap']).toBeGreaterThanOrEqual(30);
        expect(one!).not.toHaveProperty(['xdp_from_wire fast_decap']);

        await removePrograms(cluster.lab, node(2));
        await expect.poll(() => xdpOf(node(2))).toBeUndefined();
        for (const { from, to } of ways()) await ping(from, to, 20);
      });
      expect(lost).toEqual([0, 0]);
    });
  },
);
