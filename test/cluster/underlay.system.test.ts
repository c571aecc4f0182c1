// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { vtepDeviceName } from '../../src/host/vtep-device.ts';
import { bridgeJson, ipJson } from '../../src/lab/ip.ts';
import { listLinks } from '../../src/host/links.ts';
import { ROUTE_PROTOCOL } from '../../src/host/routes.ts';
import { run, tryRun } from '../../src/host/run.ts';
import { readSysctl } from '../../src/host/sysctl.ts';
import { addPod, nodeDir, type NodeState, type PodState, removePod } from '../../src/lab/index.ts';
import { setSysctls } from '../../src/lab/netns.ts';
import { inNetns, missingHere, ping, podOf, serveIn, markForKernelPath, useLab } from './support.ts';
import {
  configure,
  countedDuringPings,
  inUnderlay,
  lostDuring,
  plugIn,
  untilReached,
  waysBetween,
} from './underlay.ts';

describe.skipIf(missingHere())('of two dual-stack nodes', () => {
  const cluster = useLab('uplink', { nodes: 2, pods: 2, ipv6: true });
  const node = (i: number) => cluster.nodes[i - 1]!;
  const pod = (i: number, j = 0) => podOf(node(i), j);
  const near = () => waysBetween(pod(1), pod(1, 1));
  const far = () => waysBetween(pod(1), pod(2));
  const ip = (where: object, command: string) => run('ip', command.split(' '), where);

  beforeAll(async () => {
    await Promise.all([pod(1, 1), pod(2)].map((one) => serveIn(one)));
  });

  /**
   * Do something to the underlay under connections that must survive it, and wait until pods of both nodes reach each
   * other again. Between pods of one node nothing may be lost, between nodes so many pings. In the end all packets are
   * fast again.
   */
  async function survives(mayLose: number, work: () => Promise<unknown>): Promise<void> {
    const [near4, near6, far4, far6] = await lostDuring([...near(), ...far()], async () => {
      await work();
      await untilReached(far());
    });
    expect([near4, near6]).toEqual([0, 0]);
    expect(far4).toBeLessThanOrEqual(mayLose);
    expect(far6).toBeLessThanOrEqual(mayLose);
    await isFast();
  }

  async function isFast(): Promise<void> {
    for (const by of await countedDuringPings(cluster.lab, cluster.nodes, far())) {
      expect(by['from_pod fast_encap']).toBeGreaterThanOrEqual(30);
      expect(by['from_wire fast_decap']).toBeGreaterThanOrEqual(30);
    }
  }

  describe('the uplink of one may', () => {
    it('lose its carrier for a while', () =>
      survives(50, async () => {
        await ip(inUnderlay(cluster.lab), `link set ${node(1).name} down`);
        await sleep(200);
        await ip(inUnderlay(cluster.lab), `link set ${node(1).name} up`);
      }));

    it('be set down and up', () =>
      survives(100, async () => {
        await ip(inNetns(node(1)), 'link set eth0 down');
        await sleep(200);
        await configure(cluster.lab, node(1));
      }));

    it('be replaced by another device: the VTEPs are restored unchanged', async () => {
      const before = await listLinks(inNetns(node(1)));
      await survives(400, async () => {
        await ip(inNetns(node(1)), 'link del eth0');
        await expect.poll(async () => (await listLinks(inNetns(node(1)))).has('flannel.1')).toBe(false);
        await sleep(200);
        await plugIn(cluster.lab, node(1));
        await configure(cluster.lab, node(1));
      });
      const after = await listLinks(inNetns(node(1)));
      expect(after.get('eth0')!.ifindex).not.toBe(before.get('eth0')!.ifindex);
      expect(after.get('eth0')!.mac).not.toBe(before.get('eth0')!.mac);
      for (const name of ['flannel.1', 'flannel-v6.1']) {
        const { mac, mtu, vxlan } = before.get(name)!;
        expect(after.get(name)).toMatchObject({ mac, mtu, vxlan });
      }
    });
  });

  describe('the MTU of the uplinks may', () => {
    /** The path MTU that the pod learns; undefined when a packet of 1450 bytes gets through. */
    async function toldMtu(from: PodState, to: string): Promise<number | undefined> {
      const bytes = 1430 - (to.includes(':') ? 48 : 28);
      const { stdout, stderr } = await tryRun(
        'ping',
        ['-n', '-c', '1', '-W', '1', '-M', 'do', '-s', String(bytes), to],
        inNetns(from),
      );
      const learned = /mtu ?[=:] ?(\d+)/i.exec(stdout + stderr);
      if (!learned) expect(stdout).toContain(' 1 received');
      return learned ? Number(learned[1]) : undefined;
    }

    async function setMtu(mtu: number): Promise<void> {
      for (const one of cluster.nodes) {
        await ip(inUnderlay(cluster.lab), `link set ${one.name} mtu ${mtu}`);
        await ip(inNetns(one), `link set eth0 mtu ${mtu}`);
      }
      for (const one of cluster.nodes) {
        await expect
          .poll(async () => (await listLinks(inNetns(one))).get('flannel-v6.1')?.mtu)
          .toBe(mtu - 70);
      }
    }

    /** The MTUs of a new pod: of its device, and of its IPv6 route to the cluster. */
    async function mtusOfNewPod(): Promise<number[]> {
      const fresh = await addPod(cluster.lab, node(1));
      const device = (await listLinks(inNetns(fresh))).get('eth0')!;
      const routes = await ipJson<{ metrics?: { mtu?: number }[] }>(
        ['-6', 'route', 'show', 'fd00:42::/56'],
        inNetns(fresh),
      );
      await removePod(cluster.lab, node(1), fresh);
      return [device.mtu, routes[0]!.metrics![0]!.mtu!];
    }

    const subnetEnv = () => readFileSync(join(nodeDir(cluster.lab, node(1)), 'subnet.env'), 'utf8');

    it('shrink: old pods learn the new size, new ones start with it', async () => {
      expect(await Promise.all(far().map(({ from, to }) => toldMtu(from, to)))).toEqual([
        undefined,
        undefined,
      ]);
      await survives(0, () => setMtu(1400));
      expect(await Promise.all(far().map(({ from, to }) => toldMtu(from, to)))).toEqual([1350, 1330]);
      expect(await mtusOfNewPod()).toEqual([1350, 1330]);
      expect(subnetEnv()).toContain('FLANNEL_MTU=1330');
    });

    it('grow again', async () => {
      await survives(0, () => setMtu(1500));
      expect(await mtusOfNewPod()).toEqual([1450, 1430]);
      expect(subnetEnv()).toContain('FLANNEL_MTU=1430');
    });
  });

  describe('the kernel path is restored', () => {
    /** The kernel's entries for peers: devices, addresses, neighbours, FDB, routes. */
    async function kernelPath(one: NodeState): Promise<object> {
      const where = inNetns(one);
      const links = await listLinks(where);
      const devices = ([4, 6] as const).map(async (family) => {
        const device = vtepDeviceName(family, 1);
        const [neighbours, fdb] = await Promise.all([
          tryRun('ip', ['neigh', 'show', 'dev', device, 'nud', 'permanent'], where),
          bridgeJson<object>(['fdb', 'show', 'dev', device], where).catch(() => []),
        ]);
        return { ...links.get(device), ifindex: 0, neighbours: neighbours.stdout, fdb };
      });
      // A device that is made anew has another index.
      const routes = (['-4', '-6'] as const).map(async (family) => {
        return (await tryRun('ip', [family, 'route', 'show', 'proto', String(ROUTE_PROTOCOL)], where)).stdout;
      });
      return { devices: await Promise.all(devices), routes: await Promise.all(routes) };
    }

    it('when somebody deletes both VTEP devices, while the fast path continues', async () => {
      const before = await kernelPath(node(1));
      await survives(0, async () => {
        for (const family of [4, 6] as const) {
          await ip(inNetns(node(1)), `link del ${vtepDeviceName(family, 1)}`);
        }
        await expect.poll(() => kernelPath(node(1))).toEqual(before);
      });
      // The node's own processes reach pods of other nodes only by it.
      for (const { to } of far()) await ping(node(1), to);
    });

    it.each(['net/ipv4/ip_forward', 'net/ipv6/conf/all/forwarding'])(
      'when somebody turns %s off: it is on again at once',
      async (path) => {
        await markForKernelPath(cluster.lab, node(1), pod(1), true);
        await sleep(500); // Wait until the agent is idle, so that only this wakes it.
        await run('tee', [`/proc/sys/${path}`], { ...inNetns(node(1)), stdin: '0' });
        await expect.poll(() => readSysctl(path, inNetns(node(1))), { timeout: 2000 }).toBe('1');
        for (const { from, to } of far()) await ping(from, to);
        await markForKernelPath(cluster.lab, node(1), pod(1), false);
      },
    );

    it('when somebody flushes the nft ruleset: our table is restored at once', async () => {
      const table = async () => {
        const { stdout } = await tryRun('nft', ['list', 'table', 'inet', 'ripstop'], inNetns(node(1)));
        return stdout.replaceAll(/packets \d+ bytes \d+/g, '');
      };
      const before = await table();
      expect(before).toContain('masquerade');
      await survives(0, async () => {
        await run('nft', ['flush', 'ruleset'], inNetns(node(1)));
        await expect.poll(table, { timeout: 3000 }).toBe(before);
      });
    });

    it('when somebody makes rp_filter strict everywhere', async () => {
      const names = [...(await listLinks(inNetns(node(1)))).keys()];
      await survives(0, async () => {
        await setSysctls(
          node(1).netns,
          Object.fromEntries(
            [...names, 'all', 'default'].map((name) => [
              `ipv4.conf.${name.replaceAll('.', '/')}.rp_filter`,
              1,
            ]),
          ),
        );
        await expect
          .poll(() => readSysctl('net/ipv4/conf/flannel.1/rp_filter', inNetns(node(1))), { timeout: 5000 })
          .toBe('2');
      });
      await markForKernelPath(cluster.lab, node(1), pod(1), true);
      for (const { from, to } of [...far(), ...near()]) await ping(from, to);
      await markForKernelPath(cluster.lab, node(1), pod(1), false);
    });
  });
});
