// SPDX-License-Identifier: Apache-2.0
import { type Command, InvalidArgumentError } from 'commander';
import type { AgentOptions } from '../agent/options.ts';
import { bpffsFlag, flag, runDirFlag } from './options.ts';

export function addAgentCommand(program: Command): void {
  program
    .command('agent')
    .description('run the data plane of this node')
    .addOption(flag('--node-name <name>', "this node's name in the cluster").makeOptionMandatory())
    .addOption(
      flag('--kubeconfig <file>', 'how to reach the API server (default: the service account of the pod)'),
    )
    .addOption(
      flag('--net-conf <file>', "flannel's net-conf.json").default('/etc/kube-flannel/net-conf.json'),
    )
    .addOption(
      flag('--mode <mode>', 'replace flannel (cni) or accelerate a running one (boost)')
        .choices(['auto', 'cni', 'boost'])
        .default('auto'),
    )
    .addOption(
      flag('--ingress <hook>', 'where to decapsulate').choices(['auto', 'tc', 'xdp']).default('auto'),
    )
    .addOption(flag('--iface <name>', 'the uplink, by name or address'))
    .addOption(flag('--iface-regex <regex>', 'the uplink, by a pattern of its address or name'))
    .addOption(flag('--iface-can-reach <ip>', 'the uplink that leads to this address'))
    .addOption(bpffsFlag())
    .addOption(runDirFlag())
    .addOption(
      flag('--subnet-file <file>', 'what flannel tells CNI plugins').default('/run/flannel/subnet.env'),
    )
    .addOption(
      flag('--metrics-addr <host:port>', 'where to serve /metrics, /healthz, /readyz').default(
        '127.0.0.1:9480',
      ),
    )
    .addOption(
      flag('--ipam-dir <path>', 'where host-local keeps its leases').default('/var/lib/cni/networks'),
    )
    .addOption(
      flag('--ip-masq [true|false]', 'masquerade what pods send out of the cluster network')
        .argParser(parseBoolean)
        .preset('true')
        .default(true),
    )
    .addOption(
      flag('--log-level <level>', 'what to log').choices(['debug', 'info', 'warn', 'error']).default('info'),
    )
    .action(async (options: AgentOptions & { logLevel: string }) => {
      const { pino } = await import('pino');
      const { runAgent } = await import('../agent/agent.ts');
      const log = pino({ level: options.logLevel, base: { node: options.nodeName } });
      const stop = new AbortController();
      for (const signal of ['SIGINT', 'SIGTERM'] as const) {
        process.on(signal, () => {
          log.info({ signal }, 'stopping; what is pinned keeps forwarding');
          stop.abort();
        });
      }
      await runAgent(options, log, stop.signal);
    });
}

/** As Go's flag package reads a boolean, for manifests that were written for flannel. */
function parseBoolean(text: string): boolean {
  if (['true', '1', 't'].includes(text.toLowerCase())) return true;
  if (['false', '0', 'f'].includes(text.toLowerCase())) return false;
  throw new InvalidArgumentError('Say true or false.');
}
