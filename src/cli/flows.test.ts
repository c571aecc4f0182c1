// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import { type FlowRow, FlowRates } from './flows.ts';

const row = (packets: number, source = '10.42.0.2:4000'): FlowRow => ({
  protocol: 'tcp',
  source,
  destination: '10.42.1.2:80',
  from: 'default/web',
  to: 'node2',
  packets,
  bytes: 100 * packets,
  ageSeconds: 1,
  state: 'valid',
  epoch: 1,
  ttl: 64,
  dscp: 0,
});

it('tells the rate of a flow when it has doubled or halved', () => {
  const rates = new FlowRates();
  const told = [0, 100, 250, 440, 740, 800, 809, 809].map(
    (packets, i) => rates.of([row(packets)], 1000 * (i + 1))[0]!.packetsPerSecond,
  );
  // Then: 100, 150, 190, 300, 60, 9 and none a second.
  expect(told).toEqual([0, 100, 100, 100, 300, 60, 0, 0]);
});

it('counts bits by the time between the readings, and a flow that was learned anew from zero', () => {
  const rates = new FlowRates();
  rates.of([row(1000), row(5, 'gone')], 0);
  expect(rates.of([row(100), row(70, 'new')], 2000)).toEqual([
    { packetsPerSecond: 50, bitsPerSecond: 40_000 },
    { packetsPerSecond: 0, bitsPerSecond: 0 },
  ]);
});
