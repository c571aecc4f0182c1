// SPDX-License-Identifier: Apache-2.0
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../../src/host/run.ts';
import { get } from './kubectl.ts';
import { inNode } from './node.ts';
import type { Cluster, ClusterNode } from './state.ts';

/**
 * The state of a node that a cluster network can leave behind, for a comparison with the state before its installation.
 */

export type Dump = Record<string, string[]>;

/**
 * Left out is what belongs to others: addresses that the kernel makes of a MAC, rules of kube-proxy, kubelet and the
 * portmap plugin, settings that are counters or belong to a pod's device, and processes in containers.
 */
const commands: Record<string, string> = {
  links: `ip -br link | sed 's/[@ ].*//'`,
  addresses: `ip -o addr | grep -v ' fe80:' | awk '{ print $2, $4 }'`,
  routes: `{ ip route show table all; ip -6 route show table all; } | grep -vE 'fe80:|^(multicast )?ff00:'`,
  rules: 'ip rule; ip -6 rule',
  'next hops': 'ip nexthop',
  neighbours: 'ip neigh show nud permanent; ip neigh show proxy; ip -6 neigh show proxy',
  'traffic control': 'tc qdisc show',
  XDP: `ip link | grep -o 'prog/xdp' || true`,
  'nft tables': 'nft list tables | grep -v kube-proxy',
  iptables: `{ iptables-save; ip6tables-save; } | grep -vE '^#|^COMMIT|KUBE-|CNI-' | sed 's/ \\[.*//'`,
  settings: `sysctl -a 2> /dev/null | grep '^net' | grep -E '\\.(all|default|lo|eth0)\\.|^net\\.(core|ipv4|ipv6|netfilter|bridge)\\.[a-z_0-9]+ ' |
    grep -vE 'nf_conntrack_(count|max|buckets)|stable_secret|_time |tcp_fastopen_key'`,
  'BPF file system': 'find /sys/fs/bpf -mindepth 1',
  '/run': `find /run -mindepth 1 \\( -path '/run/containerd/*' -o -path '/run/services/*' -o -path '/run/netns/*' \\) -prune -o -print`,
};

/** The state of a node, as sorted lines. */
async function dumpOf(cluster: Cluster, node: ClusterNode): Promise<Dump> {
  const lines = (text: string): string[] =>
    [...new Set(text.split('\n').filter((line) => line !== ''))].toSorted();
  const dump: Dump = {};
  for (const [what, command] of Object.entries(commands))
    dump[what] = lines(await inNode(node, 'sh', '-c', command));
  // The upper layer of the node's root has all that the node has written to its disk. (A character device there stands
  // for a file of the machine that the node has removed.)
  const upper = join(node.disk, 'upper');
  const written = lines(await run('find', [upper, '-mindepth', '1', '!', '-type', 'c', '-printf', '/%P\\n']));
  // kubelet creates /lib/modules for the manifest's volume, if the machine has none.
  dump['disk'] = written.filter((path) => !/^\/(var\/log|tmp|root)\/|^\/usr(\/lib(\/modules)?)?$/.test(path));
  const { metadata } = await get<{ metadata: { annotations?: object } }>(cluster, 'node', node.name);
  dump['annotations'] = Object.keys(metadata.annotations ?? {}).toSorted();
  return dump;
}

const firstDump = (node: ClusterNode): string => join(node.disk, 'first-dump.json');

/** Save the state of a node before a network is installed. */
export async function keepFirstDump(cluster: Cluster, node: ClusterNode): Promise<void> {
  writeFileSync(firstDump(node), JSON.stringify(await dumpOf(cluster, node)));
}

/** The difference to the state before any network was installed, as lines `+ …` and `- …`. */
export async function changesSinceFirst(cluster: Cluster, node: ClusterNode): Promise<Dump> {
  const first = JSON.parse(readFileSync(firstDump(node), 'utf8')) as Dump;
  const changes: Dump = {};
  for (const [what, now] of Object.entries(await dumpOf(cluster, node))) {
    const before = first[what] ?? [];
    const lines = [
      ...now.filter((line) => !before.includes(line)).map((line) => `+ ${line}`),
      ...before.filter((line) => !now.includes(line)).map((line) => `- ${line}`),
    ];
    if (lines.length > 0) changes[what] = lines;
  }
  return changes;
}
