// SPDX-License-Identifier: Apache-2.0
import type { BackendType } from '../cluster/index.ts';
import { errorText, RipstopError } from '../errors.ts';
import { type Cidr, parseCidr } from '../net/ip.ts';

/** What moves a node's pod traffic: ripstop, the real flannel kernel path, or nothing (node ↔ node only, no pods). */
export type Datapath = 'ripstop' | 'flannel' | 'host';

/**
 * What crosses the wire: `gso` lets the kernel's super-packets through as veths do; `mtu` makes every uplink segment
 * and checksum what it sends and aggregate (GRO) what it receives, as a plain NIC would.
 */
export type Wire = 'gso' | 'mtu';

/** How kube-proxy serves on every node, if there is one: by its rules of the mode. */
export type KubeProxyMode = 'none' | 'iptables' | 'nftables';

export interface LabOptions {
  readonly name: string;
  /** One entry for each node, in order. */
  readonly datapaths: readonly Datapath[];
  /** Pods on each node that is no `host` node. */
  readonly pods: number;
  readonly wire: Wire;
  /** The uplinks' MTU, bytes. */
  readonly mtu: number;
  /** The IPv4 network that pods' addresses come from, a /24 of it for each node, e.g. `10.42.0.0/16`. */
  readonly network: string;
  /** The IPv4 network that the nodes' uplinks share, e.g. `172.31.0.0/16`. */
  readonly underlay: string;
  /** Dual-stack: IPv6 beside IPv4, on the underlay and for pods. */
  readonly ipv6: boolean;
  /** flannel's `DirectRouting`: no tunnel between nodes of one L2, as all of a lab are. */
  readonly directRouting: boolean;
  /** How nodes reach each other's pods. The lab's own flannel nodes know tunnels only. */
  readonly backend: BackendType;
  /** kube-proxy on every node. It starts before the datapath, as on most hosts. */
  readonly kubeProxy: KubeProxyMode;
  /** What a test brings along in place of the lab's own; no flag sets it. */
  readonly real?: RealPeers;
}

/** The real thing in place of what the lab has of its own. */
export interface RealPeers {
  /**
   * A program `apiserver-main.ts` that serves the Kubernetes API: run as `node PROGRAM LAB-DIRECTORY`, it writes there
   * what the lab's own of that name does.
   */
  readonly apiServer?: string;
  /** Paths of flanneld and of flannel's CNI plugin, for the `flannel` nodes. */
  readonly flannel?: { readonly daemon: string; readonly plugin: string };
  /** Path of kube-proxy. It finds `kube-proxy.kubeconfig` in the lab's directory, which the real API server's program writes. */
  readonly kubeProxy?: string;
}

/** The flags of `ripstop lab up` as a command line or an environment gives them; what is left out takes its default. */
export interface LabFlags {
  name?: string | undefined;
  nodes?: number | string | undefined;
  pods?: number | string | undefined;
  /** One datapath for all nodes, or one for each: `ripstop,flannel,host`. */
  datapath?: string | undefined;
  mode?: string | undefined;
  wire?: string | undefined;
  mtu?: number | string | undefined;
  ipv6?: boolean | undefined;
  directRouting?: boolean | undefined;
  backend?: string | undefined;
  kubeProxy?: string | undefined;
  network?: string | undefined;
  underlay?: string | undefined;
}

export const DEFAULT_LAB_NAME = 'lab';

/** There are so many /64s in the IPv6 cluster network after the first; the IPv4 cluster network has at least as many /24s. */
export const MAX_NODES = 255;
/** A /24 less its base, its gateway and its broadcast address. */
const MAX_PODS = 253;
/** IPv6 asks for this much of a link; a link with less has none. */
const MIN_MTU = 1280;
/** VXLAN over IPv6: what pods' IPv6 must be able to lose of it. */
const OVERHEAD6_BYTES = 70;
const MAX_MTU = 65535;

