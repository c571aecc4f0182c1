// SPDX-License-Identifier: Apache-2.0
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { tryRun } from '../../src/host/run.ts';
import { setServices, startKubeProxy } from '../../src/lab/index.ts';
import { type Background, startIn } from '../../src/lab/lab.support.ts';
import type { Pairs } from './dns-client.ts';
import { SEARCH, ZONE } from './dns-zone.ts';
import {
  addressOf,
  FAMILIES,
  inNetns,
  missingHere,
  podOf,
  PROXY_MODES,
  serviceOf,
  useLab,
} from './support.ts';

const SERVER = join(import.meta.dirname, 'dns-server.ts');
const CLIENT = join(import.meta.dirname, 'dns-client.ts');
/** kube-dns, once for each place where its pod can be. */
const NEAR = { 4: '10.43.0.10', 6: 'fd00:43::10' };
const FAR = { 4: '10.43.0.20', 6: 'fd00:43::20' };
const WEB = `web.${SEARCH[0]}`;
const MANY = `many.${SEARCH[0]}`;
const PAIRS = 100;

describe.skipIf(missingHere('iptables-restore', 'nft', 'getent', 'unshare'))(
  'A pod that resolves names through a ClusterIP',
  () => {
    const cluster = useLab('dns', { nodes: 2, pods: 2, ipv6: true, kubeProxy: PROXY_MODES[0] });
    const client = () => podOf(cluster.nodes[0]);
    const near = () => podOf(cluster.nodes[0], 1);
    const far = () => podOf(cluster.nodes[1]);
    const servers: Background[] = [];

    beforeAll(async () => {
      for (const pod of [near(), far()]) {
        const server = startIn(pod.netns, process.execPath, SERVER, '53');
        await server.prints(/serving/);
        servers.push(server);
      }
    });

    const ask = async <T>(...args: string[]): Promise<T> => {
      const { stdout, stderr } = await tryRun(process.execPath, [CLIENT, ...args], inNetns(client()));
      return JSON.parse(stdout || JSON.stringify({ error: stderr.trim() })) as T;
    };

    /** The queries that the servers have received during `work`, sorted. The last ones may come a moment later. */
    async function seenDuring(work: () => Promise<unknown>): Promise<() => string[]> {
      const before = servers.map((server) => server.output().length);
      await work();
      return () =>
        servers
          .flatMap((server, i) => server.output().slice(before[i]).trim().split('\n'))
          .filter(Boolean)
          .toSorted();
    }

    /** Resolve a name with glibc, with the resolv.conf that kubelet would write. Every query is sent only once. */
    async function getent(server: string, name: string): Promise<string[]> {
      const file = join(cluster.lab.dir, 'resolv.conf');
      writeFileSync(
        file,
        `search ${SEARCH.join(' ')}\nnameserver ${server}\noptions ndots:5 timeout:2 attempts:1\n`,
      );
      // And with the name service switch of a pod, without a host's own services (systemd, mDNS).
      const nsswitch = join(cluster.lab.dir, 'nsswitch.conf');
      writeFileSync(nsswitch, 'hosts: dns\n');
      const script =
        'mount --bind "$1" /etc/resolv.conf && mount --bind "$2" /etc/nsswitch.conf && exec getent ahosts "$3"';
      const { stdout } = await tryRun(
        'unshare',
        ['--mount', 'sh', '-c', script, 'sh', file, nsswitch, name],
        inNetns(client()),
      );
      return [...new Set(stdout.split('\n').flatMap((line) => line.split(' ')[0] || []))].toSorted();
    }

    const sortedZone = (name: string) => ({
      A: ZONE[name]!.A.toSorted(),
      AAAA: ZONE[name]!.AAAA.toSorted(),
    });
    const allOf = (name: string) => Object.values(ZONE[name]!).flat().toSorted();

    const pairs = (server: string) => ask<Pairs>('pairs', server, WEB, '20');

    it('asks a server’s own address', async () => {
      for (const server of [near(), far()])
        expect(await pairs(server.ip)).toEqual({ answered: 40, from: [server.ip] });
    });

    describe.each(PROXY_MODES)('by kube-proxy’s %s', (mode) => {
      beforeAll(async () => {
        const node = cluster.nodes[0]!;
        const services = FAMILIES.flatMap((family) => [
          ...serviceOf('near', NEAR[family], 53, addressOf(near(), family)),
          ...serviceOf('far', FAR[family], 53, addressOf(far(), family)),
        ]);
        if (node.kubeProxy?.mode === mode) await setServices(cluster.lab, node, services);
        else await startKubeProxy(cluster.lab, node, mode, services);
      });

      describe.each([
        ['its own node', NEAR],
        ['another node', FAR],
      ])('to a server on %s', (_, service) => {
        it('gets short answers over UDP, and long ones over TCP', async () => {
          for (const family of FAMILIES) {
            const seen = await seenDuring(async () => {
              expect(await ask('resolve', service[family], WEB)).toEqual(sortedZone(WEB));
              expect(await ask('resolve', service[family], MANY)).toEqual(sortedZone(MANY));
            });
            await expect
              .poll(seen)
              .toEqual([
                `tcp A ${MANY}`,
                `tcp AAAA ${MANY}`,
                `udp A ${MANY}`,
                `udp A ${WEB}`,
                `udp AAAA ${MANY}`,
                `udp AAAA ${WEB}`,
              ]);
          }
        });

        it('gets answers to an A and an AAAA query that leave one socket at once', async () => {
          for (const family of FAMILIES) {
            const seen = await seenDuring(async () => {
              expect(await ask<Pairs>('pairs', service[family], WEB, String(PAIRS))).toEqual({
                answered: 2 * PAIRS,
                from: [service[family]],
              });
            });
            await expect.poll(seen).toHaveLength(2 * PAIRS);
          }
        });

        it('gets answers with glibc, with the search list of a pod', async () => {
          for (const family of FAMILIES) {
            expect(await getent(service[family], 'web')).toEqual(allOf(WEB));
            const seen = await seenDuring(async () => {
              expect(await getent(service[family], 'web.default')).toEqual(allOf(WEB));
            });
            // With the first suffix of the search list the name does not exist.
            await expect
              .poll(seen)
              .toEqual(
                [`web.default.${SEARCH[0]}`, WEB]
                  .flatMap((name) => ['A', 'AAAA'].map((type) => `udp ${type} ${name}`))
                  .toSorted(),
              );
            expect(await getent(service[family], 'many')).toEqual(allOf(MANY));
            expect(await getent(service[family], 'nonesuch')).toEqual([]);
          }
        });
      });
    });

    it('asks a ClusterIP, also from ports from which it has asked the server itself', async () => {
      for (const server of [NEAR, FAR])
        expect(await pairs(server[4])).toEqual({ answered: 40, from: [server[4]] });
    });
  },
);
