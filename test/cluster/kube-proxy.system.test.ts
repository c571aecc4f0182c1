// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { run, tryRun } from '../../src/host/run.ts';
import {
  type NodeState,
  type PodState,
  setServices,
  startAgent,
  startKubeProxy,
  removePrograms,
} from '../../src/lab/index.ts';
import {
  addressOf,
  carriedDuring,
  FAMILIES,
  holdFrom,
  inNetns,
  missingHere,
  ping,
  podOf,
  PORT,
  PROXY_MODES,
  released,
  serveIn,
  serviceOf,
  talkBoth,
  useLab,
} from './support.ts';

const SERVICE = { 4: '10.43.0.10', 6: 'fd00:43::10' };
/** A closed port. */
const CLOSED = 9;
const EMPTY = { 4: '10.43.0.20', 6: 'fd00:43::20' };

/** The packets that kube-proxy's rule has dropped as INVALID; undefined where there is no such rule. */
async function droppedAsInvalid(node: NodeState): Promise<number | undefined> {
  const saved = await Promise.all(
    ['iptables-save', 'ip6tables-save'].map((save) => run(save, ['-c', '-t', 'filter'], inNetns(node))),
  );
  const counts = saved.flatMap((text) =>
    Array.from(text.matchAll(/^\[(\d+):\d+\] -A KUBE-FORWARD .*INVALID -j DROP$/gm), ([, n]) => Number(n)),
  );
  return counts.length === 0 ? undefined : counts.reduce((sum, count) => sum + count, 0);
}

/** Those of these addresses from which a datagram to a closed port gets no ICMP error. */
async function unheard(from: { netns: string }, addresses: readonly string[]): Promise<string[]> {
  const program = `
    const { createSocket } = require('node:dgram');
    for (const address of process.argv.slice(1)) {
      const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
      const timer = setTimeout(() => (console.log(address), socket.close()), 2000);
      socket.on('error', () => (clearTimeout(timer), socket.close()));
      socket.connect(${CLOSED}, address, () => socket.send('x'));
    }`;
  const printed = await run(process.execPath, ['-e', program, ...addresses], inNetns(from));
  return printed.split('\n').filter(Boolean);
}

/** Check that all of these can ping each other, and get ICMP errors for closed ports. */
async function expectIcmp(pods: readonly PodState[]): Promise<void> {
  for (const from of pods) {
    const addresses = pods
      .filter((to) => to !== from)
      .flatMap((to) => FAMILIES.map((family) => addressOf(to, family)));
    for (const address of addresses) await ping(from, address, 10);
    expect(await unheard(from, addresses), `told to ${from.netns} of closed ports`).toEqual([]);
  }
}

async function rulesOf(node: NodeState): Promise<string> {
  const commands = [['iptables-save'], ['ip6tables-save'], ['nft', 'list', 'tables']];
  const texts = await Promise.all(commands.map(([program, ...args]) => run(program!, args, inNetns(node))));
  return texts.join('\n');
}

