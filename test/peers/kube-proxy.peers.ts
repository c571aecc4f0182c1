// SPDX-License-Identifier: Apache-2.0
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { run } from '../../src/host/run.ts';
import { gatewayAddress, familyParts } from '../../src/lab/addresses.ts';
import {
  type Lab,
  labDown,
  nodeDir,
  type NodeState,
  type ServicePort,
  startKubeProxy,
} from '../../src/lab/index.ts';
import { stopKubeProxyDaemon } from '../../src/lab/kube-proxy-daemon.ts';
import { tracesOf } from '../../src/lab/lab.support.ts';
import type { Family } from '../../src/net/ip.ts';
import {
  addressOf,
  FAMILIES,
  inNetns,
  podOf,
  PORT,
  PROXY_MODES,
  serveIn,
  talkBoth,
} from '../cluster/support.ts';
import { clientOf, labNameFor, realLab } from './support.ts';

const PROTOCOLS = ['tcp', 'udp'] as const;
/**
 * Endpoints in the podCIDR of the second node, which are local to it, and in that of a third node, which does not
 * exist.
 */
const PLACES = { 4: ['10.42.1.7', '10.42.2.7'], 6: ['fd00:42:0:2::7', 'fd00:42:0:3::7'] };

/** A Service of every kind that the lab supports, each for TCP and UDP in both families. */
interface Shape {
  readonly name: string;
  readonly clusterIps: Readonly<Record<Family, string>>;
  readonly nodePort?: number;
  readonly endpoints: (family: Family) => readonly string[];
}

/** Rules and elements by their chain, set or map. Those in random order are sorted. */
type Dump = Record<string, readonly string[]>;

async function dumpIptables(node: NodeState, family: Family): Promise<Dump> {
  const dump: Record<string, string[]> = {};
  for (const table of ['mangle', 'nat', 'filter']) {
    const save = family === 4 ? 'iptables-save' : 'ip6tables-save';
    const lines = (await run(save, ['-t', table], inNetns(node))).split('\n');
    for (const line of lines) {
      const [, chain, policy] = /^:(\S+) (\S+) /.exec(line) ?? [];
      if (chain !== undefined) dump[`${table} ${chain}`] = [policy!];
      const [, of, rule] = /^-A (\S+) (.*)$/.exec(line) ?? [];
      if (of !== undefined) dump[`${table} ${of}`]!.push(rule!);
    }
  }
  for (const [name, rules] of Object.entries(dump))
    if (/KUBE-(EXTERNAL-)?SERVICES|KUBE-NODEPORTS/.test(name)) dump[name] = rules.toSorted();
  return dump;
}

async function dumpNftables(node: NodeState, family: Family): Promise<Dump> {
  const ip = family === 4 ? 'ip' : 'ip6';
  const text = await run('nft', ['-n', 'list', 'table', ip, 'kube-proxy'], inNetns(node));
  const blocks = text.matchAll(/^\t((?:set|map|chain) \S+) \{\n([^]*?)^\t\}$/gm);
  const dump: Record<string, readonly string[]> = {
    table: [/^\tcomment .*$/m.exec(text)?.[0] ?? 'no comment'],
  };
  for (const [, name, body] of blocks) {
    const elements = /elements = \{([^]*?)\}/.exec(body!);
    const rest = body!.replace(elements?.[0] ?? '', '').split('\n');
    dump[name!] = [...rest, ...(elements?.[1]?.split(',').toSorted() ?? [])]
      .map((line) => line.replaceAll(/\s+/g, ' ').trim())
      .filter(Boolean);
  }
  return dump;
}

/**
 * The only difference that is allowed: in iptables mode kube-proxy lets the kernel's accounting objects (nfacct) count
 * two of its metrics. For one of them there is an additional rule before the same rule without it, so verdicts do not
 * change.
 */
function withoutAccounting(dump: Dump): { readonly dump: Dump; readonly counted: readonly string[] } {
  const counted = Object.keys(dump).filter((name) => dump[name]!.some((rule) => rule.includes('nfacct')));
  const plain = Object.entries(dump).map(([name, rules]) => [
    name,
    rules
      .filter((rule) => !rule.includes('localhost_nps_accepted_pkts'))
      .map((rule) => rule.replace(/-m nfacct --nfacct-name +ct_state_invalid_dropped_pkts /, '')),
  ]);
  return { dump: Object.fromEntries(plain) as Dump, counted };
}

