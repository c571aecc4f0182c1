// SPDX-License-Identifier: Apache-2.0
import type { Logger } from 'pino';
import type { NetConf, OwnNode } from '../cluster/index.ts';
import type { AttachmentStore } from '../cni/attachments.ts';
import {
  desiredEndpoints,
  desiredPeers,
  desiredVteps,
  type Endpoint,
  ENCAP_BYTES,
  type NodeSettings,
  type Peer,
} from '../dataplane/desired.ts';
import { type LoadedPrograms, loadPrograms } from '../dataplane/programs.ts';
import { type Outcome, step, type Step } from '../dataplane/reconcile.ts';
import { pinPaths, type Tables } from '../dataplane/tables.ts';
import {
  desiredLinks,
  endpointsTarget,
  type HookName,
  linkKey,
  linksTarget,
  listLinks as listAttached,
  peersTarget,
  vtepsTarget,
} from '../dataplane/targets.ts';
import { errorText } from '../errors.ts';
import { ensureConntrack } from '../host/conntrack.ts';
import { type Link, listLinks } from '../host/links.ts';
import { lookupNextHops } from '../host/neighbours.ts';
import { type PodRoute, podRouteTarget } from '../host/pod-routes.ts';
import { ensureRules } from '../host/rules.ts';
import { writeSubnetEnv } from '../host/subnet-env.ts';
import {
  ensureSysctls,
  nodeSysctls,
  podVethSysctls,
  readSysctl,
  type Sysctl,
  vtepSysctls,
} from '../host/sysctl.ts';
import { findUplink, type Uplink } from '../host/uplink.ts';
import { ensureVxlan } from '../host/vtep-device.ts';
import { fdbTarget, neighbourTarget, peerEntries, peerRouteTarget } from '../host/vxlan-target.ts';
import { type Cidr, formatCidr } from '../net/ip.ts';
import { randomMac } from '../net/mac.ts';
import type { AgentOptions } from './options.ts';

export interface NodePathOptions {
  readonly options: AgentOptions;
  readonly netConf: NetConf & { readonly network: Cidr };
  readonly own: OwnNode;
  readonly podCidr: Cidr;
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
  readonly #device: string;
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

  constructor(given: NodePathOptions) {
    this.#given = given;
    this.#device = `flannel.${given.netConf.backend.vni}`;
  }

  /** Undefined before the kernel path stands. */
  get settings(): NodeSettings | undefined {
    return this.#settings;
  }

