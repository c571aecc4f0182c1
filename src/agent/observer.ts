// SPDX-License-Identifier: Apache-2.0
import type { Peer } from '../cluster/index.ts';
import type { Attachment, AttachmentStore } from '../cni/attachments.ts';
import { hostVethName } from '../cni/pod-network.ts';
import { listLinkKeys, type XdpAnswers } from '../dataplane/links.ts';
import type { ProgramSet } from '../dataplane/programs.ts';
import type { BridgedPods, BridgeEvent, PodBridges, Sighting } from '../host/bridged-pods.ts';
import { listIpsecPolicies } from '../host/ipsec.ts';
import { type Link, listLinks, readLinkIfThere } from '../host/links.ts';
import type { NodeEvent } from '../host/monitor.ts';
import { lookupNextHops, type NextHop } from '../host/neighbours.ts';
import { findPodBridges } from '../host/pod-bridge.ts';
import { findShaped } from '../host/shaping.ts';
import { readUplinkFacts, type UplinkRequest } from '../host/uplink.ts';
import { isVtepName } from '../host/vtep-device.ts';
import type { Cidr, PerFamily } from '../net/ip.ts';
import { isSame } from '../reconcile/target.ts';
import type { Peers } from './plan/index.ts';
import { type LoadedIds, type NodeSnapshot, observed } from './snapshot.ts';

/** What an event gives reason to bring in line: the pods' part, or the whole node. */
export type Concern = 'pods' | 'node';

type PodLink = Omit<Extract<NodeEvent, { kind: 'pod-link' }>, 'kind'>;

/** What a change in the kernel makes stale. */
export const NODE_PARTS = ['links', 'routes', 'nextHops', 'policies', 'shaped', 'bridged'] as const;
export type NodePart = (typeof NODE_PARTS)[number];

export interface ObserverOptions {
  readonly uplink: Pick<UplinkRequest, 'families' | 'ifaceCanReach'>;
  readonly store: AttachmentStore;
  readonly podCidrs: readonly Cidr[];
  /** What is known of the bridges of these podCIDRs. */
  readonly bridgedPods: BridgedPods;
  readonly programs: ProgramSet;
  readonly xdp: XdpAnswers;
  /** Where links are pinned. */
  readonly linkPins: string;
  /** Whether peers may be reached without a tunnel: by the routes of their podCIDRs, which have MTUs of their own. */
  readonly isDirect: boolean;
}

