// SPDX-License-Identifier: Apache-2.0
/** A node with one family leaves all packets of the other to the kernel path. */
import { tcp, udp } from '../../src/net/packets.ts';
import { type Fixture, runFixtures } from './support.ts';
import { podFrame, wireFrame } from './frames.ts';
import { settings, v4, v6, tunnel } from './node.ts';

for (const [own, other] of [
  [v4, v6],
  [v6, v4],
] as const) {
  const nodeSettings = { ...settings, [other === v4 ? 'v4' : 'v6']: undefined };
  const title = `a node of IPv${own.family} alone`;
  const others = (says: string, verdict: Fixture['verdict'], packet: Uint8Array): Fixture => ({
    says,
    verdict,
    packet,
  });
  runFixtures(
    'from_pod',
    title,
    {
      [`IPv${other.family}`]: [
        others(
          'of two pods of this node is dropped, for pods have no addresses there',
          'drop other_source',
          podFrame(other, { dst: other.pods.near.ip }),
        ),
        others('to another node is dropped, too', 'drop other_source', podFrame(other)),
        others(
          'to a node’s VXLAN is an attack all the same',
          'drop vxlan_from_pod',
          podFrame(other, { dst: other.peers.one.vtepIp, protocol: 17 }, udp({ src: 1, dst: tunnel.port })),
        ),
      ],
    },
    nodeSettings,
  );
  runFixtures(
    'from_wire',
    title,
    {
      [`IPv${other.family}`]: [
        others('in VXLAN takes the kernel path', 'kernel not_vxlan', wireFrame(other)),
      ],
    },
    nodeSettings,
  );
  runFixtures(
    'to_pod',
    title,
    {
      [`IPv${other.family}`]: [
        others(
          'is let go on',
          'kernel no_endpoint',
          podFrame(other, { dst: other.pods.near.ip }, tcp({ src: 1, dst: 2 })),
        ),
      ],
    },
    nodeSettings,
  );
}
