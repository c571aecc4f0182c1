// SPDX-License-Identifier: Apache-2.0
import { ipBatch } from './ip.ts';
import { run } from '../host/run.ts';
import { parseCidr } from '../net/ip.ts';
import { randomMac } from '../net/mac.ts';
import { familiesOf, gatewayAddress, familyParts, underlayNetwork } from './addresses.ts';
import { addNetns, netnsPath, setSysctls } from './netns.ts';
import { type Lab, type NodeState, underlayNetns } from './state.ts';

/**
 * Addresses outside the nodes' network. There is no route from them to pods, so only masqueraded packets get answers.
 */
export const OUTSIDE_ADDRESS = '203.0.113.1';
export const OUTSIDE_ADDRESS6 = '2001:db8::1';

/** IPv6 addresses can be used at once, since nobody else can have them. Duplicate address detection takes seconds. */
const ADDRESSES_AT_ONCE = { 'ipv6.conf.default.accept_dad': 0 };

/** Create the nodes' network: a switch with an address, in a namespace of its own, with the outside world behind it. */
export async function createUnderlay(lab: Lab): Promise<void> {
  const netns = underlayNetns(lab.name);
  const { options } = lab.state;
  await addNetns(netns);
  await setSysctls(netns, {
    // Frames that cross a switch must not meet iptables and conntrack.
    'bridge.bridge-nf-call-iptables': 0,
    'bridge.bridge-nf-call-ip6tables': 0,
    ...(options.ipv6 && ADDRESSES_AT_ONCE),
  });
  await ipBatch(
    [
      // A bridge without a MAC address of its own changes it with its ports.
      `link add br0 address ${randomMac()} mtu ${options.mtu} type bridge stp_state 0`,
      ...familiesOf(options).map((family) => {
        const network = underlayNetwork(options, family);
        return `address add ${gatewayAddress(network)}/${parseCidr(network).length} dev br0`;
      }),
      'link set br0 up',
      `address add ${OUTSIDE_ADDRESS} dev lo`,
      ...(options.ipv6 ? [`address add ${OUTSIDE_ADDRESS6} dev lo`] : []),
    ],
    { netns: netnsPath(netns) },
  );
}

/**
 * Create a node's namespace, with its uplink `eth0` connected to the underlay, where the other end has the node's name.
 */
export async function createNodeNetns(lab: Lab, node: NodeState): Promise<void> {
  const { options } = lab.state;
  const { mtu, wire } = options;
  await addNetns(node.netns);
  // A node must forward, as the documentation of kubelet and of all CNI plugins requires.
  await setSysctls(node.netns, {
    'ipv4.ip_forward': 1,
    ...(options.ipv6 && { 'ipv6.conf.all.forwarding': 1, ...ADDRESSES_AT_ONCE }),
  });
  await ipBatch(
    [
      `link add ${node.name} mtu ${mtu} type veth peer name eth0 mtu ${mtu} netns ${node.netns}`,
      `link set ${node.name} master br0 up`,
    ],
    { netns: netnsPath(underlayNetns(lab.name)) },
  );
  if (wire === 'mtu') await makePlainWire(lab, node);
  const uplinks = familyParts(node).map(({ family, ip }) => ({
    ip,
    network: underlayNetwork(options, family),
  }));
  await ipBatch(
    [
      ...uplinks.map(({ ip, network }) => `address add ${ip}/${parseCidr(network).length} dev eth0`),
      'link set eth0 up',
      ...uplinks.map(({ network }) => `route add default via ${gatewayAddress(network)}`),
    ],
    { netns: netnsPath(node.netns) },
  );
}

/**
 * Make both ends of the cable behave like NICs without offloads: the kernel segments and checksums before the driver.
 * The node's end merges what it receives (on a veth, GRO also switches NAPI on). The switch's end must not, or it would
 * merge the frames again.
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