/** Makes snapshots of this node. It looks again only at parts that events made stale, and changes nothing. */
export class NodeObserver {
  readonly #options: ObserverOptions;
  readonly #stale = new Set<NodePart>(NODE_PARTS);
  /** The indexes of pods' links of which events told something else than the snapshot. */
  #changed = new Set<number>();
  /** The revision of the peers whose next hops are in the snapshot. */
  #hopsOf = -1;
  /** The source addresses of packets to peers. */
  #sources: PerFamily<string> = {};
  #turn: Promise<unknown> = Promise.resolve();
  #snapshot: NodeSnapshot = {
    links: { revision: 0, value: new Map() },
    routes: { revision: 0, value: { defaultRoutes: [], ipv6Mtus: new Map() } },
    nextHops: { revision: 0, value: new Map() },
    policies: { revision: 0, value: [] },
    pods: { revision: 0, value: [] },
    bridged: { revision: 0, value: { ports: [], pods: [], contradictions: [] } },
    lostPods: [],
    shaped: { revision: 0, value: [] },
    programs: { revision: 0, value: undefined },
    attached: new Set(),
    xdpRefusals: new Map(),
  };

  constructor(options: ObserverOptions) {
    this.#options = options;
  }

  invalidate(...parts: NodePart[]): void {
    for (const part of parts) this.#stale.add(part);
  }

  /** Observe the whole node, with the next hops to these peers. */
  observe(peers: Peers): Promise<NodeSnapshot> {
    return this.#inTurn(async () => {
      const { uplink, store, podCidrs, programs, linkPins, xdp } = this.#options;
      const before = this.#snapshot;
      const isStale = this.#take('links') || this.#changed.size > 0;
      this.#changed.clear();
      const links = isStale ? observed(before.links, await listLinks()) : before.links;
      const isRerouted = this.#take('routes') || links !== before.links;
      const routes = isRerouted
        ? observed(before.routes, await readUplinkFacts(uplink, links.value))
        : before.routes;
      const nextHops = observed(before.nextHops, await this.#nextHops(peers));
      const policies = this.#take('policies')
        ? observed(before.policies, listIpsecPolicies())
        : before.policies;
      await store.refresh();
      const pods = observed(before.pods, await store.list());
      if (this.#take('bridged') || links !== before.links)
        this.#options.bridgedPods.read(findPodBridges(podCidrs, links.value), links.value);
      const bridged = observed(before.bridged, this.#options.bridgedPods.bridges);
      this.#snapshot = {
        links,
        routes,
        nextHops,
        policies,
        pods,
        bridged,
        lostPods: store.lost.map(hostVethName),
        shaped: this.#shaped(hostVethsOf(pods.value, bridged.value), links.value),
        programs: { revision: programs.revision, value: loadedIds(programs) },
        attached: listLinkKeys(linkPins),
        xdpRefusals: xdp.refusals,
      };
      return this.#snapshot;
    });
  }

  /** Observe only which pods there are, and the host veths of those that are new or that events told of. */
  observePods(): Promise<NodeSnapshot> {
    return this.#inTurn(async () => {
      const before = this.#snapshot;
      const pods = observed(before.pods, await this.#options.store.list());
      const bridged = observed(before.bridged, this.#options.bridgedPods.bridges);
      const veths = hostVethsOf(pods.value, bridged.value);
      const links = await this.#readPodLinks(before.links, veths);
      const lostPods = this.#options.store.lost.map(hostVethName);
      const shaped = this.#shaped(veths, links.value);
      this.#snapshot = { ...before, links, pods, bridged, lostPods, shaped };
      return this.#snapshot;
    });
  }

  /** Read again which of these links are missing or down, and those that have changed. */
  async #readPodLinks(
    links: NodeSnapshot['links'],
    veths: readonly number[],
  ): Promise<NodeSnapshot['links']> {
    const known = new Map(links.value.values().map((link) => [link.ifindex, link]));
    const changed = this.#changed;
    this.#changed = new Set();
    const wanted = new Set([...changed, ...veths.filter((ifindex) => !known.get(ifindex)?.up)]);
    if (wanted.size === 0) return links;
    for (const ifindex of wanted) known.delete(ifindex);
    const found = await Promise.all([...wanted].map((ifindex) => readLinkIfThere(ifindex)));
    for (const link of found) if (link) known.set(link.ifindex, link);
    return observed(links, new Map(known.values().map((link) => [link.name, link])));
  }

  /**
   * Ask for next hops as the VXLAN device does: by the addresses from which it sends, since rules may go by those.
   * @returns whether they are others than before, so that the node must be observed again.
   */
  sendFrom(sources: PerFamily<string>): boolean {
    if (isSame(sources, this.#sources)) return false;
    this.#sources = sources;
    this.invalidate('nextHops');
    return true;
  }

  /**
   * An event tells of a pod's host veth. One that no pod has yet, or any more, is no news: its ADD or DEL sees to it.
   * @returns what may have to follow.
   */
  notePodLink({ name, deleted, ifindex, up, mtu }: PodLink): Concern | undefined {
    const { links, pods, bridged, lostPods } = this.#snapshot;
    const known = links.value.get(name) ?? links.value.values().find((link) => link.ifindex === ifindex);
    if (!known) return undefined;
    const isSameLink = known.ifindex === ifindex && known.name === name;
    if (!deleted && isSameLink && known.up === up && known.mtu === mtu) return undefined;
    this.#changed.add(known.ifindex).add(ifindex);
    if (lostPods.includes(known.name)) return 'node';
    // An attachment follows its renamed veth in a whole pass.
    if (pods.value.some(({ hostIfname }) => hostIfname === known.name)) return isSameLink ? 'pods' : 'node';
    // A port that goes is noted by its bridge.
    return !deleted && bridged.value.ports.includes(ifindex) ? 'pods' : undefined;
  }

  /**
   * An event tells of somebody's qdisc or filter on an interface; undefined: on several.
   * @returns whether it may concern a pod, or all peers.
   */
  noteShaping(ifindex: number | undefined): boolean {
    this.invalidate('shaped');
    const { pods, bridged, links } = this.#snapshot;
    const veths = hostVethsOf(pods.value, bridged.value);
    return ifindex === undefined || this.#shapeable(veths, links.value).includes(ifindex);
  }

  /** An event tells of a bridge. @returns whether a pod on a bridge may have come, gone or moved. */
  noteBridge(event: BridgeEvent): boolean {
    return this.#options.bridgedPods.note(event);
  }

  /** Pods on bridges have sent from addresses that no endpoint has. @returns whether that is news. */
  noteSightings(sightings: readonly Sighting[]): boolean {
    return sightings.map((one) => this.#options.bridgedPods.noteSighting(one)).some(Boolean);
  }

  /** One observation at a time: a slow one must not put back what a quick one has replaced. */
  #inTurn<T>(observe: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(observe);
    this.#turn = result.catch(() => this.invalidate(...NODE_PARTS));
    return result;
  }

  /** Whether the part is stale. From now on it is not: what changes while it is read makes it stale anew. */
  #take(part: NodePart): boolean {
    return this.#stale.delete(part);
  }

  /** Where shaping by others concerns pods: their host veths and bridges, and the VTEP devices. */
  #shapeable(hostVeths: readonly number[], links: ReadonlyMap<string, Link>): number[] {
    const vteps = links.values().filter(({ name }) => isVtepName(name));
    const devices = [...findPodBridges(this.#options.podCidrs, links), ...vteps];
    return [...hostVeths, ...devices.map(({ ifindex }) => ifindex)];
  }

  /** Which of these devices somebody shapes. Events tell of changes, also on those of new pods. */
  #shaped(hostVeths: readonly number[], links: ReadonlyMap<string, Link>): NodeSnapshot['shaped'] {
    const { shaped } = this.#snapshot;
    if (!this.#take('shaped')) return shaped;
    return observed(shaped, findShaped(this.#shapeable(hostVeths, links), this.#options.linkPins));
  }

  /** The next hops to all peers, and to their podCIDRs if those are routed directly; unless they are stale, only those to new peers are asked for. */
  async #nextHops({ revision, peers }: Peers): Promise<ReadonlyMap<string, NextHop>> {
    const known = this.#snapshot.nextHops.value;
    const isStale = this.#take('nextHops');
    if (!isStale && revision === this.#hopsOf) return known;
    const ways = (peer: Peer) => (this.#options.isDirect ? [peer.vtepIp, peer.podCidr.base] : [peer.vtepIp]);
    const addresses = new Set(peers.flatMap(ways));
    const missing = [...addresses].filter((address) => isStale || !known.has(address));
    const asked = await lookupNextHops(missing, this.#sources);
    this.#hopsOf = revision;
    const hops = new Map<string, NextHop>();
    for (const address of addresses) {
      const hop = asked.get(address) ?? (isStale ? undefined : known.get(address));
      if (hop) hops.set(address, hop);
    }
    return hops;
  }
}

/** The indexes of the host veths of all pods. */
function hostVethsOf(pods: readonly Attachment[], { ports }: PodBridges): number[] {
  return [...new Set([...pods.map(({ hostIfindex }) => hostIfindex), ...ports])];
}

function loadedIds({ loaded }: ProgramSet): LoadedIds | undefined {
  if (!loaded) return undefined;
  const { programs, pending } = loaded;
  return {
    ids: {
      from_pod: programs.from_pod.info.id,
      to_pod: programs.to_pod.info.id,
      from_wire: programs.from_wire.info.id,
      to_wire: programs.to_wire.info.id,
      from_vtep: programs.from_vtep.info.id,
      to_vtep: programs.to_vtep.info.id,
      xdp_from_wire: programs.xdp_from_wire.info.id,
      ...(programs.from_netkit && { from_netkit: programs.from_netkit.info.id }),
    },
    pending: pending !== undefined,
  };
}
