// SPDX-License-Identifier: Apache-2.0
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ipJson } from '../host/ip.ts';
import { tryRun } from '../host/run.ts';
import {
  type Lab,
  OUTSIDE_ADDRESS,
  type NodeState,
  addNode,
  addPod,
  labDown,
  labExec,
  labStatus,
  labSteps,
  labUp,
  netnsPath,
  openLab,
  parseLabOptions,
  removeNode,
  removePod,
  underlayNetns,
} from './index.ts';
import { missingForLab, runIn, startIn, tracesOf } from './testing.ts';

const missing = missingForLab('iperf3', 'tcpdump');
if (missing) console.log(`skipped: ${missing}`);

const name = (suffix: string) => `t${process.pid}-${suffix}`;
const ping = (netns: string, to: string) =>
  tryRun('ping', ['-n', '-c', '1', '-W', '2', to], { netns: netnsPath(netns) }).then(
    ({ code }) => code === 0,
  );

describe.skipIf(missing)('three flannel nodes with two pods each', () => {
  const lab = name('a');
  let opened: Lab;
  let nodes: NodeState[];
  const steps: string[] = [];

  beforeAll(async () => {
    const options = parseLabOptions({ name: lab, nodes: 3, datapath: 'flannel' });
    await labUp(options, ({ title, state }) => steps.push(`${title}: ${state}`));
    opened = openLab(lab);
    nodes = opened.state.nodes;
    expect(steps.toSorted()).toEqual(
      labSteps(options)
        .flatMap((title) => [`${title}: begun`, `${title}: done`])
        .toSorted(),
    );
  });
  afterAll(async () => {
    await labDown(lab);
    expect(await tracesOf(lab)).toEqual([]);
  });

  it('have the status that the command promises', () => {
    const pods = (i: number) =>
      [1, 2].map((n) => ({
        name: `pod${n}`,
        netns: `${lab}-node${i}-pod${n}`,
        ip: `10.42.${i - 1}.${n + 1}`,
      }));
    expect(labStatus(lab)).toEqual({
      name: lab,
      kubeconfig: `/run/ripstop-lab/${lab}/kubeconfig`,
      nodes: [1, 2, 3].map((i) => ({
        name: `node${i}`,
        netns: `${lab}-node${i}`,
        ip: `172.31.0.${i}`,
        podCIDR: `10.42.${i - 1}.0/24`,
        datapath: 'flannel',
        pods: pods(i),
      })),
    });
  });

  it('let every pod ping every pod', async () => {
    const pods = nodes.flatMap((node) => node.pods);
    for (const from of pods) {
      for (const to of pods) expect(await ping(from.netns, to.ip), `${from.netns} → ${to.netns}`).toBe(true);
    }
  });

  it('let nodes ping their own and others’ pods, and pods ping nodes', async () => {
    const [one, two] = nodes;
    expect(await ping(one!.netns, one!.pods[0]!.ip)).toBe(true);
    expect(await ping(one!.netns, two!.pods[0]!.ip)).toBe(true);
    expect(await ping(two!.pods[0]!.netns, one!.ip)).toBe(true);
    expect(await ping(one!.pods[0]!.netns, one!.ip)).toBe(true);
  });

  it('masquerade what pods send outside, and nothing between pods', async () => {
    const [one, two] = nodes;
    const peer = async (netns: string, address: string, client: string) => {
      const program = `require('net').createServer(s => { console.log('from', s.remoteAddress); s.end() }).listen(7000, '0.0.0.0', () => console.log('up'))`;
      const server = startIn(netns, process.execPath, '-e', program);
      await server.prints(/up/);
      await runIn(client, process.execPath, '-e', `require('net').connect(7000, '${address}').resume()`);
      await server.prints(/from/);
      return /from (\S+)/.exec(await server.stop())![1];
    };
    const [client, target] = [one!.pods[0]!, two!.pods[0]!];
    expect(await peer(underlayNetns(lab), OUTSIDE_ADDRESS, client.netns)).toBe(one!.ip);
    expect(await peer(target.netns, target.ip, client.netns)).toBe(client.ip);
  });

  it('go through the kernel path that flannel builds, no shortcut', async () => {
    const { netns } = nodes[0]!;
    const options = { netns: netnsPath(netns) };
    const [bridge] = await ipJson<{ mtu: number; addr_info: { local: string; prefixlen: number }[] }>(
      ['-4', 'address', 'show', 'dev', 'cni0'],
      options,
    );
    expect(bridge).toMatchObject({ mtu: 1450, addr_info: [{ local: '10.42.0.1', prefixlen: 24 }] });
    const ports = await ipJson<{ linkinfo: { info_slave_data: { hairpin: boolean } } }>(
      ['link', 'show', 'master', 'cni0'],
      options,
    );
    expect(ports.map((port) => port.linkinfo.info_slave_data.hairpin)).toEqual([true, true]);
    const [vtep] = await ipJson<{ mtu: number; linkinfo: { info_data: object } }>(
      ['link', 'show', 'dev', 'flannel.1'],
      options,
    );
    expect(vtep).toMatchObject({
      mtu: 1450,
      linkinfo: { info_data: { id: 1, local: '172.31.0.1', link: 'eth0', port: 8472, learning: false } },
    });
    const rules = await runIn(netns, 'iptables-save');
    expect(rules).toContain(':FORWARD DROP');
    expect(rules).toContain('-A FLANNEL-FWD -s 10.42.0.0/16');
    expect(rules).toMatch(
      /-A FLANNEL-POSTRTG -s 10\.42\.0\.0\/16 ! -d 224\.0\.0\.0\/4 .*MASQUERADE --random-fully/,
    );
    expect(
      await runIn(netns, 'sysctl', '-n', 'net.bridge.bridge-nf-call-iptables', 'net.ipv4.ip_forward'),
    ).toBe('1\n1\n');
    expect(await runIn(netns, 'ip', 'route', 'show', 'dev', 'flannel.1')).toBe(
      '10.42.1.0/24 via 10.42.1.0 onlink \n10.42.2.0/24 via 10.42.2.0 onlink \n',
    );
  });

  it('learn of a node that joins and forget one that leaves', async () => {
    const known = async () => {
      const { netns } = nodes[0]!;
      const [routes, neighbours, fdb] = await Promise.all([
        runIn(netns, 'ip', 'route', 'show', '10.42.3.0/24'),
        runIn(netns, 'ip', 'neigh', 'show', '10.42.3.0'),
        runIn(netns, 'bridge', 'fdb', 'show', 'dev', 'flannel.1'),
      ]);
      return [routes, neighbours, fdb].map((text) => /10\.42\.3\.0|172\.31\.0\.4/.test(text));
    };
    const joined = await addNode(opened, 'flannel', 1);
    expect(await known()).toEqual([true, true, true]);
    expect(await ping(nodes[0]!.pods[0]!.netns, joined.pods[0]!.ip)).toBe(true);
    expect(await ping(joined.pods[0]!.netns, nodes[2]!.pods[1]!.ip)).toBe(true);

    await removeNode(opened, joined);
    expect(await known()).toEqual([false, false, false]);
    expect(labStatus(lab).nodes.map((node) => node.name)).toEqual(['node1', 'node2', 'node3']);
    expect(await tracesOf(`${lab}-node4`)).toEqual([]);
  });

  it('start and end pods at any time', async () => {
    const node = nodes[1]!;
    const pods = await Promise.all([addPod(opened, node), addPod(opened, node)]);
    expect(pods.map((pod) => pod.name).toSorted()).toEqual(['pod3', 'pod4']);
    for (const pod of pods) expect(await ping(nodes[0]!.pods[0]!.netns, pod.ip)).toBe(true);
    for (const pod of pods) await removePod(opened, node, pod);
    expect(labStatus(lab).nodes[1]!.pods.map((pod) => pod.name)).toEqual(['pod1', 'pod2']);
    expect(await ping(nodes[0]!.pods[0]!.netns, pods[0].ip)).toBe(false);
    expect(await tracesOf(pods[0].netns)).toEqual([]);
  });

  it('run commands in a node, a pod and the underlay, and pass on how they ended', async () => {
    const has = (address: string) => ['sh', '-c', `ip -4 -o address | grep -qw ${address}`];
    const pod = nodes[1]!.pods[0]!;
    expect(await labExec(lab, 'node2', has('172.31.0.2'))).toBe(0);
    expect(await labExec(lab, 'node2-pod1', has(pod.ip))).toBe(0);
    expect(await labExec(lab, 'node2/pod1', has(pod.ip))).toBe(0);
    expect(await labExec(lab, 'underlay', has('172.31.255.254'))).toBe(0);
    expect(await labExec(lab, 'node1', ['sh', '-c', 'exit 7'])).toBe(7);
    expect(await labExec(lab, 'node1', ['sh', '-c', 'kill -9 $$'])).toBe(137);
  });

  it('say which targets there are when asked for another', async () => {
    await expect(labExec(lab, 'node9', ['true'])).rejects.toThrow('it has: node1, node2, node3');
    await expect(labExec(lab, 'node1-pod9', ['true'])).rejects.toThrow('node1 has: node1-pod1, node1-pod2');
    await expect(labExec(lab, 'node1', [])).rejects.toThrow('say what to run');
    expect(() => labStatus('no-such-lab')).toThrow('no lab named "no-such-lab"');
    await expect(labUp(parseLabOptions({ name: lab }))).rejects.toThrow('is there already');
  });

  it('share the machine with another lab that has the same addresses', async () => {
    const other = name('b');
    try {
      await labUp(parseLabOptions({ name: other, datapath: 'flannel,host', pods: 1 }));
      const before = await runIn(nodes[0]!.netns, 'ip', 'neigh', 'show', 'dev', 'flannel.1');
      expect(await ping(`${other}-node1-pod1`, '172.31.0.2')).toBe(true);
      await labDown(other);
      expect(await tracesOf(other)).toEqual([]);
      expect(await runIn(nodes[0]!.netns, 'ip', 'neigh', 'show', 'dev', 'flannel.1')).toBe(before);
      expect(await ping(nodes[0]!.pods[0]!.netns, nodes[1]!.pods[0]!.ip)).toBe(true);
    } finally {
      await labDown(other);
    }
  });
});

