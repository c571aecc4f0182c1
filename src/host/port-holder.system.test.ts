// SPDX-License-Identifier: Apache-2.0
import { once } from 'node:events';
import { spawn } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { listLinks } from './links.ts';
import { testNode, whyNoNetns, type TestNetns } from './netns.support.ts';
import { commandIn } from './run.ts';
import { ensureVxlan, type VtepDevice } from './vtep-device.ts';

const skip = await whyNoNetns();

const DEVICE: VtepDevice = {
  name: 'flannel.1',
  vni: 1,
  port: 8472,
  localIp: '192.168.9.1',
  uplink: 'eth0',
  mtu: 1450,
  mac: '02:42:00:00:00:01',
  address: '10.42.1.0/32',
};

describe.skipIf(skip)('a VXLAN port that somebody else has (row 94)', () => {
  const refusal = async (node: TestNetns): Promise<unknown> =>
    ensureVxlan(DEVICE, await listLinks(node.options), node.options).then(() => 'none', String);

  it('is named with the device that has it, and free once that has gone', async () => {
    await using node = await testNode();
    await node.ip('link add leftover type vxlan external dstport 8472', 'link set leftover up');
    expect(await refusal(node)).toBe(
      'RipstopError: flannel.1 needs UDP port 8472: the VXLAN device leftover has it; ' +
        'delete that with "ip link delete leftover"',
    );
    await node.ip('link delete leftover');
    expect(await refusal(node)).toBe('none');
  });

  it('is named with the process that has it, on an address of either family', async () => {
    await using node = await testNode();
    for (const address of ['192.168.9.1', '::']) {
      const type = address === '::' ? 'udp6' : 'udp4';
      const script = `require('node:dgram').createSocket('${type}').bind(8472, '${address}', () => console.log('bound'))`;
      const [file, ...args] = commandIn(node.path, process.execPath, ['-e', script]);
      const holder = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
      await once(holder.stdout, 'data');
      expect(await refusal(node)).toMatch(
        new RegExp(
          `^RipstopError: flannel.1 needs UDP port 8472: the process ".+" \\(PID ${holder.pid}\\) has it`,
        ),
      );
      const closed = once(holder, 'close');
      holder.kill();
      await closed;
    }
  });
});
