// SPDX-License-Identifier: Apache-2.0
/**
 * Packets of flows that conntrack translates must not bypass it: from_pod and from_wire with each entry of stack_flows.
 */
import type { Struct } from '../../src/dataplane/codec.ts';
import type { Endpoint } from '../../src/dataplane/desired.ts';
import { icmp, ip, protocols, tcp, udp } from '../support/packets.ts';
import { type Fixture, runFixtures } from './support.ts';
import { chosenOf, delivered, encapsulated, podFrame, wireFrame } from './frames.ts';
import { type Side, sides, v6 } from './node.ts';

const { tcp: TCP, udp: UDP } = protocols;
const payload = tcp({ src: 80, dst: 40000 });

const flow = (src: string, dst: string, over: Partial<Struct<'flow'>> = {}): Struct<'flow'> => ({
  src,
  dst,
  src_port: 80,
  dst_port: 40000,
  protocol: TCP,
  ...over,
});

/** Makes fixtures for one family. */
function wordsOf(side: Side) {
  const { sender, near } = side.pods;
  const far = side.podOf(1, 7);
  return {
    outgoing: (says: string, fixture: Partial<Fixture>): Fixture => ({
      says,
      packet: podFrame(side, { dst: far }, payload),
      verdict: 'kernel translated',
      remembered: { pod: sender, flows: [flow(sender.ip, far)] },
      ...fixture,
    }),
    fastOut: {
      verdict: 'fast encap',
      out: (packet: Uint8Array) =>
        encapsulated(
          side,
          side.peers.one,
          ip({ src: sender.ip, dst: far, protocol: TCP, ttl: 63 }, payload),
          chosenOf(side, packet),
        ),
    } as const,
    local: (says: string, fixture: Partial<Fixture>): Fixture => ({
      says,
      packet: podFrame(side, { dst: near.ip }, payload),
      verdict: 'kernel translated',
      ...fixture,
    }),
    incoming: (says: string, fixture: Partial<Fixture>): Fixture => ({
      says,
      packet: wireFrame(side, {}, payload),
      verdict: 'kernel translated',
      remembered: { pod: near, flows: [flow(far, near.ip)] },
      ...fixture,
    }),
    fastIn: {
      verdict: 'fast decap',
      out: delivered(near, ip({ src: far, dst: near.ip, protocol: TCP, ttl: 62 }, payload)),
    } as const,
    /** ICMP to another node and back, which takes the fast path in spite of translated flows. */
    pingOut: (says: string, body: Uint8Array): Fixture => ({
      says,
      packet: podFrame(side, { dst: far, protocol: side.icmp }, body),
      verdict: 'fast encap',
      remembered: { pod: sender, flows: [flow(sender.ip, far)] },
      out: (packet: Uint8Array) =>
        encapsulated(
          side,
          side.peers.one,
          ip({ src: sender.ip, dst: far, protocol: side.icmp, ttl: 63 }, body),
          chosenOf(side, packet),
        ),
    }),
    pingIn: (says: string, body: Uint8Array): Fixture => ({
      says,
      packet: wireFrame(side, { inner: { protocol: side.icmp } }, body),
      verdict: 'fast decap',
      remembered: { pod: near, flows: [flow(far, near.ip)] },
      out: delivered(near, ip({ src: far, dst: near.ip, protocol: side.icmp, ttl: 62 }, body)),
    }),
    ping: icmp(side.family === 4 ? 8 : 128),
    /** A destination unreachable that quotes a packet from `src` to `dst`. */
    unreachable: (src: string, dst: string, body: Uint8Array, protocol: number = TCP): Uint8Array =>
      icmp(side.family === 4 ? 3 : 1, Uint8Array.from([0, 0, 0, 0, ...ip({ src, dst, protocol }, body)])),
  };
}

