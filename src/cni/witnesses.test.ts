// SPDX-License-Identifier: Apache-2.0
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { parseCidr } from '../net/ip.ts';
import { HostLocalStore } from './host-local.ts';
import { contradictions, hearWitnesses, type SeenPod } from './witnesses.ts';

const pod: SeenPod = { ip: '10.42.1.7', podMac: '02:00:00:00:00:07', device: 'veth7' };
const BLOCK = parseCidr('10.42.1.0/24');

describe('what the kernel says of a pod on a bridge', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'witnesses-'));
    for (const name of ['networks/cbr0', 'results']) mkdirSync(join(dir, name), { recursive: true });
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  const lease = (ip: string) => writeFileSync(join(dir, 'networks/cbr0', ip), 'c7\r\neth0');
  /** As libcni writes it, of the plugin `bridge`. */
  const note = (mac: string, veth: string, ip = pod.ip) => {
    const interfaces = [
      { name: 'cni0', mac: '02:00:00:00:00:b0' },
      { name: veth, mac: '02:00:00:00:00:aa' },
      { name: 'eth0', mac, sandbox: '/var/run/netns/c7' },
    ];
    const result = { cniVersion: '1.0.0', interfaces, ips: [{ address: `${ip}/24`, interface: 2 }] };
    const kept = { kind: 'cniCacheV1', containerId: 'c7', ifName: 'eth0', networkName: 'cbr0', result };
    writeFileSync(join(dir, 'results/cbr0-c7-eth0'), JSON.stringify(kept));
  };
  const heard = async (...pods: SeenPod[]) =>
    contradictions(pods, await hearWitnesses(new HostLocalStore(join(dir, 'networks')), [BLOCK]));

  it('stands while nobody says anything', async () => {
    expect(await heard(pod)).toEqual([]);
    writeFileSync(join(dir, 'results/other'), 'no JSON');
    writeFileSync(join(dir, 'results/older'), '{"cniVersion": "0.3.1", "ips": []}');
    rmSync(join(dir, 'networks'), { recursive: true });
    expect(await heard(pod)).toEqual([]);
  });

  it('stands where all say the same', async () => {
    lease(pod.ip);
    note('02:00:00:00:00:07', 'veth7');
    expect(await heard(pod)).toEqual([]);
  });

  it.each([
    ['another MAC', () => note('02:00:00:00:00:08', 'veth7'), /its pod has 02:00:00:00:00:08$/],
    ['another host veth', () => note('02:00:00:00:00:07', 'veth8'), /its pod is behind cni0 or veth8$/],
    [
      'a lease of other addresses alone',
      () => lease('10.42.1.9'),
      /host-local has leased that address to nobody$/,
    ],
  ])('is contradicted by %s', async (_, say, what) => {
    say();
    const [why, ...rest] = await heard(pod);
    expect(why).toMatch(/^the kernel has 10.42.1.7 at 02:00:00:00:00:07 behind veth7, and /);
    expect(why).toMatch(what);
    expect(rest).toEqual([]);
  });

  it('is none of the business of leases and notes about other networks', async () => {
    lease('192.0.2.9');
    note('02:00:00:00:00:08', 'veth8', '192.0.2.9');
    expect(await heard(pod)).toEqual([]);
  });
});
