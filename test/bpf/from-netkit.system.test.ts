// SPDX-License-Identifier: Apache-2.0
import { describe, expect, it } from 'vitest';
import { protocols, tcp, udp } from '../../src/net/packets.ts';
import { type IpFields, podFlow, podFrame } from './frames.ts';
import { FROM_FAST_PATH, settings, type Side, sides, tunnel, v4 } from './node.ts';
import { describeOnNode } from './support.ts';

/** A tag before what follows the MAC addresses: IEEE 802.1Q. */
function tagged(frame: Uint8Array, vlan: number): Uint8Array {
  const at = 12;
  return Uint8Array.of(...frame.subarray(0, at), 0x81, 0, vlan >> 8, vlan & 255, ...frame.subarray(at));
}

/** What only a node may send. */
function toVtep({ peers }: Side): [fields: IpFields, payload: Uint8Array] {
  return [{ dst: peers.one.vtepIp, protocol: protocols.udp }, udp({ src: 40_000, dst: tunnel.port })];
}

describeOnNode(
  'from_netkit',
  (node) => {
    describe.each(sides)('IPv$family', (side) => {
      const near = { dst: side.pods.near.ip };
      const flows = [{ flow: podFlow(side) }, { flow: podFlow(side, near) }];
      it.each([
        ['to a pod of another node', podFrame(side)],
        ['to a pod of this node', podFrame(side, near)],
        ['of a flow that nobody has seen', podFrame(side, {}, tcp({ src: 40001, dst: 80 }))],
        ['from an address that is not its own', podFrame(side, { src: side.pods.near.ip })],
        ['with VXLAN to a node', podFrame(side, ...toVtep(side))],
        ['that is cut short', podFrame(side).subarray(0, 57)],
      ])('decides as from_pod does about a packet %s', (_says, packet) => {
        using _ = node().learn(flows);
        const [asReceived, asSent] = (['from_pod', 'from_netkit'] as const).map((program) => {
          const { beside: _beside, ...outcome } = node().run(program, packet);
          // The outer IP id counts up.
          return { ...outcome, packet: outcome.packet.length };
        });
        expect(asSent).toEqual(asReceived);
      });

      it('sends to a pod of this node through its device, where to_pod knows it by its note', () => {
        using _ = node().learn(flows);
        expect(node().run('from_pod', podFrame(side, near)).beside.note).toBe(0);
        const { packet, beside } = node().run('from_netkit', podFrame(side, near));
        expect(beside.note).toBe(FROM_FAST_PATH);
        const seen = node().run('to_pod', packet, { note: beside.note });
        expect([seen.verdict, seen.counted]).toEqual(['kernel', '']);
      });
    });

    // As of a packet that was received, whose tag the kernel has taken off. Our nft rules judge what is behind a second one.
    it.each([
      ['a tag of VLAN 0 before the pod’s own address', [0], {}, 'fast encap'],
      ['a tag of VLAN 0 before another address', [0], { src: v4.pods.near.ip }, 'drop other_source'],
      ['two tags of VLAN 0', [0, 0], {}, 'kernel not_ip'],
      ['a tag of VLAN 0 before one of VLAN 5', [0, 5], {}, 'kernel not_ip'],
      ['a tag of VLAN 5', [5], {}, 'kernel not_ip'],
    ])('%s', (_says, vlans, fields, reason) => {
      using _ = node().learn([{ flow: podFlow(v4), ttl: 64, dscp: 0 }]);
      const frame = vlans.reduceRight(tagged, podFrame(v4, fields));
      expect(node().run('from_netkit', frame).counted).toBe(`from_pod: ${reason}`);
    });
  },
  { ...settings, netkit: true },
);
