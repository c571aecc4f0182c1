// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import type { NetConf, OwnNode } from '../cluster/index.ts';
import type { AttachmentStore } from '../cni/attachments.ts';
import {
  desiredEndpoints,
  desiredPeers,
  desiredVteps,
  encapBytes,
  type Endpoint,
  type FamilySettings,
  type NodeSettings,
  type Peer,
  type PeerHop,
  type Tunnel,
} from '../dataplane/desired.ts';
import { chooseIngress, type Ingress } from '../dataplane/ingress.ts';
import { type LoadedPrograms, loadPrograms, takeOverTarget } from '../dataplane/programs.ts';
import { once, perObject } from '../dataplane/memo.ts';
import { type Basis, Ledger, type Outcome, reconcile, step, type Step } from '../dataplane/reconcile.ts';
import { diff, isSame } from '../dataplane/target.ts';
import { pinPaths, type Tables } from '../dataplane/tables.ts';
import {
  desiredLinks,
  endpoints6Target,
  endpointsTarget,
  type HookName,
  linkKey,
  linksTarget,
  listLinks as listAttached,
  peers6Target,
  peersTarget,
  vtepsTarget,
} from '../dataplane/targets.ts';
import { errorText } from '../errors.ts';
import { ensureConntrack } from '../host/conntrack.ts';
import { ipBatch, line } from '../host/ip.ts';
import { type Link, listLinks } from '../host/links.ts';
import { lookupNextHops, type NextHop } from '../host/neighbours.ts';
import { findPodBridge, idlePodBridges, podBridgeSysctls, proxyTarget } from '../host/pod-bridge.ts';
import { type PodRoute, podRouteTarget } from '../host/pod-routes.ts';
import { ensureRules } from '../host/rules.ts';
import { writeSubnetEnv } from '../host/subnet-env.ts';
import { ensureSysctls, nodeSysctls, podVethSysctls, readSysctl, type Sysctl } from '../host/sysctl.ts';
import { takeOverFromFlannel } from '../host/takeover.ts';
import { findUplink, type Uplink } from '../host/uplink.ts';
import {
  acceptsZeroChecksum,
  ensureVxlan,
  isVtepDevice,
  removeVxlan,
  vtepDeviceName,
} from '../host/vtep-device.ts';
import { vtepSetTarget, type VxlanSenders, vxlanSenders } from '../host/vtep-set.ts';
import {
  fdbTarget,
  neighbourTarget,
  peerEntries,
  type PeerRoute,
  peerRouteTarget,
} from '../host/vxlan-target.ts';
import { addressFamily, type Cidr, type Family, formatCidr, half, hostCidr } from '../net/ip.ts';
import { NO_MAC, randomMac } from '../net/mac.ts';
import type { AgentOptions } from './options.ts';

/** One of the cluster's address families, and this node's part of it. */
export interface NodeFamily {
  readonly family: Family;
  readonly network: Cidr;
  readonly podCidr: Cidr;
}

export interface NodePathOptions {
  readonly options: AgentOptions;
  readonly netConf: NetConf;
  readonly own: OwnNode;
  /** IPv4 first. */
  readonly families: readonly NodeFamily[];
  readonly store: AttachmentStore;
  readonly log: Logger;
}

/** How often the flows that conntrack has forgotten are swept. */
const SWEEP_MS = 30_000;
/** How often what no event tells of is compared with what it should be. */
const AUDIT_MS = 25_000;
/** In a large cluster, where that takes its time, it is done more rarely, so as not to take more of a core than this. */
const AUDIT_SHARE = 0.01;
const AUDIT_MS_MAX = 120_000;

/**
 * This node's packet path: the kernel's (flannel.1, rules, settings, subnet.env) and, before it, the BPF programs. What
 * exists once per node is made by `ensure`, what exists per peer and per pod is left to the targets of `steps`.
 */
