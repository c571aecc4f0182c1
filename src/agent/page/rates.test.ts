// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import type { CarriedSums, FlowCount, Networks } from '../../dataplane/flow-sums.ts';
import { ratesBetween, type TrafficReading } from './rates.ts';

const flow = (key: string, packets: number, more: Partial<FlowCount>): FlowCount => ({
  key,
  packets,
  bytes: packets * 100,
  peer: undefined,
  sender: undefined,
  receiver: undefined,
  service: undefined,
  isAnswer: false,
  ...more,
});

const carried = (peers: Record<string, number>, pods: Record<number, number>): CarriedSums => {
  const sum = (packets: number) => ({ packets, bytes: packets * 10 });
  return {
    peers: new Map(Object.entries(peers).map(([key, packets]) => [key, sum(packets)])),
    endpoints: new Map(Object.entries(pods).map(([key, packets]) => [Number(key), sum(packets)])),
    services: new Map(),
  };
};

const networks: Networks = {
  network: '10.42.0.0',
  network_mask: '255.255.0.0',
  pod_cidr: '10.42.0.0',
  pod_cidr_mask: '255.255.255.0',
  subnet_shift: 8,
  network6: '::',
  network6_mask: '::',
  pod_cidr6: '::',
  pod_cidr6_mask: '::',
};

it("rates are what a pod's or a peer's flows have counted in between, and what the kernel path has carried", () => {
  const before: TrafficReading = {
    atMs: 1000,
    flows: [flow('a', 10, { sender: 5, peer: '3' }), flow('gone', 7, { receiver: 6, peer: '3' })],
    carried: carried({ 3: 100, 9: 5, 11: 1000 }, { 5: 100 }),
  };
  const after: TrafficReading = {
    atMs: 3000,
    flows: [
      flow('a', 30, { sender: 5, peer: '3' }),
      flow('new', 4, { receiver: 5, peer: '3' }),
      flow('local', 2, { sender: 5, receiver: 6 }),
      flow('still', 0, { sender: 7, peer: '9' }),
      flow('v6', 6, { sender: 6, peer: 'fd00:42:0:2::' }),
    ],
    // Of peer 9 nothing was carried; the sum of peer 11 was evicted.
    carried: carried({ 3: 108, 9: 5, 11: 2 }, { 5: 108, 8: 2 }),
  };
  const rate = (fast: number, kernel = 0) => ({
    fastPerSecond: fast / 2,
    kernelPerSecond: kernel / 2,
    bytesPerSecond: fast * 50 + kernel * 5,
  });
  expect(ratesBetween(before, after, networks)).toEqual({
    pods: new Map([
      [5, rate(26, 8)],
      [6, rate(8)],
      [8, rate(0, 2)],
    ]),
    peers: new Map([
      ['10.42.3.0', rate(24, 8)],
      ['fd00:42:0:2::', rate(6)],
      ['10.42.11.0', rate(0, 2)],
    ]),
  });
});
