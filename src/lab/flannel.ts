// SPDX-License-Identifier: Apache-2.0
import { join } from 'node:path';
import { diff } from '../dataplane/target.ts';
import { ipBatch, ipJson } from '../host/ip.ts';
import { run } from '../host/run.ts';
import { type Cidr, addressFamily, formatCidr, parseCidr } from '../net/ip.ts';
import { normalizeMac } from '../net/mac.ts';
import { CNI_PLUGINS, type CniPlugin } from './cni.ts';
import { type KubeNode, listNodes, patchNodeStatus } from './kube.ts';
import { netnsPath, setSysctls } from './netns.ts';
import { CLUSTER_NETWORK, type Lab, type NodeState, nodeDir } from './state.ts';

/*
 * The kernel path that flanneld builds on a node with the VXLAN backend, and what its CNI plugin delegates to. This is
 * the base line that ripstop is measured against and falls back to, so nothing here is shorter than the real thing.
 */

const ANNOTATION = 'flannel.alpha.coreos.com';
const DEVICE = 'flannel.1';
const PORT = 8472;
/** Outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8. */
const OVERHEAD_BYTES = 50;

/** Another node as its annotations show it. */
export interface FlannelPeer {
  podCIDR: string;
  publicIp: string;
  vtepMac: string;
}

/** Build the node's side: device, rules, sysctl; then publish its lease. Peers come with {@link syncFlannel}. */
export async function setUpFlannel(lab: Lab, node: NodeState): Promise<void> {
  const netns = netnsPath(node.netns);
  const { base } = parseCidr(node.podCIDR);
  await ipBatch(
    [
      `link add ${DEVICE} type vxlan id 1 local ${node.ip} dev eth0 dstport ${PORT} nolearning`,
      `address add ${base}/32 dev ${DEVICE}`,
      `link set ${DEVICE} mtu ${podMtu(lab)} up`,
    ],
    { netns },
  );
  await setSysctls(node.netns, { 'bridge.bridge-nf-call-iptables': 1 });
  await run('iptables-restore', [], { netns, stdin: flannelRules(node.podCIDR) });
  const [device] = await ipJson<{ address: string }>(['link', 'show', 'dev', DEVICE], { netns });
  await patchNodeStatus(lab, node.name, {
    metadata: {
      annotations: {
        [`${ANNOTATION}/kube-subnet-manager`]: 'true',
        [`${ANNOTATION}/backend-type`]: 'vxlan',
        [`${ANNOTATION}/backend-data`]: `{"VNI":1,"VtepMAC":"${device!.address}"}`,
        [`${ANNOTATION}/public-ip`]: node.ip,
      },
    },
  });
}

/** What flannel's CNI plugin delegates to: the bridge plugin with host-local addresses from the node's podCIDR. */
export function flannelPlugin(lab: Lab, node: NodeState): CniPlugin {
  return {
    plugin: join(CNI_PLUGINS, 'bridge'),
    config: {
      cniVersion: '1.0.0',
      name: 'cbr0',
      type: 'bridge',
      bridge: 'cni0',
      isGateway: true,
      isDefaultGateway: true,
      hairpinMode: true,
      ipMasq: false,
      mtu: podMtu(lab),
      ipam: {
        type: 'host-local',
        ranges: [[{ subnet: node.podCIDR }]],
        routes: [{ dst: CLUSTER_NETWORK }],
        dataDir: join(nodeDir(lab, node), 'ipam'),
      },
    },
  };
}

/** Bring every flannel node's neighbours, FDB and routes in line with the Nodes that the API server has now. */
export async function syncFlannel(lab: Lab): Promise<void> {
  const followers = lab.state.nodes.filter((node) => node.datapath === 'flannel');
  if (followers.length === 0) return;
  const nodes = await listNodes(lab);
  await Promise.all(followers.map((node) => applyPeers(node, flannelPeers(nodes, node.name))));
}

/** The peers among these Nodes by their subnet's base address: all VXLAN leases but our own; what does not parse is left out. */
export function flannelPeers(nodes: readonly KubeNode[], self: string): Map<string, FlannelPeer> {
  const peers = new Map<string, FlannelPeer>();
  for (const { metadata, spec } of nodes) {
    const annotation = (key: string) => metadata.annotations?.[`${ANNOTATION}/${key}`] ?? '';
    if (metadata.name === self || annotation('kube-subnet-manager') !== 'true') continue;
    if (annotation('backend-type') !== 'vxlan') continue;
    const publicIp = annotation('public-ip');
    const vtepMac = normalizeMac(/"VtepMAC":"([^"]*)"/.exec(annotation('backend-data'))?.[1] ?? '');
    const subnet = subnetOf(spec?.podCIDR);
    if (addressFamily(publicIp) !== 4 || vtepMac === undefined || subnet === undefined) continue;
    peers.set(subnet.base, { podCIDR: formatCidr(subnet), publicIp, vtepMac });
  }
  return peers;
}

