// SPDX-License-Identifier: Apache-2.0
import { type Command, InvalidArgumentError, Option } from 'commander';
import { DEFAULT_ANNOTATION_PREFIX } from '../cluster/annotations.ts';

/** A flag and the environment variables that it reads, the first that is set before the others. */
export class Flag extends Option {
  readonly variables: readonly string[];

  /** @param others variables of other programs that mean the same; they count only when they are not empty. */
  constructor(flags: string, description: string, others: readonly string[]) {
    super(flags, description);
    const own = `RIPSTOP_${this.name().toUpperCase().replaceAll('-', '_')}`;
    this.variables = [own, ...others];
    // commander knows one variable for an option, and names it when its value is wrong.
    this.env(own in process.env ? own : (others.find((name) => process.env[name]) ?? own));
  }
}

/** `--node-name` ↔ `RIPSTOP_NODE_NAME`: every flag also reads its environment variable, and may read others. */
export function flag(flags: string, description: string, ...others: string[]): Flag {
  return new Flag(flags, description, others);
}

export const bpffsFlag = (): Option =>
  flag('--bpffs <path>', 'BPF file system with the pins').default('/sys/fs/bpf');
export const runDirFlag = (): Option =>
  flag('--run-dir <path>', "the agent's run directory").default('/run/ripstop');
export const outputFlag = (): Option =>
  flag('-o, --output <format>', 'how to print').choices(['table', 'json']).default('table');

/** On unless told otherwise; `--flag` and `--flag=true` are the same. */
export function booleanFlag(flags: string, description: string, ...others: string[]): Flag {
  const option = flag(flags, description, ...others);
  option.argParser(parseBoolean).preset('true').default(true);
  return option;
}

/** As Go's flag package reads a boolean, for manifests that were written for flannel. */
function parseBoolean(text: string): boolean {
  if (['true', '1', 't'].includes(text.toLowerCase())) return true;
  if (['false', '0', 'f'].includes(text.toLowerCase())) return false;
  throw new InvalidArgumentError('Say true or false.');
}

/** Where the cluster's configuration comes from, and where this node keeps its things. */
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
      'what the annotations of nodes begin with',
      'FLANNELD_KUBE_ANNOTATION_PREFIX',
    ).default(DEFAULT_ANNOTATION_PREFIX),
    bpffsFlag(),
    runDirFlag(),
    flag('--state-dir <path>', 'where the agent keeps what must outlive a reboot').default(
      '/var/lib/ripstop',
    ),
    flag('--subnet-file <file>', 'what flannel tells CNI plugins', 'FLANNELD_SUBNET_FILE').default(
      '/run/flannel/subnet.env',
    ),
    flag('--ipam-dir <path>', 'where host-local keeps its leases').default('/var/lib/cni/networks'),
    flag('--cni-conf-dir <path>', "the container runtime's network configurations").default('/etc/cni/net.d'),
  ];
  for (const one of flags) command.addOption(one);
  return command;
}
