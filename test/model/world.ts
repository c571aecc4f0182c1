// SPDX-License-Identifier: Apache-2.0
/** The nodes on which the model and the programs are compared, with one of each kind of peer and pod. */
import type { Struct } from '../../src/dataplane/codec.ts';
import type { Endpoint, NodeSettings, Peer, PeerNextHop } from '../../src/dataplane/desired.ts';
import { type Cidr, parseCidr } from '../../src/net/ip.ts';
import { directSettings, nextHopTo, settings, type Side, sides, v4, v6 } from '../bpf/node.ts';
import { protocols } from '../support/packets.ts';

/** Everything that a verdict depends on, besides the packet. */
export interface World {
  readonly settings: NodeSettings;
  readonly peers: readonly Peer[];
  /** The next hop for an underlay address. */
  readonly nextHopTo: (address: string) => PeerNextHop;
  readonly endpoints: readonly Endpoint[];
  /** Flows that belong to conntrack, each with the local pod that it is counted for. */
  readonly flows: readonly { readonly pod: string; readonly flow: Struct<'flow'> }[];
  /** Pods with flows that did not fit into stack_flows. */
  readonly overflowed: readonly string[];
}

/** The ports of the flows below, which most generated packets use too, so that they match. */
export const ports = [80, 53, 40000] as const;

const flow = (src: string, dst: string, protocol: number): Struct<'flow'> => ({
  src,
  dst,
  src_port: 80,
  dst_port: 40000,
  protocol,
});

/** Pods with translated flows; some have overflowed. */
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

/** IPv6 flows are counted by the lowest bits of an address: this pod shares them with the busy sender, `::12`. */
const lookalike: Endpoint = { ...v6.pods.sender, ip: 'fd00:42:0:3::5:12', podMac: '0a:00:00:00:05:12' };

/** Its podCIDR has another length, and lies in an empty slot. */
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
    nextHopTo: (address) => nextHopTo(address, nodeSettings.directRouting),
    endpoints: [
      ...sides.flatMap(({ pods }) => Object.values(pods)),
      ...busy.flatMap(({ endpoints }) => endpoints),
      lookalike,
    ],
    flows: busy.flatMap(({ flows }) => flows),
    overflowed: busy.flatMap(({ overflowed }) => overflowed),
  };
}

/** The same podCIDRs, two bits longer in IPv4 and eight in IPv6, so that they end inside a byte and inside a word. */
const narrower = <T extends { readonly podCidr: Cidr }>(owner: T): T => {
  const { family, length } = owner.podCidr;
  return { ...owner, podCidr: { ...owner.podCidr, length: length + (family === 4 ? 2 : 8) } };
};

const direct = worldOf(directSettings);

/** Two worlds: all peers in tunnels; and peers on our L2 without tunnels, with unusual lengths of podCIDRs. */
export const worlds = {
  tunnelled: worldOf(settings),
  direct: {
    ...direct,
    settings: { ...directSettings, v4: narrower(v4.settings), v6: narrower(v6.settings) },
    peers: peers.map(narrower),
  },
} as const satisfies Record<string, World>;
export type WorldName = keyof typeof worlds;
