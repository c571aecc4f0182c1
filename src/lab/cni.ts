// SPDX-License-Identifier: Apache-2.0
import { inNetns } from '#netlink';
import { RipstopError } from '../errors.ts';
import { tryRun } from '../host/run.ts';
import { addressFamily } from '../net/ip.ts';
import { netnsPath } from './netns.ts';

/** The directory of Debian's containernetworking-plugins: bridge, host-local, and others. */
export const CNI_PLUGINS = '/usr/lib/cni';

/** One call of a CNI plugin, as a container runtime makes it (CNI 1.1, section 2). */
export interface CniCall {
  command: 'ADD' | 'DEL' | 'CHECK' | 'STATUS' | 'VERSION';
  /** Path of the plugin. */
  plugin: string;
  /** The network configuration, which the plugin reads from standard input. */
  config: Record<string, unknown>;
  /** Name of the network namespace that acts as the host. */
  hostNetns: string;
  /** The container. STATUS and VERSION need none. */
  container?: { id: string; netns: string; pod: string };
  /** Further environment, e.g. the agent's socket. */
  env?: Record<string, string>;
}

/** A datapath's CNI plugin: its path, configuration and environment. */
export type CniPlugin = Pick<CniCall, 'plugin' | 'config' | 'env'>;

/**
 * Call the plugin inside the node's namespace. Returns its output, parsed.
 * @throws RipstopError with the plugin's own code, message and details when it fails.
 */
export async function callCni(call: CniCall): Promise<unknown> {
  const { container } = call;
  const options = {
    stdin: JSON.stringify(call.config),
    env: {
      PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin',
      CNI_COMMAND: call.command,
      CNI_PATH: CNI_PLUGINS,
      ...(container && {
        CNI_CONTAINERID: container.id,
        CNI_NETNS: netnsPath(container.netns),
        CNI_IFNAME: 'eth0',
        CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=${container.pod}`,
      }),
      ...call.env,
    },
  };
  // A runtime is in the host's namespace already: nsenter would take as long as the whole start of a plugin.
  const started = inNetns(netnsPath(call.hostNetns), () => tryRun(call.plugin, [], options));
  const { code, stdout, stderr } = await started;
  const answer = parseJson(stdout);
  if (code === 0) return answer;
  const error = (answer ?? {}) as { code?: number; msg?: string; details?: string };
  const message = error.msg ?? (stderr.trim() || stdout.trim() || `exit code ${code}, no output`);
  throw new RipstopError(
    `CNI ${call.command} by ${call.plugin} failed with code ${error.code ?? 'none'}: ${message}`,
    { details: [error.details, stderr.trim()].filter(Boolean).join('\n') },
  );
}

/** The first address of each family in an ADD result. @throws RipstopError when it has no IPv4 address. */
export function resultAddresses(result: unknown): { ip: string; ip6?: string } {
  const { ips = [] } = (result ?? {}) as { ips?: { address?: string }[] };
  const addresses = ips.map(({ address = '' }) => address.split('/')[0]!);
  const [ip, ip6] = ([4, 6] as const).map((family) =>
    addresses.find((text) => addressFamily(text) === family),
  );
  if (ip !== undefined) return { ip, ...(ip6 !== undefined && { ip6 }) };
  throw new RipstopError('the CNI plugin gave the pod no IPv4 address; its answer is under --verbose', {
    details: JSON.stringify(result),
  });
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}
