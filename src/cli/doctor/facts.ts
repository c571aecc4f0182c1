// SPDX-License-Identifier: Apache-2.0
/** What `doctor` knows of a node: observed by observe.ts, judged by the checks. Plain data, so that a test can make it. */
import type { AgentStatus } from '../../agent/status.ts';
import type { Mode } from '../../agent/options.ts';
import type { Link } from '../../host/links.ts';
import type { HostFacts } from '../../host/requirements.ts';
import type { SubnetEnv } from '../../host/subnet-env.ts';
import type { Cidr, Family } from '../../net/ip.ts';
import type { EchoResult, Policy } from '#netlink';
import type { EndpointRow, PeerRow } from '../rows.ts';

export interface Facts {
  readonly requirements: HostFacts;
  readonly privileges: {
    /** Capabilities that this process lacks. */
    readonly missing: readonly string[];
    readonly isSysWritable: boolean;
  };
  /** Times in ms since 1970. */
  readonly clock: { readonly now: number; readonly builtAt: number; readonly isSynchronized: boolean };
  readonly pins: {
    readonly bpffs: string;
    readonly isMounted: boolean;
    /** The layout of the pinned maps; undefined: none are pinned. */
    readonly layout?: number;
    /** The layout that this ripstop reads. */
    readonly ownLayout: number;
  };
  readonly agent: { readonly runDir: string; readonly status?: AgentStatus };
  readonly node: NodeFacts;
  /** By name. */
  readonly links: ReadonlyMap<string, Link>;
  /** Kernel settings by their path below /proc/sys; those that the kernel does not have are missing. */
  readonly settings: ReadonlyMap<string, string>;
  /** Base chains at the forward hook that drop what they do not accept; those of ripstop are left out. */
  readonly forward: readonly DroppingChain[];
  readonly owners: {
    /** Programs with a flannel in them that run here: `flanneld`, `k3s`. */
    readonly flannels: readonly string[];
    /** flannel's chains and tables. */
    readonly flannelRules: readonly string[];
    /** Tables of iptables that have rules, by backend. */
    readonly legacyTables: readonly string[];
    readonly nftTables: readonly string[];
    /** Chains that other network plugins leave behind. */
    readonly otherChains: readonly string[];
  };
  readonly entries: KernelEntries;
  readonly peers: readonly PeerFacts[];
  readonly endpoints: readonly EndpointRow[];
  /** The pinned links. */
  readonly attached: readonly {
    readonly hook: string;
    readonly device: string;
    /** Whether the device is still there. */
    readonly live: boolean;
  }[];
  /** Programs of others on hooks that ripstop uses, and who shapes. */
  readonly strangers: readonly {
    readonly device: string;
    readonly role: 'uplink' | 'VTEP' | 'pod';
    /** Such as `cil_from_netdev (tcx ingress)`, `htb (qdisc)`. */
    readonly what: string;
    readonly kind: 'program' | 'shaping';
  }[];
  readonly subnetEnv: {
    readonly path: string;
    /** Undefined: there is no such file, or it is malformed. */
    readonly content?: SubnetEnv;
    /** What is wrong in it. */
    readonly malformed?: string;
  };
  readonly portHolder: { readonly port: number; readonly holder?: string };
  readonly leases: {
    readonly dir: string;
    readonly used: number;
    /** How many addresses there are for pods. */
    readonly size: number;
    /** Files of leases that no pod has. */
    readonly leaked: readonly string[];
  };
  readonly probes: Probes;
  /** Packets that arrived with a wrong TCP or UDP checksum, since the namespace was made. */
  readonly checksums: readonly {
    /** `this node`, or a pod. */
    readonly where: string;
    readonly wrong: number;
    readonly received: number;
  }[];
  readonly flowTables: readonly {
    readonly name: string;
    readonly used: number;
    readonly max: number;
    /** How many entries the kernel may keep free on its CPUs while it evicts others. */
    readonly spare: number;
  }[];
  readonly epoch: {
    readonly seconds: number;
    readonly moves: number;
    /** How many changes of nftables there were, by the program that made them. */
    readonly commits: Readonly<Record<string, number>>;
    /** Routes, addresses, rules and policies that changed. */
    readonly others: Readonly<Record<string, number>>;
  };
  readonly changes: {
    /** Functions of the kernel that are traced. */
    readonly watched: readonly string[];
    readonly isTracingAllowed: boolean;
  };
  readonly policies: readonly Policy[];
}

/** This node's part of the network, from the programs' configuration or the agent. */
export interface NodeFacts {
  readonly mode: Mode;
  /** IPv4 first. */
  readonly families: readonly {
    readonly family: Family;
    readonly network: Cidr;
    readonly podCidr: Cidr;
    readonly vtepIp: string;
    /** Without tunnels there is none. */
    readonly vtep?: { readonly device: string; readonly mac: string };
  }[];
  readonly tunnel?: { readonly vni: number; readonly port: number };
  /** Whether peers on the same L2 are reached without a tunnel. */
  readonly isDirect: boolean;
  /** Undefined: the interface with the index that the programs know is gone. */
  readonly uplink?: string;
}

export interface PeerFacts extends Omit<PeerRow, 'podCidr'> {
  readonly podCidr: Cidr;
  readonly isDirect: boolean;
}

/** What the kernel has about peers. */
export interface KernelEntries {
  /** Routes to parts of the cluster network over VTEP devices and the uplink. */
  readonly routes: readonly { readonly dst: string; readonly gateway?: string; readonly device: string }[];
  /** Of VTEP devices. */
  readonly neighbours: readonly { readonly address: string; readonly mac: string; readonly device: string }[];
  readonly fdb: readonly { readonly mac: string; readonly dst: string; readonly device: string }[];
}

export interface DroppingChain {
  /** Such as `ip filter FORWARD`, `iptables-legacy filter FORWARD`. */
  readonly name: string;
  /** Networks from or to which it accepts packets without further conditions. */
  readonly accepts: readonly string[];
}

export interface Probes {
  /** How many peers there are; no more than a sample was probed. */
  readonly peers: number;
  readonly probed: readonly ProbedPeer[];
}

export interface ProbedPeer {
  readonly name: string;
  readonly vtepIp: string;
  /** The address of its VTEP device; undefined: it has none. */
  readonly base?: string;
  readonly underlay: EchoResult;
  /** Small packets through the tunnel. */
  readonly tunnel?: EchoResult;
  /** The size of pods' largest packets, and the largest that came back, bytes of IP; 0: none of those tried. */
  readonly podMtu: number;
  readonly largest?: number;
}
