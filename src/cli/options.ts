// SPDX-License-Identifier: Apache-2.0
import { type Command, InvalidArgumentError, Option } from 'commander';
import { DEFAULT_ANNOTATION_PREFIX } from '../cluster/annotations.ts';

/** A flag, and the environment variables that it reads: the first one that is set counts. */
export class Flag extends Option {
  readonly variables: readonly string[];

  /** @param others variables of other programs with the same meaning, ignored when they are empty */
  constructor(flags: string, description: string, others: readonly string[]) {
    super(flags, description);
    const own = `RIPSTOP_${this.name().toUpperCase().replaceAll('-', '_')}`;
    this.variables = [own, ...others];
    // commander supports one variable for each option, which it names when the value is wrong.
    this.env(own in process.env ? own : (others.find((name) => process.env[name]) ?? own));
  }
}

/** `--node-name` ↔ `RIPSTOP_NODE_NAME`: every flag also reads its environment variable, and may read others. */
export function flag(flags: string, description: string, ...others: string[]): Flag {
  return new Flag(flags, description, others);
}

export const bpffsFlag = (): Option =>
  flag('--bpffs <path>', 'the BPF file system for the pins').default('/sys/fs/bpf');
export const runDirFlag = (): Option =>
  flag('--run-dir <path>', "the agent's run directory").default('/run/ripstop');

/** The exit code of a reader that has found something that a person must look at. */
export const FOUND = 3;

/** The examples of a command's help: each with what it shows. */
export function examples(lines: readonly (readonly [command: string, shows: string])[]): string {
  const width = Math.max(...lines.map(([command]) => command.length));
  return `\nExamples:\n${lines.map(([command, shows]) => `  ripstop ${command.padEnd(width)}  ${shows}\n`).join('')}`;
}

/** A flag that is true by default; `--flag` and `--flag=true` are the same. */
export function booleanFlag(flags: string, description: string, ...others: string[]): Flag {
  const option = flag(flags, description, ...others);
  option.argParser(parseBoolean).preset('true').default(true);
  return option;
}

/** How masqueraded connections get their source port, for the agent and for what it leaves to flannel. */
export function fullyRandomDisableFlag(): Option {
  return booleanFlag(
    '--ip-masq-fully-random-disable [bool]',
    'let a masqueraded connection keep its source port where that is free, instead of a random one',
    'FLANNELD_IP_MASQ_FULLY_RANDOM_DISABLE',
  ).default(false);
}

/** As Go's flag package reads a boolean, for manifests that were written for flannel. */
function parseBoolean(text: string): boolean {
  if (['true', '1', 't'].includes(text.toLowerCase())) return true;
  if (['false', '0', 'f'].includes(text.toLowerCase())) return false;
  throw new InvalidArgumentError('Give true or false.');
}

/** Flags for the source of the cluster's configuration, and for the node's directories. */
export function addNodeFlags(command: Command): Command {
  const flags: Option[] = [
    flag(
      '--kubeconfig <file>',
      'how to reach the API server (default: the service account of the pod)',
      'FLANNELD_KUBECONFIG_FILE',
    ),
    flag('--net-conf <file>', "flannel's net-conf.json", 'FLANNELD_NET_CONFIG_PATH').default(
      '/etc/kube-flannel/net-conf.json',
    ),
    flag(
      '--kube-annotation-prefix <prefix>',
      "the prefix of flannel's annotations on Nodes",
      'FLANNELD_KUBE_ANNOTATION_PREFIX',
    ).default(DEFAULT_ANNOTATION_PREFIX),
    bpffsFlag(),
    runDirFlag(),
    flag('--state-dir <path>', "the agent's directory for state that must outlive a reboot").default(
      '/var/lib/ripstop',
    ),
    flag('--subnet-file <file>', "flannel's subnet.env, for CNI plugins", 'FLANNELD_SUBNET_FILE').default(
      '/run/flannel/subnet.env',
    ),
    flag('--ipam-dir <path>', "the directory of host-local's leases").default('/var/lib/cni/networks'),
    flag('--cni-conf-dir <path>', "the container runtime's network configurations").default('/etc/cni/net.d'),
  ];
  for (const one of flags) command.addOption(one);
  return command;
}
