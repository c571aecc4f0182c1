// SPDX-License-Identifier: Apache-2.0
/** The packets and bytes that the flow table counts, and their sums by peer, pod and Service. */
import { describe, expect, it } from 'vitest';
import { desiredConfig } from '../../src/dataplane/desired.ts';
import { addUp, countedSince, readCarried, readFlowCounts, sumFlows } from '../../src/dataplane/flow-sums.ts';
import { protocols, tcp } from '../../src/net/packets.ts';
import { ipBytes, podFlow, podFrame, wireFlow, wireFrame } from './frames.ts';
import {
  directSettings,
  type Flow,
  noteArrival,
  settings,
  sides,
  tableOf,
  TEST_RUN_IFINDEX,
  type TestNode,
  v4,
} from './node.ts';
import { describeOnNode } from './support.ts';

const PAYLOAD = 100;
const segment = (ports: { src: number; dst: number }) => tcp(ports, new Uint8Array(PAYLOAD));
const SEGMENT_BYTES = 20 + PAYLOAD;
const ETHER_BYTES = 14;

const countsOf = (node: TestNode, flow: Flow): { packets: number; bytes: number } | undefined => {
  const entry = tableOf(node.tables, flow).get(flow);
  return entry && { packets: entry.head.packets, bytes: entry.head.bytes };
};

describeOnNode('a flow counts', (node) => {
  describe.each(sides)('over IPv$family', (side) => {
    const bytes = ipBytes[side.family] + SEGMENT_BYTES;
    const local = { dst: side.pods.near.ip };
    const out = segment({ src: 40000, dst: 80 });
    const back = segment({ src: 80, dst: 40000 });

    it.each([
      [
        'from_pod',
        'to a pod of another node, without the outer headers',
        podFrame(side, {}, out),
        podFlow(side),
      ],
      ['from_pod', 'to a pod of this node', podFrame(side, local, out), podFlow(side, local)],
      ['from_wire', 'to a pod, without the outer headers', wireFrame(side, {}, back), wireFlow(side)],
    ] as const)('each packet of the fast path at %s, %s', (hook, _says, packet, flow) => {
      using _ = node().learn([{ flow }]);
      for (const packets of [1, 2, 3]) {
        expect(node().run(hook, packet).verdict).toBe('fast');
        expect(countsOf(node(), flow)).toEqual({ packets, bytes: packets * bytes });
      }
    });

    it('at from_wire alone what XDP decapsulates, since from_wire delivers it', () => {
      using _ = node().learn([{ flow: wireFlow(side) }]);
      expect(node().run('xdp_from_wire', wireFrame(side, {}, back)).counted).toBe(
        'xdp_from_wire: fast decap',
      );
      expect(countsOf(node(), wireFlow(side))).toEqual({ packets: 0, bytes: 0 });
    });

    it('a super-packet once', () => {
      using _ = node().learn([{ flow: podFlow(side, local) }]);
      const payload = tcp({ src: 40000, dst: 80 }, new Uint8Array(2000));
      const packet = podFrame(side, local, payload);
      expect(node().run('from_pod', packet, { gsoSize: 1000 }).verdict).toBe('fast');
      expect(countsOf(node(), podFlow(side, local))).toEqual({
        packets: 1,
        bytes: packet.length - ETHER_BYTES,
      });
    });

    it('no packet that is left to the kernel path', () => {
      const flow = podFlow(side);
      using _ = node().learn([{ flow, epoch: 1, packets: 4, bytes: 400 }]);
      expect(node().run('from_pod', podFrame(side, {}, out)).counted).toBe('from_pod: kernel old_epoch');
      expect(countsOf(node(), flow)).toEqual({ packets: 4, bytes: 400 });
    });

    it('on when it is learned again', () => {
      const protocol = side.icmp;
      const echo = Uint8Array.of(side.family === 6 ? 129 : 0, 0, 0, 0, 0, 7, 0, 1);
      const ends = { src: side.podOf(1, 7), dst: side.pods.sender.ip, protocol };
      const flow: Flow = { ...ends, src_port: 7, dst_port: echo[0]! };
      using _ = node().learn([{ flow, ageMs: 60_000, packets: 4, bytes: 400 }]);
      noteArrival(node().tables, { flow, ifindex: TEST_RUN_IFINDEX });
      const { counted } = node().run('to_pod', podFrame(side, { ...ends, ttl: 63 }, echo));
      expect(counted).toBe('to_pod: kernel learned');
      expect(tableOf(node().tables, flow).get(flow)?.head.learned_ns).toBeGreaterThan(
        Number(process.hrtime.bigint()) - 30e9,
      );
      expect(countsOf(node(), flow)).toEqual({ packets: 4, bytes: 400 });
    });
  });
});

