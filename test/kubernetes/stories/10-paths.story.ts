// SPDX-License-Identifier: Apache-2.0
import { beforeAll, describe, expect, it } from 'vitest';
import { commandInControlPlane } from '../control-plane.ts';
import { kubectlRipstop } from '../kubectl.ts';
import { type ClusterNode, underlayAddresses } from '../state.ts';
import { storyCluster } from '../story.ts';
import { at, type Probe, probeFrom, probeFromNode, reportOf, UNHARMED } from '../traffic.ts';
import { clusterIpOf, inPod, type Pod, podsOf } from '../workload.ts';

/** Every path of packets in a cluster, each with counted messages, none of which may be lost. */

const cluster = storyCluster();
const [node1, node2] = cluster.nodes as [ClusterNode, ClusterNode];
const controlPlane = underlayAddresses('cp', cluster.options)[0]!;
let clients: Map<string, Pod>;
let echoes: Map<string, Pod>;
const services: Record<string, string> = {};

beforeAll(async () => {
  clients = await podsOf(cluster, 'client');
  echoes = await podsOf(cluster, 'echo');
  for (const name of ['echo', 'sticky', 'kubernetes']) services[name] = await clusterIpOf(cluster, name);
});

const clientOn = (node: ClusterNode): Pod => clients.get(node.name)!;
const echoOn = (node: ClusterNode): Pod => echoes.get(node.name)!;
const COUNT = 20;
const ALL = { ...UNHARMED, sent: COUNT };

const kinds: Probe[] = ['connect', 'tcp', 'udp'];
const pairs = [node1, node2].flatMap((a) => [node1, node2].map((b) => ({ a, b, from: a.name, to: b.name })));

/** The addresses of `echo`, with their names and the kinds of messages. */
const doors = [
  { door: 'its ClusterIP', address: () => at(services['echo']!, 70), kinds },
  { door: 'its name', address: () => 'echo.default.svc.cluster.local:70', kinds },
  ...[node1, node2].flatMap((node) => [
    {
      door: `the NodePort of ${node.name}`,
      address: () => at(node.ips[0]!, 30007),
      kinds: ['connect', 'tcp'] as Probe[],
    },
    {
      door: `the NodePort of ${node.name}`,
      address: () => at(node.ips[0]!, 30008),
      kinds: ['udp'] as Probe[],
    },
    { door: `the hostPort of ${node.name}`, address: () => at(node.ips[0]!, 7007), kinds },
  ]),
].flatMap(({ kinds, ...door }) => kinds.map((kind) => ({ ...door, kind })));

describe.each(pairs)('a pod on $from and a pod on $to', ({ a, b }) => {
  it.each(kinds)('%s', async (kind) => {
    expect(await probeFrom(cluster, clientOn(a), kind, at(echoOn(b).ips[0]!, 7), COUNT)).toMatchObject(ALL);
  });

  it.each([56, 1400, 8000])('ping of %d bytes', async (bytes) => {
    const argv = ['ping', '-q', '-c', '5', '-i', '0.2', '-W', '2', '-s', String(bytes), echoOn(b).ips[0]!];
    expect(await inPod(cluster, clientOn(a), ...argv)).toContain('5 packets received');
  });

  it('sees each other by their own addresses', async () => {
    const argv = ['sh', '-c', `echo from | nc -w 2 ${echoOn(b).ips[0]!} 7`];
    expect(await inPod(cluster, clientOn(a), ...argv)).toBe(clientOn(a).ips[0]);
  });
});

describe.each([node1, node2])('a pod on $name', (node) => {
  it.each(doors)('$kind to the service by $door', async ({ kind, address }) => {
    expect(await probeFrom(cluster, clientOn(node), kind, address(), COUNT)).toMatchObject(ALL);
  });

  it('stays with one backend if the Service has session affinity', async () => {
    const ask = `for i in 1 2 3 4 5 6 7 8; do echo who | nc -w 2 ${services['sticky']} 70; done | sort | uniq -c | wc -l`;
    expect((await inPod(cluster, clientOn(node), 'sh', '-c', ask)).trim()).toBe('1');
  });

  it('as a backend gets answers from its own Service, also from itself', async () => {
    expect(await probeFrom(cluster, echoOn(node), 'connect', at(services['echo']!, 70), 40)).toMatchObject({
      ...UNHARMED,
      sent: 40,
    });
  });

  it('reaches the API server by its service', async () => {
    const argv = ['sh', '-c', `nc -w 2 ${services['kubernetes']} 443 < /dev/null && echo open`];
    expect(await inPod(cluster, clientOn(node), ...argv)).toBe('open');
  });

  it.each([
    ['node1', () => node1.ips[0]!],
    ['node2', () => node2.ips[0]!],
    ['a host outside of the cluster', () => controlPlane],
  ])('pings %s', async (_, address) => {
    const argv = ['ping', '-q', '-c', '3', '-i', '0.2', '-W', '2', address()];
    expect(await inPod(cluster, clientOn(node), ...argv)).toContain('3 packets received');
  });
});

describe.each(pairs)('node $from and a pod on $to', ({ a, b }) => {
  it.each(kinds)('%s', async (kind) => {
    expect(await probeFromNode(a, kind, at(echoOn(b).ips[0]!, 7), COUNT)).toMatchObject(ALL);
  });
});

describe.each([node1, node2])('node $name', (node) => {
  const byAddress = doors.filter(({ door }) => door !== 'its name');
  it.each(byAddress)('$kind to the service by $door', async ({ kind, address }) => {
    expect(await probeFromNode(node, kind, address(), COUNT)).toMatchObject(ALL);
  });
});

describe('a host outside of the cluster', () => {
  const fromOutside = doors.filter(({ door }) => /Port of/.test(door));
  it.each(fromOutside)('$kind to the service by $door', async ({ kind, address }) => {
    const probe = commandInControlPlane(cluster, 'probe', kind, address(), String(COUNT), '5ms');
    expect(await reportOf(...probe)).toMatchObject(ALL);
  });
});

describe.each(pairs)('a pod on $from and one on $to, both known by services now', ({ a, b }) => {
  it('ping', async () => {
    const argv = ['ping', '-q', '-c', '5', '-i', '0.2', '-W', '2', echoOn(b).ips[0]!];
    expect(await inPod(cluster, clientOn(a), ...argv)).toContain('5 packets received');
  });

  it('get an error for a closed port', async () => {
    const report = await probeFrom(cluster, clientOn(a), 'udp', at(echoOn(b).ips[0]!, 9999), 10);
    expect(report.firstError).toContain('connection refused');
  });
});

describe('kubectl ripstop', () => {
  it('asks the agent of a node, or of a pod', async () => {
    const flags = [
      ['--node', node2.name],
      ['--of', `default/${clientOn(node2).name}`],
    ];
    for (const flag of flags) {
      const endpoints = await kubectlRipstop(cluster, ...flag, 'endpoints', '-o', 'jsonpath={[*].pod}');
      expect(endpoints.split(/\s+/)).toContain(`default/${clientOn(node2).name}`);
      expect(endpoints).not.toContain(clientOn(node1).name);
    }
  });

  it('finds every map as the API server and the kernel say', async () => {
    for (const node of [node1, node2])
      expect(await kubectlRipstop(cluster, '--node', node.name, 'maps', 'diff')).toMatch(
        /^no difference: peers /,
      );
  });
});