for (const side of sides) {
  const { sender, near } = side.pods;
  const far = side.podOf(1, 7);
  const { outgoing, fastOut, local, incoming, fastIn, pingOut, pingIn, ping, unreachable } = wordsOf(side);
  /** The opposite direction of the remembered flows, whose packets their ICMP errors quote. */
  const back = tcp({ src: 40000, dst: 80 });
  const cutOff = back.subarray(0, 3);

  runFixtures('from_pod', `IPv${side.family}`, {
    'a translated flow to another node': [
      outgoing('goes through the kernel path', {}),
      outgoing('goes through the kernel path over UDP', {
        packet: podFrame(side, { dst: far, protocol: UDP }, udp({ src: 80, dst: 40000 })),
        remembered: { pod: sender, flows: [flow(sender.ip, far, { protocol: UDP })] },
      }),
      outgoing('leaves alone a flow from another port', {
        remembered: { pod: sender, flows: [flow(sender.ip, far, { src_port: 81 })] },
        ...fastOut,
      }),
      outgoing('leaves alone a flow to another port', {
        remembered: { pod: sender, flows: [flow(sender.ip, far, { dst_port: 40001 })] },
        ...fastOut,
      }),
      outgoing('leaves alone the same ports over UDP', {
        remembered: { pod: sender, flows: [flow(sender.ip, far, { protocol: UDP })] },
        ...fastOut,
      }),
      outgoing('leaves alone the same ports to another pod', {
        remembered: { pod: sender, flows: [flow(sender.ip, side.podOf(1, 8))] },
        ...fastOut,
      }),
      outgoing('is of one direction: the one of the packet’s own addresses and ports', {
        remembered: { pod: sender, flows: [flow(far, sender.ip, { src_port: 40000, dst_port: 80 })] },
        ...fastOut,
      }),
      outgoing('of another pod does not matter', {
        remembered: { pod: near, flows: [flow(sender.ip, far)] },
        ...fastOut,
      }),
      outgoing('has the ICMP errors that quote its opposite direction', {
        packet: podFrame(side, { dst: far, protocol: side.icmp }, unreachable(far, sender.ip, back)),
      }),
      outgoing('has ICMP errors that may quote it', {
        packet: podFrame(side, { dst: far, protocol: side.icmp }, unreachable(far, sender.ip, cutOff)),
      }),
      outgoing('has ICMP errors that quote too little', {
        packet: podFrame(side, { dst: far, protocol: side.icmp }, icmp(1 + 2 * Number(side.family === 4))),
      }),
      pingOut(
        'does not take an ICMP error along that quotes another flow',
        unreachable(far, sender.ip, payload),
      ),
      pingOut(
        'does not take an ICMP error along that quotes a ping',
        unreachable(far, sender.ip, ping, side.icmp),
      ),
      pingOut('does not take a ping along, whose other direction is not taken either', ping),
      outgoing('has packets whose ports are truncated', {
        packet: podFrame(side, { dst: far }, new Uint8Array(3)),
      }),
    ],
    'a translated flow on this node': [
      local('of the sender goes through the kernel path', {
        remembered: { pod: sender, flows: [flow(sender.ip, near.ip)] },
      }),
      local('of the receiver goes through the kernel path', {
        remembered: { pod: near, flows: [flow(sender.ip, near.ip)] },
      }),
    ],
    'an endpoint whose flows did not fit the map': [
      outgoing('sends everything through the kernel path', { remembered: { pod: sender, overflow: true } }),
      outgoing('sends what has no ports through the kernel path', {
        packet: podFrame(side, { dst: far, protocol: side.icmp }, ping),
        remembered: { pod: sender, overflow: true },
      }),
      local('gets everything of this node through the kernel path', {
        remembered: { pod: near, overflow: true },
      }),
    ],
  });

  runFixtures('from_wire', `IPv${side.family}`, {
    'a translated flow from another node': [
      incoming('goes through the kernel path', {}),
      incoming('leaves alone other flows', {
        remembered: { pod: near, flows: [flow(far, near.ip, { src_port: 81 })] },
        ...fastIn,
      }),
      incoming('of another pod does not matter', {
        remembered: { pod: sender, flows: [flow(far, near.ip)] },
        ...fastIn,
      }),
      incoming('has packets without ports', {
        packet: wireFrame(side, { inner: { protocol: protocols.gre } }, payload),
      }),
      incoming('has the ICMP errors that quote its opposite direction', {
        packet: wireFrame(side, { inner: { protocol: side.icmp } }, unreachable(near.ip, far, back)),
      }),
      pingIn(
        'does not take an ICMP error along that quotes another flow',
        unreachable(near.ip, far, payload),
      ),
      pingIn(
        'does not take an ICMP error along that quotes a ping',
        unreachable(near.ip, far, ping, side.icmp),
      ),
      pingIn('does not take a ping along, whose other direction is not taken either', ping),
    ],
    'an endpoint whose flows did not fit the map': [
      incoming('gets everything through the kernel path', { remembered: { pod: near, overflow: true } }),
    ],
  });

  runFixtures('xdp_from_wire', `IPv${side.family}`, {
    'a translated flow from another node': [incoming('stays in its tunnel, for the kernel path', {})],
  });
}

// endpoint_state has too few slots for all IPv6 addresses, so some pods share one.
const { outgoing, fastOut } = wordsOf(v6);
const shares: Endpoint = { ...v6.pods.near, ip: 'fd00:42:0:3:1::5:10' };
const sharesNot: Endpoint = { ...shares, ip: 'fd00:42:0:3:1::5:11' };
runFixtures('from_pod', 'IPv6 addresses that end alike', {
  'share the knowledge that there are translated flows': [
    outgoing('and look up flows without a match', {
      remembered: { pod: shares, flows: [flow(shares.ip, v6.podOf(1, 7))] },
      ...fastOut,
    }),
    outgoing('and send what has no ports through the kernel path', {
      packet: podFrame(v6, { protocol: protocols.gre }, payload),
      remembered: { pod: shares, flows: [flow(shares.ip, v6.podOf(1, 7))] },
    }),
    outgoing('and both stay on the kernel path when they did not fit the map', {
      remembered: { pod: shares, overflow: true },
    }),
    outgoing('but not with addresses that end differently', {
      remembered: { pod: sharesNot, overflow: true },
      ...fastOut,
    }),
  ],
});
