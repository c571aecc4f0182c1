// SPDX-License-Identifier: Apache-2.0
/** A cluster without Kubernetes: two nodes that take their subnets from etcd. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { missingEtcd, type TestEtcd } from '../../src/cluster/etcd.support.ts';
import { ipJson } from '../../src/lab/ip.ts';
import {
  type Lab,
  labDown,
  netnsPath,
  type NodeState,
  parseLabOptions,
  restartAgent,
} from '../../src/lab/index.ts';
import { runIn, tracesOf } from '../../src/lab/lab.support.ts';
import { etcdLab, SUBNETS, withEtcd } from './etcd-lab.ts';
import { missingHere, podOf, ripstop } from './support.ts';

const missing = missingHere() ?? missingEtcd();
const name = `t${process.pid}-etcd`;
const CONFIG = '{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan","VNI":3}}';
/** A lease as flannel writes it. */
const neighbour =
  '{"PublicIP":"192.0.2.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":3,"VtepMAC":"0a:00:00:00:04:09"}}';

describe.skipIf(missing)('two nodes with subnets from etcd', () => {
  let etcd: TestEtcd;
  let lab: Lab;

  beforeAll(async () => {
    ({ lab, etcd } = await etcdLab(parseLabOptions({ name, nodes: '2', pods: '1' }), CONFIG));
  });
  afterAll(async () => {
    await etcd?.[Symbol.asyncDispose]();
    await labDown(name);
    expect(await tracesOf(name)).toEqual([]);
  });

  const ping = (from: NodeState, to: string) =>
    runIn(podOf(from).netns, 'ping', '-n', '-c', '3', '-i', '0.2', '-W', '2', to);
  const routes = async (node: NodeState) =>
    (
      await ipJson<{ dst: string; dev: string }>(['route', 'show', 'dev', 'flannel.3'], {
        netns: netnsPath(node.netns),
      })
    ).map(({ dst }) => dst);

  test('pods have addresses of these subnets and reach each other; the leases name the VTEPs that are there', async () => {
    const [one, two] = lab.state.nodes as [NodeState, NodeState];
    const leases = await etcd.list(SUBNETS);
    for (const node of lab.state.nodes) {
      const pod = podOf(node);
      expect(pod.ip).toMatch(/^10\.77\.\d+\.\d+$/);
      const key = `${SUBNETS}${pod.ip.replace(/\d+$/, '0')}-24`;
      const [device] = await ipJson<{ address: string }>(['link', 'show', 'flannel.3'], {
        netns: netnsPath(node.netns),
      });
      expect(leases.find((lease) => lease.key === key)?.value).toBe(
        `{"PublicIP":"${node.ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":3,"VtepMAC":"${device!.address}"}}`,
      );
    }
    expect(leases).toHaveLength(2);
    await ping(one, podOf(two).ip);
    await ping(two, podOf(one).ip);
  });

  test('a peer is added and removed', async () => {
    await etcd.put(`${SUBNETS}10.77.250.0-24`, neighbour);
    for (const node of lab.state.nodes)
      await expect.poll(() => routes(node), { timeout: 30_000 }).toContain('10.77.250.0/24');
    // An audit reads etcd and claims nothing there.
    const before = await etcd.list(SUBNETS);
    const audit = await ripstop(lab, lab.state.nodes[0]!, 'maps', 'diff');
    expect(audit).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^no difference: peers 2, /) as unknown,
    });
    expect(await etcd.list(SUBNETS)).toEqual(before);
    await etcd.remove(`${SUBNETS}10.77.250.0-24`);
    for (const node of lab.state.nodes)
      await expect.poll(() => routes(node), { timeout: 30_000 }).not.toContain('10.77.250.0/24');
  });

  test('etcd is gone: an agent that starts runs on the last-known state, and uses etcd when that is back', async () => {
    const [one, two] = lab.state.nodes as [NodeState, NodeState];
    await etcd.signal('SIGKILL');
    await withEtcd(lab.state.options, () => restartAgent(lab, one));
    await ping(one, podOf(two).ip);
    await etcd.up();
    await etcd.put(`${SUBNETS}10.77.251.0-24`, neighbour);
    await expect.poll(() => routes(one), { timeout: 60_000 }).toContain('10.77.251.0/24');
    await ping(two, podOf(one).ip);
    expect(await etcd.list(SUBNETS)).toHaveLength(3);
  });
});
