// SPDX-License-Identifier: Apache-2.0
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { missingEtcd, type TestEtcd } from '../../src/cluster/etcd.support.ts';
import { ipJson } from '../../src/lab/ip.ts';
import { run } from '../../src/host/run.ts';
import { type Lab, labDown, netnsPath, type NodeState, parseLabOptions } from '../../src/lab/index.ts';
import { tracesOf } from '../../src/lab/lab.support.ts';
import { etcdEndpoint, etcdLab, SUBNETS } from '../cluster/etcd-lab.ts';
import { podOf } from '../cluster/support.ts';
import { peerPath } from '../support/peer-programs.ts';
import { labNameFor } from './support.ts';

const NAME = labNameFor('etcd');
const CONFIG = '{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan"}}';
const missing = missingEtcd();
if (missing) console.log(`skipped: ${missing}`);

describe.skipIf(missing)(
  'a cluster of etcd, where node 1 is run by ripstop and node 2 by the real flanneld',
  () => {
    let lab: Lab;
    let etcd: TestEtcd;
    let flanneld: ChildProcess | undefined;
    const node = (i: number): NodeState => lab.state.nodes[i - 1]!;

    beforeAll(async () => {
      const options = parseLabOptions({ name: NAME, nodes: '2', pods: '1' });
      ({ lab, etcd } = await etcdLab({ ...options, datapaths: ['ripstop', 'host'] }, CONFIG));
    });
    afterAll(async () => {
      await stopFlanneld();
      await etcd?.[Symbol.asyncDispose]();
      await labDown(NAME);
      expect(await tracesOf(NAME)).toEqual([]);
    });

    function startFlanneld(): void {
      const argv = [
        `--net=${netnsPath(node(2).netns)}`,
        '--',
        peerPath('flanneld'),
        `--etcd-endpoints=${etcdEndpoint(lab.state.options)}`,
        `--subnet-file=${join(lab.dir, 'flanneld-subnet.env')}`,
        '--iface=eth0',
        '--ip-masq=false',
      ];
      flanneld = spawn('nsenter', argv, { stdio: 'ignore' });
    }

    async function stopFlanneld(): Promise<void> {
      if (!flanneld || flanneld.exitCode !== null || flanneld.signalCode !== null) return;
      const ended = once(flanneld, 'exit');
      flanneld.kill('SIGTERM');
      await ended;
    }

    const leases = async () => (await etcd.list(SUBNETS)).map(({ key, value }) => [key, value] as const);
    const routes = async (i: number) =>
      (
        await ipJson<{ dst: string }>(['route', 'show', 'dev', 'flannel.1'], {
          netns: netnsPath(node(i).netns),
        })
      ).map(({ dst }) => dst);

    it('each finds the other by its lease, and packets pass both ways', async () => {
      startFlanneld();
      await expect.poll(leases).toHaveLength(2);
      const of = (ip: string) => leases().then((all) => all.find(([, value]) => value.includes(`"${ip}"`))!);
      const [[ripstopKey, ripstop], [flannelKey, flannel]] = [await of(node(1).ip), await of(node(2).ip)];
      // The same bytes, except for addresses.
      const shape = (value: string, ip: string) =>
        value.replace(ip, 'IP').replace(/[0-9a-f]{2}(:[0-9a-f]{2}){5}/, 'MAC');
      expect(shape(ripstop, node(1).ip)).toBe(shape(flannel, node(2).ip));
      const cidr = (key: string) => key.slice(SUBNETS.length).replace('-', '/');
      await expect.poll(() => routes(1)).toContain(cidr(flannelKey));
      await expect.poll(() => routes(2)).toContain(cidr(ripstopKey));
      const argv = ['-n', '-c', '3', '-i', '0.2', '-W', '2', podOf(node(1)).ip];
      await run('ping', argv, { netns: netnsPath(node(2).netns) });
    });

    it('when the lease of one is removed, the other removes its routes', async () => {
      await stopFlanneld();
      const [flannelKey] = (await leases()).find(([, value]) => value.includes(`"${node(2).ip}"`))!;
      await etcd.remove(flannelKey);
      await expect.poll(() => routes(1)).toEqual([]);
    });
  },
);
