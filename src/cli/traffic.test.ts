// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import type { FlowCount } from '../dataplane/flow-sums.ts';
import { trafficBetween, type TrafficReading } from './traffic.ts';

const flow = (key: string, packets: number, over: Partial<FlowCount> = {}): FlowCount => ({
  key,
  packets,
  bytes: 100 * packets,
  peer: '1',
  sender: 7,
  receiver: undefined,
  service: undefined,
  isAnswer: false,
  ...over,
});

const carried = (packets: number) => ({ packets, bytes: 100 * packets });

function reading(atMs: number, over: Partial<TrafficReading> = {}): TrafficReading {
  return {
    atMs,
    flows: [],
    carried: { peers: new Map(), endpoints: new Map(), services: new Map() },
    packets: { fast: 0, kernel: 0, drop: 0 },
    programs: new Map(),
    ...over,
  };
}

const names = {
  node: 'node1',
  peers: new Map([
    ['1', 'node2'],
    ['fd00:42:0:1::', 'node2'],
    ['2', 'node3'],
  ]),
  pods: new Map([[7, 'default/web']]),
  services: new Map([['tcp 10.43.0.10:80', 'shop/web']]),
};

it('gives rates since the reading before, of both families and both paths together', () => {
  const before = reading(1000, {
    flows: [flow('a', 10), flow('gone', 1000)],
    carried: {
      peers: new Map([['1', carried(5)]]),
      endpoints: new Map([[7, carried(5)]]),
      services: new Map(),
    },
    packets: { fast: 100, kernel: 10, drop: 1 },
    programs: new Map([
      ['from_pod', { runs: 10, ns: 1000 }],
      ['to_pod', { runs: 0, ns: 0 }],
    ]),
  });
  const after = reading(3000, {
    flows: [flow('a', 110), flow('b', 100, { peer: 'fd00:42:0:1::' })],
    carried: {
      peers: new Map([['1', carried(205)]]),
      endpoints: new Map([[7, carried(205)]]),
      services: new Map(),
    },
    packets: { fast: 300, kernel: 210, drop: 1 },
    programs: new Map([
      ['from_pod', { runs: 110, ns: 11_000 }],
      ['to_pod', { runs: 0, ns: 0 }],
    ]),
  });
  const rates = { flows: 2, packetsPerSecond: 200, bitsPerSecond: 160_000, fastPercent: 50, class: 'mixed' };
  expect(trafficBetween(before, after, names)).toEqual({
    seconds: 2,
    peers: [
      { name: 'node2', ...rates },
      { name: 'node3', flows: 0, packetsPerSecond: 0, bitsPerSecond: 0, class: 'idle' },
    ],
    pods: [{ name: 'default/web', ...rates }],
    services: [{ name: 'shop/web', flows: 0, packetsPerSecond: 0, bitsPerSecond: 0, class: 'idle' }],
    packetsPerSecond: { fast: 100, kernel: 100, drop: 0 },
    nsPerRun: { from_pod: 100 },
  });
});

it.each([
  [100, 0, 'fast'],
  [95, 5, 'fast'],
  [94, 6, 'mixed'],
  [6, 94, 'mixed'],
  [5, 95, 'kernel'],
  [0, 1, 'kernel'],
  [0, 0, 'idle'],
])('%i packets of the fast path and %i of the kernel path are %s', (fast, kernel, expected) => {
  const after = reading(1000, {
    flows: [flow('a', fast)],
    carried: { peers: new Map([['1', carried(kernel)]]), endpoints: new Map(), services: new Map() },
  });
  expect(trafficBetween(reading(0), after, names).peers[0]?.class).toBe(expected);
});

it('begins at zero again with a sum that was evicted', () => {
  const of = (packets: number) => ({
    peers: new Map([['1', carried(packets)]]),
    endpoints: new Map(),
    services: new Map(),
  });
  const [before, after] = [reading(0, { carried: of(500) }), reading(1000, { carried: of(3) })];
  expect(trafficBetween(before, after, names).peers[0]?.packetsPerSecond).toBe(3);
});

it('takes no address that hides others for a Service', () => {
  const through = flow('s', 1, { service: 'udp 10.43.0.11:53' });
  const services = new Map(
    ['udp 10.43.0.11:53', 'tcp 10.43.0.10:80', 'tcp 192.168.0.3:4000'].map((key) => [key, carried(1)]),
  );
  const after = reading(1000, {
    flows: [through],
    carried: { peers: new Map(), endpoints: new Map(), services },
  });
  const { services: rows } = trafficBetween(reading(0), after, names);
  expect(rows.map(({ name, packetsPerSecond }) => [name, packetsPerSecond])).toEqual([
    ['shop/web', 1],
    ['udp 10.43.0.11:53', 2],
  ]);
});
