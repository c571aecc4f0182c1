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
} from '../dataplane/desired.ts';
import { chooseIngress, type Ingress } from '../dataplane/ingress.ts';
import { type LoadedPrograms, loadPrograms } from '../dataplane/programs.ts';
import { type Outcome, step, type Step } from '../dataplane/reconcile.ts';
import type { Target } from '../dataplane/target.ts';
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
import { type Link, listLinks } from '../host/links.ts';
import { isOnSameL2, lookupNextHops } from '../host/neighbours.ts';
import { type PodRoute, podRouteTarget } from '../host/pod-routes.ts';
import { ensureRules } from '../host/rules.ts';
import { writeSubnetEnv } from '../host/subnet-env.ts';
import { ensureSysctls, nodeSysctls, podVethSysctls, readSysctl, type Sysctl } from '../host/sysctl.ts';
import { findUplink, type Uplink } from '../host/uplink.ts';
import { ensureVxlan } from '../host/vtep-device.ts';
import { vtepSetTarget, vxlanSenders } from '../host/vtep-set.ts';
import {
  fdbTarget,
  neighbourTarget,
  peerEntries,
  type PeerRoute,
  peerRouteTarget,
} from '../host/vxlan-target.ts';
import { type Cidr, type Family, formatCidr, half, hostCidr } from '../net/ip.ts';
import { randomMac } from '../net/mac.ts';
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
  #sweptAt = performance.now();
  /** What nft and subnet.env were last seen to agree with, and when. */
  #audited = '';
  #auditedAt = 0;
  #ingress: Ingress | undefined;
  /** They remember what they have written. */
  readonly #vtepSets: ReadonlyMap<Family, Target<true>>;

  constructor(given: NodePathOptions) {
    this.#given = given;
    this.#vtepSets = new Map(given.families.map(({ family }) => [family, vtepSetTarget(family, AUDIT_MS)]));
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
    if (this.#settings) await attempt('programs', () => this.#ensurePrograms(this.#settings!));
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
      nodeIps: own.internalIp,
    };
    const uplink = await findUplink(wish, before);
    if (uplink.explanation !== this.#uplink?.explanation)
      log.info({ uplink: uplink.explanation }, 'chose the uplink');
    const mtu = Math.min(uplink.mtu, backend.mtu ?? uplink.mtu);
    this.#links = before;
    const halves: { v4?: FamilySettings; v6?: FamilySettings } = {};
    for (const one of families) halves[half(one.family)] = await this.#ensureVtep(one, uplink, mtu);
    if (await ensureConntrack()) log.info('had the kernel load nf_conntrack');
    await this.#ensureSysctls(nodeSysctls(wish.families, [uplink.name, ...uplink.advertised]));
    // No event tells of these, so they are looked at now and then only; and at once when anything they are made from changes.
    const networks = families.map(({ family, network, podCidr }) => ({
      network,
      podCidr,
      ...vxlanSenders(ofFamily(peers, family), synced),
    }));
    const audited = JSON.stringify([
      networks.map(({ network, podCidr, strangers }) => [network, podCidr, strangers]),
      mtu,
    ]);
    if (audited !== this.#audited || performance.now() - this.#auditedAt > AUDIT_MS) {
      const { port, vni } = backend;
      await ensureRules({ networks, masquerade: options.ipMasq, vxlanPort: port, vni });
      const widest = Math.max(...wish.families.map((family) => encapBytes[family]));
      await writeSubnetEnv(options.subnetFile, { networks, mtu: mtu - widest, ipMasq: options.ipMasq });
      this.#audited = audited;
      this.#auditedAt = performance.now();
    }
    this.#uplink = uplink;
    const mac = before.get(uplink.name)?.mac ?? '00:00:00:00:00:00';
    this.#settings = {
      ...halves,
      vni: backend.vni,
      port: backend.port,
      uplink: { ifindex: uplink.ifindex, mtu, mac },
      sourcePorts: await localPortRange(),
      directRouting: backend.directRouting,
    };
  }

  /** Make a family's VTEP device be there as it should. */
  async #ensureVtep(
    { family, network, podCidr }: NodeFamily,
    uplink: Uplink,
    mtu: number,
  ): Promise<FamilySettings> {
    const { netConf, own, log } = this.#given;
    const name = vtepDeviceName(family, netConf.backend.vni);
    const vtepIp = uplink.ips[half(family)]!;
    // The published MAC outlives reboots and deletions of the device, so peers need not learn a new one.
    const known = this.#settings?.[half(family)]?.vtepMac ?? own.vtepMac[half(family)];
    const mac = known ?? this.#links.get(name)?.mac ?? randomMac();
    const device = {
      name,
      vni: netConf.backend.vni,
      port: netConf.backend.port,
      localIp: vtepIp,
      uplink: uplink.name,
      mtu: mtu - encapBytes[family],
      mac,
      address: hostCidr(podCidr.base),
    };
    const { link, links, changes } = await ensureVxlan(device, this.#links);
    if (changes.length > 0) log.info({ device: name, changes }, 'made the VTEP device');
    this.#links = links;
    return { network, podCidr, vtepIp, vtepMac: link.mac ?? mac };
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
    }
    if (performance.now() - this.#sweptAt > SWEEP_MS) {
      this.#sweptAt = performance.now();
      this.#loaded?.sweepFlows();
    }
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

    const hops = await lookupNextHops(peers.map(({ vtepIp }) => vtepIp));
    const podRoutes = new Map<string, PodRoute>(
      endpoints.map(({ ip, hostIfname }) => [hostCidr(ip), { dev: hostIfname }]),
    );
    for (const { podCidr } of families) podRoutes.set(formatCidr(podCidr), { unreachable: true });
    const routes = new Map<string, PeerRoute>();
    // First of all: what a new peer sends is let in before anybody answers it.
    const kernelPath: Step[] = families.map(({ family }) =>
      step(this.#vtepSets.get(family)!, vxlanSenders(ofFamily(peers, family), synced).vteps, synced),
    );
    for (const { family } of families) {
      const device = vtepDeviceName(family, settings.vni);
      const entries = peerEntries(
        ofFamily(peers, family).map(({ podCidr, vtepMac, vtepIp }) => ({
          podCidr,
          vtepMac,
          publicIp: vtepIp,
          ...(settings.directRouting && isOnSameL2(hops.get(vtepIp), uplink) && { directDev: uplink }),
        })),
        device,
      );
      // A device that is gone, as with its uplink, has nothing to be filled; `ensure` has said so.
      if (this.#links.has(device)) {
        kernelPath.push(step(neighbourTarget(device), entries.neighbours, synced));
        kernelPath.push(step(fdbTarget(device), entries.fdb, synced));
      }
      for (const [cidr, route] of entries.routes) if (this.#links.has(route.dev)) routes.set(cidr, route);
    }
    kernelPath.push(step(peerRouteTarget(), routes, synced), step(podRouteTarget(), podRoutes));
    const loaded = this.#loaded;
    if (!loaded) return kernelPath;

    const { tables, programs } = loaded;
    const nextHopTo = (address: string): string | undefined => {
      const hop = hops.get(address);
      return hop?.dev === uplink ? hop.ip : undefined;
    };
    const indexed = desiredPeers(settings, peers, nextHopTo);
    const { endpoints: slots, endpoints6 } = desiredEndpoints(settings, endpoints);
    const { links: linkPins } = pinPaths(options.bpffs);
    const hooks: { hook: HookName; ifname: string; ifindex: number }[] = [
      ...[...devices].flatMap(([ifname, ifindex]) => [
        { hook: 'to_pod' as const, ifname, ifindex },
        { hook: 'from_pod' as const, ifname, ifindex },
      ]),
      ...families.flatMap(({ family }) => {
        const device = this.#links.get(vtepDeviceName(family, settings.vni));
        return device ? [{ hook: 'to_vtep' as const, ifname: device.name, ifindex: device.ifindex }] : [];
      }),
    ];
    const wire = this.#links.get(uplink);
    // With empty maps from_wire would take every node for a stranger and drop what it sends; the kernel path does not.
    if (wire && (synced || listAttached(linkPins).has(linkKey('from_wire', uplink)))) {
      const device = { ifname: uplink, ifindex: wire.ifindex };
      hooks.push({ hook: 'from_wire', ...device });
      // After from_wire, which alone knows what to do with what XDP leaves.
      this.#ingress = chooseIngress(options.ingress, wire, programs, linkPins);
      if (this.#ingress.hook === 'xdp') hooks.push({ hook: 'xdp_from_wire', ...device });
    }
    return [
      ...kernelPath,
      step(vtepsTarget(tables), desiredVteps(settings, peers, indexed), synced),
      step(peersTarget(tables), indexed.peers, synced),
      step(peers6Target(tables), indexed.peers6, synced),
      step(endpointsTarget(tables), slots),
      step(endpoints6Target(tables), endpoints6),
      step(linksTarget(linkPins, programs), desiredLinks(programs, hooks)),
    ];
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

/** flannel's names for them. */
export function vtepDeviceName(family: Family, vni: number): string {
  return family === 4 ? `flannel.${vni}` : `flannel-v6.${vni}`;
}

function ofFamily(peers: readonly Peer[], family: Family): Peer[] {
  return peers.filter(({ podCidr }) => podCidr.family === family);
}

/** net.ipv4.ip_local_port_range, which the kernel's own VXLAN hashes source ports into (RFC 7348 section 4.1). */
async function localPortRange(): Promise<{ min: number; max: number }> {
  const [min = 32768, max = 60999] = ((await readSysctl('net/ipv4/ip_local_port_range')) ?? '')
    .split(/\s+/)
    .filter(Boolean)
    .map(Number);
  return { min, max };
}
