// SPDX-License-Identifier: Apache-2.0
/**
 * Shared by the tests of the underlay: a node's cable, the work of its network manager, and pods that talk meanwhile.
 */
import { expect } from 'vitest';
import { ipBatch } from '../../src/lab/ip.ts';
import { type RunOptions, tryRun } from '../../src/host/run.ts';
import {
  gatewayAddress,
  type Lab,
  type NodeState,
  type PodState,
  underlayNetns,
} from '../../src/lab/index.ts';
import { familyParts, underlayNetwork } from '../../src/lab/addresses.ts';
import { parseCidr } from '../../src/net/ip.ts';
import { carriedDuring, inNetns, ping, ripstopJson, timeUntil, type Talk, whileTalking } from './support.ts';

/** The underlay's namespace has the bridge `br0`, and the nodes' cables under the nodes' names. */
export const inUnderlay = (lab: Lab): RunOptions => inNetns({ netns: underlayNetns(lab.name) });

/** Bring a device up with the node's addresses and default routes, as its network manager would. */
export async function configure(lab: Lab, node: NodeState, device = 'eth0'): Promise<void> {
  const parts = familyParts(node).map(({ family, ip }) => ({
    ip,
    network: underlayNetwork(lab.state.options, family),
  }));
  await ipBatch(
    [
      `link set ${device} up`,
      ...parts.map(({ ip, network }) => `address replace ${ip}/${parseCidr(network).length} dev ${device}`),
      ...parts.map(({ network }) => `route replace default via ${gatewayAddress(network)} dev ${device}`),
    ],
    inNetns(node),
  );
}

/** Give a node a cable: one end is on the underlay's bridge, the other is the node's device. */
export async function plugIn(lab: Lab, node: NodeState, device = 'eth0', port = node.name): Promise<void> {
  await ipBatch(
    [`link add ${port} type veth peer name ${device} netns ${node.netns}`, `link set ${port} master br0 up`],
    inUnderlay(lab),
  );
}

/** A pod, and an address of another pod. */
export interface Way {
  readonly from: PodState;
  readonly to: string;
}

/** The pairs for two pods in both families. */
export function waysBetween(from: PodState, to: PodState): Way[] {
  return [to.ip, to.ip6!].map((address) => ({ from, to: address }));
}

/**
 * Do something while pods ping each other 100 times a second and keep TCP connections open, with packets of full size.
 * The connections must survive it. Returns how many pings of each pair were lost.
 */
export async function lostDuring(ways: readonly Way[], work: () => Promise<unknown>): Promise<number[]> {
  const talks = ways.map(({ from, to }): Talk => [from, to]);
  const { lost, reports } = await whileTalking({ pings: talks, connections: talks, bytes: 4000 }, 100, work);
  for (const report of reports) expect(report).not.toHaveProperty('error');
  return lost.map(({ length }) => length);
}

/** Wait until a ping of each pair is answered again. */
export async function untilReached(ways: readonly Way[]): Promise<void> {
  for (const { from, to } of ways) {
    const once = ['-n', '-c', '1', '-W', '0.2', to];
    const tookMs = await timeUntil(async () => (await tryRun('ping', once, inNetns(from))).code === 0);
    expect(tookMs, `${from.name} does not reach ${to}`).toBeLessThan(10_000);
  }
}

/** The counters of each node, by `hook verdict_reason`, for 20 pings of each pair. */
export async function countedDuringPings(
  lab: Lab,
  nodes: readonly NodeState[],
  ways: readonly Way[],
): Promise<Readonly<Record<string, number>>[]> {
  const carried = await carriedDuring(lab, nodes, () =>
    Promise.all(ways.map(({ from, to }) => ping(from, to, 20))),
  );
  return carried.map(({ by }) => by);
}

/** The hook where the node's agent decapsulates, and why. */
export async function ingressOf(
  lab: Lab,
  node: NodeState,
): Promise<{ hook: string; why: string } | undefined> {
  const { agent } = await ripstopJson<{ agent?: { ingress?: { hook: string; why: string } } }>(
    lab,
    node,
    'status',
  );
  return agent?.ingress;
}
