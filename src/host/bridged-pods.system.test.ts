// SPDX-License-Identifier: Apache-2.0
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { noKernel } from '../libbpf-ts/libbpf.support.ts';
import { type BridgedPod, BridgedPods } from './bridged-pods.ts';
import { listLinks } from './links.ts';
import { type TestNetns, testNetns, whyNoNetns } from './netns.support.ts';

const missing = noKernel ?? (await whyNoNetns());
/** The MAC addresses of pods, by number. */
const mac = (n: number): string => `02:00:00:00:00:0${n}`;
const BRIDGE = 50;

describe.skipIf(missing)(`pods on a bridge${missing ? ` (skipped: ${missing})` : ''}`, () => {
  let node: TestNetns;
  let elsewhere: TestNetns;

  beforeAll(async () => {
    [node, elsewhere] = [await testNetns(), await testNetns()];
    await node.ip(
      `link add cni0 index ${BRIDGE} type bridge`,
      'link set cni0 up',
      ...[1, 2].flatMap((n) => [
        `link add veth${n} index 10${n} type veth peer name pod${n} netns ${elsewhere.path}`,
        `link set veth${n} master cni0 up`,
      ]),
      // It leads to no pod: both ends are the node's.
      'link add veth3 index 103 type veth peer name near',
      'link set veth3 master cni0 up',
    );
    await elsewhere.ip('link set pod1 up', 'link set pod2 up');
  });
  afterAll(async () => {
    await node[Symbol.asyncDispose]();
    await elsewhere[Symbol.asyncDispose]();
  });

  async function observe(known = new BridgedPods()): Promise<BridgedPods> {
    const links = await listLinks(node.options);
    known.read([links.get('cni0')!], links, node.options);
    return known;
  }
  const pod = (ip: string, n: number, port: number): BridgedPod => ({
    ip,
    podMac: mac(n),
    bridge: BRIDGE,
    port,
  });
  const learn = (n: number, port: string) =>
    node.run('bridge', 'fdb', 'replace', mac(n), 'dev', port, 'master', 'dynamic');
  const resolve = (ip: string, n: number) =>
    node.run('ip', 'neigh', 'replace', ip, 'lladdr', mac(n), 'dev', 'cni0', 'nud', 'reachable');

  it('are where the kernel sends packets for them: the neighbour has the MAC, and the FDB its port', async () => {
    await resolve('10.42.1.5', 1);
    expect((await observe()).bridges).toEqual({ ports: [101, 102], pods: [], contradictions: [] });
    await learn(1, 'veth1');
    expect((await observe()).bridges.pods).toEqual([pod('10.42.1.5', 1, 101)]);
  });

  it('move with their MAC to another port, and with their address to another MAC', async () => {
    const known = await observe();
    await learn(1, 'veth2');
    expect((await observe(known)).bridges.pods).toEqual([pod('10.42.1.5', 1, 102)]);
    await learn(2, 'veth1');
    await resolve('10.42.1.5', 2);
    expect((await observe(known)).bridges.pods).toEqual([pod('10.42.1.5', 2, 101)]);
  });

  it('stay known while they are silent, until their port goes', async () => {
    const known = await observe();
    await node.run('bridge', 'fdb', 'del', mac(2), 'dev', 'veth1', 'master');
    await node.run('ip', 'neigh', 'flush', 'dev', 'cni0');
    expect((await observe(known)).bridges.pods).toEqual([pod('10.42.1.5', 2, 101)]);
    expect(known.note({ kind: 'port', deleted: true, ifindex: 101, master: BRIDGE })).toBe(true);
    expect(known.bridges.pods).toEqual([]);
  });

  it('tell their addresses by what they send, where the kernel knows none', async () => {
    const known = await observe();
    expect(known.noteSighting({ ip: '10.42.1.7', mac: mac(1), port: 102 })).toBe(true);
    expect(known.bridges.pods).toEqual([pod('10.42.1.7', 1, 102)]);
    expect(known.noteSighting({ ip: '10.42.1.7', mac: mac(1), port: 102 })).toBe(false);
  });

  it('are not believed against the kernel, and that is told', async () => {
    const known = await observe();
    await learn(2, 'veth1');
    await resolve('10.42.1.8', 2);
    await observe(known);
    expect(known.noteSighting({ ip: '10.42.1.8', mac: mac(1), port: 102 })).toBe(true);
    expect(known.noteSighting({ ip: '10.42.1.9', mac: mac(2), port: 102 })).toBe(true);
    expect(known.bridges).toEqual({
      ports: [101, 102],
      pods: [pod('10.42.1.8', 2, 101)],
      contradictions: [
        `${mac(1)} behind port 102 sends from 10.42.1.8, and the kernel has ${mac(2)} for it`,
        `${mac(2)} behind port 102 sends from 10.42.1.9, and the bridge has that MAC behind port 101`,
      ],
    });
  });
});