export class NodePath implements Disposable {
  readonly #given: NodePathOptions;
  #uplink: Uplink | undefined;
  #settings: NodeSettings | undefined;
  #loaded: LoadedPrograms | undefined;
  /** The settings that `#loaded` was loaded with. */
  #loadedWith = '';
  /** As this pass found and left them. */
  #links: ReadonlyMap<string, Link> = new Map();
  #endpointCount = 0;
  /** Without tunnels, peers that are not on our own L2. */
  #unreachable: readonly string[] = [];
  #sweptAt = performance.now();
  /** What nft and subnet.env were last seen to agree with, and when. */
  #audited = '';
  #auditedAt = 0;
  #ingress: Ingress | undefined;
  /** Why some of flannel's rules stay, as last said. */
  #leftOfFlannel = '';
  readonly #ledger = new Ledger(AUDIT_MS);
  /** The ways to peers as last asked for; the same as long as they are. */
  #ways: { peers: readonly Peer[]; at: number; hops: ReadonlyMap<string, NextHop> } | undefined;

  constructor(given: NodePathOptions) {
    this.#given = given;
  }

  /** Undefined before the kernel path stands. */
  get settings(): NodeSettings | undefined {
    return this.#settings;
  }

  get uplink(): Uplink | undefined {
    return this.#uplink;
  }

  /** Where packets from the wire are decapsulated, and why there; undefined before the programs are loaded. */
  get ingress(): Ingress | undefined {
    return this.#ingress;
  }

  /** Undefined before the programs are loaded. */
  get tables(): Tables | undefined {
    return this.#loaded?.tables;
  }

  /** Attached pods, as of the last pass. */
  get endpointCount(): number {
    return this.#endpointCount;
  }

