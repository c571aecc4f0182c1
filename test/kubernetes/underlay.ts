// SPDX-License-Identifier: Apache-2.0
import { ipBatch } from '../../src/lab/ip.ts';
import { addNetns, deleteNetns, netnsPath, setSysctls } from '../../src/lab/netns.ts';
import { randomMac } from '../../src/net/mac.ts';
import { type Cluster, type ClusterNode, netnsOf, UNDERLAY_LENGTHS, underlayAddresses } from './state.ts';

/** A switch in a namespace of its own, and the cables to it. The machine's own network is not changed. */

const AT_ONCE = { 'ipv6.conf.default.accept_dad': 0 };

/** Create the switch, with the addresses of all default gateways, and the control plane's cable. */
export async function createUnderlay(cluster: Cluster): Promise<void> {
  const netns = netnsOf(cluster, 'underlay');
  await addNetns(netns);
  // Frames that cross a switch must not meet iptables and conntrack.
  await setSysctls(netns, {
    'bridge.bridge-nf-call-iptables': 0,
    'bridge.bridge-nf-call-ip6tables': 0,
    ...AT_ONCE,
  });
  const addresses = underlayAddresses('underlay', cluster.options);
  await ipBatch(
    [
      `link add br0 address ${randomMac()} type bridge stp_state 0`,
      ...withLengths(addresses).map((address) => `address add ${address} dev br0`),
      'link set br0 up',
    ],
    { netns: netnsPath(netns) },
  );
  await plugIn(cluster, 'cp', underlayAddresses('cp', cluster.options));
}

/** Create a namespace with `eth0` connected to the switch. */
async function plugIn(cluster: Cluster, who: string, addresses: readonly string[]): Promise<void> {
  const netns = netnsOf(cluster, who);
  await addNetns(netns);
  await setSysctls(netns, AT_ONCE);
  await ipBatch(
    [`link add ${who} type veth peer name eth0 netns ${netns}`, `link set ${who} master br0 up`],
    {
      netns: netnsPath(netnsOf(cluster, 'underlay')),
    },
  );
  await ipBatch(
    [
      ...withLengths(addresses).map((address) => `address add ${address} dev eth0`),
      'link set eth0 up',
      ...underlayAddresses('underlay', cluster.options).map((gateway) => `route add default via ${gateway}`),
    ],
    { netns: netnsPath(netns) },
  );
}

function withLengths(addresses: readonly string[]): string[] {
  return addresses.map((address, family) => `${address}/${UNDERLAY_LENGTHS[family]}`);
}

/** Create a node's network, with its cable, like that of a machine that nothing has configured yet. */
export function plugNodeIn(cluster: Cluster, node: ClusterNode): Promise<void> {
  return plugIn(cluster, node.name, node.ips);
}

/** Reset a node's network, like a power cycle: devices, routes, rules and sysctls are gone. */
export async function unplugNode(cluster: Cluster, node: ClusterNode): Promise<void> {
  await ipBatch([`link del ${node.name}`], {
    netns: netnsPath(netnsOf(cluster, 'underlay')),
    force: true,
  });
  await deleteNetns(node.netns);
}

/**
 * Add routes from the API server to pods, which it must reach as a proxy and for webhooks: kubeadm's control plane is a
 * node of the cluster, this one is not.
 */
export async function routeToPods(
  cluster: Cluster,
  node: ClusterNode,
  podCidrs: readonly string[],
): Promise<void> {
  await ipBatch(
    podCidrs.map((podCidr, family) => `route replace ${podCidr} via ${node.ips[family]}`),
    { netns: netnsPath(netnsOf(cluster, 'cp')) },
  );
}
