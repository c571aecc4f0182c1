// SPDX-License-Identifier: Apache-2.0
import type { Command } from 'commander';
import { RipstopError } from '../errors.ts';
import { flag } from './options.ts';
import { outputFlag, print } from './output.ts';
import type { LabFlags, LabStatus } from '../lab/index.ts';

/** `--name` ↔ `RIPSTOP_LAB`, for every lab command. */
const nameFlag = () => flag('--name <name>', 'the name of the lab').env('RIPSTOP_LAB').default('lab');

export function addLabCommands(program: Command): void {
  const lab = program.command('lab').description('a cluster of network namespaces on this machine');

  lab
    .command('up')
    .description('raise a lab cluster')
    .addOption(flag('--nodes <n>', 'number of nodes'))
    .addOption(flag('--pods <n>', 'number of pods on each node'))
    .addOption(flag('--datapath <path>', 'ripstop, flannel or host, for all nodes or one for each: a,b,c'))
    .addOption(flag('--mode <mode>', 'how ripstop runs: cni, in place of flannel; or boost, beside it'))
    .addOption(
      flag(
        '--wire <wire>',
        'gso: super-packets cross the wire; mtu: packets of at most MTU size, as on a NIC',
      ),
    )
    .addOption(flag('--mtu <bytes>', 'MTU of the uplinks'))
    .addOption(flag('--network <cidr>', "the IPv4 network of pods' addresses"))
    .addOption(flag('--ipv6', 'dual-stack: IPv6 beside IPv4, on the underlay and for pods'))
    .addOption(
      flag('--direct-routing', 'no tunnel between nodes on the same L2, which all nodes of a lab are'),
    )
    .addOption(flag('--backend <type>', 'vxlan, host-gw or alloc'))
    .addOption(flag('--kube-proxy <mode>', "kube-proxy's rules on every node: iptables, nftables or none"))
    .addOption(nameFlag())
    .action(async (flags: LabFlags) => {
      const { labSteps, labUp, parseLabOptions } = await loadLab();
      const options = parseLabOptions(flags);
      const { showProgress } = await import('./progress.ts');
      const status = await showProgress(labSteps(options), (progress) => labUp(options, progress));
      process.stdout.write(statusText(status));
    });

  lab
    .command('down')
    .description('take a lab down, also after a crash')
    .addOption(nameFlag())
    .action(async ({ name }: { name: string }) => {
      const { labDown } = await loadLab();
      console.log((await labDown(name)) ? `lab ${name} is down` : `there is no lab ${name}`);
    });

  lab
    .command('status')
    .description('the nodes and pods of a lab')
    .addOption(nameFlag())
    .addOption(outputFlag())
    .action(async ({ name, output }: { name: string; output: string }) => {
      const { labStatus } = await loadLab();
      const status = labStatus(name);
      await print(output, status, () => statusText(status));
    });

  lab
    .command('exec')
    .description('run a command in a node (node1), a pod (node1-pod1) or the underlay')
    .argument('<target>')
    .argument('<command...>')
    .addOption(nameFlag())
    .passThroughOptions()
    .action(async (target: string, command: string[], { name }: { name: string }) => {
      const { labExec } = await loadLab();
      // With passThroughOptions the `--` before the command arrives as its first word.
      process.exitCode = await labExec(name, target, command[0] === '--' ? command.slice(1) : command);
    });
}

/** The lab needs the source tree, which the image does not contain. */
export async function loadLab() {
  try {
    return await import('../lab/index.ts');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw cause;
    throw new RipstopError('the lab is not in the image; run it from a checkout of ripstop', { cause });
  }
}

function statusText(status: LabStatus): string {
  const columns = (...texts: (string | undefined)[]) => texts.filter((text) => text !== undefined).join('  ');
  const lines = status.nodes.flatMap(({ name, ip, ip6, podCIDR, podCIDR6, datapath, pods }) => [
    columns(name, ip, ip6, podCIDR, podCIDR6, datapath),
    ...pods.map((pod) => columns('', pod.name, pod.ip, pod.ip6)),
  ]);
  return lines.map((line) => `${line}\n`).join('');
}
