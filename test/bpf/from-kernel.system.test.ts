// SPDX-License-Identifier: Apache-2.0
/** to_pod and to_vtep let everything pass, and remember translated flows. */
import { describe, expect, it } from 'vitest';
import { ethernet, type EthernetFields, icmp, ip, protocols, tcp, udp } from '../support/packets.ts';
import { describeOnNode, type Fixture, runFixtures } from './support.ts';
import { ipBytes, type IpFields, withOptions } from './frames.ts';
import { type Side, sides } from './node.ts';

const { tcp: TCP, udp: UDP } = protocols;
const segment = tcp({ src: 80, dst: 40000 });

/** The two hooks mirror each other: to_pod sees packets to a local pod, to_vtep packets from it. */
const hooks = ['to_pod', 'to_vtep'] as const;
type Hook = (typeof hooks)[number];

const ours = { to_pod: 'dst', to_vtep: 'src' } as const;
const theirs = { to_pod: 'src', to_vtep: 'dst' } as const;

/** Sender and receiver of a packet at the hook. */
function endsOf({ podOf, pods }: Side, hook: Hook): { src: string; dst: string } {
  const [far, near] = [podOf(1, 7), pods.near.ip];
  return hook === 'to_pod' ? { src: far, dst: near } : { src: near, dst: far };
}

function frame(
  side: Side,
  hook: Hook,
  fields: IpFields = {},
  payload: Uint8Array = segment,
  ether: Partial<EthernetFields> = {},
): Uint8Array {
  const { near } = side.pods;
  const type = side.family === 4 ? 0x0800 : 0x86dd;
  return ethernet(
    { dst: near.podMac, src: near.hostMac, type, ...ether },
    ip({ ...endsOf(side, hook), protocol: TCP, ...fields }, payload),
  );
}

/** The flow of replies to the frame above. */
function replyTo(side: Side, hook: Hook) {
  const { src, dst } = endsOf(side, hook);
  return { src: dst, dst: src, src_port: 40000, dst_port: 80, protocol: TCP };
}

function fixturesOf(side: Side, hook: Hook): Record<string, Fixture[]> {
  const { podOf, pods } = side;
  const is = (
    says: string,
    verdict: Fixture['verdict'],
    fields: IpFields = {},
    payload = segment,
    ether: Partial<EthernetFields> = {},
  ): Fixture => ({ says, verdict, packet: frame(side, hook, fields, payload, ether) });
  return {
    'of what it need not look at': [
      is('lets ARP pass', 'kernel not_ip', {}, segment, { type: 0x0806 }),
      is('lets another IP version pass', 'kernel malformed', { version: 10 - side.family }),
      is('lets IP options pass', 'kernel ip_options', ...withOptions(side)),
      is('lets packets from the world pass', 'kernel outside', { src: side.world }),
      is('lets packets to the world pass', 'kernel outside', { dst: side.world }),
      is('lets packets pass that concern no local pod', 'kernel no_endpoint', { [ours[hook]]: podOf(3, 99) }),
      is('lets packets pass that concern only a pod of another node', 'kernel no_endpoint', {
        [ours[hook]]: podOf(2, 7),
      }),
    ],
    'of what conntrack does not translate': [
      is('counts a plain flow as untranslated', 'kernel untranslated'),
      is(
        'counts plain UDP as untranslated',
        'kernel untranslated',
        { protocol: UDP },
        udp({ src: 80, dst: 40000 }),
      ),
      is('counts a flow between two local pods as untranslated', 'kernel untranslated', {
        [theirs[hook]]: pods.sender.ip,
      }),
      is('does not ask conntrack about a ping', 'kernel untranslated', { protocol: side.icmp }, icmp(0)),
      is('does not ask conntrack about a fragment', 'kernel untranslated', { fragment: 0x00b9 }),
      is(
        'asks nothing about a packet whose ports are cut off (row 46)',
        'kernel untranslated',
        {},
        new Uint8Array(3),
      ),
    ],
    'of what is known to be translated': [
      {
        ...is('recognizes the flow by its reply', 'kernel translated'),
        remembered: { pod: pods.near, flows: [replyTo(side, hook)] },
      },
      {
        ...is('does not mistake the flow’s own direction for its reply', 'kernel untranslated'),
        remembered: {
          pod: pods.near,
          flows: [{ ...replyTo(side, hook), ...endsOf(side, hook), src_port: 80, dst_port: 40000 }],
        },
      },
    ],
  };
}

for (const side of sides)
  for (const hook of hooks) runFixtures(hook, `IPv${side.family}`, fixturesOf(side, hook));

describeOnNode('to_pod and to_vtep, packet by packet', (node) => {
  describe.each(sides)('IPv$family', (side) => {
    it.each(hooks)('%s lets truncated packets pass (row 46)', (hook) => {
      const whole = frame(side, hook);
      for (let size = 14 + ipBytes[side.family]; size < whole.length; size++) {
        const { verdict, packet } = node().run(hook, whole.subarray(0, size));
        expect({ size, verdict }).toEqual({ size, verdict: 'kernel' });
        expect(packet).toEqual(whole.subarray(0, size));
      }
    });

    it.each(hooks)('%s does not remember plain flows', (hook) => {
      for (let port = 1; port <= 50; port++)
        node().run(hook, frame(side, hook, {}, tcp({ src: port, dst: 80 })));
      expect([...node().tables.stack_flows]).toEqual([]);
      expect([...node().tables.endpoint_state].filter(([, state]) => state.stack_flows > 0)).toEqual([]);
    });
  });
});
