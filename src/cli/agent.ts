// SPDX-License-Identifier: Apache-2.0
import { type Command, InvalidArgumentError } from 'commander';
import type { AgentOptions } from '../agent/options.ts';
import { addressFamily, canonicalAddress, type Family } from '../net/ip.ts';
import { addEtcdFlags, type EtcdFlags, withEtcd } from './etcd-flags.ts';
import { ignoredFlannelVariables } from './flannel-env.ts';
import { addNodeFlags, booleanFlag, Flag, flag, fullyRandomDisableFlag } from './options.ts';

export function addAgentCommand(program: Command): void {
  const agent = addNodeFlags(program.command('agent'))
    .description('run the data plane of this node')
    .addOption(
      flag('--node-name <name>', "this node's name in the cluster", 'NODE_NAME').makeOptionMandatory(),
    )
    .addOption(
      booleanFlag(
        '--set-node-network-unavailable [bool]',
        "clear the Node's condition NetworkUnavailable once the network is there",
        'FLANNELD_SET_NODE_NETWORK_UNAVAILABLE',
      ),
    )
    .addOption(
      flag(
        '--mode <mode>',
        'cni replaces flannel; boost makes the pods of a running flannel fast; auto: boost where a flannel runs',
      )
        .choices(['auto', 'cni', 'boost'])
        .default('auto'),
    )
    .addOption(
      flag('--ingress <hook>', 'where to decapsulate').choices(['auto', 'tc', 'xdp']).default('auto'),
    )
    .addOption(
      flag('--pod-device <kind>', 'what new pods get, in mode cni; auto: a veth, even where netkit works')
        .choices(['auto', 'veth', 'netkit'])
        .default('auto'),
    )
    .addOption(
      flag(
        '--flow-table-size <n>',
        'room for flows, in each address family; more are carried by the kernel path',
      )
        .argParser(flowTableSize)
        .default(131_072),
    );
  addUplinkFlags(agent);
  addServingFlags(agent)
    .addOption(
      booleanFlag(
        '--ip-masq [true|false]',
        'masquerade what pods send out of the cluster network',
        'FLANNELD_IP_MASQ',
      ),
    )
    .addOption(fullyRandomDisableFlag());
  addCniFlags(agent)
    .addOption(
      flag('--log-level <level>', 'what to log').choices(['debug', 'info', 'warn', 'error']).default('info'),
    )
    .action(run);
  addEtcdFlags(agent);
}

function addServingFlags(command: Command): Command {
  return command
    .addOption(
      flag('--metrics-addr <host:port>', 'where to serve /metrics, /healthz, /readyz').default(
        '127.0.0.1:9480',
      ),
    )
    .addOption(
      flag(
        '--metrics-top <n>',
        'how many peers, and how many pods, have metrics of their own: the largest by bytes',
      )
        .argParser(metricsTop)
        .default(250),
    )
    .addOption(
      flag(
        '--healthz-addr <host:port>',
        "where to serve /healthz and /readyz too, such as :8081, which is flannel's port",
      ),
    );
}

function addCniFlags(command: Command): Command {
  return command
    .addOption(
      flag(
        '--cni-conf <file>',
        'the network configuration to install in --cni-conf-dir once pods can be wired',
      ),
    )
    .addOption(
      flag(
        '--cni-plugins <path>',
        "the container runtime's plugins, to be asked which of the cniVersions in --cni-conf they support",
      ),
    );
}

function addUplinkFlags(command: Command): Command {
  return command
    .addOption(
      flag(
        '--iface <name>',
        'the uplink, by name or address; of several (repeated, or with commas) the first that exists',
        'FLANNELD_IFACE',
      ).argParser((text, before?: string[]) => [...(before ?? []), ...text.split(',')]),
    )
    .addOption(
      flag(
        '--iface-regex <regex>',
        'the uplink, by a pattern of its address or name; may be repeated',
        'FLANNELD_IFACE_REGEX',
      ).argParser((text, before?: string[]) => [...(before ?? []), text]),
    )
    .addOption(
      flag('--iface-can-reach <ip>', 'the uplink that leads to this address', 'FLANNELD_IFACE_CAN_REACH'),
    )
    .addOption(
      flag(
        '--public-ip <ip>',
        'the VTEP address to publish; selects the uplink too, unless --iface… does',
        'FLANNELD_PUBLIC_IP',
      ).argParser(addressParser(4)),
    )
    .addOption(
      flag('--public-ipv6 <ip>', 'the same for IPv6', 'FLANNELD_PUBLIC_IPV6').argParser(addressParser(6)),
    );
}

async function run(flags: AgentFlags, command: Command): Promise<void> {
  const { keepHeapSmall } = await import('../agent/memory.ts');
  keepHeapSmall();
  const { pino } = await import('pino');
  const { runAgent } = await import('../agent/process.ts');
  const log = pino({ level: flags.logLevel, base: { node: flags.nodeName } });
  const read = new Set(command.options.flatMap((option) => (option instanceof Flag ? option.variables : [])));
  const ignored = ignoredFlannelVariables(process.env, read);
  if (Object.keys(ignored).length > 0)
    log.warn({ variables: ignored }, 'ripstop does not read these variables of flannel');
  const stop = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => {
      log.info({ signal }, 'stopping; the pinned programs keep forwarding');
      stop.abort();
    });
  }
  await runAgent(agentOptions(flags), log, stop.signal);
}

export interface AgentFlags
  extends Omit<AgentOptions, 'publicIp' | 'annotationPrefix' | 'etcd' | 'cniConf'>, EtcdFlags {
  cniConf?: string;
  cniPlugins?: string;
  cniConfDir: string;
  publicIp?: string;
  publicIpv6?: string;
  kubeAnnotationPrefix: string;
  logLevel: string;
}

/** What the command line means. */
export function agentOptions(flags: AgentFlags): AgentOptions {
  const { publicIp, publicIpv6, kubeAnnotationPrefix, cniConf, cniConfDir, cniPlugins, ...same } =
    withEtcd(flags);
  return {
    ...same,
    publicIp: {
      ...(publicIp !== undefined && { v4: publicIp }),
      ...(publicIpv6 !== undefined && { v6: publicIpv6 }),
    },
    annotationPrefix: kubeAnnotationPrefix,
    ...(cniConf !== undefined && { cniConf: { source: cniConf, dir: cniConfDir, pluginDir: cniPlugins } }),
  };
}

/** The kernel rounds an LRU table of a few entries up, and refuses one of more than its memory. */
function flowTableSize(text: string): number {
  const size = Number(text);
  if (!Number.isInteger(size) || size < 1024 || size > 2 ** 24)
    throw new InvalidArgumentError('Give a whole number from 1024 to 16777216.');
  return size;
}

function metricsTop(text: string): number {
  const top = Number(text);
  if (text.trim() === '' || !Number.isInteger(top) || top < 0 || top > 1000)
    throw new InvalidArgumentError('Give a whole number from 0 to 1000.');
  return top;
}

function addressParser(family: Family): (text: string) => string {
  return (text) => {
    if (addressFamily(text) !== family) throw new InvalidArgumentError(`Give an IPv${family} address.`);
    return canonicalAddress(text);
  };
}