describeOnNode('what the kernel path carries to a pod counts', (node) => {
  const networks = desiredConfig(settings);
  const carried = () => {
    const { peers, endpoints } = readCarried(node().tables, networks);
    return { peers: Object.fromEntries(peers), endpoints: Object.fromEntries(endpoints) };
  };

  it.each(sides)('for its peer and for itself, over IPv$family', (side) => {
    const { sender, near } = side.pods;
    const payload = segment({ src: 80, dst: 40000 });
    const sum = (packets: number) => ({ packets, bytes: packets * (ipBytes[side.family] + SEGMENT_BYTES) });
    const deliver = (src: string) =>
      node().run('to_pod', podFrame(side, { src, dst: sender.ip }, payload)).verdict;
    node().tables.carried.deleteMany([...node().tables.carried.keys()]);
    for (const src of [side.podOf(1, 7), side.podOf(1, 8), side.podOf(2, 9), near.ip])
      expect(deliver(src)).toBe('kernel');
    // Of these the other end is no pod: the node itself, and somebody outside.
    for (const src of [side.podOf(3, 0), side.world]) expect(deliver(src)).toBe('kernel');
    const peer = (n: number) => (side.family === 4 ? String(n) : side.podOf(n, 0));
    expect(carried()).toEqual({
      peers: { [peer(1)]: sum(2), [peer(2)]: sum(1) },
      endpoints: { [sender.hostIfindex]: sum(4), [near.hostIfindex]: sum(1) },
    });
  });
});

describeOnNode(
  'a flow without a tunnel counts',
  (node) => {
    it('each packet to and from a pod of another node', () => {
      const fields = { src: v4.podOf(1, 7), dst: v4.pods.near.ip };
      const back = podFrame(v4, fields, segment({ src: 80, dst: 40000 }));
      const arriving = podFlow(v4, fields, segment({ src: 80, dst: 40000 }));
      using _ = node().learn([{ flow: podFlow(v4) }, { flow: arriving }]);
      expect(node().run('from_pod', podFrame(v4, {}, segment({ src: 40000, dst: 80 }))).counted).toContain(
        'fast direct',
      );
      expect(node().run('from_wire', back).counted).toContain('fast direct');
      for (const flow of [podFlow(v4), arriving])
        expect(countsOf(node(), flow)).toEqual({ packets: 1, bytes: 20 + SEGMENT_BYTES });
    });
  },
  directSettings,
);

describeOnNode('the sums of the flow table', (node) => {
  const networks = desiredConfig(settings);

  it.each(sides)(
    'are by peer, by pod at both ends, and by Service with its answers, over IPv$family',
    (side) => {
      const { sender, near } = side.pods;
      const ports = { src_port: 40000, dst_port: 80, protocol: protocols.tcp };
      const [pod, there] = [sender.ip, side.podOf(1, 7)];
      const count = (n: number) => ({ packets: n, bytes: 1000 * n });
      const ofUplink = { ifindex: 77 };
      using _ = node().learn([
        { flow: { ...ports, src: pod, dst: there }, ...count(1) },
        { flow: { ...ports, src: there, dst: pod }, ...ofUplink, ...count(2) },
        { flow: { ...ports, src: pod, dst: near.ip }, ...count(4) },
        // Through a Service to a pod of node two, and the answer.
        {
          flow: { ...ports, src: pod, dst: side.service },
          out: { dst: side.podOf(2, 9), dst_port: 8080 },
          ...count(8),
        },
        {
          flow: { ...ports, src: side.podOf(2, 9), dst: pod, src_port: 8080, dst_port: 40000 },
          out: { src: side.service, src_port: 80 },
          ...ofUplink,
          ...count(16),
        },
        // Not to a Service: its sender is hidden.
        {
          flow: { ...ports, src: near.ip, dst: side.podOf(5, 9) },
          out: { src: side.podOf(3, 0) },
          ifindex: near.hostIfindex,
          ...count(32),
        },
      ]);
      const peer = (n: number) => (side.family === 4 ? String(n) : side.podOf(n, 0));
      const sum = (flows: number, n: number) => ({ flows, ...count(n) });
      const sums = sumFlows(node().tables, networks);
      expect(Object.fromEntries(sums.peers)).toEqual({
        [peer(1)]: sum(2, 3),
        [peer(2)]: sum(2, 24),
        [peer(5)]: sum(1, 32),
      });
      expect(Object.fromEntries(sums.endpoints)).toEqual({
        [sender.hostIfindex]: sum(5, 31),
        [near.hostIfindex]: sum(2, 36),
      });
      const address = side.family === 4 ? side.service : `[${side.service}]`;
      expect(Object.fromEntries(sums.services)).toEqual({ [`tcp ${address}:80`]: sum(2, 24) });
    },
  );

  it('since an earlier reading are those of flows that were there, and of new ones', () => {
    const stays = podFlow(v4);
    const again = { ...stays, src_port: 2 };
    const goes = { ...stays, src_port: 3 };
    const comes = { ...stays, src_port: 4 };
    const read = (...flows: [Flow, number][]) => {
      using _ = node().learn(flows.map(([flow, packets]) => ({ flow, packets, bytes: 10 * packets })));
      return readFlowCounts(node().tables, networks);
    };
    const before = read([stays, 100], [again, 50], [goes, 7]);
    const after = read([stays, 103], [again, 20], [comes, 5]);
    expect(addUp(countedSince(before, after)).peers.get('1')).toEqual({ flows: 3, packets: 28, bytes: 280 });
  });
});
