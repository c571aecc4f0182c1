// SPDX-License-Identifier: Apache-2.0
/** The nodes on which the model and the programs are compared, with one of each kind of peer and pod. */
import type { Endpoint, NodeSettings, Peer, PeerNextHop } from '../../src/dataplane/desired.ts';
import { type Cidr, parseCidr } from '../../src/net/ip.ts';
import { directSettings, nextHopTo, settings, sides, v4, v6 } from '../bpf/node.ts';

/** Everything that a verdict depends on, besides the packet, the flow table, and what was noted. */
export interface World {
  readonly settings: NodeSettings;
  readonly peers: readonly Peer[];
  /** The next hop for an underlay address. */
  readonly nextHopTo: (address: string) => PeerNextHop;
  readonly endpoints: readonly Endpoint[];
}

/** The ports that most generated packets use. */
export const ports = [80, 53, 40000] as const;

/** Its podCIDR has another length, and lies in an empty slot. */
const oddPeer: Peer = {
  name: 'odd',
  podCidr: parseCidr('10.42.200.0/25'),
  vtepIp: v4.vtepOf(200),
  vtepMac: 'aa:00:00:00:00:c8',
  behindNat: false,
};

const peers = [...sides.flatMap((side) => Object.values(side.peers)), oddPeer];

function worldOf(nodeSettings: NodeSettings): World {
  return {
    settings: nodeSettings,
    peers,
    nextHopTo: (address) => nextHopTo(address, nodeSettings.directRouting),
    endpoints: sides.flatMap(({ pods }) => Object.values(pods)),
  };
}

/** The same podCIDRs, two bits longer in IPv4 and eight in IPv6, so that they end inside a byte and inside a word. */
const narrower = <T extends { readonly podCidr: Cidr }>(owner: T): T => {
  const { family, length } = owner.podCidr;
  return { ...owner, podCidr: { ...owner.podCidr, length: length + (family === 4 ? 2 : 8) } };
};

const direct = worldOf(directSettings);

/**
 * Two worlds: all peers in tunnels; and peers on our L2 without tunnels, with unusual lengths of podCIDRs, where flannel
 * alone decides about strangers, as in boost mode.
 */
export const worlds = {
  tunnelled: worldOf(settings),
  direct: {
    ...direct,
    settings: {
      ...directSettings,
      v4: narrower(v4.settings),
      v6: narrower(v6.settings),
      admitsStrangers: true,
    },
    peers: peers.map(narrower),
  },
} as const satisfies Record<string, World>;
export type WorldName = keyof typeof worlds;