/** Flags → options, with every default filled in. @throws RipstopError with exit code 2 that names the wrong flag. */
export function parseLabOptions(flags: LabFlags): LabOptions {
  const mode = choice('--mode', flags.mode ?? 'cni', ['cni', 'boost'] as const);
  if (mode === 'boost') throw usage('the lab cannot run --mode boost yet; use --mode cni');
  const ipv6 = flags.ipv6 ?? false;
  const each = (flags.datapath ?? 'ripstop')
    .split(',')
    .map((text) => choice('--datapath', text.trim(), ['ripstop', 'flannel', 'host'] as const));
  const nodes = integer('--nodes', flags.nodes ?? Math.max(each.length, 2), 1, MAX_NODES);
  if (each.length > 1 && each.length !== nodes) {
    throw usage(
      `--datapath names ${each.length} nodes but --nodes is ${nodes}; name one datapath or ${nodes}`,
    );
  }
  const backend = choice('--backend', flags.backend ?? 'vxlan', ['vxlan', 'host-gw', 'alloc'] as const);
  if (backend !== 'vxlan' && each.includes('flannel')) {
    throw usage(`the lab's flannel nodes cannot run --backend ${backend}; use --datapath ripstop`);
  }
  return {
    name: labName(flags.name ?? DEFAULT_LAB_NAME),
    datapaths: each.length > 1 ? each : Array.from({ length: nodes }, () => each[0]!),
    pods: integer('--pods', flags.pods ?? 2, 0, MAX_PODS),
    wire: choice('--wire', flags.wire ?? 'gso', ['gso', 'mtu'] as const),
    mtu: integer('--mtu', flags.mtu ?? 1500, MIN_MTU + (ipv6 ? OVERHEAD6_BYTES : 0), MAX_MTU),
    network: podNetwork(flags.network ?? '10.42.0.0/16'),
    underlay: largeEnough(flags.underlay ?? '172.31.0.0/16'),
    ipv6,
    directRouting: flags.directRouting ?? false,
    backend,
    kubeProxy: choice('--kube-proxy', flags.kubeProxy ?? 'none', ['none', 'iptables', 'nftables'] as const),
  };
}

/**
 * A name that may begin the names of namespaces and of a directory.
 * @throws RipstopError with exit code 2 when it may not.
 */
export function labName(text: string): string {
  if (/^[a-z][a-z0-9-]{0,39}$/.test(text)) return text;
  throw usage(`"${text}" is no lab name; use up to 40 lower-case letters, digits and dashes, a letter first`);
}

function podNetwork(text: string): string {
  const { family, length } = cidrOf('--network', text);
  if (family === 4 && length <= 16) return text;
  throw usage(`--network cannot be "${text}"; give an IPv4 /16 or larger such as 10.42.0.0/16`);
}

function cidrOf(flag: string, text: string): Cidr {
  try {
    return parseCidr(text);
  } catch (error) {
    throw usage(`${flag}: ${errorText(error)}`);
  }
}

function largeEnough(text: string): string {
  const cidr = parseCidr(text);
  if (cidr.family === 4 && cidr.length <= 22) return text;
  throw usage(`the underlay ${text} is too small or not IPv4; use a /22 or larger such as 172.31.0.0/16`);
}

function choice<T extends string>(flag: string, text: string, choices: readonly T[]): T {
  const found = choices.find((one) => one === text);
  if (found !== undefined) return found;
  throw usage(`${flag} cannot be "${text}"; choose ${choices.join(', ')}`);
}

function integer(flag: string, given: number | string, min: number, max: number): number {
  const value = typeof given === 'number' ? given : /^\d+$/.test(given) ? Number(given) : Number.NaN;
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw usage(`${flag} cannot be "${given}"; give a whole number from ${min} to ${max}`);
}

function usage(message: string): RipstopError {
  return new RipstopError(message, { exitCode: 2 });
}
