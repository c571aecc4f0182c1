// SPDX-License-Identifier: Apache-2.0
import type { Outcome } from '../dataplane/reconcile.ts';

/** What only the running agent knows, as /status answers it. Everything else, readers take from the pinned maps. */
export interface AgentStatus {
  readonly node: string;
  readonly mode: 'cni';
  readonly ingress: 'tc';
  readonly ready: boolean;
  /** Why not, when not. */
  readonly notReady?: string;
  readonly podCidr?: string;
  readonly network?: string;
  readonly vtep?: { readonly device: string; readonly mac: string };
  readonly uplink?: {
    readonly name: string;
    readonly ip: string;
    readonly mtu: number;
    readonly explanation: string;
  };
  readonly api: {
    readonly connected: boolean;
    readonly synced: boolean;
    /** Since the last event or bookmark of the watch. */
    readonly lastEventAgeMs?: number;
    readonly lastError?: string;
  };
  readonly peers: readonly { readonly name: string; readonly podCidr: string; readonly vtepIp: string }[];
  readonly alarms: readonly { readonly node: string; readonly reason: string }[];
  readonly passes: {
    readonly count: number;
    readonly errors: number;
    readonly lastDurationMs: number;
    readonly lastErrors: readonly Outcome[];
  };
}
