// SPDX-License-Identifier: Apache-2.0
import type { PodDeviceChoice } from '../cni/pod-device.ts';
import type { RecentTraffic } from '../dataplane/pod-traffic.ts';
import type { Mode } from './options.ts';
import type { KernelPathOnly } from './plan/index.ts';
import type { TargetStatus } from '../reconcile/reconciled.ts';

/** The answer of /status: what only the running agent knows. Readers take everything else from the pinned maps. */
export interface AgentStatus {
  readonly node: string;
  readonly mode: Mode;
  /** The hook at which packets from the uplink are decapsulated, and why; undefined before it is chosen. */
  readonly ingress?: { readonly hook: 'tc' | 'xdp'; readonly why: string };
  /** What new pods get, and why; undefined in boost mode, where flannel makes their devices. */
  readonly podDevice?: PodDeviceChoice;
  readonly ready: boolean;
  /** Why the agent is not ready. */
  readonly notReady?: string;
  /** One for each address family of the cluster, IPv4 first; none before the kernel path is in place. */
  readonly families: readonly {
    readonly network: string;
    readonly podCidr: string;
    /** Without tunnels (host-gw, alloc), only the address that peers route to. */
    readonly vtep: {
      readonly ip: string;
      readonly device?: string;
      readonly mac?: string;
    };
  }[];
  readonly uplink?: {
    readonly name: string;
    readonly mtu: number;
    readonly explanation: string;
  };
  readonly api: {
    readonly connected: boolean;
    readonly synced: boolean;
    /** The time since the last event or bookmark of the watch. */
    readonly lastEventAgeMs?: number;
    readonly lastError?: string;
    /**
     * The age of the last-known state, which the agent uses if nobody answered at its start; absent once all nodes are
     * known.
     */
    readonly lastKnownAgeMs?: number;
  };
  readonly peers: readonly {
    readonly name: string;
    readonly podCidr: string;
    readonly vtepIp: string;
    /** Absent: the fast path serves it, or nothing is decided yet. */
    readonly kernelPathOnly?: KernelPathOnly;
  }[];
  /** Packets between pods in the last minute; absent before there were programs. */
  readonly recent?: RecentTraffic;
  readonly alarms: readonly { readonly node: string; readonly kind: string; readonly reason: string }[];
  /** The targets, with the keys that are not in their desired state. */
  readonly targets: readonly TargetStatus[];
  readonly passes: {
    readonly count: number;
    readonly errors: number;
    readonly lastDurationMs: number;
    /** What is not as it should be now, in words: `target key: why`. The same as the targets' failures. */
    readonly lastErrors: readonly string[];
  };
}
