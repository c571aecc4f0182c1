// SPDX-License-Identifier: Apache-2.0
import { setTimeout as sleep } from 'node:timers/promises';
import { diff } from '../reconcile/target.ts';
import { bridgeBatch, bridgeJson, ipBatch, ipJson, line } from './ip.ts';
import { type Cidr, type Family, addressFamily, cidrContains, formatCidr, parseCidr } from '../net/ip.ts';
import { normalizeMac } from '../net/mac.ts';
import { clusterNetwork, familiesOf, underlayNetwork } from './addresses.ts';
import { FLANNEL_ANNOTATION, FLANNEL_NAMES } from './flannel.ts';
import { type KubeNode, listNodes } from './kube.ts';
import { netnsPath } from './netns.ts';
import type { LabOptions } from './options.ts';
import { hasFlannel, type Lab, type NodeState } from './state.ts';

const LEASE_TIMEOUT_MS = 5_000;

/** A peer of a flannel node, in one family. */
export interface FlannelPeer {
  podCIDR: string;
  publicIp: string;
  /** Undefined when the peer is on the same L2 and reached without a tunnel (DirectRouting). */
  vtepMac?: string;
}

/** Update the neighbours, FDB and routes of every flannel node from the Nodes that the API server has now. */
export async function syncFlannel(lab: Lab): Promise<void> {
  const followers = lab.state.nodes.filter(hasFlannel);
  // A real flanneld follows by itself.
  if (followers.length === 0 || lab.state.options.real?.flannel) return;
  const nodes = await nodesWithLeases(lab);
  const { options } = lab.state;
  await Promise.all(
    followers.flatMap((node) =>
      familiesOf(options).map((family) => {
        const direct = options.directRouting ? parseCidr(underlayNetwork(options, family)) : undefined;
        return applyPeers(options, node, family, flannelPeers(nodes, node.name, family, direct));
      }),
    ),
  );
}

/**
 * Read the Nodes. An agent may publish its lease only after it is ready, so this waits for those of all ripstop nodes.
 */
async function nodesWithLeases(lab: Lab): Promise<KubeNode[]> {
  const names = lab.state.nodes.filter(({ datapath }) => datapath === 'ripstop').map(({ name }) => name);
  const deadline = performance.now() + LEASE_TIMEOUT_MS;
  for (;;) {
    const nodes = await listNodes(lab);
    const published = new Set(nodes.filter(hasLease).map(({ metadata }) => metadata.name));
    // A test may have taken a lease away.
    if (names.every((name) => published.has(name)) || performance.now() > deadline) return nodes;
    await sleep(20);
  }
}

function hasLease({ metadata }: KubeNode): boolean {
  return metadata.annotations?.[`${FLANNEL_ANNOTATION}/kube-subnet-manager`] === 'true';
}

/**
 * The peers of one family among these Nodes, by the base address of their subnet: all VXLAN leases except our own.
 * Leases that cannot be parsed are left out.
 * @param direct the network whose addresses need no tunnel. (flannel asks the routing table, with the same result
 * here.)
 */
export function flannelPeers(
  nodes: readonly KubeNode[],
  self: string,
  family: Family,
  direct?: Cidr,
): Map<string, FlannelPeer> {
  const names = FLANNEL_NAMES[family];
  const peers = new Map<string, FlannelPeer>();
  for (const node of nodes) {
    const { metadata, spec } = node;
    const annotation = (key: string) => metadata.annotations?.[`${FLANNEL_ANNOTATION}/${key}`] ?? '';
    if (metadata.name === self || !hasLease(node)) continue;
    if (annotation('backend-type') !== 'vxlan') continue;
    const publicIp = annotation(names.publicIp);
    const vtepMac = normalizeMac(/"VtepMAC":"([^"]*)"/.exec(annotation(names.backendData))?.[1] ?? '');
    const subnet = spec?.podCIDRs?.map(subnetOf).find((cidr) => cidr?.family === family);
    if (addressFamily(publicIp) !== family || vtepMac === undefined || subnet === undefined) continue;
    const podCIDR = formatCidr(subnet);
    const tunnelled = !direct || !cidrContains(direct, publicIp);
    peers.set(subnet.base, { podCIDR, publicIp, ...(tunnelled && { vtepMac }) });
  }
  return peers;
}

