// SPDX-License-Identifier: Apache-2.0
/** The peers: their entries on the kernel path and in the maps. Pure. */
import type { Struct } from '../../dataplane/codec.ts';
import type { Peer } from '../../cluster/index.ts';
import { desiredPeers, desiredVteps, type PeerNextHop } from '../../dataplane/desired.ts';
import { sendersOf } from '../../host/vtep-set.ts';
import { type PeerEntries, peerEntries, type PeerRoute } from '../../host/vxlan-target.ts';
import { vtepDeviceName } from '../../host/vtep-device.ts';
import { type Family, formatCidr } from '../../net/ip.ts';
import type { Desired } from '../../reconcile/reconciled.ts';
import type { NodeSnapshot } from '../snapshot.ts';
import { peerService, toPeerNextHop } from './fast-path.ts';
import { lazily, type Peers, type PlanOptions } from './inputs.ts';
import type { Outline } from './outline.ts';

export interface PeerPlan {
  /** Undefined in boost mode: there flannel writes it. */
  readonly kernelPath?: PeerKernelPath;
  /** The following are undefined as long as no programs are loaded. */
  readonly vteps?: Desired<Struct<'vtep'>>;
  readonly peers?: Desired<Struct<'peer'>>;
  readonly peers6?: Desired<Struct<'peer6'>>;
}

interface PeerKernelPath {
  /** First, so that packets of a new peer are admitted before any are sent to it. */
  readonly vtepSet: Desired<true>;
  readonly neighbours: Desired<string>;
  readonly fdb: Desired<string>;
  readonly peerRoutes: Desired<PeerRoute>;
}

export function planPeers(outline: Outline, all: Peers, node: NodeSnapshot, options: PlanOptions): PeerPlan {
  const { peers, synced } = all;
  const { settings, uplink, vteps } = outline;
  const ifindexes = [...vteps.keys(), uplink.name].map((name) => node.links.value.get(name)?.ifindex ?? 0);
  const revision = [all.revision, node.nextHops.revision, ...ifindexes, outline.revision].join(' ');
  const desired = <V>(entries: () => ReadonlyMap<string, V>, suffix = ''): Desired<V> => ({
    revision: `${revision} ${suffix}`,
    entries,
    complete: synced,
  });
  const nextHopTo = nextHops(outline, node);
  const entries = lazily(() => kernelPathOf(outline, peers, node, nextHopTo));
  const kernelPath: PeerKernelPath = {
    vtepSet: desired(() => (settings.tunnel ? sendersOf(peers) : new Map())),
    neighbours: desired(() => entries().neighbours),
    fdb: desired(() => entries().fdb),
    peerRoutes: {
      ...desired(() => entries().routes),
      impossible: () => unreachable(outline, peers, nextHopTo),
    },
  };
  const plan: PeerPlan = options.agent.mode === 'boost' ? {} : { kernelPath };
  if (!node.programs.value) return plan;
  const service = `${node.programs.revision} ${node.policies.revision} ${node.shaped.revision}`;
  const peerMaps = lazily(() => {
    const serviceOf = peerService(outline, node, options);
    return desiredPeers(settings, peers, (peer) => serviceOf(peer).nextHop);
  });
  return {
    ...plan,
    vteps: desired(() => desiredVteps(settings, peers, peerMaps()), service),
    peers: desired(() => peerMaps().peers, service),
    peers6: desired(() => peerMaps().peers6, service),
  };
}

/** The next hop to an address; undefined when the kernel does not send to it over the uplink. */
function nextHops(
  outline: Outline,
  { nextHops }: NodeSnapshot,
): (address: string) => PeerNextHop | undefined {
  return (address) => {
    const hop = nextHops.value.get(address);
    return hop?.dev === outline.uplink.name ? toPeerNextHop(outline, address, hop) : undefined;
  };
}

/** flannel's entries for each peer; none over an interface that is gone. */
function kernelPathOf(
  { settings, uplink }: Outline,
  peers: readonly Peer[],
  { links }: NodeSnapshot,
  nextHopTo: (address: string) => PeerNextHop | undefined,
): PeerEntries {
  const { tunnel } = settings;
  const vtepOf = (family: Family): string | undefined => {
    const name = tunnel && vtepDeviceName(family, tunnel.vni);
    return name !== undefined && links.value.has(name) ? name : undefined;
  };
  const isUplinkThere = links.value.has(uplink.name);
  const reachable = peers.values().flatMap((peer) => {
    if (!nextHopTo(peer.vtepIp)?.direct) return [peer];
    return isUplinkThere ? [{ ...peer, directDev: uplink.name }] : [];
  });
  return peerEntries(reachable, vtepOf);
}

/** By podCIDR, why peers cannot be reached: without tunnels, those to which there is no direct route. */
function unreachable(
  { settings }: Outline,
  peers: readonly Peer[],
  nextHopTo: (address: string) => PeerNextHop | undefined,
): Map<string, string> {
  if (settings.tunnel) return new Map();
  return new Map(
    peers
      .filter(({ vtepIp }) => nextHopTo(vtepIp)?.direct !== true)
      .map(({ name, podCidr, vtepIp }) => [
        formatCidr(podCidr),
        `without tunnels only nodes on our own L2 can be reached, not ${name} (${vtepIp}); ` +
          'use the backend vxlan with DirectRouting',
      ]),
  );
}
