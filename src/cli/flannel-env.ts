// SPDX-License-Identifier: Apache-2.0

/** What flannel reads from its environment and ripstop has no use for, and why. */
const IGNORED: Readonly<Record<string, string>> = {
  FLANNELD_HEALTHZ_IP: '/healthz and /readyz are served where --metrics-addr says',
  FLANNELD_HEALTHZ_PORT: '/healthz and /readyz are served where --metrics-addr says',
  FLANNELD_IPTABLES_RESYNC: 'rules are compared when something changes them, and now and then',
  FLANNELD_IPTABLES_FORWARD_RULES: 'pods’ traffic is always let through, by an nftables table of its own',
  FLANNELD_IP_BLACKHOLE_ROUTE: 'an unreachable route for the podCIDR is always there',
  FLANNELD_SUBNET_LEASE_RENEW_MARGIN: 'a lease in etcd is renewed from a third of its time on',
  FLANNELD_KUBE_API_URL: 'the API server is the one of --kubeconfig or of the service account',
  CONT_WHEN_CACHE_NOT_READY: 'what is pinned always goes on forwarding until the Nodes are known',
  EVENT_QUEUE_DEPTH: 'there is no queue: events only say that it is time to look again',
};

/**
 * flannel's variables that are set in `env` and change nothing here, each with the reason. flannel, too, takes an empty
 * one for unset.
 * @param read the variables that ripstop's flags read.
 */
export function ignoredFlannelVariables(
  env: NodeJS.ProcessEnv,
  read: ReadonlySet<string>,
): Record<string, string> {
  const ignored = Object.keys(env).filter(
    (name) => env[name] && !read.has(name) && (name.startsWith('FLANNELD_') || name in IGNORED),
  );
  return Object.fromEntries(
    ignored.toSorted().map((name) => [name, IGNORED[name] ?? 'ripstop has no such setting']),
  );
}
