// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import type { Peer } from '../cluster/index.ts';
import type { NodeSettings } from '../dataplane/desired.ts';
import { parseCidr } from '../net/ip.ts';
import type { NodeSnapshot } from './snapshot.ts';
import { Talkers } from './talkers.ts';

const part = (network: string, podCidr: string) => ({
  network: parseCidr(network),
  podCidr: parseCidr(podCidr),
});
const settings = {
  v4: part('10.42.0.0/16', '10.42.0.0/24'),
  v6: part('fd00:42::/56', 'fd00:42::/64'),
} as NodeSettings;

const peers = [
  { name: 'one', podCidr: parseCidr('10.42.1.0/24') },
  { name: 'one', podCidr: parseCidr('fd00:42:0:1::/64') },
  { name: 'two', podCidr: parseCidr('10.42.2.0/24') },
] as Peer[];

const node = {
  pods: { value: [{ podNamespace: 'default', podName: 'web', containerId: 'abc', hostIfindex: 7 }] },
  bridged: { value: { pods: [{ ip: '10.42.0.9', port: 8 }] } },
} as unknown as NodeSnapshot;

const fast = (bytes: number) => ({ flows: 2, packets: bytes / 100, bytes });
const kernel = (bytes: number) => ({ packets: bytes / 100, bytes });

it('peers and pods are named, both families of a peer are one, and who is gone is left out', () => {
  const { peers: found, pods } = new Talkers().find(
    {
      sums: {
        peers: new Map([
          ['1', fast(1000)],
          ['fd00:42:0:1::', fast(500)],
          ['9', fast(100)],
        ]),
        endpoints: new Map([[8, fast(300)]]),
        services: new Map(),
      },
      carried: {
        peers: new Map([
          ['1', kernel(200)],
          ['2', kernel(100)],
        ]),
        endpoints: new Map([[7, kernel(400)]]),
        services: new Map(),
      },
    },
    settings,
    peers,
    node,
  );
  expect(found).toEqual([
    { name: ['one'], flows: 4, packets: 15, bytes: 1500, kernelPackets: 2, kernelBytes: 200 },
    { name: ['two'], flows: 0, packets: 0, bytes: 0, kernelPackets: 1, kernelBytes: 100 },
  ]);
  expect(pods).toEqual([
    { name: ['', '10.42.0.9'], flows: 2, packets: 3, bytes: 300, kernelPackets: 0, kernelBytes: 0 },
    { name: ['default', 'web'], flows: 0, packets: 0, bytes: 0, kernelPackets: 4, kernelBytes: 400 },
  ]);
});
