// SPDX-License-Identifier: Apache-2.0
/**
 * Which packets the flow table takes to the fast path, and what is noted of the others, so that their flows can be
 * learned: at from_pod, from_wire and xdp_from_wire alike.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { describe, expect, it } from 'vitest';
import { readCounters } from '../../src/dataplane/counters.ts';
import { layout } from '../../src/dataplane/layout.gen.ts';
import { FLOW_LIFETIME_MS } from '../../src/dataplane/desired.ts';
import { ethernet, icmp, ip, protocols, tcp, udp } from '../../src/net/packets.ts';
import { describeOnNode, type Fixture, runFixtures } from './support.ts';
import { type IpFields, podFlow, podFrame, wireFlow, wireFrame } from './frames.ts';
import {
  directSettings,
  type Flow,
  type LearnedFlow,
  headOf,
  learnFlows,
  noteArrival,
  type NotedArrival,
  type Side,
  sides,
  tableOf,
  TEST_RUN_IFINDEX,
  TEST_RUN_MAC,
  type TestNode,
  testRun,
} from './node.ts';

const { udp: UDP } = protocols;
const hooks = ['from_pod', 'from_wire', 'xdp_from_wire'] as const;
type Hook = (typeof hooks)[number];

/** As in bpf/flows.h. */
const GAP_NS = 2_000_000;
const WITHOUT_GAP_NS = 20_000_000;

const ports = { src: 40000, dst: 80 };
const segment = tcp(ports);

/** A packet at the hook, between a pod of this node and one of another node; and its flow. */
function arrivalAt(side: Side, hook: Hook, payload = segment, fields: IpFields = {}) {
  return hook === 'from_pod'
    ? { packet: podFrame(side, fields, payload), flow: podFlow(side, fields, payload) }
    : { packet: wireFrame(side, { inner: fields }, payload), flow: wireFlow(side, fields, payload) };
}

function fixturesOf(side: Side, hook: Hook): Record<string, readonly Fixture[]> {
  const { packet, flow } = arrivalAt(side, hook);
  const { src, dst, src_port, dst_port } = flow;
  const kernel = (says: string, verdict: Fixture['verdict'], ...flows: LearnedFlow[]): Fixture => ({
    says,
    packet,
    verdict,
    flows,
  });
  const beside = (says: string, over: Partial<Flow>): Fixture =>
    kernel(`is new beside one ${says}`, 'kernel new_flow', { flow: { ...flow, ...over } });
  return {
    'of a flow in the table': [
      kernel('asks the kernel when it comes in elsewhere', 'kernel other_way', { flow, ifindex: 7 }),
      kernel('asks the kernel when it has another TTL', 'kernel other_way', { flow, ttl: 9, dscp: 0 }),
      kernel('asks the kernel when it has another DSCP', 'kernel other_way', { flow, ttl: 64, dscp: 46 }),
      kernel('asks the kernel when something has changed since', 'kernel old_epoch', { flow, epoch: 1 }),
      kernel('asks the kernel once it was learned too long ago', 'kernel expired', {
        flow,
        ageMs: FLOW_LIFETIME_MS + 1000,
      }),
      kernel('does not believe a time that is still to come', 'kernel expired', { flow, ageMs: -60_000 }),
    ],
    'of a flow that is not in the table': [
      kernel('is new', 'kernel new_flow'),
      beside('in the opposite direction', { src: dst, dst: src, src_port: dst_port, dst_port: src_port }),
      beside('of the same ports over UDP', { protocol: UDP }),
      beside('from another port', { src_port: 81 }),
      beside('to another port', { dst_port: 81 }),
      beside('from another pod', { src: side.podOf(2, 9) }),
      beside('to another pod', { dst: side.podOf(2, 9) }),
    ],
  };
}

for (const side of sides)
  for (const hook of hooks) runFixtures(hook, `IPv${side.family}, a packet`, fixturesOf(side, hook));

/** TCP's flags: RFC 9293, 3168. */
const FLAGS = { FIN: 1, SYN: 2, RST: 4, PSH: 8, ACK: 16, URG: 32, ECE: 64, CWR: 128 } as const;
type Flag = keyof typeof FLAGS;
const flagged = (flags: readonly Flag[]): Uint8Array =>
  tcp({ ...ports, flags: flags.reduce((sum, flag) => sum | FLAGS[flag], 0) });