function subnetOf(podCIDR: string | undefined): Cidr | undefined {
  try {
    return parseCidr(podCIDR ?? '');
  } catch {
    return undefined;
  }
}

async function applyPeers(node: NodeState, desired: ReadonlyMap<string, FlannelPeer>): Promise<void> {
  const netns = netnsPath(node.netns);
  const { upserts, removals } = diff(desired, await listPeers(netns));
  await ipBatch(
    [...removals].flatMap(([base, peer]) => [
      `route del ${peer.podCIDR} dev ${DEVICE}`,
      `neigh del ${base} dev ${DEVICE}`,
    ]),
    { netns, force: true },
  );
  await bridgeBatch(
    [...removals.values()].map((peer) => `fdb del ${peer.vtepMac} dev ${DEVICE} dst ${peer.publicIp}`),
    netns,
  );
  // flanneld's order: neighbour, FDB, and the route last, so that no packet takes it before it can be sent.
  await ipBatch(
    [...upserts].map(
      ([base, peer]) => `neigh replace ${base} lladdr ${peer.vtepMac} dev ${DEVICE} nud permanent`,
    ),
    { netns },
  );
  await bridgeBatch(
    [...upserts.values()].map((peer) => `fdb replace ${peer.vtepMac} dev ${DEVICE} dst ${peer.publicIp}`),
    netns,
  );
  await ipBatch(
    [...upserts].map(([base, peer]) => `route replace ${peer.podCIDR} via ${base} dev ${DEVICE} onlink`),
    { netns },
  );
}

/** The peers that the kernel has, by base address; half a peer shows empty fields, so that it differs and is replaced. */
async function listPeers(netns: string): Promise<Map<string, FlannelPeer>> {
  const [routes, neighbours, fdb] = await Promise.all([
    ipJson<{ dst: string; gateway?: string }>(['route', 'show', 'dev', DEVICE], { netns }),
    ipJson<{ dst: string; lladdr?: string; state: string[] }>(['neigh', 'show', 'dev', DEVICE], { netns }),
    run('bridge', ['-json', 'fdb', 'show', 'dev', DEVICE], { netns }),
  ]);
  const dialled = new Map(
    (JSON.parse(fdb) as { mac: string; dst?: string }[]).map((entry) => [entry.mac, entry.dst ?? '']),
  );
  const macs = new Map(neighbours.map((entry) => [entry.dst, entry.lladdr ?? '']));
  return new Map(
    routes.flatMap(({ dst, gateway }) => {
      if (gateway === undefined) return [];
      const vtepMac = macs.get(gateway) ?? '';
      return [[gateway, { podCIDR: dst, publicIp: dialled.get(vtepMac) ?? '', vtepMac }]];
    }),
  );
}

async function bridgeBatch(commands: readonly string[], netns: string): Promise<void> {
  if (commands.length === 0) return;
  await run('bridge', ['-batch', '-'], { netns, stdin: `${commands.join('\n')}\n` });
}

function podMtu(lab: Lab): number {
  return lab.state.options.mtu - OVERHEAD_BYTES;
}

/** flanneld's chains in iptables-restore's language, on a node whose FORWARD policy is DROP as Docker and hardened hosts set it. */
function flannelRules(podCIDR: string): string {
  const postrtg = [
    '-m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN',
    `-s ${podCIDR} -d ${CLUSTER_NETWORK} -m comment --comment "flanneld masq" -j RETURN`,
    `-s ${CLUSTER_NETWORK} -d ${podCIDR} -m comment --comment "flanneld masq" -j RETURN`,
    `! -s ${CLUSTER_NETWORK} -d ${podCIDR} -m comment --comment "flanneld masq" -j RETURN`,
    `-s ${CLUSTER_NETWORK} ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully`,
    `! -s ${CLUSTER_NETWORK} -d ${CLUSTER_NETWORK} -m comment --comment "flanneld masq" -j MASQUERADE --random-fully`,
  ];
  const forward = [
    `-s ${CLUSTER_NETWORK} -m comment --comment "flanneld forward" -j ACCEPT`,
    `-d ${CLUSTER_NETWORK} -m comment --comment "flanneld forward" -j ACCEPT`,
  ];
  return [
    '*nat',
    ':FLANNEL-POSTRTG - [0:0]',
    '-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
    ...postrtg.map((rule) => `-A FLANNEL-POSTRTG ${rule}`),
    'COMMIT',
    '*filter',
    ':FORWARD DROP [0:0]',
    ':FLANNEL-FWD - [0:0]',
    '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD',
    ...forward.map((rule) => `-A FLANNEL-FWD ${rule}`),
    'COMMIT',
    '',
  ].join('\n');
}