  /** Whether our IPv6 tunnel takes packets without an outer checksum. */
  get acceptsZeroChecksum(): boolean {
    const tunnel = this.#settings?.tunnel;
    return tunnel !== undefined && acceptsZeroChecksum(this.#links.get(vtepDeviceName(6, tunnel.vni)));
  }

  /** What is only looked at now and then is to be looked at by the next pass. */
  auditNext(): void {
    this.#auditedAt = -Infinity;
    this.#ledger.doubtAll();
  }

  /** Something has changed in the kernel's entries for peers, and perhaps in how their VTEPs are reached. */
  doubt(ways: boolean): void {
    this.#ledger.doubt();
    if (ways && this.#ways) this.#ways.at = -Infinity;
  }

  [Symbol.dispose](): void {
    this.#loaded?.[Symbol.dispose]();
  }

  /**
   * Make what the node needs once. The kernel path comes first and does not depend on the programs: where those cannot be
   * loaded, the node is a plain flannel node. Never throws: what failed is in the outcomes.
   * @param peers for the rules that tell nodes from strangers; `synced`: these are all.
   */
  async ensure(peers: readonly Peer[], synced: boolean): Promise<Outcome[]> {
    const problems: Outcome[] = [];
    const attempt = async (target: string, act: () => Promise<void> | void): Promise<void> => {
      try {
        await act();
      } catch (error) {
        problems.push({ target, upserts: 0, removals: 0, error: errorText(error) });
        this.#given.log.debug({ target, err: error }, 'failed');
      }
    };
    await attempt('node', () => this.#ensureKernelPath(peers, synced));
    const settings = this.#settings;
    if (!settings) return problems;
    await attempt('programs', () => this.#ensurePrograms(settings));
    if (!this.#loaded && listAttached(pinPaths(this.#given.options.bpffs).links).size > 0) {
      // They would send a new pod's packets to whoever had its address before.
      const error =
        'the attached programs are not ours to maintain, so no pod can be added: run the ripstop that attached them, or take them off with `ripstop uninstall --restore-flannel`';
      problems.push({ target: 'node', upserts: 0, removals: 0, error });
    }
    return problems;
  }

  async #ensureKernelPath(peers: readonly Peer[], synced: boolean): Promise<void> {
    const { options, netConf, own, families, log } = this.#given;
    const { backend } = netConf;
    const before = await listLinks();
    const wish = {
      families: families.map(({ family }) => family),
      iface: options.iface,
      ifaceRegex: options.ifaceRegex,
      ifaceCanReach: options.ifaceCanReach,
      // The operator's word about this node comes before the one about all of them.
      publicIps: { ...options.publicIp, ...own.nodePublicIp },
      nodeIps: own.internalIp,
    };
    const uplink = await findUplink(wish, before);
    if (uplink.explanation !== this.#uplink?.explanation)
      log.info({ uplink: uplink.explanation }, 'chose the uplink');
    const tunnel = backend.type === 'vxlan' ? backend : undefined;
    const mtu = Math.min(uplink.mtu, tunnel?.mtu ?? uplink.mtu);
    this.#links = before;
    const halves: { v4?: FamilySettings; v6?: FamilySettings } = {};
    for (const one of families) {
      halves[half(one.family)] = {
        network: one.network,
        podCidr: one.podCidr,
        vtepIp: uplink.ips[half(one.family)]!,
        vtepMac: tunnel ? await this.#ensureVtep(one, tunnel, uplink, mtu) : NO_MAC,
      };
    }
    await this.#removeOtherVteps(tunnel);
    if (await ensureConntrack()) log.info('had the kernel load nf_conntrack');
    await this.#ensureSysctls(nodeSysctls(wish.families, [uplink.name, ...uplink.advertised]));
    // No event tells of these, so they are looked at now and then only; and at once when anything they are made from changes.
    const networks = families.map(({ family, network, podCidr }) => ({
      network,
      podCidr,
      ...sendersOf(peers, family, synced),
    }));
    const audited = JSON.stringify([
      networks.map(({ network, podCidr, strangers }) => [network, podCidr, strangers]),
      mtu,
    ]);
    if (audited !== this.#audited || performance.now() - this.#auditedAt > this.#ledger.auditMs) {
      await ensureRules({ networks, masquerade: options.ipMasq, tunnel });
      const widest = Math.max(...wish.families.map((family) => (tunnel ? encapBytes[family] : 0)));
      await writeSubnetEnv(options.subnetFile, { networks, mtu: mtu - widest, ipMasq: options.ipMasq });
      await this.#takeOver(tunnel);
      this.#audited = audited;
      this.#auditedAt = performance.now();
    }
    await this.#removeIdleBridges();
    this.#uplink = uplink;
    const mac = before.get(uplink.name)?.mac ?? NO_MAC;
    const settings: NodeSettings = {
      ...halves,
      ...(tunnel && { tunnel: { vni: tunnel.vni, port: tunnel.port } }),
      uplink: { ifindex: uplink.ifindex, mtu, mac },
      sourcePorts: await localPortRange(),
      directRouting: tunnel?.directRouting ?? true,
    };
    if (!isSame(settings, this.#settings)) this.#settings = settings;
  }

  /** Take over what a flanneld before us has left, now that ours is in its place. Its failure stops nothing. */
  async #takeOver(tunnel: Tunnel | undefined): Promise<void> {
    const { families, log } = this.#given;
    const devices = tunnel ? families.map(({ family }) => vtepDeviceName(family, tunnel.vni)) : [];
    let left = '';
    try {
      const { done, kept } = await takeOverFromFlannel(devices);
      if (done.length > 0) log.info({ done }, 'took over from flannel');
      if (kept.length > 0) left = `pods would be cut off without ${kept.join('; ')}`;
    } catch (error) {
      left = errorText(error);
    }
    if (left !== '' && left !== this.#leftOfFlannel) log.warn({ why: left }, "some of flannel's rules stay");
    this.#leftOfFlannel = left;
  }

  /** Remove the bridge of flannel's pods when the last of them is gone; from then on the podCIDR is ours alone. */
  async #removeIdleBridges(): Promise<void> {
    const podCidrs = this.#given.families.map(({ podCidr }) => podCidr);
    const idle = idlePodBridges(podCidrs, this.#links);
    if (idle.length === 0) return;
    await ipBatch(
      idle.map((name) => line`link del dev ${name}`),
      { force: true },
    );
    this.#links = await listLinks();
    this.#given.log.info({ bridges: idle }, 'removed the bridge that the last of its pods has left');
  }

  /** Make a family's VTEP device be there as it should; returns its MAC. */
  async #ensureVtep(
    { family, podCidr }: NodeFamily,
    { vni, port }: Tunnel,
    uplink: Uplink,
    mtu: number,
  ): Promise<string> {
    const { own, log } = this.#given;
    const name = vtepDeviceName(family, vni);
    // The published MAC outlives reboots and deletions of the device, so peers need not learn a new one.
    const known = this.#settings?.[half(family)]?.vtepMac ?? own.vtepMac[half(family)];
    const mac = known ?? this.#links.get(name)?.mac ?? randomMac();
    const device = {
      name,
      vni,
      port,
      localIp: uplink.ips[half(family)]!,
      uplink: uplink.name,
      mtu: mtu - encapBytes[family],
      mac,
      address: hostCidr(podCidr.base),
    };
    const { link, links, changes } = await ensureVxlan(device, this.#links);
    if (changes.length > 0) log.info({ device: name, changes }, 'made the VTEP device');
    this.#links = links;
    return link.mac ?? mac;
  }

  /** VTEP devices of a VNI, or a backend, of before: they would go on decapsulating for anyone. */
  async #removeOtherVteps(tunnel: Tunnel | undefined): Promise<void> {
    const wanted = this.#given.families.map(({ family }) => tunnel && vtepDeviceName(family, tunnel.vni));
    const others = [...this.#links.values()].filter(
      (link) => isVtepDevice(link) && !wanted.includes(link.name),
    );
    for (const { name } of others) {
      await removeVxlan(name);
      this.#given.log.info({ device: name }, 'removed the VTEP device of an earlier configuration');
    }
  }

  async #ensureSysctls(settings: readonly Sysctl[]): Promise<void> {
    const { changed } = await ensureSysctls(settings);
    for (const change of changed) this.#given.log.info(change, 'set a kernel setting');
  }

  /** Load the programs for these settings; those that are loaded stay until the new ones are. */
  #ensurePrograms(settings: NodeSettings): void {
    const wanted = JSON.stringify(settings);
    if (wanted !== this.#loadedWith) {
      const loaded = loadPrograms(settings, pinPaths(this.#given.options.bpffs));
      this.#loaded?.[Symbol.dispose]();
      this.#loaded = loaded;
      this.#loadedWith = wanted;
      if (loaded.pending)
        this.#given.log.warn(loaded.pending, 'maps must differ from those in use: making new ones');
    }
    if (performance.now() - this.#sweptAt > SWEEP_MS) {
      this.#sweptAt = performance.now();
      this.#loaded?.sweepFlows();
    }
  }

  /**
   * Bring all targets to what they should be, but for those that nothing has happened to.
   * @param peers the same array as long as they are the same.
   */
  async apply(peers: readonly Peer[], synced: boolean): Promise<Outcome[]> {
    const steps = await this.steps(peers, synced);
    const due = this.#ledger.due(steps);
    const startedAt = performance.now();
    const outcomes = await reconcile(due);
    if (due.length === steps.length) {
      const tookMs = performance.now() - startedAt;
      this.#ledger.auditMs = Math.min(Math.max(AUDIT_MS, tookMs / AUDIT_SHARE), AUDIT_MS_MAX);
    }
    this.#ledger.note(due, outcomes);
    return this.#unreachable.length > 0 ? [...outcomes, unreachable(this.#unreachable)] : outcomes;
  }

  /** The kernel's ways to peers; the same map as before when nothing differs. */
  async #hopsTo(peers: readonly Peer[]): Promise<ReadonlyMap<string, NextHop>> {
    const before = this.#ways;
    const certain = before && performance.now() - before.at < this.#ledger.auditMs ? before : undefined;
    if (certain?.peers === peers) return certain.hops;
    const ways = {
      peers,
      at: certain?.at ?? performance.now(),
      hops: before?.hops ?? new Map<string, NextHop>(),
    };
    // Before the kernel is asked: what changes from now on is asked for anew.
    this.#ways = ways;
    const addresses = new Set(peers.map(({ vtepIp }) => vtepIp));
    const kept = [...(certain?.hops ?? [])].filter(([address]) => addresses.has(address));
    for (const [address] of kept) addresses.delete(address);
    const hops = new Map([...kept, ...(await lookupNextHops([...addresses]))]);
    const { upserts, removals } = diff(hops, ways.hops);
    if (upserts.size + removals.size > 0) ways.hops = hops;
    return ways.hops;
  }

  /**
   * The targets in the order in which they are filled: what a packet meets last comes first, so that the way behind every
   * entry is there before the entry is. Kernel path, maps, and last the links that bring packets to the programs.
   */
  async steps(peers: readonly Peer[], synced: boolean): Promise<Step[]> {
    const settings = this.#settings;
    if (!settings || !this.#uplink) return [];
    const { families, options } = this.#given;
    const uplink = this.#uplink.name;
    const endpoints = await this.#endpoints();
    const devices = new Map(endpoints.map(({ hostIfname, hostIfindex }) => [hostIfname, hostIfindex]));
    this.#endpointCount = devices.size;
    const ofPods = families.map(({ family }) => family);
    await this.#ensureSysctls([...devices.keys()].flatMap((name) => podVethSysctls(name, ofPods)));

    const hops = await this.#hopsTo(peers);
    const hopTo = (address: string): PeerHop | undefined => {
      const hop = hops.get(address);
      if (hop?.dev !== uplink) return undefined;
      const { gateway } = hop;
      return { ip: gateway ?? address, direct: settings.directRouting === true && gateway === undefined };
    };
    this.#unreachable = settings.tunnel
      ? []
      : peers.flatMap(({ name, vtepIp }) => (hopTo(vtepIp)?.direct ? [] : [`${name} (${vtepIp})`]));
    const podRoutes = new Map<string, PodRoute>(
      endpoints.map(({ ip, hostIfname }) => [hostCidr(ip), { dev: hostIfname }]),
    );
    const bridges = new Map<string, Family[]>();
    for (const { family, podCidr } of families) {
      const bridge = findPodBridge(podCidr, this.#links)?.name;
      // As long as pods of flannel's plugin are there, the podCIDR is their bridge's connected route.
      if (bridge === undefined) podRoutes.set(formatCidr(podCidr), { unreachable: true });
      else bridges.set(bridge, [...(bridges.get(bridge) ?? []), family]);
    }
    await this.#ensureSysctls([...bridges].flatMap(([name, ofBridge]) => podBridgeSysctls(name, ofBridge)));
    const vtepDevice = (family: Family): string | undefined =>
      settings.tunnel && vtepDeviceName(family, settings.tunnel.vni);
    const ifindexes = [uplink, ...families.map(({ family }) => vtepDevice(family))].map(
      (name) => name && this.#links.get(name)?.ifindex,
    );
    const basis = (key: string, toldOf: boolean, ...others: unknown[]): Basis => {
      return { key, toldOf, content: [peers, hops], inputs: [synced, settings, ...ifindexes, ...others] };
    };
    const entriesOf = new Map(
      families.map(({ family }) => [
        family,
        once(() =>
          peerEntries(
            byFamily(peers)[family].map((peer) => ({
              ...peer,
              ...(hopTo(peer.vtepIp)?.direct && { directDev: uplink }),
            })),
            vtepDevice(family),
          ),
        ),
      ]),
    );
    // First of all: what a new peer sends is let in before anybody answers it.
    const kernelPath: Step[] = (settings.tunnel ? families : []).map(({ family }) =>
      step(
        vtepSetTarget(family),
        sendersOf(peers, family, synced).vteps,
        synced,
        basis(`vtep-set ${family}`, false),
      ),
    );
    for (const [family, entries] of entriesOf) {
      const device = vtepDevice(family);
      // A device that is gone, as with its uplink, has nothing to be filled; `ensure` has said so.
      if (device === undefined || !this.#links.has(device)) continue;
      kernelPath.push(
        step(
          neighbourTarget(device),
          () => entries().neighbours,
          synced,
          basis(`neighbours ${family}`, true),
        ),
        step(fdbTarget(device), () => entries().fdb, synced, basis(`fdb ${family}`, true)),
      );
    }
    // Asked again by later passes: those of now, whatever links there are then.
    const linksNow = this.#links;
    const routes = (): Map<string, PeerRoute> =>
      new Map(
        entriesOf
          .values()
          .flatMap((entries) => entries().routes)
          .filter(([, { dev }]) => linksNow.has(dev)),
      );
    kernelPath.push(
      step(peerRouteTarget(), routes, synced, basis('peer-routes', true)),
      step(podRouteTarget(), podRoutes),
    );
    for (const [bridge, ofBridge] of bridges) {
      const others = endpoints.filter(({ ip }) => ofBridge.includes(addressFamily(ip) ?? 4));
      kernelPath.push(step(proxyTarget(bridge), new Map(others.map(({ ip }) => [ip, true as const]))));
    }
    const loaded = this.#loaded;
    if (!loaded) return kernelPath;

    const { tables, programs } = loaded;
    const indexed = once(() => desiredPeers(settings, peers, hopTo));
    const { endpoints: slots, endpoints6 } = desiredEndpoints(settings, endpoints);
    const { links: linkPins } = pinPaths(options.bpffs);
    const hooks: { hook: HookName; ifname: string; ifindex: number }[] = [
      ...[...devices].flatMap(([ifname, ifindex]) => [
        { hook: 'to_pod' as const, ifname, ifindex },
        { hook: 'from_pod' as const, ifname, ifindex },
      ]),
      ...families.flatMap(({ family }) => {
        const device = settings.tunnel && this.#links.get(vtepDeviceName(family, settings.tunnel.vni));
        return device ? [{ hook: 'to_vtep' as const, ifname: device.name, ifindex: device.ifindex }] : [];
      }),
    ];
    const maps = [
      ...kernelPath,
      step(
        vtepsTarget(tables),
        () => desiredVteps(settings, peers, indexed()),
        synced,
        basis('vteps', false, tables),
      ),
      step(peersTarget(tables), () => indexed().peers, synced, basis('peers', false, tables)),
      step(peers6Target(tables), () => indexed().peers6, synced, basis('peers6', false, tables)),
      step(endpointsTarget(tables), slots),
      step(endpoints6Target(tables), endpoints6),
    ];
    // Of peers that were not asked for yet, there may be those that were last known.
    const known = synced || peers.length > 0;
    // What is attached has maps that are full, and keeps them until the new ones are.
    if (loaded.pending && !known) return maps;
    const wire = this.#links.get(uplink);
    // With empty maps from_wire would take every node for a stranger and drop what it sends; the kernel path does not.
    if (wire && (known || listAttached(linkPins).has(linkKey('from_wire', uplink)))) {
      const device = { ifname: uplink, ifindex: wire.ifindex };
      hooks.push({ hook: 'from_wire', ...device });
      // After from_wire, which alone knows what to do with what XDP leaves.
      this.#ingress = chooseIngress(options.ingress, wire, programs, linkPins);
      if (this.#ingress.hook === 'xdp') hooks.push({ hook: 'xdp_from_wire', ...device });
    }
    const links = step(linksTarget(linkPins, programs), desiredLinks(programs, hooks));
    const inUse = new Map(loaded.pending ? [['in use', true as const]] : []);
    return [...maps, links, step(takeOverTarget(loaded, linkPins), inUse)];
  }

  /** The attached pods whose veth is still the one that they were given, and up: no route leads to it before. */
  async #endpoints(): Promise<Endpoint[]> {
    return (await this.#given.store.list()).flatMap((attachment) => {
      const link = this.#links.get(attachment.hostIfname);
      if (link?.ifindex !== attachment.hostIfindex || !link.up) return [];
      const slow = attachment.slow ?? false;
      return attachment.ips.map((ip) => ({ ...attachment, ip, mtu: link.mtu, slow }));
    });
  }
}

const byFamily = perObject((peers: readonly Peer[]): Record<Family, readonly Peer[]> => {
  const [v4, v6] = ([4, 6] as const).map((family) =>
    peers.filter(({ podCidr }) => podCidr.family === family),
  );
  return { 4: v4!, 6: v6! };
});

const knownSenders = perObject((peers: readonly Peer[]) => vxlanSenders(peers, true));
const sendersSoFar = perObject((peers: readonly Peer[]) => vxlanSenders(peers, false));

/** Who may talk VXLAN to this node: made from all peers, and asked for twice in each pass. */
function sendersOf(peers: readonly Peer[], family: Family, synced: boolean): VxlanSenders {
  return (synced ? knownSenders : sendersSoFar)(byFamily(peers)[family]);
}

/** What is wrong when, without tunnels, there are such peers. */
function unreachable(peers: readonly string[]): Outcome {
  const [names, more] = [peers.slice(0, 5).join(', '), peers.length - 5];
  const error = `without tunnels only nodes on our own L2 are reached, not ${names}${more > 0 ? ` and ${more} more` : ''}; use the backend vxlan with DirectRouting`;
  return { target: 'peer-routes', upserts: 0, removals: 0, error };
}

/** net.ipv4.ip_local_port_range, which the kernel's own VXLAN hashes source ports into (RFC 7348 section 4.1). */
async function localPortRange(): Promise<{ min: number; max: number }> {
  const [min = 32768, max = 60999] = ((await readSysctl('net/ipv4/ip_local_port_range')) ?? '')
    .split(/\s+/)
    .filter(Boolean)
    .map(Number);
  return { min, max };
}
