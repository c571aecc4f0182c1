// SPDX-License-Identifier: Apache-2.0
import { randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, describe, expect, it } from 'vitest';
import { usedEntries } from '../../src/cli/maps.ts';
import { listLinks as listBpfLinks } from '../../src/dataplane/links.ts';
import { openTables, pinPaths } from '../../src/dataplane/tables.ts';
import { errorText } from '../../src/errors.ts';
import { listLinks } from '../../src/host/links.ts';
import {
  callCni,
  type CniCall,
  netnsPath,
  type NodeState,
  nodeDir,
  pluginOf,
  restartAgent,
} from '../../src/lab/index.ts';
import { resultAddresses } from '../../src/lab/cni.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { addNetns, deleteNetns } from '../../src/lab/netns.ts';
import { Random } from '../support/random.ts';
import { bpffsOf, inNetns, missingHere, ping, runDirOf, useLab } from './support.ts';

/** As when a node boots with many pods, or is drained: many calls at once, and an agent that is killed under them. */

const PODS = 100;
const AT_ONCE = 20;
const KILLS = 3;
const SEED = 11;

interface Container {
  readonly id: string;
  readonly netns: string;
  readonly pod: string;
}

describe.skipIf(missingHere())(
  `${PODS} ADDs and DELs, ${AT_ONCE} at a time, while the agent is killed (seed ${SEED})`,
  () => {
    const cluster = useLab('storm', { nodes: 1, pods: 0, ipv6: true });
    const node = (): NodeState => cluster.nodes[0]!;
    const random = new Random(SEED);
    const containers: Container[] = [];
    /** The addresses of the pods that are there, as a runtime knows them. */
    const live = new Map<string, { ip: string; ip6?: string }>();
    let refused = 0;

    afterAll(() => deleteNetns(...containers.map(({ netns }) => netns)));

    const call = (command: CniCall['command'], container: Container): Promise<unknown> =>
      callCni({ ...pluginOf(cluster.lab, node()), hostNetns: node().netns, command, container });

    /** As kubelet and containerd: an ADD that fails is followed by a DEL, and tried again. */
    async function start(container: Container): Promise<void> {
      for (;;) {
        try {
          const addresses = resultAddresses(await call('ADD', container));
          for (const one of live.values()) {
            expect(one.ip).not.toBe(addresses.ip);
            expect(one.ip6).not.toBe(addresses.ip6);
          }
          live.set(container.id, addresses);
          return;
        } catch (error) {
          // Nothing but an agent that is away, or starts.
          expect(errorText(error)).toMatch(/code 11: /);
          refused++;
          await call('DEL', container);
          await sleep(200);
        }
      }
    }

    async function end(container: Container): Promise<void> {
      // Only until it has returned others get the address, and by then nobody may have it.
      live.delete(container.id);
      await call('DEL', container);
    }

    /** All of them, so many at a time, while the agent is killed and started again a few times. */
    async function storm(work: (container: Container) => Promise<void>): Promise<void> {
      const queue = containers.values();
      const workers = Array.from({ length: AT_ONCE }, async () => {
        for (const container of queue) await work(container);
      });
      const working = Promise.all(workers);
      // A failure is reported below, once the agent runs again.
      working.catch(() => {});
      for (let i = 0; i < KILLS; i++) {
        await sleep(200 + random.below(500));
        await restartAgent(cluster.lab, node(), 'SIGKILL');
      }
      await working;
    }

    interface Holdings {
      links: string[];
      routes: string[];
      leases: string[];
      attachments: string[];
      endpoints: string[];
      programs: string[];
      deferred: string[];
    }

    /** What the node has of pods, anywhere. */
    async function holdings(): Promise<Holdings> {
      const bpffs = bpffsOf(cluster.lab, node());
      const at = { netns: netnsPath(node().netns) };
      const routes = await Promise.all(
        (['-4', '-6'] as const).map((family) =>
          ipJson<{ dst: string; dev?: string }>([family, 'route'], inNetns(node())),
        ),
      );
      const files = (...path: string[]): string[] => {
        try {
          return readdirSync(join(nodeDir(cluster.lab, node()), ...path)).toSorted();
        } catch {
          return [];
        }
      };
      using tables = openTables(bpffs);
      const keys = (map: 'endpoints' | 'endpoints6'): string[] =>
        usedEntries(tables[map].map).map(({ key }) => Buffer.from(key).toString('hex'));
      return {
        links: [...(await listLinks(at)).keys()].filter((name) => /^veth[0-9a-f]{8}$/.test(name)),
        routes: routes
          .flat()
          .flatMap(({ dst, dev = '' }) =>
            /^veth[0-9a-f]{8}$/.test(dev) && !dst.startsWith('fe80') ? dst : [],
          ),
        leases: files('ipam', 'cbr0').filter((name) => !name.startsWith('l')),
        attachments: readdirSync(join(runDirOf(cluster.lab, node()), 'endpoints')).filter(
          (name) => !name.endsWith('.tmp'),
        ),
        endpoints: [...keys('endpoints'), ...keys('endpoints6')],
        programs: [...listBpfLinks(pinPaths(bpffs).links).keys()].filter((pin) => pin.includes('veth')),
        deferred: files('state', 'deferred'),
      };
    }

    const counts = async (): Promise<Record<string, number>> =>
      Object.fromEntries(
        Object.entries(await holdings()).map(([what, all]: [string, string[]]) => [what, all.length]),
      );

    it('every pod has addresses that no other has', async () => {
      for (let i = 0; i < PODS; i++) {
        const id = randomBytes(32).toString('hex');
        containers.push({ id, netns: `${node().netns}-${id.slice(0, 8)}`, pod: `p${i}` });
      }
      await addNetns(...containers.map(({ netns }) => netns));
      await storm(async (container) => {
        await start(container);
        if (random.below(4) > 0) return;
        // One in four starts anew, as a pod whose sandbox has died.
        await end(container);
        await start(container);
      });
      expect(live.size).toBe(PODS);
      expect(refused).toBeGreaterThan(0);
      for (const container of [containers[0]!, containers.at(-1)!, random.pick(containers)])
        await ping(node(), live.get(container.id)!.ip);
    });

    it('the node holds exactly what these pods need', async () => {
      const [addresses, families] = [2 * PODS, 2];
      await expect.poll(counts).toEqual({
        links: PODS,
        routes: addresses,
        leases: addresses,
        attachments: PODS,
        endpoints: addresses,
        programs: expect.any(Number),
        deferred: 0,
      });
      const leases = (await holdings()).leases;
      const expected = [...live.values()].flatMap(({ ip, ip6 }) => [ip, ip6!]);
      expect(leases.toSorted()).toEqual(expected.toSorted());
      expect(expected).toHaveLength(families * PODS);
    });

    it('and nothing once they are gone', async () => {
      await storm(end);
      await expect.poll(holdings).toEqual({
        links: [],
        routes: [],
        leases: [],
        attachments: [],
        endpoints: [],
        programs: [],
        deferred: [],
      });
    });
  },
);
