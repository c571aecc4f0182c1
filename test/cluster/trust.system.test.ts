// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { run } from '../../src/host/run.ts';
import { startIn } from '../../src/lab/testing.ts';
import { ethernet, ipv4, udp, vxlan } from '../support/packets.ts';
import { inNetns, missingHere, podOf, ripstopJson, useLab } from './support.ts';

const missing = missingHere('tcpdump');

/** A datagram in VXLAN, from an address that is nobody's, as a pod would forge it for another. */
function forged(vtepMac: string, to: string): Uint8Array {
  const inner = ipv4({ src: '10.42.9.9', dst: to, protocol: 17 }, udp({ src: 666, dst: 6666 }));
  return vxlan({}, ethernet({ dst: vtepMac, src: '02:00:00:00:00:66' }, inner));
}

describe.skipIf(missing)('a pod that talks VXLAN (row 63)', () => {
  const cluster = useLab('trust', { nodes: 2, pods: 2 });

  it('reaches no other pod, whichever address of a node it tries', async () => {
    const [near, far] = cluster.nodes;
    const forger = podOf(near, 0);
    const victims = [podOf(near, 1), podOf(far, 0)];
    const dumps = victims.map(({ netns }) =>
      startIn(netns, 'tcpdump', '-l', '-nn', '-i', 'eth0', 'udp', 'port', '6666'),
    );
    await Promise.all(dumps.map((dump) => dump.prints(/listening/)));

    for (const [node, victim] of [near!, far!].map((node, i) => [node, victims[i]!] as const)) {
      const status = await ripstopJson<{ agent: { families: { vtep: { mac: string } }[] } }>(
        cluster.lab,
        node,
        'status',
      );
      const packet = Buffer.from(forged(status.agent.families[0]!.vtep.mac, victim.ip)).toString('hex');
      const base = node.podCIDR.replace(/0\/24$/, '');
      for (const address of [node.ip, `${base}0`, `${base}1`]) {
        const script = `require('node:dgram').createSocket('udp4').send(Buffer.from('${packet}','hex'),8472,'${address}',()=>process.exit())`;
        await run(process.execPath, ['-e', script], inNetns(forger));
      }
    }
    await sleep(200);
    const seen = await Promise.all(dumps.map((dump) => dump.stop()));
    expect(seen.map((output) => output.split('\n').filter((line) => line.includes('10.42.9.9')))).toEqual([
      [],
      [],
    ]);

    const dropped = await ripstopJson<{ reason: string; packets: number }[]>(cluster.lab, near!, 'stats');
    expect(dropped.find(({ reason }) => reason === 'vxlan_from_pod')?.packets).toBe(2);
    const rules = await run('nft', ['list', 'chain', 'inet', 'ripstop', 'input'], inNetns(near!));
    expect(rules).toMatch(/udp dport 8472 counter packets 2 .* drop/);
  });
});
