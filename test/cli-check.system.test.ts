// SPDX-License-Identifier: Apache-2.0
/** `ripstop check` in a lab of three nodes: all right; then broken in several ways at once, each named where it is. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Failure, Report } from '../src/check/report.ts';
import { renderReport } from '../src/cli/check-text.ts';
import { run, tryRun } from '../src/host/run.ts';
import { setServices, underlayNetns } from '../src/lab/index.ts';
import { startIn } from '../src/lab/lab.support.ts';
import { inNetns, missingHere, podOf, serviceOf, useLab } from './cluster/support.ts';

const CLI = join(import.meta.dirname, '../src/cli/main.ts');

describe.skipIf(missingHere('iptables', 'nft'))('check, on ripstop, flannel and ripstop', () => {
  const here = useLab('check', { datapath: 'ripstop,flannel,ripstop', pods: 2 });
  let broken: Report;
  const node = (n: number) => here.nodes[n - 1]!;
  const underlay = () => ({ netns: underlayNetns(here.lab.name) });
  const onNode = (n: number, command: string) => run('sh', ['-ec', command], inNetns(node(n)));

  async function check(...args: string[]): Promise<{ code: number; report: Report; stderr: string }> {
    const argv = [CLI, 'check', '--lab', here.lab.name, '-o', 'json', ...args];
    const { code, stdout, stderr } = await tryRun(process.execPath, argv, { timeoutMs: 55_000 });
    return { code, stderr, report: JSON.parse(stdout || '{}') as Report };
  }

  /** Rules of the check's Services that are on the nodes. */
  async function rulesLeft(): Promise<string> {
    const all = await Promise.all(
      [1, 2, 3].map((n) => onNode(n, 'iptables-save | grep -c ripstop-check || true')),
    );
    return all.map((text) => text.trim()).join();
  }

  it('finds nothing where all is right, and leaves nothing but what was there', async () => {
    await setServices(here.lab, node(1), serviceOf('web', '10.43.0.10', 80, podOf(node(1)).ip));
    const before = await onNode(1, 'iptables-save -t nat | grep default/web');
    const { code, report, stderr } = await check();
    const ok = { node1: 'ok', node2: 'ok', node3: 'ok' };
    expect({ code, stderr, matrix: report.matrix, failures: report.failures }).toEqual({
      code: 0,
      stderr: '',
      matrix: { node1: ok, node2: ok, node3: ok },
      failures: [],
    });
    expect(report.skipped.map(({ kind, node, why }) => [kind, node, why])).toEqual([
      ['dns', undefined, 'a lab has no DNS'],
      ['fast-path', 'node2', 'ripstop does not carry its packets'],
    ]);
    // 9 pairs of nodes; the flannel node is not asked for its fast path.
    const count = (kind: string) =>
      report.results.filter((one) => (one as { kind: string }).kind === kind).length;
    expect(
      Object.fromEntries(
        ['pod-to-pod', 'pod-to-node', 'node-to-pod', 'service', 'mtu', 'fast-path'].map((kind) => [
          kind,
          count(kind),
        ]),
      ),
    ).toEqual({ 'pod-to-pod': 27, 'pod-to-node': 9, 'node-to-pod': 27, service: 18, mtu: 9, 'fast-path': 6 });
    expect(await rulesLeft()).toBe('0,0,0');
    expect(await onNode(1, 'iptables-save -t nat | grep default/web')).toBe(before);
  });

  it('names each of four faults in the cell where it is', async () => {
    const pod3 = podOf(node(3), 1).ip;
    const service2 = '10.43.127.2';
    // One way of a tunnel; the MTU of the switch, to node3; a pod; and a Service without endpoints on one node.
    const tunnel = `ip saddr ${node(1).ip} ip daddr ${node(2).ip} udp dport 8472 drop`;
    const table = `table bridge check {\nchain c {\ntype filter hook forward priority 0;\n${tunnel}\n}\n}\n`;
    await run('nft', ['-f', '-'], { ...inNetns(underlay()), stdin: table });
    await run('ip', ['link', 'set', 'node3', 'mtu', '1400'], inNetns(underlay()));
    await onNode(3, `iptables -I FORWARD -s ${pod3} -j DROP`);
    // What a kube-proxy has that knows the Service and no endpoint of it.
    await onNode(
      2,
      `iptables -t nat -I PREROUTING -d ${service2} -j ACCEPT
       iptables -I FORWARD -d ${service2} -j REJECT --reject-with icmp-port-unreachable`,
    );
    const { code, report } = await check();
    broken = report;
    expect(code).toBe(3);
    expect(report.matrix).toEqual({
      node1: { node1: 'ok', node2: 'pod-to-pod', node3: 'mtu' },
      node2: { node1: 'answers lost', node2: 'service', node3: 'mtu' },
      node3: { node1: 'mtu', node2: 'mtu', node3: 'pod-to-pod' },
    });
    const roots = report.failures.filter(({ follows }) => !follows);
    const told = ({ kind, protocols, from, to }: Failure) => `${kind} (${protocols.join()}) ${from} ${to}`;
    expect(Object.fromEntries(roots.map((one) => [told(one), one.cause]))).toEqual({
      'pod-to-pod (tcp,udp,icmp) node1-pod1 node2-pod1':
        'node1 reaches node2, but its tunnel does not: a firewall (UDP 8472), or the VTEP that node1 has for node2',
      'pod-to-pod (tcp,udp,icmp) node2-pod1 node1-pod1':
        'packets arrive on node1, their answers are lost: see node1 to node2',
      'pod-to-pod (tcp,udp,icmp) node3-pod2 node3-pod1':
        'a rule in the FORWARD chain of node3, or a NetworkPolicy, drops it',
      'service (tcp,udp) node2-pod2 node2-pod1': 'the kube-proxy of node2 knows no endpoint of the Service',
      ...Object.fromEntries(
        ['node1 node3', 'node2 node3', 'node3 node1', 'node3 node2'].map((pair) => [
          `mtu (udp) ${pair
            .split(' ')
            .map((name) => `${name}-pod1`)
            .join(' ')}`,
          'packets of 1450 bytes, the MTU of pods, are lost without an error, smaller ones arrive: the MTU of the network between the nodes',
        ]),
      ),
    });
    expect(renderReport(report, false).split('\n').slice(0, 4)).toEqual([
      'FROM \\ TO  node1         node2       node3',
      'node1      ok            pod-to-pod  mtu',
      'node2      answers lost  service     mtu',
      'node3      mtu           mtu         pod-to-pod',
    ]);
  });

  it('tells a command to run next that says where the packets go', async () => {
    const { next } = broken.failures.find(({ from, to }) => from === 'node1-pod1' && to === 'node2-pod1')!;
    const [program, ...argv] = next.split(' ');
    expect(program).toBe('ripstop');
    expect(await run(process.execPath, [CLI, ...argv])).toContain(`route      ${podOf(node(2)).ip} `);
  });

  it('leaves nothing when it is interrupted', async () => {
    const interrupted = startIn(underlay().netns, process.execPath, CLI, 'check', '--lab', here.lab.name);
    await expect.poll(rulesLeft, { timeout: 30_000 }).not.toMatch(/\b0\b/);
    expect(await interrupted.stop()).toContain('ripstop: interrupted by SIGINT\n');
    expect(await rulesLeft()).toBe('0,0,0');
  });
});
