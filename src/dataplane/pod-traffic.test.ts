// SPDX-License-Identifier: Apache-2.0
import { expect, it } from 'vitest';
import type { Counter, Verdict } from './counters.ts';
import { fastPercentOf, packetsBetweenPods, TrafficHistory } from './pod-traffic.ts';

const counter = (hook: string, verdict: Verdict, reason: string, packets: number): Counter => ({
  hook,
  verdict,
  reason,
  packets,
  bytes: packets * 100,
});

it('an idle node has carried nothing between pods, whatever its pods and its kubelet say to each other', () => {
  const idle = [
    counter('from_pod', 'kernel', 'not_ip', 4),
    counter('from_pod', 'kernel', 'link_local', 13),
    counter('from_pod', 'kernel', 'new_flow', 500),
    counter('from_wire', 'kernel', 'not_vxlan', 334),
    counter('from_wire', 'kernel', 'other_mac', 29),
    counter('to_pod', 'kernel', 'outside', 400),
    counter('to_wire', 'kernel', 'not_vxlan', 456),
  ];
  expect(packetsBetweenPods(idle)).toEqual({ fast: 0, kernel: 0, drop: 0 });
  expect(fastPercentOf(packetsBetweenPods(idle))).toBeUndefined();
});

it('each packet counts once, as it comes in on the fast path, or leaves the kernel path', () => {
  const packets = packetsBetweenPods([
    counter('from_pod', 'fast', 'encap', 90),
    counter('from_pod', 'kernel', 'new_flow', 10),
    counter('to_wire', 'kernel', 'learned', 10),
    counter('xdp_from_wire', 'fast', 'decap', 80),
    counter('from_wire', 'fast', 'decap', 80),
    counter('from_wire', 'kernel', 'new_flow', 5),
    counter('from_vtep', 'kernel', 'from_peer', 5),
    counter('to_pod', 'kernel', 'learned', 5),
    counter('from_vtep', 'drop', 'spoofed_source', 2),
  ]);
  expect(packets).toEqual({ fast: 170, kernel: 15, drop: 2 });
  expect(fastPercentOf(packets)).toBe(91.9);
});

it('the last minute is what came since a reading a minute ago', () => {
  const history = new TrafficHistory();
  const at = (seconds: number) => ({ fast: seconds * 10, kernel: seconds, drop: 0 });
  expect(history.recent(at(0), 0)).toBeUndefined();
  for (let second = 0; second <= 300; second += 10) history.note(at(second), second * 1000);
  expect(history.recent(at(305), 305_000)).toEqual({ seconds: 65, fast: 650, kernel: 65, drop: 0 });
  expect(history.recent(at(1), 306_000)).toBeUndefined();
});
