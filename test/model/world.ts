// SPDX-License-Identifier: Apache-2.0
/** The nodes that the model and the programs are compared on: with one of each kind of neighbour that a packet can meet. */
import type { Struct } from '../../src/dataplane/codec.ts';
import type { Endpoint, NodeSettings, Peer, PeerHop } from '../../src/dataplane/desired.ts';
import { type Cidr, parseCidr } from '../../src/net/ip.ts';
import { directSettings, hopTo, settings, type Side, sides, v4, v6 } from '../bpf/node.ts';
import { protocols } from '../support/packets.ts';

/** All that a verdict depends on, besides the packet. */
export interface World {
  readonly settings: NodeSettings;
  readonly peers: readonly Peer[];
  /** Where the uplink sends packets to an underlay address. */
  readonly hopTo: (address: string) => PeerHop;
  readonly endpoints: readonly Endpoint[];
  /** Packets with these tuples belong to conntrack; the pod is the local one that they are kept for. */
  readonly flows: readonly { readonly pod: string; readonly flow: Struct<'flow'> }[];
  /** Pods whose flows did not all fit into stack_flows. */
  readonly overflowed: readonly string[];
}

/** What the tuples below and most packets of the generator use, so that they meet. */
export const ports = [80, 53, 40000] as const;

const flow = (src: string, dst: string, protocol: number): Struct<'flow'> => ({
  src,
  dst,
  src_port: 80,
  dst_port: 40000,
  protocol,
});

/** Pods with translated flows, of which some have overflowed. */
function busyPods({ podOf, pods, peers }: Side) {
  const like = (pod: Endpoint, n: number, hostIfindex = pod.hostIfindex): Endpoint => ({
    ...pod,
    ip: podOf(3, n),
    podMac: `0a:00:00:00:00:${n}`,
    hostIfindex,
  });
  const [busySender, fullSender] = [like(pods.sender, 12), like(pods.sender, 13)];
  const [busyNear, fullNear] = [like(pods.near, 23, 123), like(pods.near, 24, 124)];
  const far = podOf(1, 7);
  return {
    endpoints: [busySender, busyNear, fullSender, fullNear],
    flows: [protocols.tcp, protocols.udp].flatMap((protocol) => [
      { pod: busySender.ip, flow: flow(busySender.ip, far, protocol) },
      { pod: busySender.ip, flow: flow(busySender.ip, pods.near.ip, protocol) },
      { pod: busyNear.ip, flow: flow(far, busyNear.ip, protocol) },
      { pod: busyNear.ip, flow: flow(pods.sender.ip, busyNear.ip, protocol) },
    ]),
    overflowed: [fullSender.ip, fullNear.ip],
    peers: Object.values(peers),
  };
}

/** IPv6 keeps count of flows by the lowest bits of an address: this pod shares them with the busy sender, `::12`. */
const lookalike: Endpoint = { ...v6.pods.sender, ip: 'fd00:42:0:3::5:12', podMac: '0a:00:00:00:05:12' };

/** Its podCIDR lies in the slot of a peer that there is not, and has another length. */
const oddPeer: Peer = {
  name: 'odd',
  podCidr: parseCidr('10.42.200.0/25'),
  vtepIp: v4.vtepOf(200),
  vtepMac: 'aa:00:00:00:00:c8',
  behindNat: false,
};

const busy = sides.map(busyPods);
const peers = [...busy.flatMap(({ peers }) => peers), oddPeer];

function worldOf(nodeSettings: NodeSettings): World {
  return {
    settings: nodeSettings,
    peers,
    hopTo: (address) => hopTo(address, nodeSettings.directRouting),
    endpoints: [
      ...sides.flatMap(({ pods }) => Object.values(pods)),
      ...busy.flatMap(({ endpoints }) => endpoints),
      lookalike,
    ],
    flows: busy.flatMap(({ flows }) => flows),
    overflowed: busy.flatMap(({ overflowed }) => overflowed),
  };
}

/** The same podCIDRs with two bits more in IPv4, and eight more in IPv6, so that they end within a byte and within a word. */
const narrower = <T extends { readonly podCidr: Cidr }>(owner: T): T => {
  const { family, length } = owner.podCidr;
  return { ...owner, podCidr: { ...owner.podCidr, length: length + (family === 4 ? 2 : 8) } };
};

const direct = worldOf(directSettings);

/** Everything in tunnels; and with peers on our L2 reached without, where podCIDRs have uncommon lengths. */
export const worlds = {
  tunnelled: worldOf(settings),
  direct: {
    ...direct,
    settings: { ...directSettings, v4: narrower(v4.settings), v6: narrower(v6.settings) },
    peers: peers.map(narrower),
  },
} as const satisfies Record<string, World>;
export type WorldName = keyof typeof worlds;
