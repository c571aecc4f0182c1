// SPDX-License-Identifier: Apache-2.0

/** The variables of flannel that ripstop ignores, each with the reason. */
const IGNORED: Readonly<Record<string, string>> = {
  FLANNELD_HEALTHZ_IP: 'set --healthz-addr=HOST:PORT',
  FLANNELD_HEALTHZ_PORT: 'set --healthz-addr=HOST:PORT',
  FLANNELD_IPTABLES_RESYNC: 'rules are compared after every change to them, and periodically',
  FLANNELD_IPTABLES_FORWARD_RULES: 'pods’ traffic is always accepted, by an nftables table of ripstop’s own',
  FLANNELD_IP_BLACKHOLE_ROUTE: 'there is always an unreachable route for the podCIDR',
  FLANNELD_SUBNET_LEASE_RENEW_MARGIN: 'a lease in etcd is renewed once a third of its lifetime has passed',
  FLANNELD_KUBE_API_URL: '--kubeconfig or the service account names the API server',
  CONT_WHEN_CACHE_NOT_READY: 'the pinned programs always keep forwarding until the Nodes are known',
  EVENT_QUEUE_DEPTH: 'there is no queue: an event only starts a reconcile pass',
};

/**
 * flannel's variables that are set in `env` and that ripstop ignores, each with the reason. An empty one counts as
 * unset, as it does for flannel.
 * @param read the variables that ripstop's flags read
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