const isEnd = (payload: Uint8Array): boolean => (payload[13]! & (FLAGS.FIN | FLAGS.SYN | FLAGS.RST)) !== 0;

describeOnNode('the flow table, packet by packet', (node) => {
  /** How many flows the programs say that they have removed. */
  const removedOf = ({ family }: Side): number =>
    node()
      .tables.flow_changes.getPerCpu(layout.enums.flow_change.FLOW_REMOVED)!
      .reduce((sum, count) => sum + count[`ipv${family}`], 0);

  const notesOf = (flow: Flow) =>
    node()
      .arrivals()
      .filter((arrival) => isDeepStrictEqual(arrival.flow, flow));

  describe.each(sides.flatMap((side) => hooks.map((hook) => ({ side, hook, family: side.family }))))(
    '$hook, IPv$family',
    ({ side, hook }) => {
      it.each<Flag[][]>([[['SYN']], [['SYN', 'ACK']], [['RST']], [['RST', 'ACK']], [['FIN', 'RST']]])(
        'leaves %s to the kernel, and forgets the flow: the next one may be another',
        (flags) => {
          const { packet, flow } = arrivalAt(side, hook, flagged(flags));
          const other = { ...flow, src_port: 40001 };
          using _ = node().learn([{ flow }, { flow: other }]);
          const before = removedOf(side);
          expect(node().run(hook, packet).counted).toBe(`${hook}: kernel handshake`);
          expect(removedOf(side) - before).toBe(1);
          expect(node().flows()).toEqual([other]);
          expect(node().run(hook, arrivalAt(side, hook).packet).counted).toBe(`${hook}: kernel new_flow`);
        },
      );

      it.each<Flag[][]>([[['SYN']], [['RST']], [['FIN', 'ACK']]])(
        'lets %s that comes in elsewhere change nothing: its source may be forged',
        (flags) => {
          const { packet, flow } = arrivalAt(side, hook, flagged(flags));
          const entry = { flow, ifindex: TEST_RUN_IFINDEX + 100 };
          using _ = node().learn([entry]);
          const before = tableOf(node().tables, flow).get(flow);
          expect(node().run(hook, packet).counted).toBe(`${hook}: kernel handshake`);
          expect(tableOf(node().tables, flow).get(flow)).toEqual({
            ...before,
            head: { ...before!.head, ...headOf(packet) },
          });
        },
      );

      it('leaves FIN to the kernel, and keeps the flow: data may still come', () => {
        const { packet, flow } = arrivalAt(side, hook, flagged(['FIN', 'ACK']));
        using _ = node().learn([{ flow }]);
        expect(node().run(hook, packet).counted).toBe(`${hook}: kernel handshake`);
        expect(node().flows()).toEqual([flow]);
      });

      it('takes the second FIN of a connection to the fast path: conntrack has seen the first', () => {
        const { packet, flow } = arrivalAt(side, hook, flagged(['FIN', 'ACK']));
        const { src, dst, src_port, dst_port } = flow;
        const other = { ...flow, src: dst, dst: src, src_port: dst_port, dst_port: src_port };
        using _ = node().learn([{ flow }, { flow: other, is_ending: 1 }]);
        expect(node().run(hook, packet).counted).toMatch(/: fast (encap|decap)$/);
      });

      it('takes every other combination of flags to the fast path', () => {
        for (let flags = 0; flags < 256; flags++) {
          const payload = tcp({ ...ports, flags });
          const { packet, flow } = arrivalAt(side, hook, payload);
          using _ = node().learn([{ flow }]);
          const verdict = isEnd(payload)
            ? 'kernel handshake'
            : hook === 'from_pod'
              ? 'fast encap'
              : 'fast decap';
          expect({ flags, counted: node().run(hook, packet).counted }).toEqual({
            flags,
            counted: `${hook}: ${verdict}`,
          });
        }
      });

      it('knows a ping by its identifier', () => {
        const request = side.family === 4 ? 8 : 128;
        const ping = (id: number, sequence: number) =>
          arrivalAt(side, hook, icmp(request, Uint8Array.of(0, id, 0, sequence)), { protocol: side.icmp });
        using _ = node().learn([{ flow: ping(1, 1).flow }]);
        expect(node().run(hook, ping(1, 9).packet).verdict).toBe(hook === 'xdp_from_wire' ? 'pass' : 'fast');
        expect(node().run(hook, ping(2, 1).packet).counted).toBe(`${hook}: kernel new_flow`);
      });

      it('is invalidated as a whole by the next epoch', () => {
        using fresh = new DisposableStack();
        const { packet, flow } = arrivalAt(side, hook);
        const epoch = node().tables.epoch.get(0)!;
        fresh.use(node().learn([{ flow, epoch }]));
        fresh.defer(() => node().tables.epoch.set(0, epoch));
        expect(node().run(hook, packet).counted).toContain('fast');
        node().moveEpoch();
        expect(node().run(hook, packet).counted).toBe(`${hook}: kernel old_epoch`);
      });
    },
  );

  describe.each(
    sides.flatMap((side) =>
      (['from_pod', 'from_wire'] as const).map((hook) => ({ side, hook, family: side.family })),
    ),
  )('$hook, a flow that was just learned, IPv$family', ({ side, hook }) => {
    const { packet, flow } = arrivalAt(side, hook, tcp({ src: 40002, dst: 80 }));
    const isSettled = () => tableOf(node().tables, flow).get(flow)?.head.is_settled;
    const unsettled = (): number =>
      readCounters(node().tables)
        .filter((counter) => counter.hook === hook && counter.reason === 'unsettled')
        .reduce((sum, { packets }) => sum + packets, 0);

    /** Run a packet so long after the last one was noted, and after its predecessors began to come without a gap. */
    const runAfter = (noted: Partial<NotedArrival>, gapNs: number, sinceNs: number, of = packet) => {
      using _ = node().learn([{ flow, is_settled: 0 }]);
      for (let left = 1000; left > 0; left--) {
        const now = Number(process.hrtime.bigint());
        tableOf(node().tables, flow).delete(flow);
        learnFlows(node().tables, [{ flow, ...headOf(of), is_settled: 0 }]);
        noteArrival(node().tables, { flow, noted_ns: now - gapNs, since_ns: now - sinceNs, ...noted });
        const { verdict } = testRun(node().programs[hook], of);
        // Otherwise something else held this process up, and it was another gap.
        if (Number(process.hrtime.bigint()) - now < GAP_NS) return { verdict, isSettled: isSettled() };
      }
      throw new Error('no run was fast enough');
    };

    it('stays on the kernel path while its last packet may still be under way there', () => {
      const before = unsettled();
      expect(runAfter({}, 0, 0)).toEqual({ verdict: 'kernel', isSettled: 0 });
      expect(unsettled()).toBeGreaterThan(before);
    });

    it('changes to the fast path in a gap, and stays there', () => {
      expect(runAfter({}, GAP_NS, GAP_NS)).toEqual({ verdict: 'fast', isSettled: 1 });
    });

    it('changes without a gap when there is none for long', () => {
      expect(runAfter({}, 0, WITHOUT_GAP_NS)).toEqual({ verdict: 'fast', isSettled: 1 });
    });

    it('does not wait for packets of other flows', () => {
      expect(runAfter({ flow: { ...flow, protocol: UDP } }, 0, 0)).toEqual({ verdict: 'fast', isSettled: 1 });
    });

    it('leaves the fast path for a while after a packet that does not suit it', async () => {
      const data = tcp({ src: 40002, dst: 80 }, new Uint8Array(5));
      using _ = node().learn([{ flow }]);
      expect(node().run(hook, arrivalAt(side, hook, data, { ttl: 1 }).packet).counted).toBe(
        `${hook}: kernel ttl`,
      );
      expect(isSettled()).toBe(0);
      await sleep(5);
      expect(node().run(hook, packet).verdict).toBe('fast');
    });

    it('does not wait for a bare ACK, which others may overtake', () => {
      using _ = node().learn([{ flow }]);
      expect(
        node().run(hook, arrivalAt(side, hook, tcp({ src: 40002, dst: 80 }), { ttl: 1 }).packet).counted,
      ).toBe(`${hook}: kernel ttl`);
      expect(isSettled()).toBe(1);
    });
  });

  describe.each(sides)('notes of what is left to the kernel path, IPv$family', (side) => {
    const noted = (hook: Exclude<Hook, 'xdp_from_wire'>, says: string, ...learned: LearnedFlow[]) =>
      it(`${hook} notes ${says}`, () => {
        const payload = udp({ src: 1000 + says.length, dst: 53 });
        const { packet, flow } = arrivalAt(side, hook, payload, { protocol: UDP, tos: 0xbb, ttl: 33 });
        using _ = node().learn(learned.map((entry) => ({ ...entry, flow })));
        expect(node().run(hook, packet).verdict).toBe('kernel');
        expect(notesOf(flow)).toEqual([
          {
            noted_ns: expect.any(Number) as number,
            frame_dst: 0,
            since_ns: expect.any(Number) as number,
            flow,
            epoch: 0,
            ifindex: TEST_RUN_IFINDEX,
            dscp: 0xbb >> 2,
            ttl: 33,
          },
        ]);
      });
    const unnamed = podFlow(side);
    noted('from_pod', 'a new flow');
    noted('from_wire', 'a new flow');
    noted('from_pod', 'a flow of an old epoch', { flow: unnamed, epoch: 9 });
    noted('from_wire', 'a flow of an old epoch', { flow: unnamed, epoch: 9 });
    noted('from_pod', 'a flow that has expired', { flow: unnamed, ageMs: 60_000 });
    noted('from_wire', 'a flow that has expired', { flow: unnamed, ageMs: 60_000 });

    const notNoted = (says: string, hook: Hook, packet: Uint8Array, flow: Flow, learned = false): void =>
      it(`${hook} does not note ${says}`, () => {
        using _ = node().learn(learned ? [{ flow }] : []);
        node().run(hook, packet);
        expect(notesOf(flow)).toEqual([]);
      });
    const of = (port: number, fields: IpFields = {}) =>
      [
        podFrame(side, fields, tcp({ src: port, dst: 80 })),
        podFlow(side, fields, tcp({ src: port, dst: 80 })),
      ] as const;
    notNoted('what takes the fast path', 'from_pod', ...of(2000), true);
    notNoted('a packet with a foreign source', 'from_pod', ...of(2001, { src: side.pods.near.ip }));
    notNoted('a packet of a marked pod', 'from_pod', ...of(2002, { src: side.pods.markedSender.ip }));
    notNoted('a fragment', 'from_pod', ...of(2003, { fragment: 0x2000 }));
    const syn = tcp({ src: 2004, dst: 80, flags: 2 });
    notNoted('the beginning of a connection', 'from_pod', podFrame(side, {}, syn), podFlow(side, {}, syn));
    notNoted(
      'a spoofed source, which it drops',
      'from_wire',
      wireFrame(side, { outer: { src: side.peers.two.vtepIp } }, tcp({ src: 2005, dst: 80 })),
      wireFlow(side, {}, tcp({ src: 2005, dst: 80 })),
    );
    notNoted(
      'what from_wire will note',
      'xdp_from_wire',
      wireFrame(side, {}, tcp({ src: 2006, dst: 80 })),
      wireFlow(side, {}, tcp({ src: 2006, dst: 80 })),
    );
  });
});

describeOnNode(
  'the flow table with DirectRouting',
  (node: () => TestNode) => {
    it.each(sides)('from_wire notes a plain packet of a peer on our L2, IPv$family', (side) => {
      const fields = { src: side.podOf(1, 7), dst: side.pods.near.ip, protocol: protocols.tcp, ttl: 63 };
      const packet = ethernet({ dst: TEST_RUN_MAC, src: '02:00:00:00:00:01' }, ip(fields, segment));
      expect(node().run('from_wire', packet).counted).toBe('from_wire: kernel new_flow');
      expect(node().arrivals()).toContainEqual(expect.objectContaining({ dscp: 0, ttl: 63 }));
    });
  },
  directSettings,
);