function subnetOf(podCIDR: string): Cidr | undefined {
  try {
    return parseCidr(podCIDR);
  } catch {
    return undefined;
  }
}

async function applyPeers(
  options: LabOptions,
  node: NodeState,
  family: Family,
  desired: ReadonlyMap<string, FlannelPeer>,
): Promise<void> {
  const netns = netnsPath(node.netns);
  const { device } = FLANNEL_NAMES[family];
  const { upserts, removals } = diff(desired, await listPeers(options, netns, family));
  const gone = entriesOf(removals, device);
  const come = entriesOf(upserts, device);
  await ipBatch(
    [
      ...gone.routes.map((entry) => `route del ${entry}`),
      ...gone.neighbours.map((entry) => `neigh del ${entry}`),
    ],
    { netns, force: true },
  );
  await bridgeBatch(
    gone.fdb.map((entry) => `fdb del ${entry}`),
    { netns },
  );
  // The order of flanneld. The route comes last, so that no packet takes it before it can be sent.
  await ipBatch(
    come.neighbours.map((entry) => `neigh replace ${entry} nud permanent`),
    { netns },
  );
  await bridgeBatch(
    come.fdb.map((entry) => `fdb replace ${entry}`),
    { netns },
  );
  await ipBatch(
    come.routes.map((entry) => `route replace ${entry}`),
    { netns },
  );
}

/**
 * The kernel's entries for these peers, as arguments of `ip` and `bridge`. An incomplete peer lacks some of the three.
 */
function entriesOf(
  peers: ReadonlyMap<string, FlannelPeer>,
  device: string,
): Record<'neighbours' | 'fdb' | 'routes', string[]> {
  const all = [...peers].map(([base, peer]) => ({ base, ...peer }));
  return {
    neighbours: all.flatMap(({ base, vtepMac }) =>
      vtepMac ? [line`${base} lladdr ${vtepMac} dev ${device}`] : [],
    ),
    fdb: all.flatMap(({ publicIp, vtepMac }) =>
      vtepMac && publicIp ? [line`${vtepMac} dev ${device} dst ${publicIp}`] : [],
    ),
    routes: all.map(({ base, podCIDR, publicIp, vtepMac }) =>
      vtepMac === undefined
        ? line`${podCIDR} via ${publicIp} dev eth0`
        : line`${podCIDR} via ${base} dev ${device} onlink`,
    ),
  };
}

/**
 * The peers in the kernel, by base address. An incomplete peer has empty fields, so that it differs and is replaced.
 */
async function listPeers(
  options: LabOptions,
  netns: string,
  family: Family,
): Promise<Map<string, FlannelPeer>> {
  const { device } = FLANNEL_NAMES[family];
  const ip = [`-${family}`];
  const [routes, neighbours, fdb] = await Promise.all([
    ipJson<{ dst: string; gateway?: string; dev: string }>(
      [...ip, 'route', 'show', 'root', clusterNetwork(options, family)],
      { netns },
    ),
    ipJson<{ dst: string; lladdr?: string }>([...ip, 'neigh', 'show', 'dev', device], { netns }),
    bridgeJson<{ mac: string; dst?: string }>(['fdb', 'show', 'dev', device], { netns }),
  ]);
  const destinations = new Map(fdb.map((entry) => [entry.mac, entry.dst ?? '']));
  const macs = new Map(neighbours.map((entry) => [entry.dst, entry.lladdr ?? '']));
  return new Map(
    routes.flatMap(({ dst, gateway, dev }): [string, FlannelPeer][] => {
      if (gateway === undefined) return [];
      const { base } = parseCidr(dst);
      if (dev !== device) return [[base, { podCIDR: dst, publicIp: gateway }]];
      const vtepMac = macs.get(base) ?? '';
      return [[base, { podCIDR: dst, publicIp: destinations.get(vtepMac) ?? '', vtepMac }]];
    }),
  );
}
