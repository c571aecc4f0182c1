// SPDX-License-Identifier: Apache-2.0
import { isIPv6 } from 'node:net';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { openTables } from '../../src/dataplane/tables.ts';
import { run, tryRun } from '../../src/host/run.ts';
import type { NodeState } from '../../src/lab/index.ts';
import type { Family } from '../../src/net/ip.ts';
import {
  addressOf,
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
  talkBoth,
  talkTcp,
  useLab,
} from './support.ts';

const FAMILIES = [4, 6] as const;
const CLUSTER = { 4: '10.42.0.0/16', 6: 'fd00:42::/56' };
/** One Service for each backend, so that nothing is left to chance. */
const TO_NEAR = { 4: '10.43.0.10', 6: 'fd00:43::10' };
const TO_FAR = { 4: '10.43.0.20', 6: 'fd00:43::20' };
const TO_SELF = { 4: '10.43.0.30', 6: 'fd00:43::30' };
const NODE_PORT_NEAR = 30_010;
const NODE_PORT_FAR = 30_020;
/** The near backend's own, as the portmap plugin makes it: it sees who asks. */
const HOST_PORT = 8010;

const inBothFamilies = (work: (family: Family) => Promise<void>): Promise<unknown> =>
  Promise.all(FAMILIES.map(work));

interface Service {
  clusterIp: string;
  nodePort?: number;
  hostPort?: number;
  backend: string;
}

const withPort = (address: string): string =>
  isIPv6(address) ? `[${address}]:${PORT}` : `${address}:${PORT}`;

