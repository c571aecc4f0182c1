// SPDX-License-Identifier: Apache-2.0
/** What sigs.k8s.io/kube-network-policies needs of a node, wherever a test runs it. */
import { tryRun } from '../../src/host/run.ts';
import type { ApiAccess } from '../../src/lab/kube.ts';

/** The queue that it takes packets from. */
const QUEUE = 98;

/** Why it cannot work on this kernel, in one line; undefined when it can. */
export async function whyNoQueue(): Promise<string | undefined> {
  const rule = `queue num ${QUEUE} bypass`;
  const stdin = `table inet probe { chain c { type filter hook forward priority 0; ${rule}; }; }`;
  const { code } = await tryRun('unshare', ['--net', 'nft', '-f', '-'], { stdin });
  return code === 0
    ? undefined
    : `kube-network-policies needs nftables' "queue", which this kernel has not (CONFIG_NFT_QUEUE)`;
}

/** Where a program looks for the API server that a kubelet tells its pod of. */
const ACCOUNT = '/var/run/secrets/kubernetes.io/serviceaccount';

/**
 * The command for one node, to be run in its network namespace, and its environment. The program reads no kubeconfig: it
 * knows the API server only as pods do. So it gets a /run of its own, with the files of a service account.
 */
export function kubeNetworkPolicies(
  program: string,
  nodeName: string,
  { url, ca, token }: ApiAccess,
): { argv: readonly [string, ...string[]]; env: NodeJS.ProcessEnv } {
  const { hostname, port } = new URL(url);
  const script = `mount -t tmpfs run /run && mkdir -p ${ACCOUNT} && echo "$CA" >${ACCOUNT}/ca.crt && echo "$TOKEN" >${ACCOUNT}/token && exec "$0" "$@"`;
  const flags = [`--hostname-override=${nodeName}`, `--nfqueue-id=${QUEUE}`, '--disable-nri'];
  return {
    argv: ['unshare', '--mount', 'sh', '-c', script, program, ...flags],
    env: {
      ...process.env,
      KUBERNETES_SERVICE_HOST: hostname,
      KUBERNETES_SERVICE_PORT: port,
      CA: ca,
      TOKEN: token,
    },
  };
}
