// SPDX-License-Identifier: Apache-2.0
/** `monitor` on a small cluster: what it shows of packets, to whom it listens, and that nothing is left of it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { openTables } from '../src/dataplane/tables.ts';
import { commandIn, run, tryRun } from '../src/host/run.ts';
import { netnsPath, nodeDir, type NodeState } from '../src/lab/index.ts';
import { type Background, startIn } from '../src/lab/lab.support.ts';
import { bpffsOf, inNetns, missingHere, podOf, ripstop, runDirOf, useLab } from './cluster/support.ts';

const CLI = join(import.meta.dirname, '../src/cli/main.ts');

describe.skipIf(missingHere('tshark'))('monitor, on two nodes with a pod each', () => {
  const here = useLab('monitor', { nodes: 2, pods: 1 });
  let node: NodeState;
  let far: string;
  let id = 6000;

  beforeAll(() => {
    node = here.nodes[0]!;
    far = podOf(here.nodes[1]).ip;
  });

  async function listening(...args: string[]): Promise<Background> {
    const where = ['--bpffs', bpffsOf(here.lab, node), '--run-dir', runDirOf(here.lab, node)];
    const started = startIn(node.netns, process.execPath, CLI, 'monitor', ...args, ...where);
    await started.prints(/^listening/m);
    return started;
  }

  const ping = (to: string, count: number, ...how: string[]) =>
    tryRun(
      'ping',
      ['-n', '-q', '-e', String(id), '-i', '0.05', '-W', '1', '-c', String(count), ...how, to],
      inNetns(podOf(node)),
    );

  /** What a monitor shows of an exchange: hook, verdict and reason of each line. */
  async function seen(work: () => Promise<unknown>, ...args: string[]): Promise<string[]> {
    const monitor = await listening(...args);
    await work();
    await sleep(100);
    const text = await monitor.stop();
    expect(text).not.toMatch(/undefined|NaN|\[object/);
    return Array.from(
      text.matchAll(/^\d\d:\d\d:\d\d\.\d{6} (\S+) \S+ (\S+ \S+): /gm),
      ([, hook, what]) => `${hook} ${what}`,
    );
  }

  it('shows the way of each packet, one line for each hook, as tcpdump has it', async () => {
    await ping(far, 2); // from now on the tunnels both ways are valid
    id++;
    const monitor = await listening('--related-to', far);
    await ping(far, 3);
    await monitor.prints(/fast decap.* seq 3,/);
    const lines = (await monitor.stop()).split('\n').filter((line) => /^\d\d:/.test(line));
    const [own, veth] = [podOf(node).ip, String.raw`veth[0-9a-f]{8}`];
    const echo = (seq: number) => `IP ${own} > ${far}: ICMP echo request, id ${id}, seq ${seq}, length 64$`;
    const reply = (seq: number) => `IP ${far} > ${own}: ICMP echo reply, id ${id}, seq ${seq}, length 64$`;
    const there = String.raw`IP 172\.31\.0\.1\.\d+ > 172\.31\.0\.2\.8472: VXLAN vni 1: `;
    expect(lines.map((line) => line.replace(/^\S+ /, ''))).toEqual(
      [
        `^from_pod ${veth} kernel new_flow: ${echo(1)}`,
        `^to_vtep flannel.1 kernel learned: ${there}${echo(1)}`,
        `^from_wire eth0 kernel new_flow: ${reply(1)}`,
        `^from_vtep flannel.1 kernel from_peer: ${reply(1)}`,
        `^to_pod ${veth} kernel learned: ${reply(1)}`,
        // The first answer has made it an established flow, which is learned anew.
        `^from_pod ${veth} kernel new_flow: ${echo(2)}`,
        `^to_vtep flannel.1 kernel learned: ${there}${echo(2)}`,
        `^from_wire eth0 fast decap: ${reply(2)}`,
        `^from_pod ${veth} fast encap: ${there}${echo(3)}`,
        `^from_wire eth0 fast decap: ${reply(3)}`,
      ].map((pattern): unknown => expect.stringMatching(new RegExp(pattern))),
    );
  });

  it('shows only what is asked for', async () => {
    id++;
    const ofPod = ['--pod', 'default/pod1'];
    expect(await seen(() => ping(far, 3), ...ofPod, '--fast')).toEqual([
      'from_wire fast decap',
      'from_pod fast encap',
      'from_wire fast decap',
    ]);
    // On a busy machine the flow's 5 s may be over, and its first packet takes the kernel path again.
    const encapsulated = await seen(() => ping(far, 3), ...ofPod, '--reason', 'encap');
    expect(new Set(encapsulated)).toEqual(new Set(['from_pod fast encap']));
    expect(await seen(() => ping(far, 1), ...ofPod, '-c', '1')).toHaveLength(1);
    expect(await seen(() => ping('172.31.0.2', 1), '--peer', 'node2', ...ofPod, '--kernel')).toContain(
      'from_pod kernel new_flow',
    );
    expect(await seen(() => ping(far, 1), '--related-to', '192.0.2.0/24')).toEqual([]);
    await run('ip', ['address', 'add', '10.42.0.99/32', 'dev', 'eth0'], inNetns(podOf(node)));
    const spoof = () => ping(far, 1, '-I', '10.42.0.99');
    expect(await seen(spoof, '--drops')).toEqual(['from_pod drop other_source']);
    await run('ip', ['address', 'del', '10.42.0.99/32', 'dev', 'eth0'], inNetns(podOf(node)));
  });

  it('writes a capture that tshark reads, with the verdict as each packet’s comment', async () => {
    await ping(far, 2);
    id++;
    const file = join(nodeDir(here.lab, node), 'capture.pcapng');
    const monitor = await listening('--pod', 'pod1', '--related-to', far, '-w', file);
    await ping(far, 3);
    await sleep(100);
    await monitor.stop();
    const fields = ['frame.interface_name', 'frame.comment', 'vxlan.vni', 'icmp.ident'].flatMap((name) => [
      '-e',
      name,
    ]);
    const text = await run('tshark', [
      '-r',
      file,
      '-d',
      'udp.port==8472,vxlan',
      '-T',
      'fields',
      '-E',
      'separator=|',
      ...fields,
    ]);
    const rows = text
      .trimEnd()
      .split('\n')
      .map((line) => line.split('|'));
    expect(rows.map(([device, comment, vni]) => [device!.replace(/^veth.*/, 'veth'), comment, vni])).toEqual([
      ['veth', 'from_pod kernel new_flow', ''],
      ['flannel.1', 'to_vtep kernel learned', '1'],
      ['eth0', 'from_wire kernel new_flow', ''],
      ['flannel.1', 'from_vtep kernel from_peer', ''],
      ['veth', 'to_pod kernel learned', ''],
      ['veth', 'from_pod kernel new_flow', ''],
      ['flannel.1', 'to_vtep kernel learned', '1'],
      ['eth0', 'from_wire fast decap', ''],
      ['veth', 'from_pod fast encap', '1'],
      ['eth0', 'from_wire fast decap', ''],
    ]);
    for (const row of rows) expect(row[3]).toContain(String(id));
  });

  it('keeps to its rate, and says how much it has missed', async () => {
    id++;
    const monitor = await listening('--pod', 'pod1', '--rate', '20');
    await ping(far, 200, '-i', '0.002');
    await sleep(200);
    const text = await monitor.stop();
    const [, shown, missed] = /^(\d+) packets shown; (\d+) were over --rate 20$/m.exec(text)!.map(Number);
    expect(shown).toBeLessThan(100);
    expect(shown! + missed!).toBeGreaterThan(380);
  });

  /** What the programs have of a listener. */
  function listener() {
    using tables = openTables(bpffsOf(here.lab, node));
    return { ...tables.listeners.get(0), ring: tables.events.get(0) };
  }
  const nobody = { reasons: 0, heard: 0, allowed: 0, sample: 0, owner: 0, ring: undefined };

  it('leaves nothing when it ends; and one that dies falls silent', async () => {
    id++;
    expect(listener()).toEqual(nobody);
    const monitor = await listening();
    expect(listener()).toMatchObject({ sample: 1, ring: expect.any(Number) as unknown });
    await monitor.stop();
    expect(listener()).toEqual(nobody);
    const monitorArgs = [CLI, 'monitor', '--rate', '50', '--bpffs', bpffsOf(here.lab, node)];
    const [file, ...argv] = commandIn(netnsPath(node.netns), process.execPath, monitorArgs);
    const killed = spawn(file, argv, { stdio: ['ignore', 'ignore', 'pipe'] });
    await once(killed.stderr, 'data');
    killed.kill('SIGKILL');
    await once(killed, 'close');
    await ping(far, 30, '-i', '0.002');
    const dead = listener();
    expect(dead.heard).toBeGreaterThan(dead.allowed!);
    const next = await seen(() => ping(far, 3), '--pod', 'pod1', '--fast');
    expect(new Set(next)).toEqual(new Set(['from_pod fast encap', 'from_wire fast decap']));
    expect(listener()).toEqual(nobody);
  });

  it('makes room for the next one', async () => {
    const [first, second] = [await listening(), await listening('--pod', 'pod1', '-c', '1')];
    await first.prints(/somebody else listens now/);
    id++;
    await ping(far, 1);
    await second.prints(/^1 packets shown$/m);
    await Promise.all([first.stop(), second.stop()]);
    expect(listener()).toEqual(nobody);
  });

  it.each([
    ['monitor --pod nobody', /this node has no pod "nobody"/],
    ['monitor --peer nobody', /there is no peer "nobody"/],
    ['monitor --related-to nobody', /there is no peer "nobody"/],
    ['monitor --reason nonsense', /there is no reason "nonsense"/],
  ])('refuses "%s" in one line', async (command, why) => {
    const { code, stdout, stderr } = await ripstop(here.lab, node, ...command.split(' '));
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^ripstop: [^\n]*\n$/);
    expect(stderr).toMatch(why);
  });
});
