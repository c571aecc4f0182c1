// SPDX-License-Identifier: Apache-2.0
/** Pods that forward packets: load balancers such as k3s's svclb pods, routers and VPN gateways. */
import { ipBatch, ipJson } from '../../src/lab/ip.ts';
import { run } from '../../src/host/run.ts';
import type { NodeState, PodState } from '../../src/lab/index.ts';
import { inNetns, PORT } from './support.ts';

export interface Target {
  readonly ip: string;
  readonly ip6?: string;
}

const FORWARDING = ['net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1'];

/** The ports where the forwarder listens for target number `i`: of TCP, and of sendDatagrams. */
export const tcpPortOf = (i: number): number => 7000 + i;
export const udpPortOf = (i: number): number => 7100 + i;

/** Make a pod forward packets to its ports, from its own address, like svclb. */
export async function forwardTo(pod: PodState, targets: readonly Target[]): Promise<void> {
  const rules = targets.flatMap(({ ip, ip6 }, i) =>
    [
      ['ipv4', 'ip', ip],
      ['ipv6', 'ip6', `[${ip6}]`],
    ].flatMap(([family, word, address]) => [
      `meta nfproto ${family} tcp dport ${tcpPortOf(i)} dnat ${word} to ${address}:${PORT}`,
      `meta nfproto ${family} udp dport ${udpPortOf(i)} dnat ${word} to ${address}:${PORT + 1}`,
    ]),
  );
  await run('sysctl', ['-qw', ...FORWARDING], inNetns(pod));
  await run('nft', ['-f', '-'], {
    ...inNetns(pod),
    stdin: `
      table inet forwarder {
        chain prerouting { type nat hook prerouting priority dstnat; ${rules.join('\n')}
        }
        chain postrouting { type nat hook postrouting priority srcnat; oifname "eth0" ct status dnat masquerade; }
      }`,
  });
}

/** A machine behind the pod, on a cable without segmentation and checksum offload. */
export const BEHIND = { ip: '10.42.200.2', ip6: 'fd00:42:0:c8::2' };

/**
 * Add a machine in a new namespace `netns` behind the pod, which routes for it without NAT. The pod's node has the
 * route.
 */
export async function routeFor(netns: string, pod: PodState, node: NodeState): Promise<void> {
  await ipBatch([`netns add ${netns}`]);
  await run('sysctl', ['-qw', ...FORWARDING], inNetns(pod));
  await ipBatch(
    [
      `link add behind type veth peer name eth0 netns ${netns}`,
      'address add 10.42.200.1/24 dev behind',
      'address add fd00:42:0:c8::1/64 dev behind nodad',
      'link set behind mtu 1430 up',
    ],
    inNetns(pod),
  );
  await ipBatch(
    [
      'link set lo up',
      `address add ${BEHIND.ip}/24 dev eth0`,
      `address add ${BEHIND.ip6}/64 dev eth0 nodad`,
      'link set eth0 mtu 1430 up',
      'route add default via 10.42.200.1',
      'route add default via fd00:42:0:c8::1',
    ],
    inNetns({ netns }),
  );
  const off = ['tx', 'off', 'tso', 'off', 'gso', 'off', 'tx-udp-segmentation', 'off'];
  await run('ethtool', ['-K', 'behind', ...off], inNetns(pod));
  const [eth0] = await ipJson<{ link_index: number }>(['link', 'show', 'dev', 'eth0'], inNetns(pod));
  const links = await ipJson<{ ifindex: number; ifname: string }>(['link'], inNetns(node));
  const { ifname } = links.find(({ ifindex }) => ifindex === eth0!.link_index)!;
  await ipBatch(
    [
      `route add ${BEHIND.ip} via ${pod.ip} dev ${ifname} onlink`,
      `route add ${BEHIND.ip6} via ${pod.ip6} dev ${ifname} onlink`,
    ],
    inNetns(node),
  );
}