describe.skipIf(missing)('the wire', () => {
  /** Send data over TCP from one namespace to another and return what tcpdump said meanwhile, in the order of `captures`. */
  async function captureTransfer(
    transfer: { from: string; to: string; address: string; size: string },
    captures: { netns: string; device: string; args: string[] }[],
  ): Promise<string[]> {
    const dumps = captures.map(({ netns, device, args }) =>
      startIn(netns, 'tcpdump', '-l', '-nn', '-i', device, ...args),
    );
    const server = startIn(transfer.to, 'iperf3', '-s', '-1', '--forceflush');
    await Promise.all([...dumps, server].map((program) => program.prints(/listening/)));
    await runIn(transfer.from, 'iperf3', '-c', transfer.address, '-n', transfer.size);
    await sleep(200); // The kernel hands captured packets over now and then, not one by one.
    await server.stop();
    return Promise.all(dumps.map((dump) => dump.stop()));
  }

  /** The node and the pod to send from and to. */
  function pairs(lab: string): { from: string; to: string; address: string }[] {
    const [one, two] = labStatus(lab).nodes;
    return [
      { from: one!.netns, to: two!.netns, address: two!.ip },
      { from: one!.pods[0]!.netns, to: two!.pods[0]!.netns, address: two!.pods[0]!.ip },
    ];
  }

  it.each([
    { wire: 'gso', mtu: 1500, full: undefined },
    { wire: 'mtu', mtu: 1500, full: 1514 },
    { wire: 'mtu', mtu: 9000, full: 9014 },
  ])(
    '$wire with MTU $mtu carries frames of the right size, plain and in VXLAN',
    async ({ wire, mtu, full }) => {
      const lab = name(`w${mtu}`);
      try {
        await labUp(parseLabOptions({ name: lab, datapath: 'flannel', pods: 1, wire, mtu }));
        for (const pair of pairs(lab)) {
          const lengths = (
            await captureTransfer({ ...pair, size: '2M' }, [
              { netns: underlayNetns(lab), device: 'node1', args: ['-e', '-s', '96', 'ip'] },
              { netns: `${lab}-node2`, device: 'eth0', args: ['-e', '-s', '96', '-Q', 'in', 'ip'] },
            ])
          ).map((output) =>
            Array.from(output.matchAll(/IPv4 \(0x0800\), length (\d+)/g), (match) => Number(match[1])),
          );
          const [onTheWire, received] = lengths.map((all) => Math.max(...all));
          if (full === undefined) expect(onTheWire).toBeGreaterThan(10_000);
          else expect(onTheWire).toBe(full);
          // Either as it crossed, or put together again by GRO.
          expect(received).toBeGreaterThan(10_000);
        }
      } finally {
        await labDown(lab);
      }
    },
  );

  it('mtu carries checksums that are right, outside and inside VXLAN', async () => {
    const lab = name('sum');
    try {
      await labUp(parseLabOptions({ name: lab, datapath: 'flannel', pods: 1, wire: 'mtu' }));
      const filters = [['tcp port 5201'], ['-T', 'vxlan', 'udp port 8472']];
      for (const [i, pair] of pairs(lab).entries()) {
        const args = ['-vv', '-s', '0', ...filters[i]!];
        const [output] = await captureTransfer({ ...pair, size: '200K' }, [
          { netns: underlayNetns(lab), device: 'node1', args },
        ]);
        expect(output!.match(/\(correct\)/g)!.length).toBeGreaterThan(100);
        expect(/.*incorrect.*/.exec(output!)?.[0]).toBeUndefined();
      }
    } finally {
      await labDown(lab);
    }
  });
});

