// SPDX-License-Identifier: Apache-2.0
import type { TargetStatus } from '../reconcile/reconciled.ts';

/** What only the running agent knows, as /status answers it. Everything else, readers take from the pinned maps. */
export interface AgentStatus {
  readonly node: string;
  readonly mode: 'cni';
  /** Where packets from the wire are decapsulated, and why there; undefined before that is decided. */
  readonly ingress?: { readonly hook: 'tc' | 'xdp'; readonly why: string };
  readonly ready: boolean;
  /** Why not, when not. */
  readonly notReady?: string;
  /** One for each address family that the cluster has, IPv4 first; none before the kernel path stands. */
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
    /** Since the last event or bookmark of the watch. */
    readonly lastEventAgeMs?: number;
    readonly lastError?: string;
    /** Running on what was known so long ago, for nobody answered at the start; absent once all nodes are seen. */
    readonly lastKnownAgeMs?: number;
  };
  readonly peers: readonly { readonly name: string; readonly podCidr: string; readonly vtepIp: string }[];
  readonly alarms: readonly { readonly node: string; readonly kind: string; readonly reason: string }[];
  /** Everything that the agent keeps as it should be, and what of it is not. */
  readonly targets: readonly TargetStatus[];
  readonly passes: {
    readonly count: number;
    readonly errors: number;
    readonly lastDurationMs: number;
  };
}
