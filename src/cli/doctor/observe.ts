// SPDX-License-Identifier: Apache-2.0
/** Observes what checks need to know of this node. Each fact for itself: one that cannot be had spoils no other. */
import { readFileSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { AgentStatus } from '../../agent/status.ts';
import { AttachmentStore } from '../../cni/attachments.ts';
import { possibleCpus, supportsPrograms } from '#libbpf-ts';
import type { Struct } from '../../dataplane/codec.ts';
import { watchedFunctions } from '../../dataplane/changes.ts';
import { currentGeneration } from '../../dataplane/generation.ts';
import { layout } from '../../dataplane/layout.gen.ts';
import { listLinks as listPinnedLinks, parseLinkKey } from '../../dataplane/links.ts';
import { readAttachedConfig } from '../../dataplane/rehearsal.ts';
import { openTables, pinPaths } from '../../dataplane/tables.ts';
import { errorText, RipstopError } from '../../errors.ts';
import { listIpsecPolicies } from '../../host/ipsec.ts';
import { type Link, listLinks } from '../../host/links.ts';
import { isBpffs } from '../../host/mount.ts';
import { openNetlink } from '../../host/netlink.ts';
import { describePortHolder } from '../../host/port-holder.ts';
import { gatherHostFacts } from '../../host/requirements.ts';
import { findFlannelPrograms } from '../../host/running-flannel.ts';
import { readSubnetEnv } from '../../host/subnet-env.ts';
import { readSysctl } from '../../host/sysctl.ts';
import { isVtepName, vtepDeviceName } from '../../host/vtep-device.ts';
import {
  addressFamily,
  type Cidr,
  cidrCovers,
  intToIpv4,
  ipv4ToInt,
  maskAddress,
  parseCidr,
} from '../../net/ip.ts';
import { inNetns, isClockSynchronized, listFdb, listNeighbours, listRoutes, subscribe } from '#netlink';
import { askAgent } from '../ask-agent.ts';
import { podOf, readEndpoints, readPeers } from '../rows.ts';
import type { Known } from './check.ts';
import type { Facts, KernelEntries, NodeFacts, PeerFacts } from './facts.ts';
import { readForward, readOwners } from './foreign-rules.ts';
import { readLeases } from './leases.ts';
import { probe } from './probes.ts';
import { findStrangers } from './strangers.ts';

/** Where the node's parts are. */
export interface Places {
  readonly bpffs: string;
  readonly runDir: string;
  readonly subnetFile: string;
  readonly ipamDir: string;
}

/** LOCAL_FREE_TARGET of the kernel's bpf_lru_list.c. */
const LRU_SPARE = 128;
/** How long the epoch and the ruleset are watched. */
const WATCH_MS = 1000;

/** Observe these facts, at the same time. Changes nothing on the node. */
export async function observe(places: Places, needs: ReadonlySet<keyof Facts>): Promise<Known> {
  const known: Record<string, { is: unknown } | { unknown: string }> = {};
  const observer = new Observer(places);
  await Promise.all(
    [...needs].map(async (need) => {
      try {
        known[need] = { is: await observer.get(need) };
      } catch (error) {
        known[need] = { unknown: errorText(error) };
      }
    }),
  );
  return known;
}

/** Looks once at each fact that is asked for; facts may rest on others. */
class Observer {
  readonly #places: Places;
  readonly #facts = new Map<keyof Facts, Promise<unknown>>();

  constructor(places: Places) {
    this.#places = places;
  }

  get<K extends keyof Facts>(name: K): Promise<Facts[K]> {
    const known = this.#facts.get(name) ?? this.#looks[name]();
    this.#facts.set(name, known);
    return known as Promise<Facts[K]>;
  }

  readonly #looks: { readonly [K in keyof Facts]: () => Promise<Facts[K]> } = {
    requirements: () => gatherHostFacts(),
    privileges: async () => readPrivileges(),
    clock: async () => ({
      now: Date.now(),
      builtAt: statSync(import.meta.filename).mtimeMs,
      isSynchronized: isClockSynchronized(),
    }),
    pins: async () => {
      const { bpffs } = this.#places;
      const version = currentGeneration(pinPaths(bpffs))?.version;
      return {
        bpffs,
        isMounted: await isBpffs(bpffs),
        ...(version !== undefined && { layout: version }),
        ownLayout: layout.version,
      };
    },
    agent: async () => {
      const { runDir } = this.#places;
      const status = await askAgent(runDir);
      return { runDir, ...(status && { status }) };
    },
    node: async () => {
      const [{ status }, links] = await Promise.all([this.get('agent'), this.get('links')]);
      return nodeOf(status, this.#places.bpffs, links);
    },
    links: () => listLinks(),
    settings: async () => readSettings(await this.get('links')),
    forward: () => readForward(),
    owners: async () => readOwners(await findFlannelPrograms()),
    entries: async () => readEntries(await this.get('node'), await this.get('links')),
    peers: async () => {
      const { status } = await this.get('agent');
      return peersOf(await this.get('node'), readPeers(this.#places.bpffs, status));
    },
    endpoints: () => readEndpoints(this.#places.bpffs, this.#places.runDir),
    attached: async () =>
      [...listPinnedLinks(pinPaths(this.#places.bpffs).links)].map(([key, { ifindex }]) => {
        const { hook, ifname } = parseLinkKey(key);
        return { hook, device: ifname, live: ifindex !== 0 };
      }),
    strangers: async () => {
      const [{ uplink }, links, endpoints] = await Promise.all([
        this.get('node'),
        this.get('links'),
        this.get('endpoints'),
      ]);
      const pods = new Set(endpoints.map(({ ifindex }) => ifindex));
      const devices = [...links.values()].flatMap(({ name, ifindex }) => {
        const role = name === uplink ? 'uplink' : isVtepName(name) ? 'VTEP' : 'pod';
        return role !== 'pod' || pods.has(ifindex) ? [{ name, ifindex, role } as const] : [];
      });
      return findStrangers(devices, pinPaths(this.#places.bpffs).links);
    },
    subnetEnv: async () => {
      const path = this.#places.subnetFile;
      try {
        const content = await readSubnetEnv(path);
        return { path, ...(content && { content }) };
      } catch (error) {
        return { path, malformed: errorText(error) };
      }
    },
    portHolder: async () => {
      const { tunnel } = await this.get('node');
      if (!tunnel) throw new RipstopError('the backend has no tunnels');
      const links = await this.get('links');
      const devices = [...links.values()].filter(
        ({ vxlan, name }) => vxlan?.port === tunnel.port && isVtepName(name),
      );
      // While one of ours is up, it has the port.
      if (devices.some(({ up }) => up)) return { port: tunnel.port };
      const name = devices[0]?.name ?? vtepDeviceName(4, tunnel.vni);
      return { port: tunnel.port, holder: describePortHolder(tunnel.port, name, links) };
    },
    leases: async () => readLeases(this.#places.ipamDir, this.#places.runDir, await this.get('node')),
    probes: async () => {
      const [node, peers, links] = await Promise.all([
        this.get('node'),
        this.get('peers'),
        this.get('links'),
      ]);
      return probe(
        peers.map((peer) => {
          const { vtep } = node.families.find(({ family }) => family === peer.podCidr.family) ?? {};
          const mtu = vtep && links.get(vtep.device)?.mtu;
          return { peer, hasVtep: mtu !== undefined, podMtu: mtu ?? 0 };
        }),
      );
    },
    checksums: async () => readChecksums(this.#places.runDir),
    flowTables: async () => {
      using tables = openTables(this.#places.bpffs);
      return (['flows4', 'flows6'] as const).map((name) => ({
        name,
        used: tables[name].map.lookupBatch().length,
        max: tables[name].map.info.maxEntries,
        spare: LRU_SPARE * possibleCpus(),
      }));
    },
    epoch: () => watchEpoch(this.#places.bpffs),
    changes: async () => ({
      watched: watchedFunctions(pinPaths(this.#places.bpffs).changes),
      isTracingAllowed: supportsPrograms('tracing'),
    }),
    policies: async () => listIpsecPolicies(),
  };
}

/** linux/capability.h: what the agent's container has. */
const CAPABILITIES = { NET_ADMIN: 12, SYS_ADMIN: 21 };

function readPrivileges(): Facts['privileges'] {
  const [, hex = '0'] = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
  const effective = BigInt(`0x${hex}`);
  const missing = Object.entries(CAPABILITIES).filter(([, bit]) => ((effective >> BigInt(bit)) & 1n) === 0n);
  const mounts = readFileSync('/proc/self/mounts', 'utf8');
  const isReadOnly = /^\S+ \/proc\/sys \S+ ro\b/m.test(mounts);
  return { missing: missing.map(([name]) => name), isSysWritable: !isReadOnly };
}

type Config = Struct<'config'>;

/** What stands for the network of a family that is off (dataplane/desired.ts). */
const OFF = new Set(['255.255.255.255', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff']);

const v4Of = (config: Config) => ({
  network: config.network,
  mask: config.network_mask,
  podCidr: config.pod_cidr,
  podCidrMask: config.pod_cidr_mask,
  vtepIp: config.vtep_ip,
  mac: config.vtep_mac,
});
const v6Of = (config: Config) => ({
  network: config.network6,
  mask: config.network6_mask,
  podCidr: config.pod_cidr6,
  podCidrMask: config.pod_cidr6_mask,
  vtepIp: config.vtep_ip6,
  mac: config.vtep_mac6,
});

/** The node by the configuration of the pinned programs; without any, by the agent. @throws RipstopError */
function nodeOf(status: AgentStatus | undefined, bpffs: string, links: ReadonlyMap<string, Link>): NodeFacts {
  const config = readAttachedConfig(bpffs);
  if (!config) return nodeOfAgent(status, links);
  const hasTunnel = config.vni <= 0xff_ffff;
  const families = ([4, 6] as const).flatMap((family) => {
    const of = family === 4 ? v4Of(config) : v6Of(config);
    if (OFF.has(of.network)) return [];
    return [
      {
        family,
        network: parseCidr(`${of.network}/${lengthOf(of.mask)}`),
        podCidr: parseCidr(`${of.podCidr}/${lengthOf(of.podCidrMask)}`),
        vtepIp: of.vtepIp,
        ...(hasTunnel && { vtep: { device: vtepDeviceName(family, config.vni), mac: of.mac } }),
      },
    ];
  });
  const uplink = [...links.values()].find(({ ifindex }) => ifindex === config.uplink_ifindex)?.name;
  return {
    mode: status?.mode ?? (config.admits_strangers ? 'boost' : 'cni'),
    families,
    ...(hasTunnel && { tunnel: { vni: config.vni, port: config.vxlan_port } }),
    isDirect: config.direct_routing !== 0,
    ...(uplink !== undefined && { uplink }),
  };
}

function nodeOfAgent(status: AgentStatus | undefined, links: ReadonlyMap<string, Link>): NodeFacts {
  if (!status || status.families.length === 0)
    throw new RipstopError('no programs are attached, and no agent tells of the node');
  const devices = status.families.flatMap(({ vtep: { device } }) => device ?? []);
  const vxlan = devices.map((name) => links.get(name)?.vxlan).find((one) => one !== undefined);
  return {
    mode: status.mode,
    families: status.families.map(({ network, podCidr, vtep: { ip, device, mac } }) => ({
      family: addressFamily(ip) ?? 4,
      network: parseCidr(network),
      podCidr: parseCidr(podCidr),
      vtepIp: ip,
      ...(device !== undefined && mac !== undefined && { vtep: { device, mac } }),
    })),
    ...(vxlan && { tunnel: { vni: vxlan.vni, port: vxlan.port } }),
    isDirect: devices.length === 0,
    ...(status.uplink && { uplink: status.uplink.name }),
  };
}

/** The length of a prefix by its mask: of two addresses of which only the first bits are the same. */
function lengthOf(mask: string): number {
  const bits = addressFamily(mask) === 6 ? 128 : 32;
  const all = bits === 32 ? '255.255.255.255' : 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff';
  for (let length = bits; length > 0; length--) if (maskAddress(all, length) === mask) return length;
  return 0;
}

/** Peers with their podCIDRs: those that the agent does not tell follow from their keys in the maps. */
function peersOf({ families }: NodeFacts, rows: ReturnType<typeof readPeers>): PeerFacts[] {
  return rows.flatMap(({ podCidr, ...row }) => {
    const cidr = podCidr === undefined ? podCidrOf(row.key, families) : parseCidr(podCidr);
    return cidr ? [{ ...row, podCidr: cidr, isDirect: row.flags.includes('direct') }] : [];
  });
}

function podCidrOf(key: string | undefined, families: NodeFacts['families']): Cidr | undefined {
  if (key === undefined) return undefined;
  const family = /^\d+$/.test(key) ? 4 : 6;
  const own = families.find((one) => one.family === family);
  if (!own) return undefined;
  const { length } = own.podCidr;
  if (family === 6) return parseCidr(`${key}/${length}`);
  return parseCidr(`${intToIpv4(ipv4ToInt(own.network.base) + Number(key) * 2 ** (32 - length))}/${length}`);
}

async function readSettings(links: ReadonlyMap<string, Link>): Promise<Map<string, string>> {
  const devices = [...links.values()].filter(({ name, kind }) => kind !== 'veth' || !name.startsWith('veth'));
  const paths = [
    'net/ipv4/ip_forward',
    'net/ipv6/conf/all/forwarding',
    'net/ipv4/conf/all/rp_filter',
    ...devices.map(({ name }) => `net/ipv4/conf/${name}/rp_filter`),
    'net/netfilter/nf_conntrack_tcp_be_liberal',
    'net/netfilter/nf_conntrack_count',
    'net/netfilter/nf_conntrack_max',
    'net/bridge/bridge-nf-call-iptables',
    'net/bridge/bridge-nf-call-ip6tables',
  ];
  const settings = new Map<string, string>();
  for (const path of paths) {
    const value = await readSysctl(path);
    // The kernel may not have it, or IPv6 is off.
    if (value !== undefined) settings.set(path, value);
  }
  return settings;
}

function readEntries({ families, uplink }: NodeFacts, links: ReadonlyMap<string, Link>): KernelEntries {
  using socket = openNetlink({});
  const vteps = families.flatMap(({ vtep }) => vtep?.device ?? []);
  const indexes = (names: readonly string[]) =>
    names.flatMap((device) => {
      const ifindex = links.get(device)?.ifindex;
      return ifindex === undefined ? [] : [{ device, ifindex }];
    });
  const routes = indexes([...vteps, ...(uplink === undefined ? [] : [uplink])]).flatMap(
    ({ device, ifindex }) =>
      families.flatMap(({ family, network }) =>
        listRoutes(socket, { family, ifindex })
          .filter(({ dst, gateway }) => gateway !== undefined && cidrCovers(network, parseCidr(dst)))
          .map(({ dst, gateway }) => ({ dst, ...(gateway !== undefined && { gateway }), device })),
      ),
  );
  const neighbours = indexes(vteps).flatMap(({ device, ifindex }) =>
    listNeighbours(socket, { ifindex }).flatMap(({ address, mac, state }) =>
      mac === undefined || state === 'noarp' ? [] : [{ address, mac, device }],
    ),
  );
  const fdb = indexes(vteps).flatMap(({ device, ifindex }) =>
    listFdb(socket, { ifindex }).flatMap(({ mac, dst }) => (dst === undefined ? [] : [{ mac, dst, device }])),
  );
  return { routes, neighbours, fdb };
}

/** The epoch and the ruleset, watched for a second. */
async function watchEpoch(bpffs: string): Promise<Facts['epoch']> {
  using tables = openTables(bpffs);
  const commits: Record<string, number> = {};
  const others: Record<string, number> = {};
  using _ = subscribe(['nft', 'route', 'rule', 'address', 'policy'], (events) => {
    for (const event of events) {
      if (event.kind === 'nft-commit') commits[event.process.name] = (commits[event.process.name] ?? 0) + 1;
      else if (event.kind !== 'nft') others[event.kind] = (others[event.kind] ?? 0) + 1;
    }
  });
  const [before, beganAt] = [tables.epoch.get(0) ?? 0, performance.now()];
  await sleep(WATCH_MS);
  const seconds = (performance.now() - beganAt) / 1000;
  return { seconds, moves: ((tables.epoch.get(0) ?? 0) - before) >>> 0, commits, others };
}

/** Checksum errors of the node's namespace and of each pod's. */
async function readChecksums(runDir: string): Promise<Facts['checksums']> {
  const pods = await new AttachmentStore(runDir).list();
  const places = [
    { where: 'this node', netns: undefined },
    ...pods.map((pod) => ({ where: podOf(pod) ?? pod.ips[0] ?? pod.hostIfname, netns: pod.netns })),
  ];
  return places.flatMap(({ where, netns }) => {
    try {
      return [
        {
          where,
          ...checksumErrors(inNetns(netns, () => readFileSync('/proc/thread-self/net/snmp', 'utf8'))),
        },
      ];
    } catch {
      return []; // The pod has ended.
    }
  });
}

/** proc_net_snmp: for each protocol a line of names and a line of values. */
function checksumErrors(snmp: string): { wrong: number; received: number } {
  const value = (protocol: string, name: string): number => {
    const [names = '', values = ''] = snmp.split('\n').filter((line) => line.startsWith(`${protocol}: `));
    return Number(values.split(' ')[names.split(' ').indexOf(name)] ?? 0);
  };
  return {
    wrong: value('Tcp', 'InCsumErrors') + value('Udp', 'InCsumErrors'),
    received: value('Tcp', 'InSegs') + value('Udp', 'InDatagrams'),
  };
}