describe.skipIf(missing)('lab down', () => {
  it('says whether there was anything', async () => {
    expect(await labDown(name('none'))).toBe(false);
  });

  const options = { name: name('k'), datapath: 'flannel,host', pods: 1 };
  const titles = labSteps(parseLabOptions(options));

  it.each(titles)('removes everything after lab up was killed while at “%s”', async (title) => {
    const program = `
      import { labUp, parseLabOptions } from ${JSON.stringify(new URL('index.ts', import.meta.url).href)};
      await labUp(parseLabOptions(${JSON.stringify(options)}), (step) => {
        if (step.title === ${JSON.stringify(title)}) setTimeout(() => process.kill(process.pid, 'SIGKILL'), 10);
      });`;
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: 'ignore' });
    const [, signal] = (await once(child, 'exit')) as [number | null, string | null];
    expect(signal).toBe('SIGKILL');
    expect(await labDown(options.name)).toBe(true);
    expect(await tracesOf(options.name)).toEqual([]);
  });

  it('ends what people left running in the lab', async () => {
    const lab = name('r');
    await labUp(parseLabOptions({ name: lab, datapath: 'host' }));
    const left = startIn(`${lab}-node1`, 'sleep', '1000');
    await labDown(lab);
    await left.stop();
    expect(await tracesOf(lab)).toEqual([]);
  });
});