describe.each(PROXY_MODES)('the real kube-proxy in mode %s', (mode) => {
  const purpose = `proxy${mode}`;
  const dump = mode === 'iptables' ? dumpIptables : dumpNftables;
  let lab: Lab;
  const node = (i: number): NodeState => lab.state.nodes[i - 1]!;

  const shapes = (): Shape[] => [
    {
      name: 'spread',
      clusterIps: { 4: '10.43.0.20', 6: 'fd00:43::20' },
      nodePort: 30_020,
      endpoints: (family) => PLACES[family],
    },
    {
      name: 'inside',
      clusterIps: { 4: '10.43.0.30', 6: 'fd00:43::30' },
      endpoints: (family) => [addressOf(podOf(node(1), 1), family)],
    },
    {
      name: 'without',
      clusterIps: { 4: '10.43.0.40', 6: 'fd00:43::40' },
      nodePort: 30_040,
      endpoints: () => [],
    },
  ];

  /** The same Services for the lab's code, and the API server's own. */
  const servicePorts = (): ServicePort[] => [
    {
      service: 'default/kubernetes',
      name: 'https',
      protocol: 'tcp',
      clusterIp: '10.43.0.1',
      port: 443,
      endpoints: [{ ip: gatewayAddress(lab.state.options.underlay), port: 6443 }],
    },
    ...shapes().flatMap(({ name, clusterIps, nodePort, endpoints }) =>
      FAMILIES.flatMap((family) =>
        PROTOCOLS.map((protocol) => ({
          service: `default/${name}`,
          name: protocol,
          protocol,
          clusterIp: clusterIps[family],
          port: PORT,
          ...(nodePort !== undefined && { nodePort }),
          endpoints: endpoints(family).map((ip) => ({ ip, port: PORT })),
        })),
      ),
    ),
  ];

  async function createServices(): Promise<void> {
    const client = clientOf(lab);
    const create = async (path: string, body: object): Promise<void> => {
      const { code, text } = await client.post(path, body);
      expect({ code, text }).toMatchObject({ code: 201 });
    };
    for (const { name, clusterIps, nodePort, endpoints } of shapes()) {
      const ports = PROTOCOLS.map((protocol) => ({
        name: protocol,
        protocol: protocol.toUpperCase(),
        port: PORT,
      }));
      await create('/api/v1/namespaces/default/services', {
        apiVersion: 'v1',
        kind: 'Service',
        metadata: { name },
        spec: {
          type: nodePort === undefined ? 'ClusterIP' : 'NodePort',
          ipFamilyPolicy: 'RequireDualStack',
          clusterIP: clusterIps[4],
          clusterIPs: FAMILIES.map((family) => clusterIps[family]),
          ports: ports.map((port) => ({ ...port, ...(nodePort !== undefined && { nodePort }) })),
        },
      });
      for (const family of FAMILIES) {
        await create('/apis/discovery.k8s.io/v1/namespaces/default/endpointslices', {
          apiVersion: 'discovery.k8s.io/v1',
          kind: 'EndpointSlice',
          metadata: { name: `${name}-${family}`, labels: { 'kubernetes.io/service-name': name } },
          addressType: `IPv${family}`,
          endpoints: endpoints(family).map((address) => ({
            addresses: [address],
            conditions: { ready: true },
            nodeName: nodeOf(address),
          })),
          ports,
        });
      }
    }
    client.close();
  }

  /** The node of an address, by its podCIDR. */
  function nodeOf(address: string): string {
    const home = lab.state.nodes.find((one) =>
      familyParts(one).some(({ podCIDR }) => address.startsWith(podCIDR.replace(/0?\/.*$/, ''))),
    );
    return home?.name ?? 'elsewhere';
  }

  beforeAll(async () => {
    // Rules are compared on the second node, where nothing else writes rules.
    lab = await realLab(purpose, ['ripstop', 'host'], { pods: 2, ipv6: true, kubeProxy: mode });
    await createServices();
  });
  afterAll(async () => {
    await labDown(labNameFor(purpose));
    expect(await tracesOf(labNameFor(purpose))).toEqual([]);
  });

  it('leads a pod of ripstop to another, to which it can also talk directly', async () => {
    const [client, server] = [podOf(node(1)), podOf(node(1), 1)];
    await serveIn(server);
    for (const family of FAMILIES) {
      const clusterIp = shapes()[1]!.clusterIps[family];
      await expect.poll(async () => JSON.stringify(await dump(node(1), family))).toContain(clusterIp);
      for (const address of [clusterIp, addressOf(server, family)])
        expect(await talkBoth(client, address)).toBe(addressOf(client, family));
    }
  });

  it('writes the rules that the lab writes', async () => {
    const dumps = () => Promise.all(FAMILIES.map((family) => dump(node(2), family)));
    await expect.poll(async () => JSON.stringify(await dumps())).toMatch(/without.*without/);
    const real = (await dumps()).map(withoutAccounting);
    await stopKubeProxyDaemon(lab, node(2));
    await emptyTables(node(2));
    await startKubeProxy(lab, node(2), mode, servicePorts());
    const ours = await dumps();
    for (const [i, family] of FAMILIES.entries()) {
      const { dump } = real[i]!;
      expect(Object.keys(dump).length).toBeGreaterThan(20);
      expect(Object.keys(ours[i]!).toSorted()).toEqual(Object.keys(dump).toSorted());
      for (const name of Object.keys(dump))
        expect.soft(ours[i]![name], `IPv${family} ${name}`).toEqual(dump[name]);
    }
    // kube-proxy logs it when the kernel lacks them.
    const log = readFileSync(join(nodeDir(lab, node(2)), 'kube-proxy.log'), 'utf8');
    const accounts = mode === 'iptables' && !log.includes('Failed to create nfacct');
    expect(real.map(({ counted }) => counted)).toEqual(
      accounts ? [['nat KUBE-NODEPORTS', 'filter KUBE-FORWARD'], ['filter KUBE-FORWARD']] : [[], []],
    );
  });

  /**
   * Remove all of kube-proxy's rules. Its own clean-up leaves kubelet's jumps, which would then not be the first rules.
   */
  async function emptyTables(of: NodeState): Promise<void> {
    const stdin = ['mangle', 'nat', 'filter'].map((table) => `*${table}\nCOMMIT\n`).join('');
    for (const restore of ['iptables-restore', 'ip6tables-restore'])
      await run(restore, [], { ...inNetns(of), stdin });
  }
});
