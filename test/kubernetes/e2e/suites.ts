// SPDX-License-Identifier: Apache-2.0
import type { ProxyMode } from '../state.ts';

/** The suites of Kubernetes' own network tests, with their clusters. */

/** A NetworkPolicy engine that works beside ripstop or flannel. */
export type PolicyEngine = 'kube-router' | 'kube-network-policies';

/** Specs that are not run, and why. */
export interface LeftOut {
  readonly reason: string;
  /** A regular expression for names of specs, valid in Go and JavaScript. */
  readonly pattern: string;
}

/** A suite: a cluster of its own, and the specs that run on it. */
export interface Suite {
  /** Its name for `--only`. */
  readonly name: string;
  readonly title: string;
  readonly proxyMode: ProxyMode;
  readonly dualStack: boolean;
  readonly engine?: PolicyEngine;
  /** The names of its specs: a regular expression, as {@link LeftOut.pattern}. */
  readonly focus: string;
  readonly leftOut: readonly LeftOut[];
}

const NETWORK = '\\[sig-network\\]';
const DUAL_STACK = '\\[Feature:IPv6DualStack\\]';
const POLICY = '\\[Feature:NetworkPolicy\\]';

const SCTP: LeftOut = {
  reason: 'needs SCTP in the kernel',
  pattern: '\\[Feature:SCTPConnectivity\\]',
};

/** Specs that need what no cluster here has. */
const NOT_HERE: readonly LeftOut[] = [
  { reason: "needs a cloud's load balancer", pattern: '\\[Feature:LoadBalancer\\]' },
  { reason: 'needs the cloud GCE', pattern: '\\[Provider:GCE\\]' },
  { reason: 'needs the Internet', pattern: '\\[Feature:Networking-(IPv4|IPv6|DNS)\\]|Forward PTR lookup' },
  SCTP,
  {
    reason: 'needs kube-proxy as a pod, here it is a service of the node',
    pattern: '\\[Feature:KubeProxyDaemonSetMigration\\]',
  },
  {
    reason: 'makes 10,000 Services and measures the control plane, not the network',
    pattern: '\\[Feature:PerformanceDNS\\]',
  },
  {
    reason: "measures throughput, and reads the output of an iperf that is newer than Debian's",
    pattern: '\\[Feature:Networking-Performance\\]',
  },
];

/** All network specs except those of dual stack and of policies, which have runs of their own. */
const singleStack = (proxyMode: ProxyMode): Suite => ({
  name: `e2e-${proxyMode}`,
  title: `kube-proxy in ${proxyMode} mode`,
  proxyMode,
  dualStack: false,
  focus: NETWORK,
  leftOut: [
    ...NOT_HERE,
    { reason: 'is for the run e2e-dual-stack', pattern: DUAL_STACK },
    { reason: 'is for the runs e2e-policies-…', pattern: POLICY },
  ],
});

const policies = (engine: PolicyEngine): Suite => ({
  name: `e2e-policies-${engine}`,
  title: `NetworkPolicies, enforced by ${engine} beside ripstop`,
  proxyMode: 'iptables',
  dualStack: false,
  engine,
  focus: `${NETWORK}.*${POLICY}`,
  leftOut: [SCTP],
});

export const suites: readonly Suite[] = [
  singleStack('iptables'),
  singleStack('nftables'),
  {
    name: 'e2e-dual-stack',
    title: 'IPv4 and IPv6, kube-proxy in iptables mode',
    proxyMode: 'iptables',
    dualStack: true,
    focus: `${NETWORK}.*${DUAL_STACK}`,
    leftOut: [SCTP],
  },
  policies('kube-router'),
  policies('kube-network-policies'),
];
