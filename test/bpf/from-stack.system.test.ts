// SPDX-License-Identifier: Apache-2.0
/** to_pod and to_vtep decide nothing: they look, remember, and let everything go on. */
import { describe, expect, it } from 'vitest';
import type { ProgramName } from '../../src/dataplane/programs.ts';
import { ethernet, type EthernetFields, type Ipv4Fields, ipv4, tcp, udp } from '../support/packets.ts';
import { describeOnNode, type Fixture, runFixtures } from './fixtures.ts';
import { ICMP, TCP } from './frames.ts';
import { pods } from './node.ts';

const { near, sender } = pods;
const segment = tcp({ src: 80, dst: 40000 });

/** The two hooks mirror each other: to_pod looks at what comes for our pod, to_vtep at what leaves it. */
const hooks = {
  to_pod: { src: '10.42.1.7', dst: near.ip },
  to_vtep: { src: near.ip, dst: '10.42.1.7' },
} as const satisfies Partial<Record<ProgramName, Partial<Ipv4Fields>>>;
type Hook = keyof typeof hooks;

function frame(
  hook: Hook,
  ip: Partial<Ipv4Fields> = {},
  payload: Uint8Array = segment,
  ether: Partial<EthernetFields> = {},
): Uint8Array {
  return ethernet(
    { dst: near.podMac, src: near.hostMac, ...ether },
    ipv4({ ...hooks[hook], protocol: TCP, ...ip }, payload),
  );
}

/** The flow that answers the frame above. */
const replyTo = (hook: Hook) => ({
  src: hooks[hook].dst,
  dst: hooks[hook].src,
  src_port: 40000,
  dst_port: 80,
  protocol: TCP,
});

const ours = { to_pod: 'dst', to_vtep: 'src' } as const;
const theirs = { to_pod: 'src', to_vtep: 'dst' } as const;

const fixtures = (hook: Hook): Record<string, Fixture[]> => {
  const is = (says: string, verdict: Fixture['verdict'], packet: Uint8Array): Fixture => ({
    says,
    verdict,
    packet,
  });
  return {
    'of what it need not look at': [
      is('lets ARP go on', 'stack not_ipv4', frame(hook, {}, segment, { type: 0x0806 })),
      is('lets IPv6 go on', 'stack not_ipv4', frame(hook, {}, segment, { type: 0x86dd })),
      is('lets IP options go on', 'stack ip_options', frame(hook, { options: [1, 1, 1, 0] })),
      is('lets go on what the world sends', 'stack outside', frame(hook, { src: '8.8.8.8' })),
      is('lets go on what is sent to the world', 'stack outside', frame(hook, { dst: '8.8.8.8' })),
      is(
        'lets go on what concerns no pod of ours',
        'stack no_endpoint',
        frame(hook, { [ours[hook]]: '10.42.3.99' }),
      ),
      is(
        'lets go on what concerns a pod of another node only',
        'stack no_endpoint',
        frame(hook, { [ours[hook]]: '10.42.2.7' }),
      ),
    ],
    'of what conntrack does not translate': [
      is('calls a plain flow plain', 'stack untranslated', frame(hook)),
      is(
        'calls plain UDP plain',
        'stack untranslated',
        frame(hook, { protocol: 17 }, udp({ src: 80, dst: 40000 })),
      ),
      is(
        'calls a flow between two pods of ours plain',
        'stack untranslated',
        frame(hook, { [theirs[hook]]: sender.ip }),
      ),
      is(
        'asks nothing about a ping',
        'stack untranslated',
        frame(hook, { protocol: ICMP }, new Uint8Array(8)),
      ),
      is('asks nothing about a fragment', 'stack untranslated', frame(hook, { fragment: 0x00b9 })),
      is(
        'asks nothing about a packet whose ports are cut off (row 46)',
        'stack untranslated',
        frame(hook, {}, new Uint8Array(3)),
      ),
    ],
    'of what is known to be translated': [
      {
        ...is('knows the flow by its reply', 'stack translated', frame(hook)),
        remembered: { pod: near, flows: [replyTo(hook)] },
      },
      {
        ...is('does not take the flow’s own direction for its reply', 'stack untranslated', frame(hook)),
        remembered: {
          pod: near,
          flows: [{ ...replyTo(hook), ...hooks[hook], src_port: 80, dst_port: 40000 }],
        },
      },
    ],
  };
};

for (const hook of ['to_pod', 'to_vtep'] as const) runFixtures(hook, fixtures(hook));

describeOnNode('to_pod and to_vtep, packet by packet', (node) => {
  describe.each(['to_pod', 'to_vtep'] as const)('%s', (hook) => {
    it('lets everything go on that is cut anywhere (row 46)', () => {
      const whole = frame(hook);
      for (let size = 34; size < whole.length; size++) {
        const { verdict, packet } = node().run(hook, whole.subarray(0, size));
        expect({ size, verdict }).toEqual({ size, verdict: 'stack' });
        expect(packet).toEqual(whole.subarray(0, size));
      }
    });

    it('remembers nothing of plain flows', () => {
      for (let port = 1; port <= 50; port++) node().run(hook, frame(hook, {}, tcp({ src: port, dst: 80 })));
      expect([...node().tables.stack_flows]).toEqual([]);
      expect([...node().tables.endpoint_state].filter(([, state]) => state.stack_flows > 0)).toEqual([]);
    });
  });
});
