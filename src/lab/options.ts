// SPDX-License-Identifier: Apache-2.0
import type { BackendType } from '../cluster/index.ts';
import type { Mode } from '../agent/options.ts';
import { errorText, RipstopError } from '../errors.ts';
import { type Cidr, parseCidr } from '../net/ip.ts';

/** What carries a node's pod traffic: ripstop, flannel's kernel path, or nothing (a host without pods). */
export type Datapath = 'ripstop' | 'flannel' | 'host';

/**
 * The packets on the wire: with `gso` super-packets cross it, as they cross veths; with `mtu` each uplink segments and
 * checksums what it sends, and merges (GRO) what it receives, like a plain NIC.
 */
export type Wire = 'gso' | 'mtu';

/** The mode of kube-proxy on every node; `none`: there is none. */
export type KubeProxyMode = 'iptables' | 'nftables' | 'none';

export interface LabOptions {
  readonly name: string;
  /** How ripstop runs on its nodes: in place of flannel, or beside it. */
  readonly mode: Mode;
  /** One entry for each node, in order. */
  readonly datapaths: readonly Datapath[];
  /** The number of pods on each node that is not a `host` node. */
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
  /** flannel's `DirectRouting`: no tunnel between nodes on the same L2, which all nodes of a lab are. */
  readonly directRouting: boolean;
  /** How nodes reach each other's pods. The lab's own flannel nodes can only tunnel. */
  readonly backend: BackendType;
  /** kube-proxy on every node. It starts before the datapath, as on most hosts. */
  readonly kubeProxy: KubeProxyMode;
  /** Real programs in place of the lab's own. Only tests set this. */
  readonly real?: RealPeers;
}

/** Real programs in place of the lab's own. */
export interface RealPeers {
  /**
   * A program `apiserver-main.ts` that serves the Kubernetes API. It is run as `node PROGRAM LAB-DIRECTORY`, and writes
   * the same files there as the lab's own.
   */
  readonly apiServer?: string;
  /** Paths of flanneld and of flannel's CNI plugin, for the `flannel` nodes. */
  readonly flannel?: { readonly daemon: string; readonly plugin: string };
  /**
   * Path of kube-proxy. It reads `kube-proxy.kubeconfig` in the lab's directory, which the real API server's program
   * writes.
   */
  readonly kubeProxy?: string;
}

/** The flags of `ripstop lab up` from a command line or the environment. Those that are left out have defaults. */
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

const DEFAULT_LAB_NAME = 'lab';

/**
 * The number of /64s in the IPv6 cluster network after the first. The IPv4 cluster network has at least as many /24s.
 */
export const MAX_NODES = 255;
/** A /24 without its base, its gateway and its broadcast address. */
const MAX_PODS = 253;
/** IPv6 requires this MTU (RFC 8200). */
const MIN_MTU = 1280;
/** The headers of VXLAN over IPv6. */
const OVERHEAD6_BYTES = 70;
const MAX_MTU = 65535;

/** Turn flags into options, with all defaults. @throws RipstopError with exit code 2 that names the wrong flag. */
export function parseLabOptions(flags: LabFlags): LabOptions {
  const mode = choice('--mode', flags.mode ?? 'cni', ['cni', 'boost'] as const);
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
  if (mode === 'boost' && backend !== 'vxlan')
    throw usage(`the lab's flannel cannot run --backend ${backend}, so --mode boost cannot either`);
  return {
    mode,
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
    kubeProxy: choice('--kube-proxy', flags.kubeProxy ?? 'iptables', [
      'iptables',
      'nftables',
      'none',
    ] as const),
  };
}

/**
 * Check the name of a lab: the names of its namespaces begin with it.
 * @throws RipstopError with exit code 2 when it is not allowed
 */
export function labName(text: string): string {
  if (/^[a-z][a-z0-9-]{0,39}$/.test(text)) return text;
  throw usage(
    `"${text}" cannot name a lab; use up to 40 lower-case letters, digits and dashes, a letter first`,
  );
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