describe.skipIf(missingHere('iptables-restore', 'nft')).each(PROXY_MODES)(
  'Nodes where kube-proxy was there before ripstop, in mode %s,',
  (mode) => {
    const cluster = useLab(`proxy-${mode}`, { nodes: 2, pods: 2, ipv6: true, kubeProxy: mode });
    const pods = () =>
      [podOf(cluster.nodes[0]), podOf(cluster.nodes[0], 1), podOf(cluster.nodes[1])] as const;

    beforeAll(async () => {
      await Promise.all(pods().map((pod) => serveIn(pod)));
    });

    it('let pods ping and talk, near and far, without INVALID packets', async () => {
      const [carried] = await carriedDuring(cluster.lab, cluster.nodes, async () => {
        for (const from of pods()) {
          for (const to of pods()) {
            if (from === to) continue;
            for (const family of FAMILIES) {
              await ping(from, addressOf(to, family), 10);
              expect(await talkBoth(from, addressOf(to, family), PORT, 100_000)).toBe(
                addressOf(from, family),
              );
            }
          }
        }
      });
      expect(carried!.fast).toBeGreaterThan(500);
      for (const node of cluster.nodes)
        expect(await droppedAsInvalid(node)).toBe(mode === 'iptables' ? 0 : undefined);
    });

    it('let pods ping and get errors for closed ports while they use Services, without INVALID packets', async () => {
      const [client, near, far] = pods();
      const other = podOf(cluster.nodes[1], 1);
      const services = FAMILIES.flatMap((family) => [
        ...serviceOf('near', SERVICE[family], PORT, addressOf(near, family)),
        ...serviceOf('far', EMPTY[family], PORT, addressOf(far, family)),
        ...serviceOf('near-closed', SERVICE[family], CLOSED, addressOf(near, family)),
        ...serviceOf('far-closed', EMPTY[family], CLOSED, addressOf(far, family)),
      ]);
      for (const node of cluster.nodes) await setServices(cluster.lab, node, services);
      const clusterIps = FAMILIES.flatMap((family) => [SERVICE[family], EMPTY[family]]);
      const held = await Promise.all(clusterIps.map((address) => holdFrom(client, address)));
      const fromFar = await holdFrom(other, SERVICE[4]);
      await expectIcmp([client, near, far, other]);
      // conntrack must also translate the error about a translated flow.
      for (const from of [client, other]) expect(await unheard(from, clusterIps)).toEqual([]);
      for (const one of [...held, fromFar]) expect(await released(one)).not.toHaveProperty('error');
      for (const node of cluster.nodes) {
        expect(await droppedAsInvalid(node)).toBe(mode === 'iptables' ? 0 : undefined);
        await setServices(cluster.lab, node, []);
      }
    });

    it('let connections end that the fast path has carried, once its programs are gone (row 70)', async () => {
      const [client, near, far] = pods();
      const node = cluster.nodes[0]!;
      const services = FAMILIES.flatMap((family) =>
        serviceOf('far', SERVICE[family], PORT, addressOf(far, family)),
      );
      await setServices(cluster.lab, node, services);
      const addresses = FAMILIES.flatMap((family) => [
        addressOf(near, family),
        addressOf(far, family),
        SERVICE[family],
      ]);
      const held = await Promise.all(addresses.map((address) => holdFrom(client, address)));
      const [carried] = await carriedDuring(cluster.lab, [node], () => sleep(500));
      expect(carried!.fast).toBeGreaterThan(100);
      for (const one of cluster.nodes) await removePrograms(cluster.lab, one);
      for (const one of held) expect(await released(one)).not.toHaveProperty('error');
      for (const one of cluster.nodes) {
        expect(await droppedAsInvalid(one)).toBe(mode === 'iptables' ? 0 : undefined);
        await startAgent(cluster.lab, one);
      }
      await setServices(cluster.lab, node, []);
    });

    it('spread a Service over its endpoints, and refuse one without endpoints', async () => {
      const [client, near, far] = pods();
      const node = cluster.nodes[0]!;
      const services = FAMILIES.flatMap((family) => [
        ...serviceOf('both', SERVICE[family], PORT, addressOf(near, family)).map((one) => ({
          ...one,
          endpoints: [near, far].map((pod) => ({ ip: addressOf(pod, family), port: PORT })),
        })),
        ...serviceOf('none', EMPTY[family], PORT, '').map((one) => ({ ...one, endpoints: [] })),
      ]);
      await setServices(cluster.lab, node, services);
      for (const family of FAMILIES) {
        const [atNear, atFar] = await carriedDuring(cluster.lab, cluster.nodes, async () => {
          // The chance that one of them gets none of 40 ports is one in a trillion.
          const program = `for (let i = 0; i < 40; i++) {
            const socket = require('node:dgram').createSocket('udp${family}');
            socket.on('message', () => socket.close());
            socket.send('x', ${PORT}, '${SERVICE[family]}');
          }`;
          await run(process.execPath, ['-e', program], inNetns(client));
        });
        expect(atNear!.by['to_pod kernel_learned'] ?? 0).toBeGreaterThan(0);
        expect(atFar!.by['to_pod kernel_learned'] ?? 0).toBeGreaterThan(0);
        const { stdout } = await tryRun(
          process.execPath,
          [
            '-e',
            `require('net').connect(${PORT}, '${EMPTY[family]}').on('error', (e) => console.log(e.code))`,
          ],
          inNetns(client),
        );
        expect(stdout.trim()).toBe('ECONNREFUSED');
      }
      await setServices(cluster.lab, node, []);
      expect(await rulesOf(node)).not.toMatch(/KUBE-S(VC|EP)-|service-[A-Z0-9]{8}/);
    });

    it('have no rules of the previous mode, nor the drop of INVALID if ripstop was there first', async () => {
      const node = cluster.nodes[1]!;
      const other = mode === 'iptables' ? 'nftables' : 'iptables';
      await run('iptables', ['-A', 'FORWARD', '-s', '192.0.2.1', '-j', 'ACCEPT'], inNetns(node));
      await startKubeProxy(cluster.lab, node, other);
      // nf_conntrack_tcp_be_liberal is set there by now, so kube-proxy has no rule that drops.
      expect(await droppedAsInvalid(node)).toBeUndefined();
      expect(/KUBE-FORWARD/.test(await rulesOf(node))).toBe(other === 'iptables');
      expect(/kube-proxy/.test(await rulesOf(node))).toBe(other === 'nftables');
      await startKubeProxy(cluster.lab, node, 'none');
      expect((await rulesOf(node)).replaceAll('KUBE-FIREWALL', '')).not.toMatch(/KUBE-|kube-proxy/);
      expect(await rulesOf(node)).toContain('-A FORWARD -s 192.0.2.1/32 -j ACCEPT');
    });
  },
);

describe.skipIf(missingHere('iptables-restore', 'nft'))(
  'A ripstop node beside a flannel node, where kube-proxy was there before both,',
  () => {
    const cluster = useLab('proxy-mixed', {
      datapath: 'ripstop,flannel',
      pods: 1,
      ipv6: true,
      kubeProxy: 'iptables',
    });

    it('lets pods ping and get errors for closed ports, without INVALID packets', async () => {
      await expectIcmp(cluster.nodes.map((node) => podOf(node)));
      for (const node of cluster.nodes) expect(await droppedAsInvalid(node)).toBe(0);
    });
  },
);
