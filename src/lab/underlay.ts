// SPDX-License-Identifier: Apache-2.0
import { ipBatch } from '../host/ip.ts';
import { run } from '../host/run.ts';
import { parseCidr } from '../net/ip.ts';
import { randomMac } from '../net/mac.ts';
import { addNetns, netnsPath, setSysctls } from './netns.ts';
import { gatewayAddress } from './options.ts';
import { type Lab, type NodeState, underlayNetns } from './state.ts';

/** An address beyond the nodes' network that knows no way to pods: what reaches it and comes back was masqueraded. */
export const OUTSIDE_ADDRESS = '203.0.113.1';

/** A switch with an address of its own, in a namespace of its own: the nodes' network and the world behind it. */
export async function createUnderlay(lab: Lab): Promise<void> {
  const netns = underlayNetns(lab.name);
  const { mtu, underlay } = lab.state.options;
  await addNetns(netns);
  // A switch is no firewall: its frames must not meet the bridge's iptables hooks and conntrack.
  await setSysctls(netns, { 'bridge.bridge-nf-call-iptables': 0, 'bridge.bridge-nf-call-ip6tables': 0 });
  await ipBatch(
    [
      // A MAC address of its own: a bridge without one takes over and gives up those of its ports.
      `link add br0 address ${randomMac()} mtu ${mtu} type bridge stp_state 0`,
      `address add ${gatewayAddress(underlay)}/${parseCidr(underlay).length} dev br0`,
      'link set br0 up',
      `address add ${OUTSIDE_ADDRESS}/32 dev lo`,
    ],
    { netns: netnsPath(netns) },
  );
}

/** A node's namespace with its uplink `eth0` plugged into the underlay (where the cable's other end has the node's name). */
export async function createNodeNetns(lab: Lab, node: NodeState): Promise<void> {
  const { mtu, underlay, wire } = lab.state.options;
  await addNetns(node.netns);
  // Addressed before it is up, and forwarding as kubelet's and every CNI's documentation asks of a node.
  await setSysctls(node.netns, { 'ipv4.ip_forward': 1 });
  await ipBatch(
    [
      `link add ${node.name} mtu ${mtu} type veth peer name eth0 mtu ${mtu} netns ${node.netns}`,
      `link set ${node.name} master br0 up`,
    ],
    { netns: netnsPath(underlayNetns(lab.name)) },
  );
  if (wire === 'mtu') await makePlainWire(lab, node);
  await ipBatch(
    [
      `address add ${node.ip}/${parseCidr(underlay).length} dev eth0`,
      'link set eth0 up',
      `route add default via ${gatewayAddress(underlay)}`,
    ],
    { netns: netnsPath(node.netns) },
  );
}

/**
 * Make both ends of the cable behave as NICs that offload nothing on the way out: the kernel segments and checksums
 * before the driver. The node's end aggregates what arrives (on a veth, GRO also switches NAPI on); the switch's end must
 * not, or it would put the frames together again.
 */
async function makePlainWire(lab: Lab, node: NodeState): Promise<void> {
  const off = [
    'tx-checksumming',
    'tcp-segmentation-offload',
    'generic-segmentation-offload',
    'tx-udp-segmentation',
    'tx-udp_tnl-segmentation',
    'tx-udp_tnl-csum-segmentation',
    'tx-gre-segmentation',
    'tx-gre-csum-segmentation',
    'tx-ipxip4-segmentation',
    'tx-ipxip6-segmentation',
    'tx-sctp-segmentation',
    'tx-gso-list',
  ].flatMap((feature) => [feature, 'off']);
  const ends = [
    { netns: node.netns, device: 'eth0', gro: 'on' },
    { netns: underlayNetns(lab.name), device: node.name, gro: 'off' },
  ];
  for (const { netns, device, gro } of ends) {
    await run('ethtool', ['-K', device, ...off, 'generic-receive-offload', gro], { netns: netnsPath(netns) });
  }
}