  get uplink(): Uplink | undefined {
    return this.#uplink;
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
   */
  async ensure(): Promise<Outcome[]> {
    const problems: Outcome[] = [];
    const attempt = async (target: string, act: () => Promise<void> | void): Promise<void> => {
      try {
        await act();
      } catch (error) {
        problems.push({ target, upserts: 0, removals: 0, error: errorText(error) });
        this.#given.log.debug({ target, err: error }, 'failed');
      }
    };
    await attempt('node', () => this.#ensureKernelPath());
    if (this.#settings) await attempt('programs', () => this.#ensurePrograms(this.#settings!));
    return problems;
  }

  async #ensureKernelPath(): Promise<void> {
    const { options, netConf, own, podCidr, log } = this.#given;
    const { backend, network } = netConf;
    const before = await listLinks();
    const wish = {
      family: 4,
      iface: options.iface,
      ifaceRegex: options.ifaceRegex,
      ifaceCanReach: options.ifaceCanReach,
      nodeIp: own.internalIp.v4,
    } as const;
    const uplink = await findUplink(wish, before);
    if (uplink.explanation !== this.#uplink?.explanation)
      log.info({ uplink: uplink.explanation }, 'chose the uplink');
    const mtu = Math.min(uplink.mtu, backend.mtu ?? uplink.mtu);
    // The published MAC outlives reboots and deletions of the device, so peers need not learn a new one.
    const mac = this.#settings?.vtepMac ?? own.vtepMac.v4 ?? before.get(this.#device)?.mac ?? randomMac();
    const device = {
      name: this.#device,
      vni: backend.vni,
      port: backend.port,
      localIp: uplink.ip,
      uplink: uplink.name,
      mtu: mtu - ENCAP_BYTES,
      mac,
      address: `${podCidr.base}/32`,
    };
    const { link, links, changes } = await ensureVxlan(device, before);
    if (changes.length > 0) log.info({ device: this.#device, changes }, 'made the VTEP device');
    this.#links = links;
    if (await ensureConntrack()) log.info('had the kernel load nf_conntrack');
    await this.#ensureSysctls([...nodeSysctls([4], uplink.name), ...vtepSysctls(this.#device)]);
    // No event tells of these, so they are looked at now and then only; and at once when anything they are made from changes.
    const networks = [{ network, podCidr }];
    const audited = JSON.stringify([networks, mtu]);
    if (audited !== this.#audited || performance.now() - this.#auditedAt > AUDIT_MS) {
      await ensureRules({ networks, masquerade: options.ipMasq, vxlanPort: backend.port });
      await writeSubnetEnv(options.subnetFile, {
        networks,
        mtu: mtu - ENCAP_BYTES,
        ipMasq: options.ipMasq,
      });
      this.#audited = audited;
      this.#auditedAt = performance.now();
    }
    this.#uplink = uplink;
    this.#settings = {
      network,
      podCidr,
      vni: backend.vni,
      port: backend.port,
      vtepMac: link.mac ?? mac,
      uplink: { ifindex: uplink.ifindex, ip: uplink.ip, mtu },
      sourcePorts: await localPortRange(),
    };
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
    const endpoints = await this.#endpoints();
    this.#endpointCount = endpoints.length;
    await this.#ensureSysctls(endpoints.flatMap(({ hostIfname }) => podVethSysctls(hostIfname, [4])));

    const podRoutes = new Map<string, PodRoute>(
      endpoints.map(({ ip, hostIfname }) => [`${ip}/32`, { dev: hostIfname }]),
    );
    podRoutes.set(formatCidr(settings.podCidr), { unreachable: true });
    const entries = peerEntries(
      peers.map(({ podCidr, vtepMac, vtepIp }) => ({ podCidr, vtepMac, publicIp: vtepIp })),
      this.#device,
    );
    const kernelPath = [
      step(neighbourTarget(this.#device), entries.neighbours, synced),
      step(fdbTarget(this.#device), entries.fdb, synced),
      step(peerRouteTarget(), entries.routes, synced),
      step(podRouteTarget(), podRoutes),
    ];
    const loaded = this.#loaded;
    if (!loaded) return kernelPath;

    const { tables, programs } = loaded;
    const uplink = this.#uplink.name;
    const hops = await lookupNextHops(peers.map(({ vtepIp }) => vtepIp));
    const nextHopTo = (address: string): string | undefined => {
      const hop = hops.get(address);
      return hop?.dev === uplink ? hop.ip : undefined;
    };
    const indexed = desiredPeers(settings, peers, nextHopTo);
    const hooks: { hook: HookName; ifname: string; ifindex: number }[] = [
      ...endpoints.flatMap(({ hostIfname: ifname, hostIfindex: ifindex }) => [
        { hook: 'to_pod' as const, ifname, ifindex },
        { hook: 'from_pod' as const, ifname, ifindex },
      ]),
      { hook: 'to_vtep', ifname: this.#device, ifindex: this.#links.get(this.#device)?.ifindex ?? 0 },
    ];
    const { links: linkPins } = pinPaths(this.#given.options.bpffs);
    // With empty maps from_wire would take every node for a stranger and drop what it sends; the kernel path does not.
    if (synced || listAttached(linkPins).has(linkKey('from_wire', uplink))) {
      hooks.push({ hook: 'from_wire', ifname: uplink, ifindex: settings.uplink.ifindex });
    }
    return [
      ...kernelPath,
      step(vtepsTarget(tables), desiredVteps(settings, peers, indexed), synced),
      step(peersTarget(tables), indexed, synced),
      step(endpointsTarget(tables), desiredEndpoints(settings, endpoints)),
      step(linksTarget(linkPins, programs), desiredLinks(programs, hooks)),
    ];
  }

  /** The attached pods whose veth is still the one that they were given. */
  async #endpoints(): Promise<Endpoint[]> {
    return (await this.#given.store.list()).flatMap((attachment) => {
      const link = this.#links.get(attachment.hostIfname);
      if (link?.ifindex !== attachment.hostIfindex) return [];
      return [{ ...attachment, mtu: link.mtu, slow: attachment.slow ?? false }];
    });
  }
}

/** net.ipv4.ip_local_port_range, which the kernel's own VXLAN hashes source ports into (RFC 7348 section 4.1). */
async function localPortRange(): Promise<{ min: number; max: number }> {
  const [min = 32768, max = 60999] = ((await readSysctl('net/ipv4/ip_local_port_range')) ?? '')
    .split(/\s+/)
    .filter(Boolean)
    .map(Number);
  return { min, max };
}
