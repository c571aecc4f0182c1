// SPDX-License-Identifier: Apache-2.0
/** Flows that conntrack translates must not overtake it: what from_pod and from_wire make of them, entry by entry. */
import type { Struct } from '../../src/dataplane/codec.ts';
import { ipv4, tcp, udp } from '../support/packets.ts';
import { type Fixture, runFixtures } from './fixtures.ts';
import { chosenOf, delivered, encapsulated, ICMP, podFrame, TCP, wireFrame } from './frames.ts';
import { peers, pods } from './node.ts';

const { sender, near } = pods;
const payload = tcp({ src: 80, dst: 40000 });
const far = '10.42.1.7';

const flow = (src: string, dst: string, over: Partial<Struct<'flow'>> = {}): Struct<'flow'> => ({
  src,
  dst,
  src_port: 80,
  dst_port: 40000,
  protocol: TCP,
  ...over,
});

const outgoing = (says: string, fixture: Partial<Fixture>): Fixture => ({
  says,
  packet: podFrame({ dst: far }, payload),
  verdict: 'stack translated',
  remembered: { pod: sender, flows: [flow(sender.ip, far)] },
  ...fixture,
});

const fastOut: Partial<Fixture> = {
  verdict: 'fast encap',
  out: (packet) =>
    encapsulated(
      peers.one,
      ipv4({ src: sender.ip, dst: far, protocol: TCP, ttl: 63 }, payload),
      chosenOf(packet),
    ),
};

const local = (says: string, fixture: Partial<Fixture>): Fixture => ({
  says,
  packet: podFrame({ dst: near.ip }, payload),
  verdict: 'stack translated',
  ...fixture,
});

const incoming = (says: string, fixture: Partial<Fixture>): Fixture => ({
  says,
  packet: wireFrame({}, payload),
  verdict: 'stack translated',
  remembered: { pod: near, flows: [flow(far, near.ip)] },
  ...fixture,
});

const fastIn: Partial<Fixture> = {
  verdict: 'fast decap',
  out: delivered(near, ipv4({ src: far, dst: near.ip, protocol: TCP, ttl: 62 }, payload)),
};

/** A destination unreachable: conntrack must translate the packet that it quotes. */
const icmpError = Uint8Array.of(
  3,
  3,
  0xfc,
  0xfc,
  0,
  0,
  0,
  0,
  ...ipv4({ src: far, dst: sender.ip }, udp({ src: 1, dst: 2 })),
);

runFixtures('from_pod', {
  'a translated flow to another node': [
    outgoing('goes through the stack', {}),
    outgoing('goes through the stack over UDP', {
      packet: podFrame({ dst: far, protocol: 17 }, udp({ src: 80, dst: 40000 })),
      remembered: { pod: sender, flows: [flow(sender.ip, far, { protocol: 17 })] },
    }),
    outgoing('does not slow down a flow from another port', {
      remembered: { pod: sender, flows: [flow(sender.ip, far, { src_port: 81 })] },
      ...fastOut,
    }),
    outgoing('does not slow down a flow to another port', {
      remembered: { pod: sender, flows: [flow(sender.ip, far, { dst_port: 40001 })] },
      ...fastOut,
    }),
    outgoing('does not slow down the same ports over UDP', {
      remembered: { pod: sender, flows: [flow(sender.ip, far, { protocol: 17 })] },
      ...fastOut,
    }),
    outgoing('is of one direction: the tuple as the packet carries it', {
      remembered: { pod: sender, flows: [flow(far, sender.ip, { src_port: 40000, dst_port: 80 })] },
      ...fastOut,
    }),
    outgoing('of another pod is not asked about', {
      remembered: { pod: near, flows: [flow(sender.ip, far)] },
      ...fastOut,
    }),
    outgoing('takes a fragment without ports along (row 53)', {
      packet: podFrame({ dst: far, fragment: 0x00b9 }, payload),
    }),
    outgoing('takes a first fragment along, so that the later ones do not overtake it (row 53)', {
      packet: podFrame({ dst: far, fragment: 0x2000 }, tcp({ src: 81, dst: 40000 })),
    }),
    outgoing('takes ICMP errors along, which may quote it', {
      packet: podFrame({ dst: far, protocol: ICMP }, icmpError),
    }),
    outgoing('takes a packet along whose ports are cut off', {
      packet: podFrame({ dst: far }, new Uint8Array(3)),
    }),
  ],
  'a translated flow on this node': [
    local('of the sender goes through the stack', {
      remembered: { pod: sender, flows: [flow(sender.ip, near.ip)] },
    }),
    local('of the receiver goes through the stack', {
      remembered: { pod: near, flows: [flow(sender.ip, near.ip)] },
    }),
  ],
  'an endpoint whose flows did not fit the map': [
    outgoing('sends everything through the stack', { remembered: { pod: sender, overflow: true } }),
    outgoing('sends fragments through the stack', {
      packet: podFrame({ dst: far, fragment: 0x00b9 }, payload),
      remembered: { pod: sender, overflow: true },
    }),
    local('gets everything of this node through the stack', { remembered: { pod: near, overflow: true } }),
  ],
});

runFixtures('from_wire', {
  'a translated flow from another node': [
    incoming('goes through the stack', {}),
    incoming('does not slow down other flows', {
      remembered: { pod: near, flows: [flow(far, near.ip, { src_port: 81 })] },
      ...fastIn,
    }),
    incoming('of another pod is not asked about', {
      remembered: { pod: sender, flows: [flow(far, near.ip)] },
      ...fastIn,
    }),
    incoming('takes a fragment without ports along (row 53)', {
      packet: wireFrame({ inner: { fragment: 0x00b9 } }, payload),
    }),
    incoming('takes ICMP errors along, which may quote it', {
      packet: wireFrame({ inner: { protocol: ICMP } }, icmpError),
    }),
  ],
  'an endpoint whose flows did not fit the map': [
    incoming('gets everything through the stack', { remembered: { pod: near, overflow: true } }),
  ],
});
