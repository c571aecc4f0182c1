// SPDX-License-Identifier: Apache-2.0
/** The node that the model and the programs are compared on: one of each kind of neighbour that a packet can meet. */
import type { Struct } from '../../src/dataplane/codec.ts';
import type { Endpoint, NodeSettings, Peer } from '../../src/dataplane/desired.ts';
import { parseCidr } from '../../src/net/ip.ts';
import { peers, pods, settings } from '../bpf/node.ts';

/** All that a verdict depends on, besides the packet. */
export interface World {
  readonly settings: NodeSettings;
  readonly peers: readonly Peer[];
  readonly endpoints: readonly Endpoint[];
  /** Packets with these tuples belong to conntrack; the pod is the local one that they are kept for. */
  readonly flows: readonly { readonly pod: string; readonly flow: Struct<'flow'> }[];
  /** Pods whose flows did not all fit into stack_flows. */
  readonly overflowed: readonly string[];
}

/** The device that packets come in by: a test run knows no other than the loopback device. */
export const IFINDEX = pods.sender.hostIfindex;

/** What the tuples below and most packets of the generator use, so that they meet. */
export const ports = [80, 53, 40000] as const;

const busySender: Endpoint = { ...pods.sender, ip: '10.42.3.12', podMac: '0a:00:00:00:00:12' };
const busyNear: Endpoint = { ...pods.near, ip: '10.42.3.23', podMac: '0a:00:00:00:00:23', hostIfindex: 123 };
const fullSender: Endpoint = { ...pods.sender, ip: '10.42.3.13', podMac: '0a:00:00:00:00:13' };
const fullNear: Endpoint = { ...pods.near, ip: '10.42.3.24', podMac: '0a:00:00:00:00:24', hostIfindex: 124 };

/** Its podCIDR has another length than the others', so the peers map cannot hold it. */
const oddPeer: Peer = {
  name: 'odd',
  podCidr: parseCidr('10.42.200.0/25'),
  vtepIp: '192.168.0.200',
  vtepMac: 'aa:00:00:00:00:c8',
  behindNat: false,
};

const flow = (src: string, dst: string, protocol: number): Struct<'flow'> => ({
  src,
  dst,
  src_port: 80,
  dst_port: 40000,
  protocol,
});

export const world: World = {
  settings,
  peers: [...Object.values(peers), oddPeer],
  endpoints: [...Object.values(pods), busySender, busyNear, fullSender, fullNear],
  flows: [6, 17].flatMap((protocol) => [
    { pod: busySender.ip, flow: flow(busySender.ip, '10.42.1.7', protocol) },
    { pod: busySender.ip, flow: flow(busySender.ip, pods.near.ip, protocol) },
    { pod: busyNear.ip, flow: flow('10.42.1.7', busyNear.ip, protocol) },
    { pod: busyNear.ip, flow: flow(pods.sender.ip, busyNear.ip, protocol) },
  ]),
  overflowed: [fullSender.ip, fullNear.ip],
};