/** The rules of kube-proxy's iptables mode for TCP and UDP Services of one backend each, in iptables-restore's language. */
function iptablesRules(family: Family, services: readonly Service[]): string {
  const nat: string[] = [];
  const chains = [
    'KUBE-SERVICES',
    'KUBE-NODEPORTS',
    'KUBE-POSTROUTING',
    'KUBE-MARK-MASQ',
    'CNI-HOSTPORT-DNAT',
  ];
  for (const [i, { clusterIp, nodePort, hostPort, backend }] of services.entries()) {
    for (const protocol of ['tcp', 'udp']) {
      const id = `${protocol.toUpperCase()}${i}`;
      const match = `-p ${protocol} -m ${protocol}`;
      const dnat = `-j DNAT --to-destination ${withPort(backend)}`;
      chains.push(`KUBE-SVC-${id}`, `KUBE-EXT-${id}`, `KUBE-SEP-${id}`);
      nat.push(
        `-A KUBE-SERVICES -d ${clusterIp} ${match} --dport ${PORT} -j KUBE-SVC-${id}`,
        `-A KUBE-SVC-${id} ! -s ${CLUSTER[family]} -d ${clusterIp} ${match} --dport ${PORT} -j KUBE-MARK-MASQ`,
        `-A KUBE-SVC-${id} -j KUBE-SEP-${id}`,
        `-A KUBE-SEP-${id} -s ${backend} -j KUBE-MARK-MASQ`,
        `-A KUBE-SEP-${id} ${match} ${dnat}`,
      );
      if (nodePort !== undefined)
        nat.push(
          `-A KUBE-NODEPORTS ${match} --dport ${nodePort} -j KUBE-EXT-${id}`,
          `-A KUBE-EXT-${id} -j KUBE-MARK-MASQ`,
          `-A KUBE-EXT-${id} -j KUBE-SVC-${id}`,
        );
      if (hostPort !== undefined)
        nat.push(
          `-A CNI-HOSTPORT-DNAT -s ${backend} ${match} --dport ${hostPort} -j KUBE-MARK-MASQ`,
          `-A CNI-HOSTPORT-DNAT ${match} --dport ${hostPort} ${dnat}`,
        );
    }
  }
  return [
    '*nat',
    ...chains.map((chain) => `:${chain} - [0:0]`),
    '-A PREROUTING -j KUBE-SERVICES',
    '-A OUTPUT -j KUBE-SERVICES',
    '-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT',
    '-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT',
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

/** The same by kube-proxy's nftables mode: maps to chains, one table for each family. */
function nftablesRules(family: Family, services: readonly Service[]): string {
  const ip = family === 4 ? 'ip' : 'ip6';
  const all = services.flatMap((service, i) =>
    ['tcp', 'udp'].map((protocol) => ({ ...service, protocol, id: `${protocol}-${i}` })),
  );
  const map = (entries: string[]) => `{ ${entries.join(', ')} }`;
  const hostPorts = all.filter(({ hostPort }) => hostPort !== undefined);
  return `
    table ${ip} kube-proxy {
      ${all
        .map(
          ({ id, clusterIp, backend, protocol }) => `
      chain endpoint-${id} {
        ${ip} saddr ${backend} jump mark-for-masquerade
        meta l4proto ${protocol} dnat to ${withPort(backend)}
      }
      chain service-${id} {
        ${ip} daddr ${clusterIp} ${ip} saddr != ${CLUSTER[family]} jump mark-for-masquerade
        goto endpoint-${id}
      }
      chain external-${id} {
        jump mark-for-masquerade
        goto service-${id}
      }`,
        )
        .join('')}
      map service-ips {
        type ${family === 4 ? 'ipv4' : 'ipv6'}_addr . inet_proto . inet_service : verdict
        elements = ${map(all.map(({ id, clusterIp, protocol }) => `${clusterIp} . ${protocol} . ${PORT} : goto service-${id}`))}
      }
      map service-nodeports {
        type inet_proto . inet_service : verdict
        elements = ${map(
          all
            .filter(({ nodePort }) => nodePort !== undefined)
            .map(({ id, protocol, nodePort }) => `${protocol} . ${nodePort} : goto external-${id}`),
        )}
      }
      chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
      chain services {
        ${ip} daddr . meta l4proto . th dport vmap @service-ips
        fib daddr type local meta l4proto . th dport vmap @service-nodeports
        ${hostPorts
          .flatMap(({ protocol, hostPort, backend }) => [
            `fib daddr type local ${protocol} dport ${hostPort} ${ip} saddr ${backend} jump mark-for-masquerade`,
            `fib daddr type local ${protocol} dport ${hostPort} dnat to ${withPort(backend)}`,
          ])
          .join('\n')}
      }
      chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
      chain nat-output { type nat hook output priority -100; jump services; }
      chain nat-postrouting {
        type nat hook postrouting priority srcnat
        meta mark and 0x4000 != 0 meta mark set meta mark xor 0x4000 masquerade fully-random
      }
      chain filter-forward { type filter hook forward priority -110; ct state invalid drop; }
    }`;
}

describe.skipIf(missingHere('iptables-restore', 'conntrack', 'nft'))(
  'Services by kube-proxy’s rules on a ripstop node',
  () => {
    const cluster = useLab('svc', { nodes: 2, pods: 2, ipv6: true });
    const pod = (node: number, i = 0) => podOf(cluster.nodes[node - 1], i);
    const client = () => pod(1);
    const near = () => pod(1, 1);
    const far = () => pod(2);
    let node: NodeState;

    beforeAll(async () => {
      node = cluster.nodes[0]!;
      await Promise.all([client(), near(), far()].map((one) => serveIn(one)));
    });

    const servicesOf = (family: Family): Service[] => [
      {
        clusterIp: TO_NEAR[family],
        nodePort: NODE_PORT_NEAR,
        hostPort: HOST_PORT,
        backend: addressOf(near(), family),
      },
      { clusterIp: TO_FAR[family], nodePort: NODE_PORT_FAR, backend: addressOf(far(), family) },
      { clusterIp: TO_SELF[family], backend: addressOf(client(), family) },
    ];

    /** kube-proxy as it starts in one mode, having been in the other. */
    async function startProxy(mode: string): Promise<void> {
      for (const family of FAMILIES) {
        const [ip, restore] = family === 4 ? ['ip', 'iptables-restore'] : ['ip6', 'ip6tables-restore'];
        const iptables =
          mode === 'iptables' ? iptablesRules(family, servicesOf(family)) : '*nat\nCOMMIT\n*filter\nCOMMIT\n';
        const nftables = mode === 'nftables' ? nftablesRules(family, servicesOf(family)) : '';
        await run(restore, [], { ...inNetns(node), stdin: iptables });
        await run('nft', ['-f', '-'], {
          ...inNetns(node),
          stdin: `table ${ip} kube-proxy\ndelete table ${ip} kube-proxy\n${nftables}`,
        });
      }
    }

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
      expect(Object.values(await flowCounts())).toEqual([0, 0, 0, 0]);
    }

    async function sweep(): Promise<number> {
      const pin = join(bpffsOf(cluster.lab, node), 'ripstop/programs/sweep_flows');
      const program = join(import.meta.dirname, 'sweep.ts');
      return Number(await run(process.execPath, [program, pin], inNetns(node)));
    }

    describe.each(['iptables', 'nftables'])('in mode %s', (mode) => {
      beforeAll(() => startProxy(mode));

      it.each([
        { which: 'the client’s own node', service: TO_NEAR, backend: near },
        { which: 'another node', service: TO_FAR, backend: far },
      ])('lead a pod to a backend on $which, and answer from the ClusterIP', async ({ service, backend }) => {
        const [carried] = await carriedDuring(cluster.lab, [node], () =>
          inBothFamilies(async (family) => {
            expect(await talkBoth(client(), service[family])).toBe(addressOf(client(), family));
          }),
        );
        expect(carried!.fast).toBe(0);
        const shown = await flows();
        for (const family of FAMILIES) {
          const source = withPort(addressOf(backend(), family));
          const back = shown.filter((flow) => flow.source === source);
          expect(back.map(({ protocol }) => protocol).toSorted()).toEqual(['tcp', 'udp']);
          for (const { destination } of back) expect(destination).toContain(addressOf(client(), family));
        }
        expect(shown).toHaveLength(4);
        await forgetAll();
      });

      it('lead a pod to itself (row 61)', async () => {
        await inBothFamilies(async (family) => {
          // It must not see its own address as the peer's, or it would answer itself directly.
          expect(await talkBoth(client(), TO_SELF[family])).not.toBe(addressOf(client(), family));
        });
        await forgetAll();
      });

      it('lead the node itself to backends near and far', async () => {
        await inBothFamilies(async (family) => {
          for (const service of [TO_NEAR, TO_FAR, TO_SELF]) await talkBoth(node, service[family]);
        });
        await forgetAll();
      });

      it('lead other nodes and their pods through a NodePort to backends near and far', async () => {
        await inBothFamilies(async (family) => {
          for (const port of [NODE_PORT_NEAR, NODE_PORT_FAR]) {
            for (const from of [cluster.nodes[1]!, pod(2, 1), client()])
              await talkBoth(from, addressOf(node, family), port);
          }
        });
        await forgetAll();
      });

      it('lead through a hostPort to its pod, which sees who asks', async () => {
        const other = cluster.nodes[1]!;
        await inBothFamilies(async (family) => {
          const address = addressOf(node, family);
          for (const from of [other, client()])
            expect(await talkBoth(from, address, HOST_PORT)).toBe(addressOf(from, family));
          // The pod itself, by its own hostPort, and another node's pod, which its node masquerades.
          await talkBoth(near(), address, HOST_PORT);
          expect(await talkBoth(pod(2, 1), address, HOST_PORT)).toBe(addressOf(other, family));
        });
        await forgetAll();
      });
    });

    it('leave plain flows between the same pods on the fast path, while service flows use the stack', async () => {
      for (const [service, backend, family] of [
        [TO_NEAR, near(), 4],
        [TO_FAR, far(), 4],
        [TO_FAR, far(), 6],
      ] as const) {
        const held = await holdFrom(client(), service[family]);
        const [carried] = await carriedDuring(cluster.lab, [node], () =>
          talkTcp(client(), addressOf(backend, family), 10 << 20),
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
      const near = await holdFrom(client(), TO_NEAR[4]);
      const far = await holdFrom(client(), TO_FAR[6]);
      expect((await flows()).length).toBe(2);
      expect(await sweep()).toBe(0);
      expect((await flows()).length).toBe(2);
      expect(await flowCounts()).toMatchObject({ [client().ip6!]: 1, [podOf(node, 1).ip]: 1 });

      expect(await released(near)).not.toHaveProperty('error');
      await tryRun('conntrack', ['-D', '-d', TO_NEAR[4]], inNetns(node));
      expect(await sweep()).toBe(1);
      expect((await flows()).map(({ source }) => source)).toEqual([withPort(pod(2).ip6!)]);
      expect(await flowCounts()).toMatchObject({ [client().ip6!]: 1, [podOf(node, 1).ip]: 0 });

      expect(await released(far)).not.toHaveProperty('error');
      await forgetAll();
      using tables = openTables(bpffsOf(cluster.lab, node));
      for (const [, state] of tables.endpoint_state.entries()) {
        expect(state).toEqual({ stack_flows: 0, overflow: 0, forwards: 0 });
      }
    });
  },
);
